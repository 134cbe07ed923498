"""LiFT: a small convolutional network that doubles the resolution of ViT features.

Paper: Suri et al., "LiFT: A Surprisingly Simple Lightweight Feature Transform for Dense ViT
Descriptors", ECCV 2024, arXiv 2403.14625. Original: github.com/saksham-s/lift at fd6d929a; for
patch 14: the copy in github.com/andrehuang/loftup at 6620d9bc. Weights: the original's Google
Drive folder.

A U-Net of one level: the image is brought to twice the feature grid (g1) and to the grid (g2),
features and g2 go up together, meet g1, and two convolutions give features of twice the size.

Legend: B batch, C feature channels, h w grid of the features, H W guidance image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.layers.strided import StridedConv2d
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    UpsamplerInfo,
    WholeMapUpsampler,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to
from upfeat.upsamplers.weights import Checkpoint

IMAGE_WIDTH = 32  # channels of the image's maps
NORM_EPS = 1e-5


def _image_block(inputs: int) -> list[nn.Module]:
    """Half the size: convolution, batch norm, ReLU."""
    convolution = StridedConv2d(inputs, IMAGE_WIDTH, 3, stride=2, padding=1)
    return [convolution, nn.BatchNorm2d(IMAGE_WIDTH, NORM_EPS), nn.ReLU(inplace=True)]


class _DoubleConvolution(nn.Module):
    """Twice: 3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for channels in (inputs, width):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(width, NORM_EPS), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*blocks)


class _Up(nn.Module):
    """The way up: a transposed convolution, then :class:`_DoubleConvolution` beside the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = channels + IMAGE_WIDTH
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        self.conv_1 = _DoubleConvolution(inputs // 2 + IMAGE_WIDTH, channels // 2)


def _record(backbone: str, patch: int, width: int) -> Checkpoint:
    tag = f"dino_{backbone}{patch}"
    network = f"vit_{'small' if backbone == 'vits' else 'base'}_patch{patch}_224"
    return Checkpoint(
        tag=tag,
        file=HubFile(
            filename=f"lift_{tag}.pth",
            url="https://drive.google.com/drive/folders/12Q8n_vur3njOgAO1iu0P6tDIcszrnadd",
        ),
        backbone=f"timm/{network}.dino(facet='keys', head_fastest=True, positions='offset')",
        feature_dim=width,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="ImageNet-1k, 5 epochs, 448 x 448",
        code_license="not recorded; see the repository",
        weights_license="not stated",
        backbone_license="Apache-2.0",
        paper="2403.14625",
        note="Download the file by hand. It wants the keys of DINO's last block, not its output "
        "tokens, with the head as the fastest index: channel = dim * heads + head.",
    )


CHECKPOINTS = (
    _record("vits", 16, 384),
    _record("vits", 8, 384),
    _record("vitb", 16, 768),
    _record("vitb", 8, 768),
)


@register_upsampler("lift", checkpoints=CHECKPOINTS)
class LiFT(WholeMapUpsampler):
    """LiFT (arXiv 2403.14625): features of twice the size, again and again if asked.

    The image's map goes to twice the grid by adaptive max pooling: the identity for patch 8, the
    original's 2x2 pooling for patch 16, LoftUp's rule for patch 14, and defined for every other
    size. One set of weights therefore fits any patch size; it was trained for one.

    Args:
        feature_dim: C, channels of the backbone's features.
        iterations: how often the size is doubled; the output goes in again, with the image
            bilinearly enlarged x2 each time (LiFT-iterative). What remains to the asked size is
            bilinear.

    Raises:
        ValueError: ``feature_dim`` is below 2, or ``iterations`` is not positive.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("lift", feature_dim=16).eval()
        >>> up(torch.randn(1, 3, 64, 48), torch.randn(1, 16, 4, 3), output_size=(8, 6)).shape
        torch.Size([1, 16, 8, 6])
    """

    info = UpsamplerInfo(
        name="lift",
        summary="Small convolutional network that doubles the grid; trained per backbone.",
        when=(
            "Twice the resolution is enough, at little more than the time of bilinear "
            "interpolation; with DINO's published weights, or your own."
        ),
        claim=(
            "A light network, trained without labels, doubles the resolution of ViT features and "
            "helps dense tasks at little cost."
        ),
        as_baseline={
            "JAFAR": (
                "its own adaptation, pre-trained on ImageNet, x2, then bilinear; two in a row were "
                "no better; the official file in a table of its own"
            ),
            "LoftUp": "patch 14 by adaptive max pooling, one epoch of 1 M images of SA-1B",
        },
        paper="LiFT: A Surprisingly Simple Lightweight Feature Transform for Dense ViT Descriptors",
        year=2024,
        arxiv="2403.14625",
        code="https://github.com/saksham-s/lift",
        code_license="not recorded; see the repository",
        weights_license="not stated",
        abilities=Abilities(mixes_values=False, any_size=False),
        factor=2,
    )
    whole_in_training = True
    channels_last = True

    def __init__(self, feature_dim: int, iterations: int = 1) -> None:
        super().__init__()
        if feature_dim < 2:
            raise ValueError(f"feature_dim must be at least 2, got {feature_dim}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.iterations = iterations
        self.up1 = _Up(feature_dim)
        self.outc = nn.Conv2d(feature_dim // 2, feature_dim, 1)
        self.image_convs_1 = nn.Sequential(*_image_block(3), *_image_block(IMAGE_WIDTH))
        self.image_convs_2 = nn.Sequential(*_image_block(IMAGE_WIDTH))

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Double the features ``iterations`` times, with an image of twice the size each time."""
        for iteration in range(self.iterations):
            if iteration:
                image = F.interpolate(image, scale_factor=2, mode="bilinear")
            features = self._double(image, features)
        return resize_to(features, output_size)

    def _double(self, image: Tensor, features: Tensor) -> Tensor:
        """(B, 3, H, W), (B, C, h, w) -> (B, C, 2h, 2w)."""
        size = (2 * features.shape[2], 2 * features.shape[3])
        fine = F.adaptive_max_pool2d(self.image_convs_1(image), size)  # g1 (B, 32, 2h, 2w)
        coarse = self.image_convs_2(fine)  # g2 (B, 32, h, w)
        x = self.up1.up(torch.cat((features, coarse), dim=1))  # (B, (C + 32) // 2, 2h, 2w)
        x = self.up1.conv_1.double_conv(torch.cat((x, fine), dim=1))  # (B, C // 2, 2h, 2w)
        return self.outc(x)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the width; the number of iterations leaves no trace in the tensors."""
        return {"feature_dim": state["outc.weight"].shape[0]}
