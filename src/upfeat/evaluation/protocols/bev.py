"""Vehicles seen from above: three networks on upsampled features of six cameras (JAFAR, table 4).

The backbone is frozen. The upsampler is trained from scratch together with neck, network and heads,
as JAFAR's paper says; an entry without parameters trains the rest alone. The preset names the
network, the settings are those of PointBeV's code, which hosts all three. On the single key frame
of ``nuscenes_sample`` a reduced network learns that frame by heart: a check of the whole path, no
result to quote.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upfeat.backbones import Backbone
from upfeat.data.sets.nuscenes import DrivingData, nuscenes, nuscenes_sample
from upfeat.evaluation.methods import Method
from upfeat.evaluation.probes.bev.frames import BevFrames, view_settings
from upfeat.evaluation.probes.bev.lifting import BevGrid
from upfeat.evaluation.probes.bev.networks import BevConfig
from upfeat.evaluation.probes.bev.training import BevModel, BevTraining, History
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.pipeline import Pipeline

__all__ = ["DATA_SETS", "PRESETS", "bev_preset", "run_bev"]

TASK = "bev"

DATA_SETS: dict[str, Callable[..., DrivingData]] = {
    "nuscenes": nuscenes,
    "nuscenes_sample": nuscenes_sample,
}

# Chosen: what learns one key frame on a CPU in minutes.
_SAMPLE: dict[str, Any] = {
    "image_size": "112x224",
    "width": 16,
    "neck_width": 32,
    "embedding_width": 32,
    "grid_size": (104, 104),
    "heights": 4,
    "augment": False,
    "epochs": 150,
    "learning_rate": 2e-3,
    "validate_every": 25,
}
# What a preset changes for a set.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "simplebev": {"nuscenes": {}, "nuscenes_sample": _SAMPLE | {"trunk": (16, 32, 64)}},
    "pointbev": {
        "nuscenes": {},
        "nuscenes_sample": _SAMPLE
        | {"sparse_width": 16, "coarse_points": 676, "fine_points": 676, "anchors": 27},
    },
    "bevformer": {
        "nuscenes": {},
        "nuscenes_sample": _SAMPLE | {"bevformer_count": 1, "bevformer_feed_forward": 64},
    },
}


def bev_preset(preset: str, data: str, **changes: Any) -> BevConfig:
    """Return the settings of a protocol for a data set.

    Args:
        preset: see ``PRESETS``.
        data: see ``DATA_SETS``.
        **changes: fields of :class:`upfeat.evaluation.probes.bev.networks.BevConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.bev import bev_preset
        >>> bev_preset("pointbev", "nuscenes", epochs=2).fine_points
        2500
    """
    settings = known_entry("data set", data, known_entry("preset", preset, PRESETS))
    return BevConfig(**{"preset": preset, "data": data} | settings | changes)


def run_bev(
    config: BevConfig,
    train: DrivingData,
    val: DrivingData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Train and score a network with each of several upsamplers; results that exist are read.

    Args:
        config: the protocol.
        train: whole training split; ``limit`` of the settings applies.
        val: whole validation split; ``limit`` applies.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device; each is copied, or built anew.
        out: folder of the results, one JSON a method.
        cache: folder of features and of snapshots, from which an interrupted run goes on.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods. ``iou`` is that of all validation frames together,
        in percent; ``iou_visible`` ignores vehicles that are visible by less than 40 %; both are of
        the validation that ``checkpoint`` names. ``first_loss`` and ``loss`` are means over the
        steps before the first and the last validation.

    Raises:
        ValueError: the data is broken, the images' size is none of the backbone's, a method does
            not fit the features, or the loss is not finite.
    """
    train, val = train.select(limit=config.limit), val.select(limit=config.limit)
    views = view_settings(config.image_size)
    grid = BevGrid.around(config.grid_size, config.heights)
    kept = Path(cache) / "features"
    pipe = Pipeline(backbone, cache=None if config.augment else kept)
    frames = {
        split.name: BevFrames(
            split, views, grid, min_visibility=config.min_visibility, filter=config.image_filter
        )
        for split in (train, val)
    }
    training = BevTraining(
        config, frames[train.name], frames[val.name], pipe, on_progress or silent
    )
    splits = {
        split.name: {"key_frames": len(split), "fingerprint": split.fingerprint()}
        for split in (train, val)
    }
    results = []
    for method in methods:
        settings = _settings(config, method, pipe) | {"splits": splits}
        path, known = stored_result(out, TASK, config.data, method.label, settings)
        if known is None:
            snapshots = [Path(cache) / TASK / f"{path.stem}-{seed}.pt" for seed in config.seeds]
            runs = [
                training.run(method, seed, snapshot)
                for seed, snapshot in zip(config.seeds, snapshots, strict=True)
            ]
            known = _result(config, method, settings, runs)
            known.save(path)
            for snapshot in snapshots:
                snapshot.unlink(missing_ok=True)
        results.append(known)
    return results


def _settings(config: BevConfig, method: Method, pipe: Pipeline) -> dict[str, Any]:
    """Return everything but the data that decides the numbers."""
    identity = dict(method.identity)
    model = BevModel(config, method, pipe, config.seeds[0])
    if model.trains_upsampler:
        start = {"scratch": "random ones of the seed", "pretrained": identity.get("weights")}
        identity["weights"] = f"trained with the network, from {start[config.upsampler_init]}"
    return config.model_dump(mode="json") | {
        "backbone": pipe.identity,
        "upsampler": identity,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "optimizer": "AdamW, betas 0.9 and 0.999, one cycle by step",
    }


def _result(
    config: BevConfig, method: Method, settings: dict[str, Any], runs: list[tuple[History, float]]
) -> Result:
    histories = [history for history, _ in runs]

    def counted(history: History) -> dict[str, float]:
        if config.checkpoint == "last":
            return history[-1]
        # An IoU without any vehicle is NaN, which max would not pass over.
        return max(history, key=lambda entry: -1 if math.isnan(entry["iou"]) else entry["iou"])

    chosen = [counted(history) for history in histories]
    scores = {
        name: Score.of([round(100 * entry[name], 4) for entry in chosen])
        for name in ("iou", "iou_visible")
    }
    scores["first_loss"] = Score.of([round(history[0]["loss"], 6) for history in histories])
    scores["loss"] = Score.of([round(history[-1]["loss"], 6) for history in histories])
    return Result(
        task=TASK,
        label=method.label,
        settings=settings,
        scores=scores,
        details={
            "validations": {
                str(seed): history for seed, history in zip(config.seeds, histories, strict=True)
            },
            "epoch_counted": [entry["epoch"] for entry in chosen],
        },
        seconds={"training and validation": round(sum(seconds for _, seconds in runs), 1)},
        environment=describe_environment(),
    )


def _inputs(request: Request) -> dict[str, Any]:
    name = str(request.data)
    load = known_entry("data set", name, DATA_SETS)
    options = {"version": request.options["version"]} if name == "nuscenes" else {}
    splits = {split: load(request.root, split, **options) for split in ("train", "val")}
    return splits | {"cache": request.cache}


register_protocol(
    Protocol(
        name=TASK,
        title="Bird's-eye-view vehicle segmentation",
        summary="Train a bird's-eye-view network together with an upsampler, from six cameras.",
        scores={
            "iou": higher("IoU"),
            "iou_visible": higher("IoU visible"),
            "first_loss": lower("first loss", ""),
            "loss": lower("last loss", ""),
        },
        headline=("iou",),
        configure=bev_preset,
        presets=tuple(PRESETS),
        data=tuple(DATA_SETS),
        inputs=_inputs,
        run=run_bev,
        weights="untrained",
        seeds=True,
        items="key frames of each split",
        options=(
            Option(
                "version",
                "nuScenes version, a folder of its tables: v1.0-trainval, v1.0-mini.",
                default="v1.0-trainval",
            ),
        ),
    )
)
