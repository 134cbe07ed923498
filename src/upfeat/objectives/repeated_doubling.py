"""Learning to double a grid repeatedly, with features of larger images as targets (UPLiFT).

Paper: Walmer, Suri et al., "UPLiFT", 2026; numbers are those of its released code. LiFT's signal,
one doubling at each of two levels, is :mod:`upfeat.objectives.pseudo_ground_truth`.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_image
from upfeat.objectives.base import Batch, Objective, ObjectiveConfig, Plan, weighted_sum
from upfeat.objectives.images import resize_bilinear
from upfeat.objectives.losses import Distance, get_distance
from upfeat.objectives.registry import register_objective
from upfeat.ops.images import Size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["RepeatedDoubling", "RepeatedDoublingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedDoublingConfig(ObjectiveConfig):
    """Settings of :class:`RepeatedDoubling`; the defaults are UPLiFT's.

    Attributes:
        levels: how many times the image is halved (3 for DINOv2 ViT-S/14, 2 for DINOv3
            ViT-S+/16 in the released code).
        distance: between an upsampled map and that of the larger image. (Code: ``"mse"``; ``"l1"``
            and ``"cosine"`` are its others.)
    """

    levels: int = 3
    distance: Distance = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        get_distance(self.distance)


@register_objective("repeated_doubling", RepeatedDoublingConfig)
class RepeatedDoubling(Objective):
    """Match every step of the way up with the features of an image of that size (UPLiFT).

    With I_n the image halved n times (antialiased, each from the whole image) and f the backbone,
    the loss is the sum over levels n = 1, 2, ... and steps k = 1 ... n of
    d(up(I_n, f(I_n)) at 2^k times the grid, f(I_{n-k})). The guidance of a level is its own small
    image. Each step names its output size, so that any method can be trained; one that doubles as
    often as the size needs (``uplift`` without ``iterations``) repeats a level's first, small steps
    for each of its later ones. Images whose sides are no multiples of the patch times 2^levels are
    resized to the nearest ones.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=8)
        >>> objective = RepeatedDoublingConfig(levels=2).build()
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(1, 3, 32, 32)}
        >>> sorted(objective.step(batch, backbone, upsampler, torch.Generator()))
        ['level_1_step_1', 'level_2_step_1', 'level_2_step_2', 'loss']
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
            resize_bilinear(image, size, antialias=True)
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

    def _plan(self, image_size: Size, backbone: "Backbone") -> Plan:
        sizes = self._sizes(image_size)
        grids = [backbone.grid_size(size) for size in sizes]
        calls = [
            Call(sizes[level], grids[level], grids[level - step])
            for level in range(1, len(sizes))
            for step in range(1, level + 1)
        ]
        return Plan(sizes, calls)
