"""Learning from mask-refined features: bicubic features, averaged inside masks, are the target.

Paper: LoftUp (arXiv 2504.14032), section 3.2, first stage. The released training code (a
provisional branch) adds a multi-view and a total-variation term.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._settings import Share, Sides
from upfeat.objectives._networks import Call, backbone_features, guidance_image
from upfeat.objectives.base import (
    Batch,
    Calls,
    Objective,
    ObjectiveConfig,
    register_objective,
    weighted_sum,
)
from upfeat.objectives.draws import draw_part
from upfeat.objectives.losses import (
    Distance,
    get_distance,
    project,
    random_projection,
    to_float32,
)
from upfeat.objectives.masks import MaskOrder, mask_similarity, refine_with_masks
from upfeat.objectives.multi_view import MultiView, MultiViewConfig, check_multi_view
from upfeat.ops.images import Size, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["MaskRefined", "MaskRefinedConfig", "released_stage1_config"]


class MaskRefinedConfig(ObjectiveConfig):
    """Settings of :class:`MaskRefined`; the defaults are the paper's loss with the code's numbers.

    Attributes:
        alpha: how far features move towards their mask's mean. (0.8 in the code; the paper's
            number could not be read.)
        order: what overlapping masks do, see :func:`~upfeat.objectives.masks.refine_with_masks`.
            (Code: ``"sequential"``.)
        distance: between output and target. (Paper and code: ``"mse"``.)
        output_scale: size of the output, as a share of the image's. (1 in paper and code; less is
            cheaper, chosen.)
        input_sizes: (H, W) of what backbone and upsampler see; one is drawn for each step, a part
            of its shape is cut from the images at a random place and resized. Empty: the images as
            they are. A method that codes absolute positions overfits to one size. (Chosen.)
        projection: compare random projections to so many channels, drawn for each image and step.
            (64 in the code; None in the paper.)
        similarity_weight: of :func:`~upfeat.objectives.masks.mask_similarity`. (Optional and off
            in the code.)
        multi_view: add the multi-view term. (Code only.)
    """

    name: Literal["mask_refined"] = "mask_refined"
    alpha: Share = 0.8
    order: MaskOrder = "sequential"
    distance: Distance = "mse"
    output_scale: PositiveFloat = 1.0
    input_sizes: tuple[Sides, ...] = ()
    projection: PositiveInt | None = None
    similarity_weight: float = 0.0
    multi_view: MultiViewConfig | None = None


def released_stage1_config() -> MaskRefinedConfig:
    """Return what the released first stage does: projected loss, four views, total variation."""
    return MaskRefinedConfig(projection=64, multi_view=MultiViewConfig())


@register_objective(MaskRefinedConfig)
class MaskRefined(Objective):
    """Match the output with bicubic features that masks have sharpened (LoftUp, first stage).

    The batch brings ``"masks"`` (B, M, H, W), of any source. The downsampler of ``multi_view`` is
    trained along: hand the objective's parameters to the optimiser.
    """

    batch_keys = ("image", "masks")
    config: MaskRefinedConfig

    def __init__(self, config: MaskRefinedConfig) -> None:
        super().__init__(config)
        self.multi_view: MultiView | None = None

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._check_model(model, backbones)
        check_multi_view(self.config.multi_view, backbones, self.name)

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        if self.config.multi_view is not None:
            backbone = backbones[0]
            self.multi_view = MultiView(
                self.config.multi_view, backbone.dim, int(backbone.patch_size)
            )

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, image, masks = self.config, batch["image"], batch["masks"]
        image, masks = draw_part(image, masks, config.input_sizes, generator)
        features = backbone_features(backbone, image)
        size = scale_size((image.shape[2], image.shape[3]), config.output_scale)
        output = upsampler(guidance_image(upsampler, backbone, image), self.source(features), size)
        bicubic = F.interpolate(to_float32(self.target(features)), size, mode="bicubic")
        target = refine_with_masks(bicubic, masks, config.alpha, config.order)
        terms = {}
        seen = to_float32(output)
        if config.projection is not None:
            projection = random_projection(output, config.projection, generator)
            seen, target = project(seen, projection), project(target, projection)
        terms["masks"] = (1.0, get_distance(config.distance)(seen, target))
        if config.similarity_weight:
            terms["similarity"] = (config.similarity_weight, mask_similarity(output, masks))
        if self.multi_view is not None:
            terms |= self.multi_view(image, output, backbone, generator, self.target)
        return weighted_sum(terms)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        calls = []
        for size in self.config.input_sizes or (image_size,):
            seen = (size[0], size[1])
            output = scale_size(seen, self.config.output_scale)
            calls.append(Call(seen, backbone.grid_size(seen), output))
        return Calls([call.image for call in calls], calls)
