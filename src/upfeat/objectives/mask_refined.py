"""Learning from mask-refined features: bicubic features, averaged inside masks, are the target.

Paper: LoftUp (arXiv 2504.14032), section 3.2, first stage. The released training code (a
provisional branch) adds a multi-view and a total-variation term.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._settings import Share, Sides
from upfeat.objectives._networks import Calls, one_call, size_of
from upfeat.objectives.base import Batch, register_objective
from upfeat.objectives.draws import draw_part
from upfeat.objectives.losses import Distance, get_distance, project, random_projection, to_float32
from upfeat.objectives.masks import MaskOrder, mask_similarity, refine_with_masks
from upfeat.objectives.multi_view import MultiViewConfig, MultiViewObjective, MultiViewOption
from upfeat.ops.images import Size, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["MaskRefined", "MaskRefinedConfig", "released_stage1_config"]


class MaskRefinedConfig(MultiViewOption):
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


def released_stage1_config() -> MaskRefinedConfig:
    """Return what the released first stage does: projected loss, four views, total variation."""
    return MaskRefinedConfig(projection=64, multi_view=MultiViewConfig())


@register_objective(MaskRefinedConfig)
class MaskRefined(MultiViewObjective):
    """Match the output with bicubic features that masks have sharpened (LoftUp, first stage).

    The batch brings ``"masks"`` (B, M, H, W), of any source. The downsampler of ``multi_view`` is
    trained along: hand the objective's parameters to the optimiser.
    """

    batch_keys = ("image", "masks")
    config: MaskRefinedConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, image, masks = self.config, batch["image"], batch["masks"]
        image, masks = draw_part(image, masks, config.input_sizes, generator)
        size = scale_size(size_of(image), config.output_scale)
        features, output = self._upsampled(image, backbone, upsampler, size)
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
        return self.weighted_sum(terms)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes = self.config.input_sizes or (image_size,)
        plans = [one_call(size, backbone, self.config.output_scale) for size in sizes]
        return Calls(sizes, [call for plan in plans for call in plan.calls])
