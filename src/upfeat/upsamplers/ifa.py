"""IFA as FeatUp runs it: an implicit function of the pixel's place, x2, without guidance.

Papers: Hu et al., "Learning Implicit Feature Alignment Function for Semantic Segmentation", ECCV
2022, arXiv 2206.08655; as a baseline of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516. Original
of this form: github.com/mhamilton723/FeatUp (MIT). No weights are published.

Every fine pixel takes the nearest coarse feature, Fourier features of its place on the fine grid
and its offset from the coarse one, and passes a small network. Places are ``linspace(-1, 1)``, so
that sines and cosines do not depend on the offset; only the last two channels hold it.

Legend: B batch, C channels, h w coarse grid, H W = 2h 2w fine grid.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import fourier_features
from upfeat.ops.coordinates import inclusive_grid
from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to

FREQUENCIES = 20
PLACE_CHANNELS = 4 * FREQUENCIES + 2
FACTOR = 2


@register_upsampler("ifa")
class IFA(WholeMapUpsampler):
    """Implicit feature alignment (x2) as in FeatUp's comparison.

    Every other output size is a bilinear resize of the doubled grid. FeatUp's code takes square
    grids only; here rows and columns are encoded each on their own, which is the same there.

    Args:
        feature_dim: C.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("ifa", feature_dim=8).eval()
        >>> up(torch.rand(1, 3, 56, 56), torch.randn(1, 8, 4, 4), (8, 8)).shape
        torch.Size([1, 8, 8, 8])
    """

    info = UpsamplerInfo(
        name="ifa",
        summary="A network of the nearest feature and the pixel's place (x2), then bilinear.",
        when="You compare with IFA; it is trained for each backbone.",
        claim=(
            "Aligns features of several levels by an implicit function of position; FeatUp's paper "
            "uses it as a x2 baseline."
        ),
        paper="Learning Implicit Feature Alignment Function for Semantic Segmentation",
        year=2022,
        arxiv="2206.08655",
        code="https://github.com/mhamilton723/FeatUp",
        code_license="MIT",
        abilities=Abilities(mixes_values=False, any_size=False),
        factor=FACTOR,
    )

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(feature_dim + PLACE_CHANNELS, feature_dim, 1),
            nn.BatchNorm2d(feature_dim),
            nn.LeakyReLU(0.01),
            nn.Conv2d(feature_dim, feature_dim, 1),
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Apply the network to nearest feature and place of every pixel of the doubled grid."""
        grid = (features.shape[2], features.shape[3])
        near = F.interpolate(features, scale_factor=FACTOR, mode="nearest")
        place = places(grid, features).to(features.dtype).expand(len(features), -1, -1, -1)
        out = self.mlp(torch.cat((near, place), dim=1))
        return resize_to(out, output_size)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the width."""
        return {"feature_dim": state["mlp.3.weight"].shape[0]}


def places(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Code of every fine pixel: 40 sines, 40 cosines, two offsets; (1, 82, H, W).

    On the device of ``like`` and in its type, float32 at least.
    """
    fine = (FACTOR * grid[0], FACTOR * grid[1])
    wide = torch.promote_types(like.dtype, torch.float32)
    phases = like.new_zeros(2, 2, FREQUENCIES, dtype=wide)
    waves = fourier_features(inclusive_grid(fine, like.device).to(wide), phases)  # (80, H, W)
    offsets = []
    for cells, pixels in zip(grid, fine, strict=True):
        coarse, own = (
            torch.linspace(0, cells, n, device=like.device, dtype=wide) for n in (cells, pixels)
        )
        offsets.append(coarse.repeat_interleave(FACTOR) - own)
    offset = torch.stack(torch.meshgrid(*offsets, indexing="ij"))  # (2, H, W), row first
    return torch.cat((waves, offset))[None]
