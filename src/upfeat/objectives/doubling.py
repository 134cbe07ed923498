"""Learning to double a grid, with the features of images twice as large, or more, as targets.

``doubled_input`` is LiFT's signal (arXiv 2403.14625): one doubling at each of two levels. With one
level it is a target that LoftUp's paper compares its own with (arXiv 2504.14032, table 2).
``repeated_doubling`` is UPLiFT's (Walmer, Suri et al., 2026), several doublings at each level.
Numbers are those of the released codes.
"""

import itertools
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_image
from upfeat.objectives.base import (
    Batch,
    Calls,
    Objective,
    ObjectiveConfig,
    register_objective,
    weighted_sum,
)
from upfeat.objectives.losses import Distance, get_distance
from upfeat.ops.images import Size, resize_antialiased, resize_bilinear

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["DoubledInput", "DoubledInputConfig", "RepeatedDoubling", "RepeatedDoublingConfig"]


class RepeatedDoublingConfig(ObjectiveConfig):
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
class RepeatedDoubling(Objective):
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

    def _multiple(self, backbone: "Backbone") -> int:
        return backbone.size_multiple * 2**self.config.levels

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        distance = get_distance(self.config.distance)
        image = batch["image"]
        images = [
            resize_antialiased(image, size)
            for size in self._sizes((image.shape[2], image.shape[3]))
        ]
        features = [backbone_features(backbone, one) for one in images]
        terms = {}
        for level in range(1, self.config.levels + 1):
            guidance = guidance_image(upsampler, backbone, images[level])
            for step in range(1, level + 1):
                target = features[level - step]
                size = (target.shape[2], target.shape[3])
                pred = upsampler(guidance, self.source(features[level]), size)
                name = f"level_{level}_step_{step}"
                terms[name] = (1.0, distance(pred, self.target(target)))
        return weighted_sum(terms)

    def _sizes(self, size: Size) -> list[Size]:
        """The image's size, halved 0 to ``levels`` times."""
        return [(size[0] >> level, size[1] >> level) for level in range(self.config.levels + 1)]

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes = self._sizes(image_size)
        grids = [backbone.grid_size(size) for size in sizes]
        calls = [
            Call(sizes[level], grids[level], grids[level - step])
            for level in range(1, len(sizes))
            for step in range(1, level + 1)
        ]
        return Calls(sizes, calls)


class DoubledInputConfig(ObjectiveConfig):
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
class DoubledInput(Objective):
    """Match the upsampled features of a halved image with those of the image (LiFT).

    With f the backbone, the loss is the sum over the levels of d(up(I/2, f(I/2)), f(I)), then
    d(up(I/4, f(I/4)), f(I/2)), and so on. The guidance is the halved image. Images whose sides are
    no multiples of the patch times 2^levels are resized to the nearest ones.
    """

    config: DoubledInputConfig

    def _multiple(self, backbone: "Backbone") -> int:
        return backbone.size_multiple * 2**self.config.levels

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        distance = get_distance(self.config.distance)
        image = batch["image"]
        target = backbone_features(backbone, image)
        terms = {}
        for level in range(1, self.config.levels + 1):
            image = self._halved(image)
            features = backbone_features(backbone, image)
            guidance = guidance_image(upsampler, backbone, image)
            size = (target.shape[2], target.shape[3])
            pred = upsampler(guidance, self.source(features), size)
            terms[f"level_{level}"] = (1.0, distance(pred, self.target(target)))
            target = features
        return weighted_sum(terms)

    def _halved(self, image: Tensor) -> Tensor:
        if self.config.reduce == "stride":
            return image[:, :, ::2, ::2]
        return resize_bilinear(image, (image.shape[2] // 2, image.shape[3] // 2))

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        height, width = image_size
        sizes = [(height >> level, width >> level) for level in range(self.config.levels + 1)]
        pairs = itertools.pairwise(sizes)
        grids = backbone.grid_size
        return Calls(sizes, [Call(small, grids(small), grids(large)) for large, small in pairs])
