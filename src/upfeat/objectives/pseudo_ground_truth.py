"""Two cheaper targets that LoftUp's paper compares its own with (arXiv 2504.14032, table 2).

``doubled_input`` is LiFT's signal: the features of an image twice as large. ``depth_target`` is a
full-resolution depth map. In the paper both lose to mask-refined features.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_image
from upfeat.objectives.base import Batch, Objective, ObjectiveConfig, Plan, weighted_sum
from upfeat.objectives.images import resize_bilinear, scale_size
from upfeat.objectives.losses import (
    Distance,
    downsampling_loss,
    get_distance,
    scale_shift_invariant_l1,
    to_float32,
)
from upfeat.objectives.registry import register_objective
from upfeat.ops.images import Size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["DepthTarget", "DepthTargetConfig", "DoubledInput", "DoubledInputConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    levels: int = 2
    distance: Distance = "cosine"
    reduce: Literal["stride", "bilinear"] = "stride"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        if self.reduce not in ("stride", "bilinear"):
            raise ValueError(f"reduce must be 'stride' or 'bilinear', got {self.reduce!r}")
        get_distance(self.distance)


@register_objective("doubled_input", DoubledInputConfig)
class DoubledInput(Objective):
    """Match the upsampled features of a halved image with those of the image (LiFT).

    With f the backbone, the loss is the sum over the levels of d(up(I/2, f(I/2)), f(I)), then
    d(up(I/4, f(I/4)), f(I/2)), and so on. The guidance is the halved image. Images whose sides are
    no multiples of the patch times 2^levels are resized to the nearest ones.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=8)
        >>> objective = DoubledInputConfig().build()
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(1, 3, 32, 32)}
        >>> sorted(objective.step(batch, backbone, upsampler, torch.Generator()))
        ['level_1', 'level_2', 'loss']
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

    def _plan(self, image_size: Size, backbone: "Backbone") -> Plan:
        height, width = image_size
        sizes = [(height >> level, width >> level) for level in range(self.config.levels + 1)]
        pairs = itertools.pairwise(sizes)
        grids = backbone.grid_size
        return Plan(sizes, [Call(small, grids(small), grids(large)) for large, small in pairs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthTargetConfig(ObjectiveConfig):
    """Settings of :class:`DepthTarget`. All of them are chosen: the paper gives a name only.

    Attributes:
        depth_weight: of the depth term.
        feature_weight: of the agreement with the backbone's features; without it nothing ties the
            output to them.
        output_scale: size of the output, as a share of the image's.
    """

    depth_weight: float = 1.0
    feature_weight: float = 1.0
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth_weight <= 0 or self.feature_weight < 0 or self.output_scale <= 0:
            raise ValueError(
                "depth_weight and output_scale must be positive, feature_weight not negative"
            )


@register_objective("depth_target", DepthTargetConfig)
class DepthTarget(Objective):
    """Make depth readable from the output by one 1x1 convolution.

    The batch brings ``"depth"`` (B, 1, H, W) of any monocular depth network or sensor; zeros,
    negative and non-finite values are invalid. Depth is compared up to scale and shift, and the
    output, averaged down to the backbone's grid, with the backbone's features (AnyUp's
    downsampling term). The convolution is trained along: hand the objective's parameters to the
    optimiser.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=8)
        >>> objective = DepthTargetConfig().build()
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(1, 3, 16, 16), "depth": torch.rand(1, 1, 16, 16) + 1}
        >>> sorted(objective.step(batch, backbone, upsampler, torch.Generator()))
        ['depth', 'downsampling', 'loss']
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
        if self.head is None:
            raise RuntimeError("prepare() builds the head")
        image, depth = batch["image"], batch["depth"]
        features = backbone_features(backbone, image)
        size = scale_size((image.shape[2], image.shape[3]), self.config.output_scale)
        guidance = guidance_image(upsampler, backbone, image)
        output = upsampler(guidance, self.source(features), size)
        estimate = self.head(output.to(self.head.weight.dtype))
        # The estimate goes to the depth's size, since resizing would mix invalid depths.
        estimate = resize_bilinear(estimate, (depth.shape[2], depth.shape[3]))
        depth_term = scale_shift_invariant_l1(estimate, depth.to(to_float32(estimate)))
        terms = {"depth": (self.config.depth_weight, depth_term)}
        if self.config.feature_weight:
            agreement = downsampling_loss(output, self.target(features))
            terms["downsampling"] = (self.config.feature_weight, agreement)
        return weighted_sum(terms)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Plan:
        output, grid = (
            scale_size(image_size, self.config.output_scale),
            backbone.grid_size(image_size),
        )
        if self.config.feature_weight and (output[0] < grid[0] or output[1] < grid[1]):
            raise ValueError(
                f"the output {output} must not be smaller than the feature grid {grid}; enlarge "
                "output_scale"
            )
        return Plan([image_size], [Call(image_size, grid, output)])
