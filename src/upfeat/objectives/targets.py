"""Targets that LoftUp's paper compares its own with (arXiv 2504.14032, table 2), and UPLiFT's.

``doubled_input`` is LiFT's signal (arXiv 2403.14625): the features of images twice as large are the
target of one doubling at each of two levels; with one level it is LoftUp's row.
``repeated_doubling`` is UPLiFT's (Walmer, Suri et al., 2026), several doublings at each level.
``depth_target`` and ``stored_target`` compare with maps that come with the image. In the paper all
of them lose to mask-refined features. Numbers are those of the released codes.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_image, one_call, size_of
from upfeat.objectives.base import Batch, Calls, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.losses import (
    Distance,
    downsampling_loss,
    get_distance,
    scale_shift_invariant_l1,
    to_float32,
)
from upfeat.ops.images import Size, resize_antialiased, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = [
    "DepthTarget",
    "DepthTargetConfig",
    "DoubledInput",
    "DoubledInputConfig",
    "RepeatedDoubling",
    "RepeatedDoublingConfig",
    "StoredTarget",
    "StoredTargetConfig",
]


class DoublingConfig(ObjectiveConfig):
    """Settings that both objectives share which halve the image.

    Attributes:
        levels: how many times the image is halved.
        distance: between an upsampled map and that of the larger image.
    """

    levels: PositiveInt
    distance: Distance


class Doubling(Objective):
    """Base of both; images are resized to multiples of the patch times 2^levels."""

    config: DoublingConfig

    def _multiple(self, backbone: "Backbone") -> int:
        return backbone.size_multiple * 2**self.config.levels

    def _sizes(self, size: Size) -> list[Size]:
        """The image's size, halved 0 to ``levels`` times."""
        return [(size[0] >> level, size[1] >> level) for level in range(self.config.levels + 1)]


class RepeatedDoublingConfig(DoublingConfig):
    """Settings of :class:`RepeatedDoubling`; the defaults are UPLiFT's.

    Attributes:
        levels: how many times the image is halved (3 for DINOv2 ViT-S/14, 2 for DINOv3
            ViT-S+/16 in the released code).
        distance: between an upsampled map and that of the larger image. (Code: ``"mse"``; ``"l1"``
            and ``"cosine"`` are its others.)
    """

    name: Literal["repeated_doubling"] = "repeated_doubling"
    levels: PositiveInt = 3
    distance: Distance = "mse"


@register_objective(RepeatedDoublingConfig)
class RepeatedDoubling(Doubling):
    """Match every step of the way up with the features of an image of that size (UPLiFT).

    With I_n the image halved n times (antialiased, each from the whole image) and f the backbone,
    the loss is the sum over levels n = 1, 2, ... and steps k = 1 ... n of
    d(up(I_n, f(I_n)) at 2^k times the grid, f(I_{n-k})). The guidance of a level is its own small
    image. Each step names its output size, so that any method can be trained; one that doubles as
    often as the size needs (``uplift`` without ``iterations``) repeats a level's first, small steps
    for each of its later ones. Images whose sides are no multiples of the patch times 2^levels are
    resized to the nearest ones.
    """

    config: RepeatedDoublingConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        distance = get_distance(self.config.distance)
        image = batch["image"]
        images = [resize_antialiased(image, size) for size in self._sizes(size_of(image))]
        features = [backbone_features(backbone, one) for one in images]
        terms = {}
        for level in range(1, self.config.levels + 1):
            guidance = guidance_image(upsampler, backbone, images[level])
            for step in range(1, level + 1):
                target = features[level - step]
                pred = upsampler(guidance, self.source(features[level]), size_of(target))
                loss = distance(pred, self.target(target))
                terms[f"level_{level}_step_{step}"] = (1.0, loss)
        return self.weighted_sum(terms)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes = self._sizes(image_size)
        grids = [backbone.grid_size(size) for size in sizes]
        calls = [
            Call(sizes[level], grids[level], grids[level - step])
            for level in range(1, len(sizes))
            for step in range(1, level + 1)
        ]
        return Calls(sizes, calls)


class DoubledInputConfig(DoublingConfig):
    """Settings of :class:`DoubledInput`; the defaults are LiFT's.

    Attributes:
        levels: how many times the image is halved; every level is learnt from the one above. (LiFT:
            2; LoftUp's table speaks of the 2x image only, which is 1.)
        distance: between upsampled features and those of the larger image. (LiFT's default:
            ``"cosine"``; ``"l1"`` and ``"mse"`` are its others.)
        reduce: ``"stride"`` takes every second pixel, as LiFT's code does; ``"bilinear"``
            averages neighbours.
    """

    name: Literal["doubled_input"] = "doubled_input"
    levels: PositiveInt = 2
    distance: Distance = "cosine"
    reduce: Literal["stride", "bilinear"] = "stride"


@register_objective(DoubledInputConfig)
class DoubledInput(Doubling):
    """Match the upsampled features of a halved image with those of the image (LiFT).

    With f the backbone, the loss is the sum over the levels of d(up(I/2, f(I/2)), f(I)), then
    d(up(I/4, f(I/4)), f(I/2)), and so on. The guidance is the halved image. Images whose sides are
    no multiples of the patch times 2^levels are resized to the nearest ones.
    """

    config: DoubledInputConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        distance = get_distance(self.config.distance)
        image = batch["image"]
        target = backbone_features(backbone, image)
        terms = {}
        for level in range(1, self.config.levels + 1):
            image = self._halved(image)
            features, pred = self._upsampled(image, backbone, upsampler, size_of(target))
            terms[f"level_{level}"] = (1.0, distance(pred, self.target(target)))
            target = features
        return self.weighted_sum(terms)

    def _halved(self, image: Tensor) -> Tensor:
        if self.config.reduce == "stride":
            return image[:, :, ::2, ::2]
        return resize_bilinear(image, (image.shape[2] // 2, image.shape[3] // 2))

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes, grids = self._sizes(image_size), backbone.grid_size
        pairs = itertools.pairwise(sizes)
        return Calls(sizes, [Call(small, grids(small), grids(large)) for large, small in pairs])


class DepthTargetConfig(ObjectiveConfig):
    """Settings of :class:`DepthTarget`. All of them are chosen: the paper gives a name only.

    Attributes:
        depth_weight: of the depth term.
        feature_weight: of the agreement with the backbone's features; without it nothing ties the
            output to them.
        output_scale: size of the output, as a share of the image's.
    """

    name: Literal["depth_target"] = "depth_target"
    depth_weight: PositiveFloat = 1.0
    feature_weight: NonNegativeFloat = 1.0
    output_scale: PositiveFloat = 1.0


@register_objective(DepthTargetConfig)
class DepthTarget(Objective):
    """Make depth readable from the output by one 1x1 convolution.

    The batch brings ``"depth"`` (B, 1, H, W) of any monocular depth network or sensor; zeros,
    negative and non-finite values are invalid. Depth is compared up to scale and shift, and the
    output, averaged down to the backbone's grid, with the backbone's features (AnyUp's
    downsampling term). The convolution is trained along: hand the objective's parameters to the
    optimiser.
    """

    batch_keys = ("image", "depth")
    several_backbones = False
    config: DepthTargetConfig

    def __init__(self, config: DepthTargetConfig) -> None:
        super().__init__(config)
        self.head: nn.Conv2d | None = None

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        # No bias: depth counts up to a shift.
        self.head = nn.Conv2d(backbones[0].dim, 1, kernel_size=1, bias=False)

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert self.head is not None  # prepare() builds it
        image, depth = batch["image"], batch["depth"]
        size = scale_size(size_of(image), self.config.output_scale)
        features, output = self._upsampled(image, backbone, upsampler, size)
        estimate = self.head(output.to(self.head.weight.dtype))
        # The estimate goes to the depth's size, since resizing would mix invalid depths.
        estimate = resize_bilinear(estimate, size_of(depth))
        depth_term = scale_shift_invariant_l1(estimate, depth.to(to_float32(estimate)))
        terms = {"depth": (self.config.depth_weight, depth_term)}
        if self.config.feature_weight:
            agreement = downsampling_loss(output, self.target(features))
            terms["downsampling"] = (self.config.feature_weight, agreement)
        return self.weighted_sum(terms)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        plan = one_call(image_size, backbone, self.config.output_scale)
        _, grid, output = plan.calls[0]
        if self.config.feature_weight and (output[0] < grid[0] or output[1] < grid[1]):
            raise ValueError(
                f"the output {output} must not be smaller than the feature grid {grid}; enlarge "
                "output_scale"
            )
        return plan


class StoredTargetConfig(ObjectiveConfig):
    """Settings of :class:`StoredTarget`, all of them chosen; the distance is LoftUp's.

    Attributes:
        distance: between output and stored map.
        output_scale: size of the output, as a share of the image's.
    """

    name: Literal["stored_target"] = "stored_target"
    distance: Distance = "mse"
    output_scale: PositiveFloat = 1.0


@register_objective(StoredTargetConfig)
class StoredTarget(Objective):
    """Match the output with the map that was stored for the image ("per-image implicit" in LoftUp).

    The batch brings ``"target"`` (B, C, H, W) in the backbone's own feature space, cut like the
    image; the setting ``data.features`` reads it.
    """

    batch_keys = ("image", "target")
    several_backbones = False
    config: StoredTargetConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        image, target = batch["image"], batch["target"]
        if target.shape[1] != backbone.dim:
            raise ValueError(
                f"the stored maps have {target.shape[1]} channels and {backbone.name} has "
                f"{backbone.dim}; store them with this backbone"
            )
        size = scale_size(size_of(image), self.config.output_scale)
        _, output = self._upsampled(image, backbone, upsampler, size)
        wanted = self.target(resize_bilinear(to_float32(target), size))
        distance = get_distance(self.config.distance)(to_float32(output), wanted)
        return self.weighted_sum({"stored": (1.0, distance)})

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        return one_call(image_size, backbone, self.config.output_scale)
