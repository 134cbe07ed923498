"""Numbers of a run as files: ``log.csv`` always, TensorBoard events on request."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upfeat._files import write_bytes
from upfeat.errors import MissingPackageError

__all__ = ["CsvLog", "Means", "TensorBoardLog", "read_log"]


class Means:
    """Running means of named numbers; its state is plain and goes into checkpoints.

    Example:
        >>> from upfeat.training import Means
        >>> means = Means()
        >>> means.add({"loss": 1.0})
        >>> means.add({"loss": 3.0})
        >>> means.take()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        """Take one more value of each name into account."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def read_log(path: Path) -> list[dict[str, float]]:
    """Read ``log.csv``: one dictionary of numbers a row; empty cells are left out.

    A last line that a killed process left half written is dropped.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(complete))
    return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


class CsvLog:
    """A CSV file with one row each interval, flushed row by row.

    Rows after ``start`` are removed first: a run that continues from step ``start`` writes them
    again. A name that appears later gets a new column.

    Args:
        path: the file.
        start: the step that the run continues after; 0 for a new run.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.training import CsvLog, read_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.csv")
        ...     CsvLog(path, 0).write({"step": 1, "loss": 0.5})
        ...     read_log(path)
        [{'step': 1.0, 'loss': 0.5}]
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        rows = [row for row in read_log(path) if row["step"] <= start]
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self._rewrite(rows)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row."""
        new = [name for name in row if name not in self.columns]
        if new:
            rows = read_log(self.path)
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(self._line(row))

    def _line(self, row: Mapping[str, float]) -> str:
        cells = (f"{row[name]:.9g}" if name in row else "" for name in self.columns)
        return ",".join(cells) + "\n"

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        if not self.columns:
            self.path.unlink(missing_ok=True)
            return
        lines = [",".join(self.columns) + "\n", *(self._line(row) for row in rows)]
        write_bytes(self.path, "".join(lines).encode())


class TensorBoardLog:
    """TensorBoard events beside ``log.csv``.

    Args:
        folder: of the event files.
        start: as in :class:`CsvLog`; later events of an earlier process are hidden.

    Raises:
        MissingPackageError: the extra ``[tensorboard]`` is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "tensorboard", "tensorboard", "TensorBoard logs (logging.tensorboard=true)"
            ) from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))
        self.writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self.writer.close()
