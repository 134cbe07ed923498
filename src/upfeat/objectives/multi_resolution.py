"""Learning from two resolutions: a small image's upsampled features should be a large one's.

Paper: JAFAR (arXiv 2506.11136), section 3.3; NAF (arXiv 2511.18452) with a fixed factor. Numbers
are those of the released scripts.
"""

from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from upfeat._settings import Share
from upfeat.objectives._networks import (
    Call,
    backbone_features,
    guidance_image,
    guidance_norm,
    size_of,
)
from upfeat.objectives.base import Batch, Calls, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.draws import Clamp, disturb_image, draw_uniform
from upfeat.objectives.losses import Distance, cosine_mse, get_distance
from upfeat.objectives.mass_fields import field_loss
from upfeat.ops.images import Size, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["MultiResolution", "MultiResolutionConfig", "naf_config"]


class MultiResolutionConfig(ObjectiveConfig):
    """Settings of :class:`MultiResolution`; the defaults are JAFAR's.

    Attributes:
        scale: range of the small image's size, as a share of the image's; equal ends for a fixed
            one. (JAFAR's paper and code.)
        distance: between the upsampled and the large image's features. (Paper and code.)
        guidance_scale: size of the guidance, as a share of the image's. (Paper and code.)
        guidance_cells: if given, the guidance has at most this many pixels for each cell of the
            target instead (4 in NAF's code).
        guidance_max: with ``guidance_cells``: upper bound of each side (224 in NAF's code).
        regulariser_weight: of the agreement between a disturbed and the clean guidance; 0 leaves
            it out. (JAFAR's code only.)
        field_weight: of the difference of centre-of-mass fields
            (:func:`~upfeat.objectives.mass_fields.field_loss`), DiveUp's guidance. Its guides are
            two larger networks; here the large image's own features guide. (Weight not published.)
        clamp: how the disturbed image is clamped, see
            :func:`~upfeat.objectives.draws.disturb_image`. The default corrects the code.
        blur: probability that the disturbed image is blurred. (Code.)
        noise: probability that it gets noise. (Code.)
    """

    name: Literal["multi_resolution"] = "multi_resolution"
    scale: tuple[float, float] = (0.25, 0.5)
    distance: Distance = "cosine_mse"
    guidance_scale: PositiveFloat = 0.5
    guidance_cells: PositiveInt | None = None
    guidance_max: PositiveInt = 224
    regulariser_weight: float = 0.1
    field_weight: NonNegativeFloat = 0.0
    clamp: Clamp = "valid"
    blur: Share = 0.5
    noise: Share = 0.3

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be a range with 0 < low <= high <= 1, got {self.scale}")
        return self


def naf_config() -> MultiResolutionConfig:
    """Return NAF's setting: factor 0.5, plain MSE, guidance of 4 pixels a cell, no regulariser.

    The random mode of its code is ``naf_config().model_copy(update={"scale": (0.25, 0.6)})``.
    """
    return MultiResolutionConfig(
        scale=(0.5, 0.5), distance="mse", guidance_cells=4, regulariser_weight=0.0
    )


@register_objective(MultiResolutionConfig)
class MultiResolution(Objective):
    """Match the upsampled features of a smaller image with the features of the image.

    For each step (JAFAR's released script): the target is backbone(I); u ~ U(scale), the small
    image has u times the size, rounded to the patch; the guidance is a resized I. The regulariser
    compares the map of a blurred, noised guidance with that of the clean one, from the target's
    features up to the guidance's size, with no gradient through the latter. Images are resized
    bilinearly without antialiasing.
    """

    config: MultiResolutionConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        image = batch["image"]
        high = backbone_features(backbone, image)
        share, grid = draw_uniform(generator, *self.config.scale), size_of(high)
        small = resize_bilinear(image, self._small(size_of(image), share, backbone))
        low = backbone_features(backbone, small)
        size = self._guidance(size_of(image), grid)
        guidance = guidance_image(upsampler, backbone, resize_bilinear(image, size))
        pred = upsampler(guidance, self.source(low), grid)
        target = self.target(high)
        main = get_distance(self.config.distance)(pred, target)
        terms = {"main": (1.0, main)}
        if self.config.regulariser_weight:
            agreement = self._regulariser(
                guidance, self.source(high), upsampler, backbone, generator
            )
            terms["regulariser"] = (self.config.regulariser_weight, agreement)
        if self.config.field_weight:
            terms["field"] = (self.config.field_weight, field_loss(pred, [target]))
        return self.weighted_sum(terms)

    def _regulariser(
        self,
        guidance: Tensor,
        features: Tensor,
        upsampler: nn.Module,
        backbone: "Backbone",
        generator: torch.Generator,
    ) -> Tensor:
        config = self.config
        disturbed, clean = disturb_image(
            guidance,
            generator,
            *guidance_norm(upsampler, backbone),
            clamp=config.clamp,
            blur=config.blur,
            noise=config.noise,
        )
        if disturbed is clean:
            return guidance.new_zeros(())  # the two maps would be one
        size = size_of(guidance)
        with torch.no_grad():
            target = upsampler(clean, features, size)
        return cosine_mse(upsampler(disturbed, features, size), target)

    def _small(self, size: Size, share: float, backbone: "Backbone") -> Size:
        return scale_size(size, share, backbone.size_multiple)

    def _guidance(self, size: Size, grid: Size) -> Size:
        cells = self.config.guidance_cells
        if cells is None:
            return scale_size(size, self.config.guidance_scale)
        height, width = (min(self.config.guidance_max, cells * side) for side in grid)
        return height, width

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        grid = backbone.grid_size(image_size)
        guidance = self._guidance(image_size, grid)
        small = [self._small(image_size, share, backbone) for share in self.config.scale]
        calls = [Call(guidance, backbone.grid_size(size), grid) for size in small]
        if self.config.regulariser_weight:
            calls.append(Call(guidance, grid, guidance))
        return Calls([image_size, *small], calls)
