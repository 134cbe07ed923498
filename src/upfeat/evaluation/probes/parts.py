"""Parts that the probes share: settings of those on whole crops, schedule, order, heads.

Heads are linear, or the convolutional ones of Probe3D and LoftUp:

* ``dpt``: Probe3D's form (arXiv 2404.08636) of the decoder of Ranftl et al., "Vision transformers
  for dense prediction", ICCV 2021: four layers of the backbone, 20 convolutions.
* ``dpt7``: LoftUp (arXiv 2504.14032, appendix A.2) names "a DPT decoder head with 7 convolutional
  layers"; its code is not public. One input and no enlargement has seven: a projection, two
  residual units, two output convolutions. This reading is ours.

Legend: ``B`` batch, ``C`` feature channels, ``E`` hidden channels, ``K`` outputs of a head, ``S``
seeds, ``h w`` feature grid.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat.data import FeatureCache
from upfeat.evaluation.metrics import BoundaryMetric, SegmentationMetric, iou_per_class
from upfeat.evaluation.registry import STORED_IF_SET, ProtocolConfig, StoredFeatures
from upfeat.ops import unit_vectors
from upfeat.ops.runtime.draws import DrawsFrom
from upfeat.pipeline import Pipeline
from upfeat.upsamplers import Upsampler

Schedule = Literal["constant", "per_iteration_bug", "per_epoch", "per_step", "probe3d"]
WARM_UP_EPOCHS = 1.5  # of Probe3D's schedule
WARM_UP_START = END_FACTOR = 0.01


class BoundaryOptions(BaseModel):
    """Further scores along label boundaries; those that are not asked for stand in no settings.

    Attributes:
        trimap: widths of bands in pixels, such as 4 and 8, or 1, 2, 4, ... for a curve.
        boundary_iou: share of the diagonal, 0.02 in the original.
        boundary_f: form of the F score.
    """

    trimap: tuple[PositiveInt, ...] = Field(default=(), json_schema_extra=STORED_IF_SET)
    boundary_iou: PositiveFloat | None = Field(default=None, json_schema_extra=STORED_IF_SET)
    boundary_f: Literal["davis", "sobel"] | None = Field(
        default=None, json_schema_extra=STORED_IF_SET
    )

    def boundary_metric(self, classes: int, ignored: int | None) -> BoundaryMetric | None:
        """Return an empty metric; None where nothing was asked for."""
        options = {"radii": self.trimap, "share": self.boundary_iou, "form": self.boundary_f}
        if not any(options.values()):
            return None
        return BoundaryMetric(classes, ignored, **options)  # type: ignore[arg-type]


class CropProbeConfig(ProtocolConfig):
    """Settings of a probe that is trained on whole crops.

    Attributes:
        crop_size: images are resized to this short side and cropped to a square of it.
        target_size: side of the upsampled features; None for ``crop_size``.
        optimizer, learning_rate, weight_decay: of the heads (betas 0.9 and 0.999).
        schedule: of the learning rate, see :func:`learning_rate_factor`.
        epochs, batch: of the training; a last, smaller batch is used, too.
        flip: probability that a whole training batch is flipped left-right.
        guidance: normalise the image for each upsampler as the method says, or with ImageNet's
            mean and deviation for all.
        resize_guidance: resize the guidance image to ``target_size`` first (bilinear).
        head_before_upsampling: ``auto`` where it gives the same numbers for less; ``always`` where
            it gives the same numbers; ``never``.
        validate_every: also score after every so many epochs, in the result's details.
        train_every: every n-th training image is used.
        stored_features: how low-resolution features are kept; the papers compute in float32.
        order_seed: of the order of the images and of the flips.
        seeds: each gives a head of its own.
    """

    crop_size: PositiveInt = 448
    target_size: PositiveInt | None = None
    optimizer: Literal["adamw", "nadam"] = "adamw"
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 1e-5
    schedule: Schedule = "per_step"
    epochs: PositiveInt = 20
    batch: PositiveInt = 2
    flip: float = Field(default=0.5, ge=0, le=1)
    guidance: Literal["method", "imagenet"] = "method"
    resize_guidance: bool = False
    head_before_upsampling: Literal["auto", "always", "never"] = "auto"
    validate_every: PositiveInt | None = None
    train_every: PositiveInt = 1
    stored_features: StoredFeatures = "float32"
    order_seed: int = 0
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


def learning_rate_factor(
    schedule: Schedule, iteration: int, epochs: int, iterations_per_epoch: int
) -> float:
    """Return the factor on the learning rate of an iteration, counted from 0.

    ``per_iteration_bug``: a cosine meant for epochs that advances once an iteration, as JAFAR's
    script does; it swings between 1 and 0 with a period of ``2 * epochs`` iterations and never
    decays. ``per_epoch``: it advances after each epoch (AnyUp). ``per_step``: it goes from 1 to 0
    over all iterations (NAF). ``probe3d``: a linear warm-up of 1.5 epochs from 0.01, then a quarter
    of a cosine to 0.01. ``constant``: 1 (LoftUp).

    Example:
        >>> from upfeat.evaluation.probes.parts import learning_rate_factor
        >>> [round(learning_rate_factor("per_iteration_bug", i, 2, 100), 3) for i in range(5)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
        >>> [learning_rate_factor("per_epoch", i, 2, 100) for i in (0, 99, 100)]
        [1.0, 1.0, 0.5]
    """
    total = epochs * iterations_per_epoch
    if schedule == "constant":
        return 1.0
    if schedule == "probe3d":
        warm = int(WARM_UP_EPOCHS * iterations_per_epoch)
        if iteration < warm:
            return WARM_UP_START + (1 - WARM_UP_START) * iteration / warm
        progress = (iteration - warm) / max(1, total - warm)
        return END_FACTOR + (1 - END_FACTOR) * math.cos(math.pi / 2 * progress)
    progress = {
        "per_iteration_bug": iteration / epochs,
        "per_epoch": iteration // iterations_per_epoch / epochs,
        "per_step": iteration / total,
    }[schedule]
    return (1 + math.cos(math.pi * progress)) / 2


def epoch_batches(
    count: int, batch: int, flip: float, seed: int, epoch: int
) -> list[tuple[list[int], bool]]:
    """Return the batches of an epoch: indices of images, and whether the batch is flipped."""
    # A stream of its own for every epoch, so that any epoch can be the first after a pause.
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    batches = [order[start : start + batch] for start in range(0, count, batch)]
    flipped = torch.rand(len(batches), generator=generator) < flip
    return list(zip(batches, flipped.tolist(), strict=True))


class Heads(nn.Module):
    """1x1 convolutions with bias, one a seed, over features and perhaps an image's token.

    The token's share, the same at every pixel, is added to the bias instead of being broadcast.

    Args:
        channels, outputs: C and K.
        seeds: of the initialisation, torch's default for a convolution over all channels.
        token_channels: of the token beside the features; 0 for none.
    """

    def __init__(
        self, channels: int, outputs: int, seeds: Sequence[int], token_channels: int = 0
    ) -> None:
        super().__init__()
        self.outputs = outputs
        bound = (channels + token_channels) ** -0.5
        weights, biases = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            weight = torch.empty(outputs, channels + token_channels)
            weights.append(weight.uniform_(-bound, bound, generator=generator))
            biases.append(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
        # S x (K, C + C') -> (S*K, C) and (S*K, C')
        whole = torch.cat(weights)
        self.weight = nn.Parameter(whole[:, :channels].contiguous())
        self.bias = nn.Parameter(torch.cat(biases))
        self.token_weight = (
            nn.Parameter(whole[:, channels:].contiguous()) if token_channels else None
        )

    def forward(self, x: Tensor, token: Tensor | None, seeds: slice) -> Tensor:
        """Apply the heads of some seeds to a map (B, C, h, w) with tokens (B, C')."""
        rows = slice(seeds.start * self.outputs, seeds.stop * self.outputs)
        weight = self.weight[rows, :, None, None]
        if token is None or self.token_weight is None:
            return F.conv2d(x, weight, self.bias[rows])
        shift = F.linear(token, self.token_weight[rows], self.bias[rows])  # (B, s*K)
        return F.conv2d(x, weight).add_(shift[:, :, None, None])


class DptHead(nn.Module):
    """Projections, residual units from the deepest layer to the first, two output convolutions.

    With one input the map keeps its size. With several it is enlarged by 2, 4 and 2, as far as it
    stays within ``limit``: upsampled features need no enlargement.

    Args:
        channels, outputs, hidden: C of each input, K and E.
        inputs: layers of the backbone, from the first to the deepest.
        limit: no map becomes larger than this side.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from upfeat.evaluation.probes.parts import DptHead
        >>> head = DptHead(8, 4, hidden=16)
        >>> sum(isinstance(part, nn.Conv2d) for part in head.modules())
        7
        >>> DptHead(8, 4, hidden=16, inputs=4, limit=32)(torch.rand(1, 4 * 8, 2, 2)).shape
        torch.Size([1, 4, 32, 32])
    """

    def __init__(
        self, channels: int, outputs: int, hidden: int = 512, inputs: int = 1, limit: int = 512
    ) -> None:
        super().__init__()
        self.limit = limit
        self.projections = nn.ModuleList(nn.Conv2d(channels, hidden, 1) for _ in range(inputs))
        # Each level's unit behind the sum, and before it the unit of the skipped input.
        self.units = nn.ModuleList(_ResidualUnit(hidden) for _ in range(inputs))
        skips = inputs - 1 if inputs > 1 else 1
        self.skips = nn.ModuleList(_ResidualUnit(hidden) for _ in range(skips))
        self.output = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs * C, h, w), one layer's channels after the other's, to (B, K, h', w')."""
        inputs = len(self.projections)
        maps = [p(part) for p, part in zip(self.projections, x.chunk(inputs, 1), strict=True)]
        if inputs == 1:
            return self.output(self.units[0](self.skips[0](maps[0])))
        maps = [self._enlarge(each, 2) for each in maps]
        found = self.units[-1](maps[-1])
        for level in reversed(range(inputs - 1)):
            found = self.units[level](self.skips[level](maps[level]) + found)
        return self._enlarge(self.output(self._enlarge(found, 4)), 2)

    def _enlarge(self, x: Tensor, factor: int) -> Tensor:
        size = (x.shape[2] * factor, x.shape[3] * factor)
        if max(size) > self.limit:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=True)


class _ResidualUnit(nn.Module):
    """Twice a 3x3 convolution and ReLU, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, E, h, w) to the same shape."""
        out: Tensor = self.convolutions(x) + x
        return out


class DenseHeads(nn.Module):
    """One :class:`DptHead` a seed, with the call of :class:`Heads`; initialised as torch does."""

    def __init__(self, channels: int, outputs: int, seeds: Sequence[int], **options: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for seed in seeds:
            with DrawsFrom(torch.Generator().manual_seed(seed)):
                self.heads.append(DptHead(channels, outputs, **options))

    def forward(self, x: Tensor, token: Tensor | None, seeds: slice) -> Tensor:
        """Apply the heads of some seeds to a map (B, C, h, w); there is no token."""
        # s x (B, K, h', w') -> (B, s*K, h', w')
        return torch.cat([head(x) for head in self.heads[seeds]], 1)


class ClassTokens:
    """Class tokens of images, L2-normalised and kept in a folder."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        self.backbone = pipe.backbone
        name = pipe.identity["name"]
        key = {**pipe.identity, "backbone": f"{name} class token"}
        dtype = torch.float16 if pipe.cache is None else pipe.cache.dtype
        self.cache = FeatureCache(folder, key, dtype)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (1, C) for an image (1, 3, H, W) as the backbone takes it."""
        token = self.cache(pixels, lambda image: self.backbone.class_token(image)[..., None, None])
        return unit_vectors(token.flatten(1))


def head_first_is_cheaper(
    upsampler: Upsampler, channels: int, outputs: int, heads: int, cells: int
) -> bool:
    """Say whether heads with many outputs cost less in front of an upsampler, counted a pixel.

    Behind it, ``channels`` values are mixed once and multiplied by ``heads`` matrices; in front,
    ``outputs`` values are mixed for each head, with the mixing weights computed every time. A
    method that was trained is taken to mix all ``cells`` of the grid by weights from vectors of 128
    numbers, one without weights to mix 16 cells.

    Example:
        >>> import upfeat
        >>> from upfeat.evaluation.probes.parts import head_first_is_cheaper
        >>> jafar = upfeat.create_upsampler("jafar", feature_dim=192)
        >>> head_first_is_cheaper(jafar, 192, 256, 3, 784)
        False
        >>> head_first_is_cheaper(upfeat.create_upsampler("bilinear"), 192, 256, 3, 784)
        True
    """
    trained = next(upsampler.parameters(), None) is not None
    mixed, weights = (cells, 128) if trained else (16, 0)
    before = heads * (weights + outputs) * mixed
    behind = (weights + channels) * mixed + heads * channels * outputs
    return before <= behind


def mean_class_ious(
    names: Sequence[str], metrics: Sequence[SegmentationMetric]
) -> dict[str, float | None]:
    """Return the IoU of each class in percent, mean over the seeds; None where it never occurs."""
    ious = torch.stack([iou_per_class(metric.matrix) for metric in metrics]).nanmean(0)
    return {
        name: None if iou != iou else round(100 * iou, 2)
        for name, iou in zip(names, ious.tolist(), strict=True)
    }
