"""Stored maps of each image as a target, such as those of FeatUp's implicit networks.

LoftUp's paper (arXiv 2504.14032, table 2) names them as "per-image implicit" and says no more; the
distance is that of its first stage.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat
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
from upfeat.objectives.losses import Distance, get_distance, to_float32
from upfeat.ops.images import Size, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["StoredTarget", "StoredTargetConfig"]


class StoredTargetConfig(ObjectiveConfig):
    """Settings of :class:`StoredTarget`; all of them are chosen.

    Attributes:
        distance: between output and stored map.
        output_scale: size of the output, as a share of the image's.
    """

    name: Literal["stored_target"] = "stored_target"
    distance: Distance = "mse"
    output_scale: PositiveFloat = 1.0


@register_objective(StoredTargetConfig)
class StoredTarget(Objective):
    """Match the output with the map that was stored for the image.

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
        size = scale_size((image.shape[2], image.shape[3]), self.config.output_scale)
        guidance = guidance_image(upsampler, backbone, image)
        output = upsampler(guidance, self.source(backbone_features(backbone, image)), size)
        wanted = self.target(resize_bilinear(to_float32(target), size))
        distance = get_distance(self.config.distance)(to_float32(output), wanted)
        return weighted_sum({"stored": (1.0, distance)})

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        output = scale_size(image_size, self.config.output_scale)
        return Calls([image_size], [Call(image_size, backbone.grid_size(image_size), output)])
