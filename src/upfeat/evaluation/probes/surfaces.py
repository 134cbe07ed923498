"""Probes of depth and normals on square pictures, as Probe3D and LoftUp train them.

A sample is a square picture with depth and normals (:mod:`upfeat.data.surfaces`), resized to the
input of the backbone and, for the target, to the size at which losses and scores are taken; the
head's output is enlarged to that size with corners aligned. Augmentation is drawn from the order's
seed, the epoch and the image, so that a run that goes on after a pause sees the same pictures.

The depth probes (NAVI, NYU Depth v2) give 256 bins. Depth is metric, or stretched to [0.01, 1] over
each image's object (``relative``); LoftUp does not say which.

Legend: ``B`` batch, ``C`` feature channels, ``K`` outputs of a head, ``s`` seeds, ``H W`` target.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.data.surfaces import SurfaceImage, relative_depth
from upfeat.evaluation.metrics import DepthMetric
from upfeat.evaluation.probes.crops import CropProbe
from upfeat.evaluation.probes.depth_pixels import summarise_depth
from upfeat.evaluation.probes.losses import bin_depth, probe3d_loss, valid_depth
from upfeat.evaluation.probes.parts import CropProbeConfig, DenseHeads, Heads, Schedule
from upfeat.evaluation.registry import known_entry
from upfeat.evaluation.running import Measured
from upfeat.objectives.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from upfeat.ops.images import resize_antialiased
from upfeat.upsamplers import Upsampler

JITTER_STRENGTH = 0.2  # of brightness, contrast, saturation and hue
ZOOM_AREA = (0.5, 1.0)

# LoftUp's inputs are 224; Probe3D's NAVI frames 512 and NYU frames 480.
_PRESETS: dict[str, dict[str, Any]] = {
    "loftup": {"head": "dpt7", "crop_size": 224, "score_size": 224},
    "probe3d": {"head": "dpt", "crop_size": 512, "score_size": 512},
}
_PROBE3D_NYU = {"crop_size": 480, "score_size": 480, "zoom": 0.5}


class SurfaceProbeConfig(CropProbeConfig):
    """Settings of the probes of depth and normals with convolutional heads.

    Attributes:
        crop_size: side of the square picture that the backbone sees.
        score_size: side of the target; outputs are enlarged to it.
        head: ``dpt7`` with one input, ``dpt`` with four layers of the backbone, each upsampled by
            the method, or ``linear``, a 1x1 convolution.
        hidden: channels inside a ``dpt`` head.
        flip: off; a mirrored normal would be another.
        jitter: probability of a change of colours of a training image.
        zoom: probability of a random crop of a training image, of half its area at least. Depth and
            normals are not corrected for it (Probe3D).
        picture: how the picture is resized; ``nearest`` is Probe3D's.
    """

    crop_size: PositiveInt = 224
    score_size: PositiveInt = 224
    head: Literal["dpt7", "dpt", "linear"] = "dpt7"
    hidden: PositiveInt = 512
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.01
    schedule: Schedule = "probe3d"
    epochs: PositiveInt = 10
    batch: PositiveInt = 8
    flip: float = Field(default=0.0, ge=0, le=0)
    jitter: float = Field(default=0.8, ge=0, le=1)
    zoom: float = Field(default=0.0, ge=0, le=1)
    picture: Literal["nearest", "antialiased"] = "nearest"
    order_seed: int = 8
    seeds: tuple[int, ...] = Field(default=(8,), min_length=1)


def surface_preset(form: str, data: str) -> dict[str, Any]:
    """Return the settings of LoftUp's or Probe3D's form for a set.

    Raises:
        UnknownNameError: no such form.
    """
    nyu = _PROBE3D_NYU if form == "probe3d" and data == "nyuv2" else {}
    return known_entry("preset", form, _PRESETS) | nyu


def color_jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image (3, H, W) in [0, 1].

    By up to 0.2 each, in random order.
    """
    draws = JITTER_STRENGTH * (2 * torch.rand(4, generator=generator) - 1)
    brightness, contrast, saturation, hue = draws.tolist()
    steps = (
        (adjust_brightness, 1 + brightness),
        (adjust_contrast, 1 + contrast),
        (adjust_saturation, 1 + saturation),
        (adjust_hue, hue),
    )
    for step in torch.randperm(4, generator=generator).tolist():
        adjust, amount = steps[step]
        image = adjust(image, amount)
    return image


def zoomed(sample: SurfaceImage, generator: torch.Generator) -> SurfaceImage:
    """Return a random square of a square sample, of half to all of its area."""
    area, top, left = torch.rand(3, generator=generator).tolist()
    low, high = ZOOM_AREA
    whole = sample.depth.shape[0]
    side = round((low + (high - low) * area) ** 0.5 * whole)
    room = whole - side
    starts = (min(room, int(draw * (room + 1))) for draw in (top, left))
    rows, columns = (slice(start, start + side) for start in starts)
    normals = None if sample.normals is None else sample.normals[:, rows, columns]
    return SurfaceImage(sample.image[:, rows, columns], sample.depth[rows, columns], normals)


MetricT = TypeVar("MetricT")


@dataclass(eq=False)
class SurfaceProbe(CropProbe[MetricT]):
    """A probe on square pictures with depth and normals; a task defines loss and scores."""

    enlarge: ClassVar[Literal["bilinear", "bicubic"]]
    seeds_together = False  # hidden maps are large

    config: SurfaceProbeConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        config, backbone = self.config, self.backbone
        self.padding = -config.crop_size % backbone.size_multiple
        if config.target_size is None:
            self.size = (config.crop_size + self.padding,) * 2
        layers = len(getattr(backbone, "layers", (None,)))
        self.inputs = 4 if config.head == "dpt" else 1
        if config.head == "dpt" and layers != self.inputs:
            raise ValueError(
                f"the head dpt reads four layers of the backbone, {backbone.name} gives {layers}; "
                "name four, such as 'timm/NAME(layers=(2, 5, 8, 11))', or take head=dpt7 or "
                "head=linear"
            )
        # Whether a training image is the same in every epoch, so that its features are kept.
        self.unchanged = config.jitter + config.zoom == 0
        self.facts |= {
            "padding": f"{self.padding} pixels of the mean colour, half on each side",
            "features": "stored"
            if self.unchanged
            else "of a training image computed for each step, of others stored",
            "enlarged": f"output to target: {self.enlarge}, corners aligned",
        }

    def heads(self) -> Heads | DenseHeads:
        """Return the heads of all seeds, untrained."""
        config, channels = self.config, self.backbone.dim
        if config.head == "linear":
            return Heads(channels, self.outputs, config.seeds)
        return DenseHeads(
            channels // self.inputs,
            self.outputs,
            config.seeds,
            hidden=config.hidden,
            inputs=self.inputs,
            limit=config.score_size,
        )

    def head_first(self, upsampler: Upsampler, training: bool) -> bool:
        """Say whether the heads go first: only linear ones may."""
        return self.config.head == "linear" and super().head_first(upsampler, training)

    def read(self, split: str, index: int) -> tuple[Tensor, Tensor]:
        """Return a picture (3, S, S) and its target, with its augmentation while training."""
        config, sample = self.config, self.splits[split][index]
        seed = (((config.order_seed << 16) + self.epoch) << 24) + index
        generator = torch.Generator().manual_seed(seed)
        jitter, zoom = torch.rand(2, generator=generator).tolist()
        if split == "train" and zoom < config.zoom:
            sample = zoomed(sample, generator)
        image = self._resized(sample.image)
        if split == "train" and jitter < config.jitter:
            image = color_jitter(image, generator)
        size = (config.score_size,) * 2
        depth = F.interpolate(sample.depth[None, None], size, mode="nearest")[0, 0]
        normals = sample.normals
        if normals is not None:
            normals = F.interpolate(normals[None], size, mode="nearest")[0]
        return self._padded(image), self.target(depth, normals)

    def _resized(self, image: Tensor) -> Tensor:
        size = (self.config.crop_size,) * 2
        if self.config.picture == "nearest":
            return F.interpolate(image[None], size, mode="nearest")[0]
        shrunk = resize_antialiased(image[None], size)
        return shrunk[0].clamp(0, 1)

    def _padded(self, image: Tensor) -> Tensor:
        """Pad with the backbone's mean colour to a multiple of its patch."""
        if not self.padding:
            return image
        before = self.padding // 2
        mean = image.new_tensor(self.backbone.image_mean)[:, None, None]
        sides = (before, self.padding - before) * 2
        return F.pad(image - mean, sides) + mean

    @abstractmethod
    def target(self, depth: Tensor, normals: Tensor | None) -> Tensor:
        """Return the target of an image: depth (H, W), or more channels with it."""

    def features(self, split: str, pixels: Tensor) -> Tensor:
        """Compute features; those of an image that changes every epoch are not kept."""
        if split == "train" and not self.unchanged:
            return self.backbone(pixels)
        return super().features(split, pixels)

    def enlarged(self, outputs: Tensor) -> Tensor:
        """Enlarge outputs (B, K, h', w') to the target's size, corners aligned."""
        size = (self.config.score_size,) * 2
        if outputs.shape[2:] == size:
            return outputs
        return F.interpolate(outputs, size, mode=self.enlarge, align_corners=True)


# -- depth ---------------------------------------------------------------------------------------

SURFACE_DEPTH_PRESETS = ("navi", "probe3d-nyu")
"""Presets of depth on sets of surfaces."""
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
    """Return the settings of ``navi``, LoftUp's form, or ``probe3d-nyu`` for a set."""
    settings: dict[str, Any] = {"preset": preset, "data": data}
    if preset == "navi":
        settings |= surface_preset("loftup", data)
    else:
        settings |= surface_preset("probe3d", data) | {"depth_target": "metric"}
    settings |= changes
    if settings.get("depth_target") == "metric" and data != "navi":
        settings.setdefault("max_depth", FARTHEST)
    return SurfaceDepthConfig(**settings)


@dataclass(eq=False)
class SurfaceDepthProbe(SurfaceProbe[DepthMetric]):
    """Depth in bins behind a convolutional head."""

    task = "depth-probe"
    enlarge = "bilinear"

    config: SurfaceDepthConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outputs = self.config.bins
        self.unit = "m" if self.config.depth_target == "metric" else ""

    def target(self, depth: Tensor, normals: Tensor | None) -> Tensor:
        """Return depth (H, W), 0 where it does not count."""
        depth = torch.where(valid_depth(depth), depth, 0.0)
        return depth if self.config.depth_target == "metric" else relative_depth(depth)

    def depth(self, outputs: Tensor) -> Tensor:
        """Decode a seed's bins (B, K, h', w') to depth (B, 1, H, W)."""
        config = self.config
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

    def summarise(self, metrics: Sequence[DepthMetric]) -> Measured:
        """Return the scores, and how many images they are the mean of."""
        return summarise_depth(metrics)
