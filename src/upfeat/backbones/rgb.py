"""The image itself as features, for restoration: ``image/rgb``, three channels of every pixel."""

from torch import Tensor

from upfeat.backbones.base import Backbone, Weights, register_provider
from upfeat.backbones.wrapping import IMAGENET_MEAN, IMAGENET_STD
from upfeat.errors import UnknownNameError

__all__ = ["RgbBackbone", "create_rgb_backbone"]


class RgbBackbone(Backbone):
    """Gives back the image in [0, 1] from one with ImageNet's mean and deviation.

    An upsampler at ratio 1 then filters the image under its own guidance, as NAF (arXiv 2511.18452)
    restores images.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone
        >>> backbone = create_backbone("image/rgb")
        >>> features = backbone(torch.zeros(1, 3, 4, 6))
        >>> features.shape, [round(float(mean), 3) for mean in features[0, :, 0, 0]]
        (torch.Size([1, 3, 4, 6]), [0.485, 0.456, 0.406])
    """

    def __init__(self) -> None:
        super().__init__(
            name="image/rgb",
            dim=3,
            patch_size=1,
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
        )

    def _extract(self, image: Tensor) -> Tensor:
        deviation = image.new_tensor(self.image_std)[:, None, None]
        return image * deviation + image.new_tensor(self.image_mean)[:, None, None]


@register_provider("image", names=lambda pretrained: ["rgb"])
def create_rgb_backbone(name: str, weights: Weights = None) -> RgbBackbone:
    """Build ``image/rgb``; called through :func:`upfeat.create_backbone`.

    Args:
        name: ``rgb``.
        weights: None or ``"random"``: there are none.

    Raises:
        UnknownNameError: there is no such one.
        ValueError: a file of weights was given.
    """
    if name != "rgb":
        raise UnknownNameError("backbone", f"image/{name}", ["image/rgb"])
    if weights not in (None, "random"):
        raise ValueError(f"image/rgb has no weights, got {weights}; leave them out")
    return RgbBackbone()
