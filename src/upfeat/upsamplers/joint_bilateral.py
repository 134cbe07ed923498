"""Joint bilateral upsampling: edges from the photograph, no training.

Paper: Kopf, Cohen, Lischinski, Uyttendaele, "Joint Bilateral Upsampling", SIGGRAPH 2007. Origin:
the formula of the paper; no code and no weights of others.

    out(p) = 1/k_p  sum_q  S(q) f(|p - q|) g(|I(p) - I(q)|)

with Gaussians f over distance in low-resolution cells and g over colour. A product of Gaussians
is a softmax of inner products: expand both squares, drop what depends on p alone (the softmax
cancels it), and each pixel's query is its colour and position, each cell's key the same with a
bias:

    log f g = I(p).I(q)/s_c^2 + p.q/s_p^2 - |I(q)|^2/(2 s_c^2) - |q|^2/(2 s_p^2) + const(p)

so the windowed attention operator computes it, forward and backward, in bounded memory.

Legend: B batch, K value channels, h w low-resolution grid, n = hw, H' W' output grid, R rows of a
strip.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.ops import windowed_attention
from upfeat.ops.coordinates import cell_places
from upfeat.ops.images import average_areas, resize_antialiased
from upfeat.upsamplers.base import ANY_SIZE, Abilities, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler


class JointBilateralState(NamedTuple):
    """Colours of the output's pixels (B, 3, H', W') and keys (B, n, 6), over their deviations."""

    color: Tensor
    key: Tensor


@register_upsampler("joint_bilateral")
class JointBilateral(Upsampler):
    """Joint bilateral upsampling (Kopf et al. 2007).

    Args:
        sigma_color: standard deviation of the colour kernel, RGB in [0, 1].
        sigma_space: standard deviation of the spatial kernel, in low-resolution cells.
        radius: cells farther than this from a pixel, per axis, are left out.

    Raises:
        ValueError: a parameter is not positive.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("joint_bilateral", sigma_color=0.2)
        >>> up(torch.rand(1, 3, 64, 48), torch.rand(1, 8, 4, 3)).shape
        torch.Size([1, 8, 64, 48])
    """

    info = UpsamplerInfo(
        name="joint_bilateral",
        summary="Gaussian weights over distance and image colour (Kopf et al.); no training.",
        when=(
            "You want no weights, but edges that follow the image: the best method without "
            "training in our tables."
        ),
        claim=(
            "A cheap solution at low resolution, upsampled under a high-resolution image, keeps "
            "edges."
        ),
        paper="Joint Bilateral Upsampling (Kopf et al., SIGGRAPH 2007)",
        year=2007,
        code_license="none (textbook)",
        abilities=Abilities(linear=True, universal=True, tiles=True, export=ANY_SIZE),
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )
    bounded_decode = True  # by the operator

    def __init__(
        self, sigma_color: float = 0.15, sigma_space: float = 0.8, radius: float = 2.0
    ) -> None:
        super().__init__()
        parameters = {"sigma_color": sigma_color, "sigma_space": sigma_space, "radius": radius}
        for name, value in parameters.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.sigma_color = sigma_color
        self.sigma_space = sigma_space
        self.radius = radius

    def encode(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int]
    ) -> JointBilateralState:
        """Colours of the pixels; of each cell its colour, position, and the terms of it alone."""
        grid, image = (features.shape[2], features.shape[3]), _wide(image)
        color = average_areas(image, grid)
        place = cell_places(grid, grid, (0, grid[0]), color) / self.sigma_space
        color = color / self.sigma_color
        square = color.square().sum(1, keepdim=True) + place.square().sum(1, keepdim=True)
        key = torch.cat([color, place.expand(len(color), -1, -1, -1), -square / 2], dim=1)
        pixels = resize_antialiased(image, output_size) / self.sigma_color
        return JointBilateralState(pixels, key.flatten(2).mT)

    def encode_values(self, state: JointBilateralState, values: Tensor) -> Tensor:
        """Lay the values of a cell side by side: (B, h, w, K)."""
        return values.permute(0, 2, 3, 1).contiguous()

    def decode(self, state: JointBilateralState, values: Tensor, rows: slice) -> Tensor:
        """Mix the cells around each pixel, whose query is its colour, position, and one."""
        color, grid = state.color[:, :, rows], (values.shape[1], values.shape[2])
        size, span = (state.color.shape[2], state.color.shape[3]), (rows.start, rows.stop)
        place = cell_places(grid, size, span, color) / self.sigma_space
        place = place.expand(len(color), -1, -1, -1)
        query = torch.cat([color, place, torch.ones_like(color[:, :1])], dim=1)
        mixed = windowed_attention(
            query.flatten(2).mT,  # (B, 6, R, W') -> (B, R W', 6)
            state.key,
            values.flatten(1, 2),  # (B, h, w, K) -> (B, n, K)
            num_heads=1,
            output_size=size,
            grid_size=grid,
            radius=self.radius,
            rows=span,
            scale=1.0,
        )
        return mixed.mT.unflatten(2, (-1, size[1]))  # (B, R W', K) -> (B, K, R, W')

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of the output, its transposed copy, and a row of queries."""
        return 2 * output_size[1] * (values.shape[1] + 6)


def _wide(tensor: Tensor) -> Tensor:
    """Return at least float32: colour differences and positions do not survive half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
