"""How a method's guidance image is normalised, and what its weights were trained for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from upfeat.errors import warn_user
from upfeat.layers.raw_images import warn_of_raw_image
from upfeat.ops.images import normalize
from upfeat.ops.principal import three_channels
from upfeat.ops.runtime import wants_reference
from upfeat.upsamplers.saving import SavedModel

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.weights import TrainedFor

__all__ = ["GuidedModel"]


class GuidedModel(SavedModel):
    """A method that is guided by an image, and may have been trained for one backbone."""

    def __init__(self) -> None:
        super().__init__()
        self._warned_of: set[str] = set()

    def guidance_statistics(self, backbone: "Backbone") -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and deviation of the guidance: the method's own, else the backbone's."""
        if self.info.image_mean is None or self.info.image_std is None:
            return backbone.image_mean, backbone.image_std
        return self.info.image_mean, self.info.image_std

    def guidance_image(self, image: Tensor, backbone: "Backbone | None" = None) -> Tensor:
        """Normalise an image as this upsampler wants its guidance.

        Warns, once for each, of a backbone that the weights were not trained for.

        Args:
            image: (B, 3, H, W), RGB in [0, 1]; or (B, N, H, W) with any other number of channels
                in any units, which :func:`upfeat.ops.principal.three_channels` brings to three.
            backbone: whose features are upsampled; its normalisation counts where the method has
                none of its own. None for values that no backbone computed, such as coarse bands.

        Returns:
            (B, 3, H, W), what :meth:`forward` takes as ``image``.

        Raises:
            ValueError: without a backbone, a method has no normalisation of its own.

        Example:
            >>> import torch, upfeat
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> black = up.guidance_image(torch.zeros(1, 3, 1, 1), encoder)  # -mean / std
            >>> [round(value, 2) for value in black.flatten().tolist()]
            [-2.12, -2.04, -1.8]
            >>> bands, guide = torch.rand(1, 7, 4, 4), torch.rand(1, 16, 64, 64)  # no RGB at all
            >>> up(up.guidance_image(guide), bands).shape
            torch.Size([1, 7, 64, 64])
        """
        if image.dim() == 4 and image.shape[1] != 3:
            image = three_channels(image)
        if backbone is not None:
            self.warn_of_other_backbone(backbone)
            return normalize(image, *self.guidance_statistics(backbone))
        if self.info.image_mean is None or self.info.image_std is None:
            raise ValueError(
                f"{self.info.name} takes its guidance normalised as for the backbone: give the "
                "backbone, guidance_image(image, backbone)"
            )
        return normalize(image, self.info.image_mean, self.info.image_std)

    def prepare(self, image: Tensor, backbone: "Backbone") -> tuple[Tensor, Tensor]:
        """Normalise an image for the backbone and for this upsampler, whose wishes may differ.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], sides multiples of ``backbone.size_multiple``.
            backbone: whose features are upsampled.

        Returns:
            ``(pixels, guidance)``, each (B, 3, H, W): for ``backbone(pixels)`` and
            ``upsampler(guidance, features)``.

        Example:
            >>> import torch, upfeat
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> pixels, guidance = up.prepare(torch.rand(1, 3, 32, 48), encoder)
            >>> up(guidance, encoder(pixels)).shape
            torch.Size([1, 192, 32, 48])
        """
        pixels = normalize(image, backbone.image_mean, backbone.image_std)
        return pixels, self.guidance_image(image, backbone)

    def _warn_of_raw_image(self, image: Tensor) -> None:
        """Warn of guidance without normalisation, where it is known which it should have."""
        known = self.info if self.info.image_mean is not None else self.trained_for
        if known is not None and known.image_mean is not None and known.image_std is not None:
            name = self.info.name
            warn_of_raw_image(self._warned_of, image, known.image_mean, known.image_std, name)

    def accept_backbone(self, backbone: "Backbone") -> None:
        """Take features of a backbone that the weights were not trained for, without a warning.

        Example:
            >>> import upfeat
            >>> up = upfeat.create_upsampler("jafar.vit_tiny_patch16_augreg")
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up.accept_backbone(encoder)
            >>> up.warn_of_other_backbone(encoder)  # nothing
        """
        self._warned_of.add(backbone.name)

    def warn_of_other_backbone(self, backbone: object) -> None:
        """Warn once of a backbone that the weights were not trained for, where that is known."""
        name = getattr(backbone, "name", None)
        known = self.trained_for is not None and not self.info.abilities.universal
        if not known or name is None or name in self._warned_of or wants_reference():
            return
        difference = cast("TrainedFor", self.trained_for).difference(cast("Backbone", backbone))
        if difference is not None:
            self._warned_of.add(name)
            warn_user(
                f"the weights of {self.info.name} were trained for {difference}: these features "
                "mean something else to it; load weights of this backbone, or train it with "
                "upfeat train"
            )
