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

Legend: ``B`` batch, ``K`` value channels, ``h w`` low-resolution grid, ``H' W'`` output grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops import windowed_attention
from upfeat.ops.cells import cell_bounds, cell_places
from upfeat.ops.resize import resize_antialiased
from upfeat.upsamplers.base import Abilities, Tile, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler


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
        claim=(
            "A cheap solution at low resolution, upsampled under a high-resolution image, keeps "
            "edges."
        ),
        paper="Joint Bilateral Upsampling (Kopf et al., SIGGRAPH 2007)",
        year=2007,
        code_license="none (textbook)",
        abilities=Abilities(linear=True, universal=True, tiles=True),
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )

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

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        key = self._keys(image, features)
        return self._rows(image, key, output_size, values, (0, output_size[0]))

    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        height, width = output_size
        key = self._keys(image, features)
        # A row of the output, its transposed copy, and a row of queries.
        row_bytes = 4 * values.shape[0] * width * (2 * values.shape[1] + 2 * key.shape[2])
        step = max(1, max_bytes // (2 * row_bytes))
        for start in range(0, height, step):
            rows = (start, min(start + step, height))
            tile = self._rows(image, key, output_size, values, rows)
            yield slice(*rows), slice(0, width), tile

    def _rows(
        self,
        image: Tensor,
        key: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        rows: tuple[int, int],
    ) -> Tensor:
        """Compute output rows ``rows``: -> (B, K, rows, W')."""
        grid = (values.shape[2], values.shape[3])
        query = self._queries(image, grid, output_size, rows)
        mixed = windowed_attention(
            query,
            key,
            values.flatten(2).transpose(1, 2),  # (B, K, h, w) -> (B, h*w, K)
            num_heads=1,
            output_size=output_size,
            grid_size=grid,
            row_bounds=cell_bounds(output_size[0], grid[0], self.radius),
            col_bounds=cell_bounds(output_size[1], grid[1], self.radius),
            rows=rows,
            scale=1.0,
        )
        # (B, rows*W', K) -> (B, K, rows, W')
        return mixed.transpose(1, 2).unflatten(2, (rows[1] - rows[0], output_size[1]))

    def _keys(self, image: Tensor, features: Tensor) -> Tensor:
        """Return a key per cell (B, h*w, 6): colour, position, and the terms of the cell alone."""
        grid = (features.shape[2], features.shape[3])
        color = F.adaptive_avg_pool2d(_wide(image), grid)
        place = cell_places(grid, grid, (0, grid[0]), color) / self.sigma_space
        color = color / self.sigma_color
        square = color.square().sum(1, keepdim=True) + place.square().sum(1, keepdim=True)
        key = torch.cat([color, place.expand(len(color), -1, -1, -1), -square / 2], dim=1)
        return key.flatten(2).transpose(1, 2)  # (B, 6, h, w) -> (B, h*w, 6)

    def _queries(
        self,
        image: Tensor,
        grid: tuple[int, int],
        output_size: tuple[int, int],
        rows: tuple[int, int],
    ) -> Tensor:
        """Return a query per pixel (B, rows*W', 6): colour, position, one."""
        color = resize_antialiased(_wide(image), output_size)
        color = color[:, :, rows[0] : rows[1]] / self.sigma_color
        place = cell_places(grid, output_size, rows, color) / self.sigma_space
        place = place.expand(len(color), -1, -1, -1)
        query = torch.cat([color, place, torch.ones_like(color[:, :1])], dim=1)
        return query.flatten(2).transpose(1, 2)  # (B, 6, rows, W') -> (B, rows*W', 6)


def _wide(tensor: Tensor) -> Tensor:
    """Return at least float32: colour differences and positions do not survive half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
