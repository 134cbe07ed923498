"""Depth probes with convolutional heads: NAVI (LoftUp, Probe3D) and NYU Depth v2 (Probe3D).

The head gives 256 bins (:func:`~upfeat.evaluation.probes.depth_losses.bin_depth`), the loss is
Probe3D's. Depth is metric, or stretched to [0.01, 1] over each image's object (``relative``);
LoftUp does not say which. Scores are those of :class:`~upfeat.evaluation.metrics.DepthMetric` over
all pixels with depth, mean over images, with and without a fit of scale and shift.

Legend: ``B`` batch, ``K`` bins, ``s`` seeds, ``H W`` target.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data.surfaces import SurfaceData, relative_depth
from upfeat.evaluation.metrics import DepthMetric
from upfeat.evaluation.probes.depth_losses import bin_depth, probe3d_loss, valid_depth
from upfeat.evaluation.probes.depth_pixels import summarise_depth
from upfeat.evaluation.probes.surfaces import SurfaceProbe, SurfaceProbeConfig, surface_preset
from upfeat.evaluation.registry import Progress
from upfeat.evaluation.results import Score

__all__ = ["SURFACE_DEPTH_PRESETS", "SurfaceDepthConfig", "SurfaceDepthProbe", "surface_depth"]

SURFACE_DEPTH_PRESETS = ("navi", "probe3d-nyu")
FARTHEST = 10.0  # metres; the last bin of metric depth


class SurfaceDepthConfig(SurfaceProbeConfig):
    """Settings of the depth probes with convolutional heads; all of them stand in the result.

    Attributes:
        bins, min_depth, max_depth: of the decoding; 1 is the farthest of NAVI and of relative
            depth, 10 of NYU. Targets above 10 do not count.
        depth_target: ``relative`` or ``metric``.
    """

    bins: int = Field(default=256, ge=2)
    min_depth: PositiveFloat = 1e-3
    max_depth: PositiveFloat = 1.0
    depth_target: Literal["relative", "metric"] = "relative"


def surface_depth(preset: str, data: str, **changes: Any) -> SurfaceDepthConfig:
    """Return the settings of a preset for a set.

    Args:
        preset: ``navi``, LoftUp's form, or ``probe3d-nyu``.
        data: name of the set.
        **changes: fields of :class:`SurfaceDepthConfig`.

    Raises:
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.probes.surface_depth import surface_depth
        >>> surface_depth("navi", "rgbd", depth_target="metric").max_depth
        10.0
    """
    settings: dict[str, Any] = {"preset": preset, "data": data}
    if preset == "navi":
        settings |= surface_preset("loftup", data)
    else:
        settings |= surface_preset("probe3d", data) | {"depth_target": "metric"}
    settings |= changes
    if settings.get("depth_target") == "metric" and data != "navi":
        settings.setdefault("max_depth", FARTHEST)
    return SurfaceDepthConfig(**settings)


class SurfaceDepthProbe(SurfaceProbe[DepthMetric]):
    """Depth in bins behind a convolutional head."""

    task = "depth-probe"
    enlarge = "bilinear"

    def __init__(
        self,
        config: SurfaceDepthConfig,
        train: SurfaceData[Any],
        val: SurfaceData[Any],
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
    ) -> None:
        super().__init__(config, train, val, backbone, cache, on_progress)
        self.depth_config, self.outputs = config, config.bins
        self.unit = "m" if config.depth_target == "metric" else ""

    def target(self, depth: Tensor, normals: Tensor | None) -> Tensor:
        """Return depth (H, W), 0 where it does not count."""
        depth = torch.where(valid_depth(depth), depth, 0.0)
        return depth if self.depth_config.depth_target == "metric" else relative_depth(depth)

    def depth(self, outputs: Tensor) -> Tensor:
        """Decode a seed's bins (B, K, h', w') to depth (B, 1, H, W)."""
        config = self.depth_config
        depth = bin_depth(outputs, config.min_depth, config.max_depth)
        return self.enlarged(depth[:, None])

    def loss(self, outputs: Tensor, target: Tensor, iteration: int) -> Tensor | None:
        """Return the seeds' losses, added up."""
        true = target[:, None]  # (B, 1, H, W)
        valid = valid_depth(true)
        if not bool(valid.any()):
            return None
        each = outputs.unbind(1)  # (B, K, h', w') a seed
        return torch.stack([probe3d_loss(self.depth(one), true, valid) for one in each]).sum()

    def metric(self) -> DepthMetric:
        """Return an empty metric."""
        return DepthMetric(0.0, math.inf, aligned=True)

    def score(self, metrics: Sequence[DepthMetric], outputs: Tensor, target: Tensor) -> None:
        """Add the depths that the heads predict for an image."""
        for metric, one in zip(metrics, outputs.unbind(1), strict=True):
            metric.add(self.depth(one)[:, 0], target)

    def summarise(self, metrics: Sequence[DepthMetric]) -> tuple[dict[str, Score], dict[str, Any]]:
        """Return the scores, and how many images they are the mean of."""
        return summarise_depth(metrics)
