"""Probe of surface normals on upsampled features: NAVI, NYU Depth v2, RGB-D frames, own images.

* ``loftup`` (arXiv 2504.14032, appendix A.2): pictures of 224, a DPT head with seven convolutions;
  trained on NAVI's multiview images, scored on its images in the wild.
* ``probe3d`` (arXiv 2404.08636): pictures of 512 (NYU 480) and the DPT head on four layers of the
  backbone, ``--backbone 'timm/NAME(layers=(2, 5, 8, 11))'``; ``head=linear`` is the choice for
  AnyUp's tables, whose head is not published. Class tokens are not joined: upsampled features have
  none, and the row without an upsampler is treated like the others.

Both train Probe3D's uncertainty-aware loss with its schedule: AdamW, 10 epochs of batches of 8,
warm-up of 1.5 epochs, a quarter of a cosine. Images come in a random order in each epoch; the
released run on one GPU goes through them in a fixed one.

Scores are means over images of the angular error over pixels with depth: RMSE in degrees, recalls
at 11.25, 22.5 and 30 degrees in percent.

Legend: ``B`` batch, ``s`` seeds, ``h' w'`` upsampled map, ``H W`` target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import navi, nyuv2_surfaces, rgbd
from upfeat.data.own import FOLDER_SET
from upfeat.data.surfaces import SurfaceData, folder_surfaces
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import NormalMetric
from upfeat.evaluation.metrics.regression import RECALLS
from upfeat.evaluation.probes.crops import KEEP_WEIGHTS
from upfeat.evaluation.probes.losses import uncertain_normals_loss
from upfeat.evaluation.probes.surfaces import SurfaceProbe, SurfaceProbeConfig, surface_preset
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, seed_scores

__all__ = ["SURFACE_SETS", "NormalsProbeConfig", "normals_probe_preset", "run_normals_probe"]

SURFACE_SETS: Mapping[str, Callable[..., SurfaceData[Any]]] = {
    "navi": navi,
    "nyuv2": nyuv2_surfaces,
    "rgbd": rgbd,
    FOLDER_SET: folder_surfaces,
}
# What each set trains on, and what it is scored on.
SPLITS = {
    "navi": ("trainval", "test"),
    "nyuv2": ("trainval", "test"),
    "rgbd": ("train", "test"),
    FOLDER_SET: ("train", "val"),
}


class NormalsProbeConfig(SurfaceProbeConfig):
    """Settings of the normals probe; all of them stand in the result."""


def normals_probe_preset(preset: str, data: str, **changes: Any) -> NormalsProbeConfig:
    """Return the settings of ``loftup`` or ``probe3d`` for a data set.

    Raises:
        UnknownNameError: no such preset.
        ValueError: an impossible value.
    """
    settings = {"preset": preset, "data": data} | surface_preset(preset, data)
    return NormalsProbeConfig(**settings | changes)


def run_normals_probe(
    config: NormalsProbeConfig,
    train: SurfaceData[Any],
    val: SurfaceData[Any],
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    keep_weights: bool = False,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Probe several upsamplers on the same pictures, see :attr:`Protocol.run`.

    A ``JointMethod`` is trained with the head; with ``keep_weights`` it is saved, one folder a seed
    in ``out/weights``. The cache also keeps checkpoints, from which an interrupted run goes on.

    Raises:
        ValueError: the data is broken or has no normals, or a method does not fit the features.
    """
    for data in (train, val):
        if not data.has_normals:
            raise ValueError(
                f"{data.name} has no normals (its depth is too coarse to derive any); lay out "
                "geonet/ and test/ as upfeat.data.nyuv2_surfaces says, or take navi or rgbd"
            )
    train, val = train.select(config.train_every, config.limit), val.select(limit=config.limit)
    report, folder = on_progress or silent, Path(cache)
    probe = _NormalsProbe(config, Path(out), report, train, val, backbone, folder, keep_weights)
    return probe.run(methods)


@dataclass(eq=False)
class _NormalsProbe(SurfaceProbe[NormalMetric]):
    """Three channels of a normal and one of certainty."""

    task = "normals-probe"
    unit = "degrees"
    outputs = 4
    enlarge = "bicubic"

    def target(self, depth: Tensor, normals: Tensor | None) -> Tensor:
        """Return normals and depth, (4, H, W)."""
        if normals is None:
            raise ValueError("there are no normals")
        return torch.cat([normals, depth[None]])

    def loss(self, outputs: Tensor, target: Tensor, iteration: int) -> Tensor | None:
        normals, valid = target[:, :3], target[:, 3] > 0
        if not bool(valid.any()):
            return None
        losses = [
            uncertain_normals_loss(self.enlarged(each), normals, valid)
            for each in outputs.unbind(1)  # (B, 4, h', w') a seed
        ]
        return torch.stack(losses).sum()

    def metric(self) -> NormalMetric:
        return NormalMetric()

    def score(self, metrics: Sequence[NormalMetric], outputs: Tensor, target: Tensor) -> None:
        for metric, each in zip(metrics, outputs.unbind(1), strict=True):
            metric.add(self.enlarged(each)[:, :3], target[:, :3], target[:, 3] > 0)

    def summarise(self, metrics: Sequence[NormalMetric]) -> Measured:
        scores = seed_scores([metric.compute() for metric in metrics], RECALLS.__contains__)
        return scores, {"images": int(metrics[0].count)}


def _inputs(request: Request) -> dict[str, Any]:
    data = str(request.data)
    reader = known_entry("data set with normals", data, SURFACE_SETS)
    train, val = SPLITS[data]
    return {
        "train": reader(request.root, train),
        "val": reader(request.root, val),
        "cache": request.cache,
        "keep_weights": request.options["keep_weights"],
    }


register_protocol(
    Protocol(
        name="normals-probe",
        title="Surface normals, probe",
        summary="Train convolutional heads for surface normals on upsampled features.",
        scores={
            "rmse": lower("RMSE", "°"),
            "mean": lower("mean error", "°"),
            "median": lower("median error", "°"),
            "recall_11": higher("recall at 11.25°", "percent"),
            "recall_22": higher("recall at 22.5°", "percent"),
            "recall_30": higher("recall at 30°", "percent"),
        },
        headline=("rmse",),
        caption="mean over the images",
        configure=normals_probe_preset,
        presets=("loftup", "probe3d"),
        data=tuple(SURFACE_SETS),
        inputs=_inputs,
        run=run_normals_probe,
        weights="joint",
        seeds=True,
        items="images of each split",
        options=(KEEP_WEIGHTS,),
    )
)
