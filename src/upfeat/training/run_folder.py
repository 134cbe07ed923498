"""A run's folder: the states to continue from, and which files are the run's own.

Files are written whole or not at all, and no file that the run did not write is replaced.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from upfeat._files import OwnFiles, write_bytes
from upfeat.checkpoints import read_checkpoint
from upfeat.errors import CheckpointError, ForeignFileError
from upfeat.training.config import TrainConfig
from upfeat.upsamplers.files import RUN_LOG, RUN_MODEL, check_model_folder

__all__ = ["SnapshotFolder"]

logger = logging.getLogger(__name__)

MAKER = "upfeat train"
CONFIG_FILE = "config.json"
LOG_FILE = RUN_LOG
VALIDATION_FILE = "validation.csv"
CHECKPOINTS = "checkpoints"
MODEL = RUN_MODEL
BEST = "best.pt"
_NAME = re.compile(r"step-(\d{8})\.pt")


class SnapshotFolder:
    """Writes ``step-00001000.pt`` files and ``best.pt`` into a folder.

    Args:
        folder: created with the first file.
        keep_last: older step files are removed.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.training import SnapshotFolder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     snapshots = SnapshotFolder(pathlib.Path(folder), keep_last=2)
        ...     for step in (1, 2, 3):
        ...         _ = snapshots.save(step, {"step": step}, best=step == 2)
        ...     [path.name for path in snapshots.files()], snapshots.load()["step"]
        (['step-00000002.pt', 'step-00000003.pt'], 3)
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def files(self) -> list[Path]:
        """Return the step files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """Return the newest step file, or None."""
        files = self.files()
        return files[-1] if files else None

    def save(self, step: int, content: Mapping[str, Any], *, best: bool = False) -> Path:
        """Write a snapshot, then remove what is too old.

        Args:
            step: the step after which the state was taken.
            content: tensors and plain Python values only.
            best: also write it as ``best.pt``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        torch.save(dict(content), stream)
        data = stream.getvalue()
        # The best one first: were the process killed in between, the step is run again.
        if best:
            write_bytes(self.folder / BEST, data)
        path = self.folder / f"step-{step:08d}.pt"
        write_bytes(path, data)
        for old in self.files()[: -self.keep_last]:
            old.unlink(missing_ok=True)
        return path

    def load(self, accept: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any] | None:
        """Return the newest good snapshot on the CPU, or None if there is no file.

        Args:
            accept: called with what a file holds; a ``CheckpointError`` that it raises makes the
                next older file the candidate, as one that cannot be read does. Any other exception
                is passed on.

        Raises:
            CheckpointError: there are files, and none is good; the message names each.
        """
        problems = []
        for path in reversed(self.files()):
            try:
                content = read_checkpoint(path)
                if accept is not None:
                    accept(content)
            except CheckpointError as error:
                problems.append(f"{path}: {error}")
                logger.warning("%s is damaged and is passed over: %s", path, error)
            else:
                return content
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is good ({'; '.join(problems)}); remove the "
                "folder to start the run anew"
            )
        return None


def finished_steps(out: Path) -> int | None:
    """Return the last step of a run that has exported its model; None for any other folder."""
    newest = SnapshotFolder(out / CHECKPOINTS, 1).latest()
    if newest is None or not (out / MODEL / CONFIG_FILE).is_file():
        return None
    match = _NAME.fullmatch(newest.name)
    return None if match is None else int(match[1])


def check_run_folder(out: Path) -> None:
    """Refuse a folder in which a run would replace somebody else's file.

    A folder with checkpoints, or with a configuration that a run wrote, is a run's.

    Raises:
        ForeignFileError: it is no run's and holds a file of the same name, or its model is not
            what a run wrote.
    """
    check_model_folder(out / MODEL)
    if _has_run(out) or OwnFiles(out).wrote(CONFIG_FILE, MAKER):
        return
    for path in (
        out / CONFIG_FILE,
        out / LOG_FILE,
        out / VALIDATION_FILE,
        out / CHECKPOINTS / BEST,
    ):
        if os.path.lexists(path):
            raise ForeignFileError(
                f"{path} is there already, and no run of upfeat wrote it; name another folder for "
                "the run"
            )


def write_config(out: Path, config: TrainConfig) -> None:
    """Write ``config.json`` of a folder that :func:`check_run_folder` lets pass."""
    files = OwnFiles(out)
    if _has_run(out):
        files.adopt(CONFIG_FILE, MAKER)
    files.write(CONFIG_FILE, config.to_json().encode(), MAKER)


def _has_run(out: Path) -> bool:
    return SnapshotFolder(out / CHECKPOINTS, 1).latest() is not None
