"""Restoration of noisy images (NAF, arXiv 2511.18452): the upsampler at ratio 1 as a filter.

The noisy image is guidance and values at once, its output shall be the clean one. The features are
the image, so the backbone is ``image/rgb``.

Legend: ``B`` batch, ``H W`` image.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from upfeat._settings import Share
from upfeat.errors import UnsupportedError
from upfeat.objectives._networks import size_of
from upfeat.objectives.base import Batch, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.draws import draw_uniform
from upfeat.objectives.losses import l1, mse
from upfeat.ops.images import ssim

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["Noise", "Restoration", "RestorationConfig", "noisy_image", "restoration_terms"]

Noise = Literal["gaussian", "salt-pepper"]

LOSS_WEIGHTS = (1.0, 5.0, 0.2)  # of the absolute, the squared and the structural difference
MEAN_WINDOW = (1 / 3,) * 3


def noisy_image(image: Tensor, noise: Noise, amount: float, generator: torch.Generator) -> Tensor:
    """Return an image in [0, 1], of any shape, with noise; it is not clipped.

    ``gaussian`` is added and has the deviation ``amount``; of ``salt-pepper`` each value becomes 0
    or 1 with probability ``amount``.
    """
    if noise == "gaussian":
        return image + amount * torch.randn(image.shape, generator=generator).to(image)
    replaced = torch.rand(image.shape, generator=generator) < amount
    salt = torch.rand(image.shape, generator=generator) < 0.5
    return torch.where(replaced.to(image.device), salt.to(image), image)


def restoration_terms(restored: Tensor, clean: Tensor) -> dict[str, tuple[float, Tensor]]:
    """Return weight and value of the terms of NAF's loss: 1 L1 + 5 MSE + 0.2 (1 - 3x3 mean SSIM).

    Example:
        >>> import torch
        >>> from upfeat.objectives import restoration_terms
        >>> image = torch.rand(1, 3, 8, 8)
        >>> terms = restoration_terms(image, image)
        >>> list(terms), abs(float(terms["structure"][1])) < 1e-6
        (['absolute', 'squared', 'structure'], True)
    """
    similarity = ssim(restored.float(), clean.float(), MEAN_WINDOW)
    values = (l1(restored, clean), mse(restored, clean), 1 - similarity)
    names = ("absolute", "squared", "structure")
    return dict(zip(names, zip(LOSS_WEIGHTS, values, strict=True), strict=True))


class RestorationConfig(ObjectiveConfig):
    """Settings of :class:`Restoration`; the defaults are NAF's released ones.

    Attributes:
        noise: see :func:`noisy_image`.
        deviation: range of the deviation of Gaussian noise, drawn once a batch.
        probability: range of the probability of salt and pepper, drawn once a batch.
    """

    name: Literal["restoration"] = "restoration"
    feature_space: Literal["raw"] = "raw"
    noise: Noise = "gaussian"
    deviation: tuple[float, float] = (0.1, 0.1)
    probability: tuple[Share, Share] = (0.05, 0.05)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for field in ("deviation", "probability"):
            low, high = getattr(self, field)
            if not 0 <= low <= high:
                raise ValueError(f"{field} must be a range with 0 <= low <= high, got {low, high}")
        return self


@register_objective(RestorationConfig)
class Restoration(Objective):
    """Map the noisy image, guided by itself, to the clean one."""

    config: RestorationConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, clean = self.config, batch["image"]
        span = config.deviation if config.noise == "gaussian" else config.probability
        noisy = noisy_image(clean, config.noise, draw_uniform(generator, *span), generator)
        _, restored = self._upsampled(noisy, backbone, upsampler, size_of(clean))
        return self.weighted_sum(restoration_terms(restored, clean))

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._check_model(model, backbones)
        for backbone in backbones:
            if (backbone.dim, backbone.patch_size) != (3, 1):
                raise UnsupportedError(
                    f"restoration takes the image itself for its features, got {backbone.name}; "
                    "name the backbone image/rgb"
                )
