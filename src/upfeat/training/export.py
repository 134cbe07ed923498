"""The trained upsampler as a folder that anyone can load, with a model card that shows how."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import upfeat
from upfeat.backbones import Backbone
from upfeat.training.config import TrainConfig
from upfeat.upsamplers import Upsampler
from upfeat.upsamplers.cards import PLACE

__all__ = ["export_model", "model_card"]

CURVE_ROWS = 10


def export_model(
    model: Upsampler,
    folder: Path,
    config: TrainConfig,
    data: Mapping[str, Any],
    backbones: Sequence[Backbone],
    curve: Sequence[Mapping[str, float]],
    seconds: float,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and the model card.

    Args:
        model: what to write.
        folder: created if need be.
        config: of the run.
        data: what describes the images.
        backbones: of the run.
        curve: rows of the log.
        seconds: that training took.
    """
    card = model_card(model, config, data, curve, seconds)
    backbone = backbones[0] if len(backbones) == 1 else None
    model.save_pretrained(folder, card=card, backbone=backbone)


def model_card(
    model: Upsampler,
    config: TrainConfig,
    data: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    seconds: float,
) -> str:
    """Return the model card: data, recipe, seed, hours, loss curve, licences, all settings.

    Example:
        >>> import upfeat
        >>> from upfeat.training import create_recipe, model_card
        >>> config = create_recipe("jafar_small")
        >>> model = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=16)
        >>> card = model_card(model, config, {"images": 2}, [{"step": 1, "loss": 0.5}], 7200.0)
        >>> "2.00 hours" in card
        True
    """
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
    terms = [name for name in (curve[-1] if curve else {}) if name not in ("images_per_second",)]
    stride = max(1, -(-len(curve) // CURVE_ROWS))
    rows = [*reversed(curve[::-1][::stride])]
    return [
        "| " + " | ".join(terms) + " |",
        "|" + " --- |" * len(terms),
        *("| " + " | ".join(_cell(row.get(name)) for name in terms) + " |" for row in rows),
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _machine(config: TrainConfig) -> str:
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
