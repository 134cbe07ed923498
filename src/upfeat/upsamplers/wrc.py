"""WRC: features of twice the size by inverse filtering in the Fourier domain, inside a small net.

Paper: "Weighted reverse convolution", arXiv 2605.17472, 2026. Original: github.com/PolyU-VCLab/WRC
at bf23bde9 ("CC-BY-4.0" in its project file, no licence file). No weights are published.

A net in the manner of LiFT: the image is brought to twice the feature grid (G1) and to the grid
(G2); features and G2 go up together by the reverse convolution, meet G1, and a bottleneck gives
features of twice the size. The reverse convolution seeks the map that, filtered and subsampled,
gives the input, near a bilinear prior; learned maps weigh both demands.

Departures: none, bugs included. The filter is rolled by half the map instead of half itself, so
that the data term pulls towards a shifted copy, and weights in space multiply spectra.

Legend: B batch, C feature channels, h w grid of the features, H W guidance image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.strided import StridedConv2d
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Exports,
    UpsamplerInfo,
    WholeMapUpsampler,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to
from upfeat.upsamplers.weights import NOT_COMPARED

IMAGE_WIDTH = 32  # channels of the image's maps
LEAST_PRIOR = 1e-5  # least weight of the prior
BORDER = 2  # cells of circular padding
FACTOR = 2


class Bottleneck(nn.Module):
    """ResNet's bottleneck without expansion: 1x1, 3x3, 1x1, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inputs, 1, bias=False), nn.BatchNorm2d(inputs)
        self.conv2 = StridedConv2d(inputs, inputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inputs)
        self.conv3, self.bn3 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class ReverseConvolution(nn.Module):
    """Twice the size: the closed form of a weighted least-squares problem, in the Fourier domain.

    With the filter's spectrum A, weights W_l of the data and W_h + l of the prior x0:

        u = W_l mean(A N) / (W_l mean(|A|^2) + mean(W_h) + l),  N = conj(A) F(y) + F((W_h + l) x0)
        x = F^-1((N - conj(A) u) / (W_h + l))

    means over the spectrum's blocks that subsampling folds together.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        taps = torch.randn(1, dim, FACTOR * FACTOR).softmax(2)
        self.weight = nn.Parameter(taps.unflatten(2, (FACTOR, FACTOR)))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.w_conv_low = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.w_conv_high = nn.Conv2d(dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w); in float32 at least."""
        dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        x = wrapped(x)
        data = self.w_conv_low(x).to(wide).square().log1p()  # W_l (B, C, h + 4, w + 4)
        size = (FACTOR * x.shape[2], FACTOR * x.shape[3])
        start = F.interpolate(x, size, mode="bilinear", align_corners=True)  # x0
        prior = self.w_conv_high(start).to(wide).square().log1p()  # W_h
        least = F.softplus(self.bias.to(wide)) + LEAST_PRIOR
        spread = spaced(data * x.to(wide))  # y
        filtered = self.spectrum(size, wide)  # A (1, C, 2h + 8, 2w + 8)
        both = filtered.conj() * torch.fft.fft2(spread)
        both = both + torch.fft.fft2((prior + least) * start.to(wide))  # N
        energy = data * folded(filtered.abs().square())
        folds = data * folded(filtered * both) / (energy + folded(prior) + least)  # u
        # No `tile`: ONNX has none for complex numbers.
        tiled = torch.cat([torch.cat([folds] * FACTOR, 3)] * FACTOR, 2)
        found = torch.fft.ifft2((both - filtered.conj() * tiled) / (prior + least)).real
        cut = FACTOR * BORDER
        return found[:, :, cut:-cut, cut:-cut].to(dtype)

    def spectrum(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the filter's spectrum; rolled by half the map, as released."""
        grown = F.pad(self.weight.to(dtype), (0, size[1] - 2, 0, size[0] - 2))
        return torch.fft.fft2(grown.roll((-(size[0] // 2), -(size[1] // 2)), (2, 3)))


def wrapped(x: Tensor) -> Tensor:
    """Continue a map circularly by the border: (B, C, h, w) to (B, C, h + 4, w + 4)."""
    for axis in (2, 3):
        place = torch.arange(-BORDER, x.shape[axis] + BORDER, device=x.device) % x.shape[axis]
        x = x.index_select(axis, place)
    return x


def spaced(x: Tensor) -> Tensor:
    """Put zeros between the cells: (B, C, h, w) to (B, C, 2h, 2w), values at even positions."""
    wide = torch.stack((x, torch.zeros_like(x)), dim=-1).flatten(3)  # (B, C, h, 2w)
    return torch.stack((wide, torch.zeros_like(wide)), dim=3).flatten(2, 3)


def folded(x: Tensor) -> Tensor:
    """Return the mean over the 2 x 2 blocks of a spectrum: (B, C, 2h, 2w) to (B, C, h, w)."""
    return x.unflatten(3, (FACTOR, -1)).unflatten(2, (FACTOR, -1)).mean((2, 4))


class ReverseStage(nn.Module):
    """The way up of the net, with its bottlenecks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = (dim + IMAGE_WIDTH) // 2
        self.conv = nn.Sequential(Bottleneck(dim + IMAGE_WIDTH, width), Bottleneck(width, width))
        self.up = ReverseConvolution(width)
        self.conv_1 = nn.Sequential(Bottleneck(width + IMAGE_WIDTH, dim // 2))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C + 32, h, w) and (B, 32, 2h, 2w) to (B, C // 2, 2h, 2w)."""
        return self.conv_1(torch.cat((self.up(self.conv(coarse)), fine), dim=1))


@register_upsampler("wrc")
class WRC(WholeMapUpsampler):
    """WRC (arXiv 2605.17472): features of twice the size by weighted reverse convolution.

    Other sizes are a bilinear resize of the doubled map.

    Args:
        feature_dim: C, channels of the backbone's features.
        patch_size: of the backbone: 14 or 16 (the image's map is pooled by two), or 8.

    Raises:
        ValueError: ``feature_dim`` is below 2, or the patch size is another.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("wrc", feature_dim=16).eval()
        >>> up(torch.randn(1, 3, 64, 48), torch.randn(1, 16, 4, 3), output_size=(8, 6)).shape
        torch.Size([1, 16, 8, 6])
    """

    info = UpsamplerInfo(
        name="wrc",
        summary="Small network that doubles the grid by inverse filtering; trained per backbone.",
        when="You compare with it: it has no weights, and LiFT does the same more simply.",
        claim="Doubles features better than a transposed convolution, at a tenth of JAFAR's time.",
        as_baseline=NOT_COMPARED,
        paper="Weighted reverse convolution",
        year=2026,
        arxiv="2605.17472",
        code="https://github.com/PolyU-VCLab/WRC",
        code_license="CC-BY-4.0 in its project file, no licence file",
        weights_license="none published",
        abilities=Abilities(
            mixes_values=False,
            any_size=False,
            export=Exports("static", "static", "no"),  # OpenVINO 2026.4 misreads ONNX's DFT
        ),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        factor=FACTOR,
    )
    whole_in_training = True

    def __init__(self, feature_dim: int, patch_size: int = 14) -> None:
        super().__init__()
        if feature_dim < 2:
            raise ValueError(f"feature_dim must be at least 2, got {feature_dim}")
        if patch_size not in (8, 14, 16):
            raise ValueError(f"patch_size must be 8, 14 or 16, got {patch_size}")
        self.patch_size, width = patch_size, IMAGE_WIDTH
        self.in_conv = nn.Sequential(
            nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.image_convs_1 = nn.Sequential(*(Bottleneck(width, width, s) for s in (2, 1, 2, 1)))
        self.image_convs_2 = nn.Sequential(*(Bottleneck(width, width, s) for s in (2, 1)))
        self.up1 = ReverseStage(feature_dim)
        self.outc = nn.Conv2d(feature_dim // 2, feature_dim, 1)

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Double the features, then resize."""
        grid = (features.shape[2], features.shape[3])
        fine = self.image_convs_1(self.in_conv(image))  # (B, 32, H / 4, W / 4)
        if self.patch_size == 8:
            fine = resize_to(fine, (2 * grid[0], 2 * grid[1]))
        else:
            fine = F.max_pool2d(resize_to(fine, (4 * grid[0], 4 * grid[1])), 2)  # G1
        coarse = torch.cat((features, self.image_convs_2(fine)), dim=1)  # F and G2
        return resize_to(self.outc(self.up1(coarse, fine)), output_size)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the width; the patch size leaves no trace in the tensors."""
        return {"feature_dim": cls.convert_official(state)["outc.weight"].shape[0]}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the prefix of data-parallel training; the names are the same."""
        return {key.removeprefix("module."): value for key, value in state.items()}
