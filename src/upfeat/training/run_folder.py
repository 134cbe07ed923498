"""Which files of a run's folder the run itself wrote, so that no other file is replaced."""

import os
from pathlib import Path

from upfeat._files import OwnFiles
from upfeat.errors import ForeignFileError
from upfeat.training.config import TrainConfig
from upfeat.training.snapshots import BEST, SnapshotFolder
from upfeat.upsamplers.weights import check_model_folder

MAKER = "upfeat train"
CONFIG_FILE = "config.json"
LOG_FILE = "log.csv"
CHECKPOINTS = "checkpoints"
MODEL = "model"


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
    for path in (out / CONFIG_FILE, out / LOG_FILE, out / CHECKPOINTS / BEST):
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
