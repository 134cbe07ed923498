"""Resize-convolution: bilinear steps, each corrected by a convolution that sees the image.

Paper: the layered resize-convolution of FeatUp's comparison (Fu et al., "FeatUp: A Model-Agnostic
Framework for Features at Any Resolution", ICLR 2024, arXiv 2403.10516), after Odena et al.,
"Deconvolution and Checkerboard Artifacts", 2016. Original: github.com/mhamilton723/FeatUp at
6b5a6c0e (MIT). No weights are published.

Four steps: double the features bilinearly, resize the image to that size, and add to the features a
convolution of both (with ReLU in all steps but the last). The factor is 16; what comes out is then
resized bilinearly to the asked size.

Legend: B batch, C feature channels, h w low-resolution grid.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to


@register_upsampler("resize_conv")
class ResizeConv(WholeMapUpsampler):
    """Layered resize-convolution of FeatUp's comparison (arXiv 2403.10516).

    Args:
        feature_dim: channels C of the features.
        kernel_size: side of the convolutions, odd: 1 in FeatUp's code; LoftUp's count of
            parameters is that of 3.

    Raises:
        ValueError: an even kernel.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("resize_conv", feature_dim=16)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)).shape
        torch.Size([1, 16, 28, 42])
    """

    info = UpsamplerInfo(
        name="resize_conv",
        summary="Bilinear x2 plus a convolution of features and image, four times; then bilinear.",
        when="You want the simplest trained baseline, as FeatUp and LoftUp compare with.",
        claim="FeatUp's convolutional baseline; no claim of its own.",
        as_baseline={
            "LoftUp": (
                "kernel 3 (+5.4 M parameters; read from the count), trained under LoftUp's "
                "objective"
            )
        },
        paper="FeatUp: A Model-Agnostic Framework for Features at Any Resolution (its baseline)",
        year=2024,
        arxiv="2403.10516",
        code="https://github.com/mhamilton723/FeatUp",
        code_license="MIT",
        abilities=Abilities(mixes_values=False, any_size=False),
        factor=16,
    )

    def __init__(self, feature_dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(feature_dim + 3, feature_dim, kernel_size, padding="same") for _ in range(4)
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Double four times; each step adds a convolution of features and image."""
        for conv in (self.conv1, self.conv2, self.conv3):
            large, update = self._double(conv, image, features)
            features = large + update.relu()
        large, update = self._double(self.conv4, image, features)
        return resize_to(large + update, output_size)

    def _double(self, conv: nn.Conv2d, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the doubled features (B, C, 2h, 2w) and the convolution of them and the image.

        The convolution of both is the sum of two, so that they need not be put side by side; a 1x1
        convolution of the features commutes with their interpolation and runs at the small size.
        """
        size = (2 * features.shape[2], 2 * features.shape[3])
        width = features.shape[1]
        large = resize_to(features, size)
        guide = resize_to(image, size)
        weight = conv.weight
        if conv.kernel_size == (1, 1):
            update = resize_to(F.conv2d(features, weight[:, :width]), size)
        else:
            update = F.conv2d(large, weight[:, :width], padding="same")
        return large, update + F.conv2d(guide, weight[:, width:], conv.bias, padding="same")

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes from the tensors."""
        weight = state["conv1.weight"]
        return {"feature_dim": weight.shape[0], "kernel_size": weight.shape[-1]}
