"""Joint bilateral filters of an already enlarged map: NAF's two classical baselines.

Paper: Chambon et al., "NAF", arXiv 2511.18452, which compares with them; original:
github.com/valeoai/NAF at ad4e24d2 (Apache-2.0). ``joint_bilateral_filter`` has no weights;
``joint_bilateral_learned`` is FeatUp's range kernel (arXiv 2403.10516, equation 4) without its
correction, in one step, to be trained.

Both mix, at every pixel, the pixels around it with weights that sum to one, so both are the local
attender with the logarithm of the kernel as logits. (``joint_bilateral`` is Kopf's original form,
which reads the low-resolution cells directly.)

Legend: B batch, K value channels, d key channels, n taps, h w grid, H' W' output.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import local_attender, window_similarity
from upfeat.ops.images import reflect_pad, resize_bilinear
from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to

PAPER = "NAF: Zero-Shot Feature Upsampling via Neighborhood Attention Filtering"
TEMPERATURE = (1e-4, 1e4)


def _offsets(radius: int) -> list[tuple[int, int]]:
    """The square of side 2 radius + 1, row by row."""
    reach = range(-radius, radius + 1)
    return [(row, col) for row in reach for col in reach]


def _shifted(padded: Tensor, size: tuple[int, int], radius: int) -> list[Tensor]:
    """Views of a padded map, one for each of `_offsets`: n x (B, C, H, W)."""
    return [
        padded[:, :, radius + row : radius + row + size[0], radius + col : radius + col + size[1]]
        for row, col in _offsets(radius)
    ]


@register_upsampler("joint_bilateral_filter")
class JointBilateralFilter(WholeMapUpsampler):
    """Bilinear x ``factor``, a joint bilateral blur there, bilinear to the asked size.

    The weight of a pixel is exp(-(sum_c |dI_c|)^2 / (2 sigma_color^2)) times a Gaussian of the
    distance: colours differ by the *squared L1* norm. The border is mirrored.

    Args:
        sigma_color: of the colour kernel, in units of the guidance image as given.
        sigma_space: of the spatial kernel, in pixels of the enlarged map.
        kernel_size: side of the window, odd.
        factor: of the first enlargement.

    Raises:
        ValueError: a parameter is out of range.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("joint_bilateral_filter", sigma_color=0.3)
        >>> up(torch.rand(1, 3, 64, 48), torch.rand(1, 8, 4, 3)).shape
        torch.Size([1, 8, 64, 48])
    """

    info = UpsamplerInfo(
        name="joint_bilateral_filter",
        summary="Joint bilateral blur of the features enlarged x4 (NAF's baseline); no training.",
        when="You compare with NAF's table, whose untrained filter it is.",
        claim="NAF's baseline without training; no claim of its own.",
        paper=PAPER,
        year=2025,
        arxiv="2511.18452",
        code="https://github.com/valeoai/NAF",
        code_license="Apache-2.0",
        abilities=Abilities(linear=True, any_size=False, universal=True),
        factor=4,
    )

    def __init__(
        self,
        sigma_color: float = 0.1,
        sigma_space: float = 1.5,
        kernel_size: int = 5,
        factor: int = 4,
    ) -> None:
        super().__init__()
        if not (sigma_color > 0 and sigma_space > 0):
            raise ValueError(
                f"sigma_color and sigma_space must be positive, got {sigma_color}, {sigma_space}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0 or factor < 1:
            raise ValueError(
                f"kernel_size must be odd and positive and factor at least 1, got {kernel_size} "
                f"and {factor}"
            )
        self.sigma_color, self.sigma_space = sigma_color, sigma_space
        self.radius, self.factor = kernel_size // 2, factor

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Enlarge bilinearly, blur there, resize to the asked size."""
        size = (self.factor * values.shape[2], self.factor * values.shape[3])
        large = resize_bilinear(values, size)
        wide = torch.promote_types(image.dtype, torch.float32)
        guide = F.interpolate(image.to(wide), size, mode="bilinear")
        out = local_attender(self._logits(guide), large, _offsets(self.radius), padding="reflect")
        return resize_to(out, output_size)

    def _logits(self, guide: Tensor) -> Tensor:
        """Logarithm of the kernel, up to a constant: (B, 3, H, W) -> (B, n, H, W)."""
        size = (guide.shape[2], guide.shape[3])
        color, space = (1 / (2 * sigma**2) for sigma in (self.sigma_color, self.sigma_space))
        logits = [
            -color * (near - guide).abs().sum(1).square() - space * (row**2 + col**2)
            for near, (row, col) in zip(
                _shifted(reflect_pad(guide, self.radius), size, self.radius),
                _offsets(self.radius),
                strict=True,
            )
        ]
        return torch.stack(logits, dim=1)


@register_upsampler("joint_bilateral_learned")
class LearnedJointBilateral(WholeMapUpsampler):
    """One joint bilateral filter with a learned range kernel, at the size of the output.

    Features and image are brought to the output's size bilinearly; the weight of a pixel is the
    softmax over the window of tau <P(p + t), P(p)>, with P two 1x1 convolutions of the image,
    times exp(-|t|^2 / (2 sigma^2)) with the window's corner at (1, 1), renormalised. The border is
    mirrored.

    Args:
        key_dim: d, channels of P.
        radius: of the window, in pixels of the output.

    Raises:
        ValueError: an argument is not positive.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("joint_bilateral_learned", key_dim=8, radius=2).eval()
        >>> up(torch.rand(1, 3, 32, 24), torch.rand(1, 8, 4, 3)).shape
        torch.Size([1, 8, 32, 24])
    """

    info = UpsamplerInfo(
        name="joint_bilateral_learned",
        summary="One joint bilateral filter with a learned range kernel (NAF's JBU baseline).",
        when="You compare with NAF's table, whose learned filter it is.",
        claim="NAF's learned baseline; no claim of its own.",
        paper=PAPER,
        year=2025,
        arxiv="2511.18452",
        code="https://github.com/valeoai/NAF",
        code_license="Apache-2.0",
        abilities=Abilities(linear=True, universal=True),
    )

    def __init__(self, key_dim: int = 64, radius: int = 5) -> None:
        super().__init__()
        if key_dim < 1 or radius < 1:
            raise ValueError(f"key_dim and radius must be at least 1, got {key_dim} and {radius}")
        self.radius = radius
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(3, key_dim, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(key_dim, key_dim, 1)
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Enlarge to the output's size and blur there."""
        guide = F.interpolate(image, output_size, mode="bilinear")
        large = resize_bilinear(values, output_size)
        return local_attender(self._logits(guide), large, _offsets(self.radius), padding="reflect")

    def _logits(self, guide: Tensor) -> Tensor:
        """Logarithm of the kernel, up to a constant: (B, 3, H', W') -> (B, n, H', W')."""
        key = self.range_proj(guide)  # (B, d, H', W')
        key = key.to(torch.promote_types(key.dtype, torch.float32))
        tau = self.range_temp.to(key.dtype).exp().clamp(*TEMPERATURE)
        spread = 2 * self.sigma_spatial.to(key.dtype).square()
        side = 2 * self.radius + 1
        likeness = window_similarity(key, reflect_pad(key, self.radius), side)  # (B, H', W', k, k)
        square = key.new_tensor([row**2 + col**2 for row, col in _offsets(self.radius)])
        logits = tau * likeness.flatten(3) - square / self.radius**2 / spread
        return logits.permute(0, 3, 1, 2)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the key width; the radius is in the unused correction's shape."""
        own = cls.convert_official(state)
        sizes: dict[str, Any] = {"key_dim": own["range_proj.0.weight"].shape[0]}
        for key, tensor in state.items():
            if key.endswith("fixup_proj.3.bias"):
                sizes["radius"] = math.isqrt(tensor.numel()) // 2
        return sizes

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the prefix, and the correction that the original holds but does not use."""
        own = {key.removeprefix("bilateral_filter."): value for key, value in state.items()}
        return {key: value for key, value in own.items() if not key.startswith("fixup_proj.")}
