"""What Probe3D's and LoftUp's probes of depth and normals share: samples, augmentation, heads.

A sample is a square picture with depth and normals (:mod:`upfeat.data.surfaces`), resized to the
input of the backbone and, for the target, to the size at which losses and scores are taken; the
head's output is enlarged to that size with corners aligned. Augmentation is drawn from the order's
seed, the epoch and the image, so that a run that goes on after a pause sees the same pictures.

Legend: ``B`` batch, ``C`` feature channels, ``K`` outputs of a head, ``s`` seeds, ``H W`` target.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data.surfaces import SurfaceData, SurfaceImage
from upfeat.evaluation.methods import Method
from upfeat.evaluation.probes.crops import CropProbe
from upfeat.evaluation.probes.dense_heads import DenseHeads
from upfeat.evaluation.probes.parts import CropProbeConfig, Heads, Schedule
from upfeat.evaluation.registry import Progress, known_entry
from upfeat.objectives.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from upfeat.ops.images import resize_antialiased
from upfeat.upsamplers import Upsampler

__all__ = ["SurfaceProbe", "SurfaceProbeConfig", "color_jitter", "surface_preset", "zoomed"]

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

    Example:
        >>> from upfeat.evaluation.probes.surfaces import surface_preset
        >>> surface_preset("probe3d", "nyuv2")["crop_size"]
        480
    """
    nyu = _PROBE3D_NYU if form == "probe3d" and data == "nyuv2" else {}
    return known_entry("preset", form, _PRESETS) | nyu


def color_jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue by up to 0.2 each, in random order.

    Args:
        image: (3, H, W) in [0, 1].
        generator: of the draws.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.surfaces import color_jitter
        >>> color_jitter(torch.rand(3, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([3, 4, 4])
    """
    draws = JITTER_STRENGTH * (2 * torch.rand(4, generator=generator) - 1)
    brightness, contrast, saturation, hue = draws.tolist()
    for step in torch.randperm(4, generator=generator).tolist():
        if step == 0:
            image = adjust_brightness(image, 1 + brightness)
        elif step == 1:
            image = adjust_contrast(image, 1 + contrast)
        elif step == 2:
            image = adjust_saturation(image, 1 + saturation)
        else:
            image = adjust_hue(image, hue)
    return image


def zoomed(sample: SurfaceImage, generator: torch.Generator) -> SurfaceImage:
    """Return a random square of a square sample, of half to all of its area.

    Args:
        sample: square.
        generator: of the draws.

    Example:
        >>> import torch
        >>> from upfeat.data.surfaces import SurfaceImage
        >>> from upfeat.evaluation.probes.surfaces import zoomed
        >>> whole = SurfaceImage(torch.rand(3, 64, 64), torch.ones(64, 64), None)
        >>> 45 <= zoomed(whole, torch.Generator().manual_seed(1)).depth.shape[0] <= 64
        True
    """
    area, top, left = torch.rand(3, generator=generator).tolist()
    low, high = ZOOM_AREA
    whole = sample.depth.shape[0]
    side = round((low + (high - low) * area) ** 0.5 * whole)
    rows, columns = (slice(start, start + side) for start in _starts(whole - side, top, left))
    normals = None if sample.normals is None else sample.normals[:, rows, columns]
    return SurfaceImage(sample.image[:, rows, columns], sample.depth[rows, columns], normals)


def _starts(room: int, *draws: float) -> list[int]:
    return [min(room, int(draw * (room + 1))) for draw in draws]


MetricT = TypeVar("MetricT")


class SurfaceProbe(CropProbe[MetricT]):
    """A probe on square pictures with depth and normals; a task defines loss and scores.

    Args:
        config: the protocol.
        train, val: the splits.
        backbone: on the device where everything runs.
        cache: folder of features and checkpoints.
        on_progress: called with label, stage, done and total.
    """

    enlarge: Literal["bilinear", "bicubic"]

    def __init__(
        self,
        config: SurfaceProbeConfig,
        train: SurfaceData[Any],
        val: SurfaceData[Any],
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
    ) -> None:
        super().__init__(config, backbone, cache, on_progress)
        self.surface_config = config
        self.splits = {"train": train, "val": val}
        self.counts = {name: len(split) for name, split in self.splits.items()}
        multiple = backbone.size_multiple
        self.padding = -config.crop_size % multiple
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

    @property
    def unchanged(self) -> bool:
        """Whether a training image is the same in every epoch, so that its features are kept."""
        return self.surface_config.jitter + self.surface_config.zoom == 0

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        kept = (
            "stored"
            if self.unchanged
            else "of a training image computed for each step, of others stored"
        )
        return self.config.model_dump(mode="json") | {
            "splits": {
                split.name: {"images": len(split), "fingerprint": split.fingerprint()}
                for split in self.splits.values()
            },
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "padding": f"{self.padding} pixels of the mean colour, half on each side",
            "features": kept,
            "enlarged": f"output to target: {self.enlarge}, corners aligned",
        }

    def heads(self) -> Heads | DenseHeads:
        """Return the heads of all seeds, untrained."""
        config, channels = self.surface_config, self.backbone.dim
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
        return self.surface_config.head == "linear" and super().head_first(upsampler, training)

    def seed_groups(self) -> list[slice]:
        """One seed after the other: hidden maps are large."""
        return [slice(i, i + 1) for i in range(len(self.config.seeds))]

    def read(self, split: str, index: int) -> tuple[Tensor, Tensor]:
        """Return a picture (3, S, S) and its target, with its augmentation while training."""
        config, sample = self.surface_config, self.splits[split][index]
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
        if self.surface_config.picture == "nearest":
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
        size = (self.surface_config.score_size,) * 2
        if outputs.shape[2:] == size:
            return outputs
        return F.interpolate(outputs, size, mode=self.enlarge, align_corners=True)
