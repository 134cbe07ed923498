"""The network of interactive segmentation that is trained on a frozen backbone and upsampler.

iSegProbe (commit 16815f3) as LoftUp uses it (arXiv 2504.14032, table 4): a click encoder, one
convolution with the backbone's patch size over last mask, positive and negative click map, whose
output is added to the patch embedding (after SimpleClick, arXiv 2210.11006); the upsampled
features; a head of three convolutions.

Legend: ``B`` batch, ``C`` channels, ``S`` side of the image, ``h w`` feature grid, ``h' w'``
upsampled map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.backbones.timm_backbone import TimmBackbone
from upfeat.errors import UnsupportedError, shape_text
from upfeat.ops.images import Size, normalize
from upfeat.upsamplers import Upsampler

__all__ = ["ClickProbe", "Injection", "normalized_focal_loss"]

Injection = Literal["early", "late"]
MAPS = 3  # last probabilities, positive clicks, negative clicks


class ClickProbe(nn.Module):
    """Click encoder and head; backbone and upsampler are given at each call and stay frozen.

    Args:
        channels: C.
        patch: of the backbone.
        injection: ``early`` adds the encoded clicks to the patch embedding, ``late`` to the
            features behind the backbone.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.evaluation.probes.click_network import ClickProbe
        >>> vit = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
        >>> probe, up = ClickProbe(192, 16), upfeat.create_upsampler("bilinear")
        >>> image, maps = torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
        >>> probe(vit, up, image, maps, (8, 8)).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, channels: int, patch: int, injection: Injection = "early") -> None:
        super().__init__()
        self.injection = injection
        self.encoder = nn.Conv2d(MAPS, channels, patch, patch)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(
        self,
        backbone: Backbone,
        upsampler: Upsampler,
        image: Tensor,
        maps: Tensor,
        size: Size | None,
    ) -> Tensor:
        """Return logits of the object.

        Args:
            backbone: of C channels.
            upsampler: of its features.
            image: (B, 3, S, S) in [0, 1].
            maps: (B, 3, S, S): last probabilities, positive and negative click map.
            size: (h', w') of the upsampled features; None for the backbone's grid.

        Returns:
            (B, 1, S, S).
        """
        features = self.features(backbone, image, maps)
        guidance = upsampler.guidance_image(image, backbone)
        high = upsampler(guidance, features, size or (features.shape[2], features.shape[3]))
        return F.interpolate(self.head(high), image.shape[2:], mode="bilinear", align_corners=True)

    def features(self, backbone: Backbone, image: Tensor, maps: Tensor) -> Tensor:
        """Return the features (B, C, h, w) of an image with its clicks."""
        pixels = normalize(image, backbone.image_mean, backbone.image_std)
        clicks = self.encoder(maps)  # (B, C, h, w)
        if self.injection == "late":
            return backbone(pixels) + clicks
        if not isinstance(backbone, TimmBackbone):
            raise UnsupportedError(
                f"{backbone.name} has no patch embedding to add clicks to; choose a transformer of "
                "timm, or injection=late"
            )
        return backbone.forward_added(pixels, clicks)


def normalized_focal_loss(
    logits: Tensor, label: Tensor, alpha: float = 0.5, gamma: float = 2, ignored: int = -1
) -> Tensor:
    """Return the focal loss of each image, scaled so that its weights add up to the pixels.

    K. Sofiiuk et al., "AdaptIS: adaptive instance selection network", arXiv 1909.07829, equation
    5. With p the probability of the true label and m = pixels / sum((1 - p)^gamma), a constant
    for the gradient: the mean over pixels of ``-alpha m (1 - p)^gamma log p``.

    Args:
        logits: (B, 1, H, W).
        label: (B, 1, H, W): 1 object, 0 background.
        alpha: weight of the object; the background has ``1 - alpha``.
        gamma: exponent.
        ignored: label of pixels that do not count.

    Returns:
        (B,).

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.click_network import normalized_focal_loss
        >>> loss = normalized_focal_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        >>> round(loss.item(), 4)
        0.3466
    """
    if logits.shape != label.shape or logits.dim() != 4:
        raise ValueError(
            f"logits and label must be (B, 1, H, W), got {shape_text(logits)} and "
            f"{shape_text(label)}"
        )
    counts = label != ignored
    tiny = 1e-12
    weight = torch.where(label > 0.5, alpha, 1 - alpha) * counts
    right = torch.where(counts, 1 - (label - logits.sigmoid()).abs(), 1.0)
    focus = (1 - right) ** gamma
    pixels = counts.sum((-2, -1), keepdim=True)
    scale = pixels / (focus.sum((-2, -1), keepdim=True) + tiny)
    loss = -weight * focus * scale.detach() * (right + tiny).clamp(max=1).log()
    return loss.sum((1, 2, 3)) / (pixels.sum((1, 2, 3)) + tiny)
