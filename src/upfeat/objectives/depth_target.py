"""Depth maps of the image's resolution as a target (LoftUp, arXiv 2504.14032, table 2).

In the paper they, like the features of a doubled input, lose to mask-refined features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
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
from upfeat.objectives.losses import (
    downsampling_loss,
    scale_shift_invariant_l1,
    to_float32,
)
from upfeat.ops.images import Size, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["DepthTarget", "DepthTargetConfig"]


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

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        output, grid = (
            scale_size(image_size, self.config.output_scale),
            backbone.grid_size(image_size),
        )
        if self.config.feature_weight and (output[0] < grid[0] or output[1] < grid[1]):
            raise ValueError(
                f"the output {output} must not be smaller than the feature grid {grid}; enlarge "
                "output_scale"
            )
        return Calls([image_size], [Call(image_size, grid, output)])
