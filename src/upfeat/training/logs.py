"""What a run notes of its steps: means, ``log.csv``, TensorBoard events, and signs of failure."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upfeat._files import write_bytes
from upfeat.errors import UpfeatError, import_optional
from upfeat.training.config import StopConfig

SMOOTHING = 0.98
SETTLING_STEPS = 50


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
        purpose = "TensorBoard logs (logging.tensorboard=true)"
        module = "torch.utils.tensorboard"
        board = import_optional(module, "tensorboard", "tensorboard", purpose)
        self.writer: Any = board.SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))
        self.writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self.writer.close()


class TrainingFailedError(UpfeatError, RuntimeError):
    """A run that cannot go on; the message names the step, the batch and the last good state.

    Attributes:
        step: where it happened, counted from 1.
        files: the images of that step.
        checkpoint: the last checkpoint before it, or None.

    Example:
        >>> from upfeat.training import TrainingFailedError
        >>> print(TrainingFailedError("the loss is nan", 7, ["a.jpg"], None))
        step 7: the loss is nan. Images of this step: a.jpg. No checkpoint was written yet. Lower
        optimizer.lr, clip (clip.max_norm=1), use precision=fp32, or look at these images.
    """

    def __init__(
        self, reason: str, step: int, files: Sequence[str], checkpoint: Path | None
    ) -> None:
        self.step = step
        self.files = list(files)
        self.checkpoint = checkpoint
        kept = (
            f"Last good checkpoint: {checkpoint}" if checkpoint else "No checkpoint was written yet"
        )
        super().__init__(
            f"step {step}: {reason}. Images of this step: {', '.join(files) or 'not known'}. "
            f"{kept}. Lower optimizer.lr, clip (clip.max_norm=1), use precision=fp32, or look at "
            "these images."
        )


class LossGuard:
    """Watches the loss and the gradient's norm of each step."""

    def __init__(self, config: StopConfig) -> None:
        self.config = config
        self.smooth: float | None = None
        self.lowest = math.inf
        self.steps = 0
        self.skipped = 0

    def failure_reason(self, loss: float, gradient_norm: float) -> str | None:
        """Take a step into account; return what is wrong with the run, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self.skipped = 0 if math.isfinite(gradient_norm) else self.skipped + 1
        if self.skipped >= self.config.skipped_steps:
            return f"the gradient was not finite for {self.skipped} steps in a row"
        self.steps += 1
        self.smooth = (
            loss if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        )
        if self.steps >= SETTLING_STEPS:
            self.lowest = min(self.lowest, self.smooth)
        factor = self.config.divergence_factor
        if factor is not None and 0 < self.lowest * factor < self.smooth:
            return (
                f"the smoothed loss is {self.smooth:.4g}, over {factor:g} times its lowest value "
                f"{self.lowest:.4g} (stop.divergence_factor)"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what the judgement of later steps depends on."""
        return {name: getattr(self, name) for name in ("smooth", "lowest", "steps", "skipped")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.smooth, self.lowest = state["smooth"], state["lowest"]
        self.steps, self.skipped = state["steps"], state["skipped"]
