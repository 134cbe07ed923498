"""Vehicles seen from above: three networks on upsampled features of six cameras (JAFAR, table 4).

The backbone is frozen. The upsampler is trained from scratch together with neck, network and heads,
as JAFAR's paper says; an entry without parameters trains the rest alone. The preset names the
network, the settings are those of PointBeV's code, which hosts all three. On the single key frame
of ``nuscenes_sample`` a reduced network learns that frame by heart: a check of the whole path, no
result to quote.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    Presets,
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
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
PRESETS: dict[str, dict[str, Any]] = {"simplebev": {}, "pointbev": {}, "bevformer": {}}
_POINTS = {"sparse_width": 16, "coarse_points": 676, "fine_points": 676, "anchors": 27}
_OF_SAMPLE: dict[tuple[str, str], dict[str, Any]] = {
    ("simplebev", "nuscenes_sample"): _SAMPLE | {"trunk": (16, 32, 64)},
    ("pointbev", "nuscenes_sample"): _SAMPLE | _POINTS,
    ("bevformer", "nuscenes_sample"): _SAMPLE
    | {"bevformer_count": 1, "bevformer_feed_forward": 64},
}
bev_preset = Presets(BevConfig, PRESETS, DATA_SETS, _OF_SAMPLE)


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
    """Train and score a network with each of several upsamplers, see :attr:`Protocol.run`.

    Each upsampler is copied, or built anew. The cache also keeps snapshots, from which an
    interrupted run goes on. Scores: ``iou`` is that of all validation frames together, in percent;
    ``iou_visible`` ignores vehicles that are visible by less than 40 %; both are of the validation
    that ``checkpoint`` names. ``first_loss`` and ``loss`` are means over the steps before the first
    and the last validation.

    Raises:
        ValueError: the data is broken, the images' size is none of the backbone's, a method does
            not fit the features, or the loss is not finite.
    """
    train, val = train.select(limit=config.limit), val.select(limit=config.limit)
    run = _BevRun(config, Path(out), on_progress or silent, train, val, backbone, Path(cache))
    return run.run(methods)


@dataclass(eq=False)
class _BevRun(ProtocolRun):
    """One backbone on one set."""

    task = TASK

    config: BevConfig
    train: DrivingData
    val: DrivingData
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        config, splits = self.config, (self.train, self.val)
        views = view_settings(config.image_size)
        grid = BevGrid.around(config.grid_size, config.heights)
        kept = None if config.augment else self.cache / "features"
        self.pipe = Pipeline(self.backbone, cache=kept)
        visible, resize = config.min_visibility, config.image_filter
        train, val = (
            BevFrames(split, views, grid, min_visibility=visible, filter=resize) for split in splits
        )
        self.training = BevTraining(config, train, val, self.pipe, self.on_progress)
        self.facts = {
            "splits": described_splits(*splits, items="key_frames"),
            "backbone": self.pipe.identity,
            "optimizer": "AdamW, betas 0.9 and 0.999, one cycle by step",
        }

    def settings(self, method: Method) -> dict[str, Any]:
        config, identity = self.config, dict(method.identity)
        model = BevModel(config, method, self.pipe, config.seeds[0])
        if model.trains_upsampler:
            start = {"scratch": "random ones of the seed", "pretrained": identity.get("weights")}
            identity["weights"] = f"trained with the network, from {start[config.upsampler_init]}"
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return super().settings(method) | {"upsampler": identity, "parameters": count}

    def measure(self, pending: Pending) -> Measured:
        """Train a network a seed, and take the scores of the validation that counts."""
        histories, folder = [], self.cache / TASK
        for seed in self.config.seeds:
            snapshot = pending.temporary(folder / f"{pending.path.stem}-{seed}.pt")
            history, seconds = self.training.run(pending.method, seed, snapshot)
            stage = "training and validation"
            pending.seconds[stage] = pending.seconds.get(stage, 0.0) + seconds
            histories.append(history)
        chosen = [self.counted(history) for history in histories]
        scores = seed_scores([{n: each[n] for n in ("iou", "iou_visible")} for each in chosen])
        scores["first_loss"] = Score.of([round(history[0]["loss"], 6) for history in histories])
        scores["loss"] = Score.of([round(history[-1]["loss"], 6) for history in histories])
        seeds = map(str, self.config.seeds)
        return scores, {
            "validations": dict(zip(seeds, histories, strict=True)),
            "epoch_counted": [entry["epoch"] for entry in chosen],
        }

    def counted(self, history: History) -> dict[str, float]:
        """Return the validation that counts."""
        if self.config.checkpoint == "last":
            return history[-1]
        # An IoU without any vehicle is NaN, which max would not pass over.
        return max(history, key=lambda entry: -1 if math.isnan(entry["iou"]) else entry["iou"])


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
