"""Match the upsampled map inside a crop with the backbone's features of that crop.

Paper: AnyUp (arXiv 2510.12764), section 3.3; numbers of the released code. One run may use several
backbones.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_norm, size_of
from upfeat.objectives.augment import augment_image
from upfeat.objectives.base import Batch, Calls, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.draws import draw_integer
from upfeat.objectives.losses import Distance, downsampling_loss, get_distance
from upfeat.ops.images import Size, normalize, resize_antialiased, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["Crops", "CropsConfig"]


class CropsConfig(ObjectiveConfig):
    """Settings of :class:`Crops`; the defaults are AnyUp's (448 images, 224 views, 4 crops).

    Attributes:
        scale: size of the small image and of a crop, as a share of the image's.
        crops: of each image.
        distance: of all terms.
        augmented_weight: of the agreement between an augmented and the clean guidance.
        downsample_weight: of the agreement between the averaged output and the low features.
        strength: of the augmentation, see :func:`~upfeat.objectives.augment.augment_image`.
        normalization: what the backbone's images are normalised with: its ``"own"`` mean and
            deviation (chosen), or the ``"guidance"``'s, as in the code, where every backbone gets
            ImageNet's.
    """

    name: Literal["crops"] = "crops"
    scale: float = Field(default=0.5, gt=0, lt=1)
    crops: PositiveInt = 4
    distance: Distance = "cosine_mse"
    augmented_weight: float = 0.1
    downsample_weight: float = 0.1
    strength: PositiveFloat = 1.0
    normalization: Literal["own", "guidance"] = "own"


@register_objective(CropsConfig)
class Crops(Objective):
    """Match cut-outs of the upsampled map with the backbone's features of full-resolution crops.

    For each image: the small image (resized with antialiasing) gives the low features and is the
    guidance; random crops of the large image, aligned to the patch, give the targets. The output
    has the grid of the large image and is cut at each crop's place. Two consistencies are added:
    a photometrically augmented guidance must give the map of the clean one at the guidance's size
    (no gradient through the latter), and the output, averaged down, the low features.
    """

    config: CropsConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, image = self.config, batch["image"]
        full = size_of(image)
        size, grid = self._size(full, backbone), backbone.grid_size(full)
        norm = guidance_norm(upsampler, backbone)
        small = resize_antialiased(image, size)
        guidance = normalize(small, *norm)
        low = self._features(backbone, small, upsampler)
        pred = upsampler(guidance, self.source(low), grid)
        corners = [
            [self._corner(full, size, backbone, generator) for _ in range(config.crops)]
            for _ in range(len(image))
        ]
        seen, crops = _cut(pred, image, corners, size, backbone)
        targets = self.target(self._features(backbone, crops, upsampler))
        distance = get_distance(config.distance)
        terms = {"crops": (1.0, distance(seen, targets))}
        if config.augmented_weight:
            changed = [augment_image(one, generator, config.strength) for one in image]
            other = resize_antialiased(torch.stack(changed), size)
            with torch.no_grad():
                clean = upsampler(guidance, self.source(low), size)
            augmented = upsampler(normalize(other, *norm), self.source(low), size)
            terms["augmented"] = (config.augmented_weight, distance(augmented, clean))
        if config.downsample_weight:
            agreement = downsampling_loss(pred, self.target(low), distance)
            terms["downsampling"] = (config.downsample_weight, agreement)
        return self.weighted_sum(terms)

    @torch.no_grad()
    def _features(self, backbone: "Backbone", image: Tensor, upsampler: nn.Module) -> Tensor:
        if self.config.normalization == "own":
            return backbone_features(backbone, image)
        return backbone(normalize(image, *guidance_norm(upsampler, backbone)))

    def _size(self, full: Size, backbone: "Backbone") -> Size:
        return scale_size(full, self.config.scale, backbone.size_multiple)

    def _corner(
        self, full: Size, size: Size, backbone: "Backbone", generator: torch.Generator
    ) -> Size:
        """Draw a crop's top left corner, a whole number of patches from the image's."""
        step = backbone.size_multiple
        top, left = (
            draw_integer(generator, (whole - side) // step + 1) * step
            for whole, side in zip(full, size, strict=True)
        )
        return top, left

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        size, grid = self._size(image_size, backbone), backbone.grid_size(image_size)
        low = backbone.grid_size(size)
        if size[0] > image_size[0] or size[1] > image_size[1]:
            raise ValueError(f"images {image_size} are smaller than a view of them, {size}")
        calls = [Call(size, low, grid)]
        if self.config.augmented_weight:
            calls.append(Call(size, low, size))
        return Calls([size], calls)


def _cut(
    pred: Tensor, image: Tensor, corners: list[list[Size]], size: Size, backbone: "Backbone"
) -> tuple[Tensor, Tensor]:
    """Cut crops (B K, 3, s, s) from the images and the same places from the output's grid."""
    rows, columns = backbone.grid_size(size)
    seen, crops = [], []
    for index, places in enumerate(corners):
        for top, left in places:
            first_row, first_column = backbone.grid_size((top, left))
            crops.append(image[index, :, top : top + size[0], left : left + size[1]])
            seen.append(
                pred[index, :, first_row : first_row + rows, first_column : first_column + columns]
            )
    return torch.stack(seen), torch.stack(crops)
