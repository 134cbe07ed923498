"""What a protocol has measured of a data set so far, kept on disk until the result is there."""

import json
from pathlib import Path
from typing import Any

from upfeat._files import write_bytes

__all__ = ["Unfinished"]

SAVE_EVERY = 20  # items


class Unfinished:
    """The rows of one method, by the name of the item; written after every twentieth.

    Args:
        folder: of unfinished work.
        result: name of the result's file.
        settings: everything that decides the rows; those of other settings are not read.

    Attributes:
        rows: what was measured of each item, as JSON has it.

    Example:
        >>> import tempfile
        >>> from upfeat.evaluation.unfinished import Unfinished
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = Unfinished(folder, "result.json", {"side": 4})
        ...     first.put("image", [1.0])
        ...     first.save()
        ...     Unfinished(folder, "result.json", {"side": 4}).rows
        {'image': [1.0]}
    """

    def __init__(self, folder: str | Path, result: str, settings: dict[str, Any]) -> None:
        self.path, self.settings = Path(folder) / f"rows-{result}", settings
        self.rows: dict[str, Any] = {}
        if self.path.is_file():
            content = json.loads(self.path.read_text())
            if content["settings"] == settings:
                self.rows = content["rows"]

    def put(self, name: str, row: Any) -> None:
        """Add what was measured of an item."""
        self.rows[name] = row
        if len(self.rows) % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write all rows, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.settings, "rows": self.rows}
        write_bytes(self.path, json.dumps(content).encode())

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        self.path.unlink(missing_ok=True)
