"""A run's folder: the states to continue from, the exported model, which files are the run's own.

Files are written whole or not at all, and no file that the run did not write is replaced.
"""

import io
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import upfeat
from upfeat._files import OwnFiles, write_bytes
from upfeat.checkpoints import read_checkpoint
from upfeat.errors import CheckpointError, ForeignFileError
from upfeat.training.config import TrainConfig
from upfeat.upsamplers import Upsampler
from upfeat.upsamplers.cards import PLACE
from upfeat.upsamplers.files import RUN_LOG, RUN_MODEL, check_model_folder

logger = logging.getLogger(__name__)

MAKER = "upfeat train"
CONFIG_FILE = "config.json"
LOG_FILE = RUN_LOG
VALIDATION_FILE = "validation.csv"
CHECKPOINTS = "checkpoints"
MODEL = RUN_MODEL
BEST = "best.pt"
CURVE_ROWS = 10  # of the model card, about
_NAME = re.compile(r"step-(\d{8})\.pt")


class SnapshotFolder:
    """Writes ``step-00001000.pt`` files and ``best.pt`` into a folder.

    Args:
        folder: created with the first file.
        keep_last: older step files are removed.
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
        """Write a snapshot of tensors and plain values, as ``best.pt`` too; remove old ones."""
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
    for name in (CONFIG_FILE, LOG_FILE, VALIDATION_FILE, f"{CHECKPOINTS}/{BEST}"):
        path = out / name
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


# -- the exported model ----------------------------------------------------------------------------


def model_card(
    model: Upsampler,
    config: TrainConfig,
    data: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    seconds: float,
) -> str:
    """Return the model card: data, recipe, seed, hours, loss curve, licences, all settings."""
    name = model.info.name
    backbones = ", ".join(f"`{backbone.name}`" for backbone in config.backbones)
    parameters = sum(p.numel() for p in model.parameters())
    average = f", the average of the weights (decay {config.ema.decay})" if config.ema.decay else ""
    lines = [
        f"# {name} for {backbones}",
        "",
        f"{model.info.summary} {parameters:,} parameters{average}.",
        "",
        "```python",
        "import upfeat",
        f'upsampler = upfeat.Upsampler.from_pretrained("{PLACE}")',
        "```",
        "",
        "## Training",
        "",
        f"* Recipe: `{config.recipe}`, objective `{config.objective.name}`, seed {config.seed}.",
        f"* {config.steps:,} steps of {config.batch_size} images, {config.precision}, "
        f"{seconds / 3600:.2f} hours on {_machine(config)}.",
        f"* Data: {', '.join(f'{key} {value}' for key, value in data.items())}.",
        f"* upfeat {upfeat.__version__}, torch {torch.__version__}.",
        "",
        "## Loss curve",
        "",
        *_curve_table(curve),
        "",
        "## Licences",
        "",
        f"* Method and original code: {model.info.code_license or 'not stated'}"
        + (f" ({model.info.paper})" if model.info.paper else "")
        + ". These weights were trained from the images above; they are no copy of published "
        "weights" + _origin(config) + ".",
        "* The terms of the training images and of the backbone's weights apply to their use.",
        "",
        "## All settings",
        "",
        "```json",
        json.dumps(_without_folders(config.model_dump(mode="json")), indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _origin(config: TrainConfig) -> str:
    """Say which weights the run started from, if not from random ones."""
    start = config.upsampler.start_from
    if start is not None:
        return f", but started from those of {Path(start).parent.name}/{Path(start).name}"
    return f", but started from {config.upsampler.name}" if "." in config.upsampler.name else ""


def _without_folders(value: Any) -> Any:
    """Reduce absolute paths to their last part: a card shows nothing of a machine's disks."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _curve_table(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """Return about ten rows of the log, the last one always."""
    terms = [name for name in (curve[-1] if curve else {}) if name != "images_per_second"]
    stride = max(1, -(-len(curve) // CURVE_ROWS))
    rows = [*reversed(curve[::-1][::stride])]
    return [
        "| " + " | ".join(terms) + " |",
        "|" + " --- |" * len(terms),
        *(
            "| " + " | ".join(f"{row[t]:.5g}" if t in row else "" for t in terms) + " |"
            for row in rows
        ),
    ]


def _machine(config: TrainConfig) -> str:
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
