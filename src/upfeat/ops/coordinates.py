"""Positions in an image, and pixels among the cells of a coarser grid.

A position is (row, column) with -1 and 1 at the outer *edges* of the image: the centre of pixel i
of n lies at (2 i + 1) / n - 1, whatever n, so one position means one place in an image and in all
its resized copies.

Legend: B batch, N positions, H W an image's size, k side of a neighbourhood.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.symbolic import linspace


def pixel_centres(
    size: tuple[int, int],
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Positions of all pixels of a grid, row by row: (H * W, 2), row and column.

    Example:
        >>> pixel_centres((1, 2)).tolist()
        [[0.0, -0.5], [0.0, 0.5]]
    """
    axes = [(2 * torch.arange(n, device=device, dtype=dtype) + 1) / n - 1 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def sample_at(image: Tensor, coords: Tensor) -> Tensor:
    """Read a map between its pixels, bilinearly; beyond the outermost centres it is constant.

    Args:
        image: (B, C, H, W).
        coords: (B, N, 2), row and column from -1 to 1 (edges).

    Returns:
        (B, N, C) in the dtype of ``image``.

    Example:
        >>> ramp = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> sample_at(ramp, torch.tensor([[[0.0, 0.0], [0.0, -1.0]]])).flatten().tolist()
        [1.5, 0.0]
    """
    wide = torch.promote_types(image.dtype, coords.dtype)
    grid = coords.to(wide).flip(-1)[:, :, None]  # (B, N, 1, 2), column before row
    out = F.grid_sample(image.to(wide), grid, padding_mode="border", align_corners=False)
    return out[..., 0].transpose(1, 2).to(image.dtype)  # (B, C, N, 1) -> (B, N, C)


def inclusive_places(coords: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions in the coordinates of ``inclusive_grid``: -1 and 1 at the outermost *centres*.

    Between centres they are interpolated in that grid's own float32 numbers, because a rounding
    matters once it is multiplied by high frequencies; half a pixel beyond, they continue.

    Args:
        coords: (..., 2), row and column from -1 to 1 (edges).
        size: (H, W) of the grid.

    Example:
        >>> inclusive_places(torch.tensor([[0.0, -0.75], [0.0, 0.75]]), (1, 4))[:, 1].tolist()
        [-1.0, 1.0]
    """
    places = []
    for axis, count in enumerate(size):
        table = torch.linspace(-1, 1, count, device=coords.device, dtype=torch.float32)
        table = table.to(coords.dtype)
        pixel = ((coords[..., axis] + 1) * count - 1) / 2
        left = pixel.detach().floor().long().clamp(0, max(count - 2, 0))
        step = table[1:].new_zeros(1) if count == 1 else table.diff()
        places.append(table[left] + (pixel - left) * step[left])
    return torch.stack(places, dim=-1)


def sample_around(image: Tensor, coords: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read a map at the k x k positions around each position, one pixel of the map apart.

    For pixel centres these are the patches that a convolution sees, its padding marked.

    Args:
        image: (B, C, H, W).
        coords: (B, N, 2), row and column from -1 to 1 (edges).
        k: odd.

    Returns:
        Samples (B * N, C, k, k), their places (B * N, 2, k, k) as :func:`inclusive_places` has
        them, in the dtype of ``coords``, and (B * N, 1, k, k) booleans: inside the image.

    Example:
        >>> centre = torch.tensor([[[-0.75, 0.25]]])
        >>> samples, places, inside = sample_around(torch.rand(1, 3, 4, 4), centre, 3)
        >>> samples.shape, places.shape, inside[0, 0].int().tolist()
        (torch.Size([1, 3, 3, 3]), torch.Size([1, 2, 3, 3]), [[0, 0, 0], [1, 1, 1], [1, 1, 1]])
    """
    size = (image.shape[2], image.shape[3])
    steps = torch.arange(k, device=coords.device, dtype=coords.dtype) - (k - 1) / 2
    around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # (k, k, 2)
    spacing = 2 / torch.tensor(size, device=coords.device, dtype=coords.dtype)
    places = coords[:, :, None, None] + around * spacing  # (B, N, k, k, 2)
    # A position of the image is always inside, also where rounding puts it beyond the edge.
    inside = (places.abs() <= 1 + 1e-6).all(-1).flatten(0, 1)[:, None]
    samples = sample_at(image, places.flatten(1, 3))  # (B, N k k, C)
    samples = samples.reshape(-1, k, k, image.shape[1]).permute(0, 3, 1, 2)
    places = inclusive_places(places, size).flatten(0, 1).permute(0, 3, 1, 2)
    return samples, places, inside


def cell_bounds(size: int, cells: int, radius: float) -> Tensor:
    """Return first and last + 1 cell within ``radius`` cells of each pixel's centre, on one axis.

    Args:
        size: pixels of the axis.
        cells: cells of the axis.
        radius: in cells; below half a cell a pixel still sees the nearest one.

    Returns:
        (size, 2), int64 on the CPU, as ``windowed_attention`` takes them.

    Example:
        >>> cell_bounds(4, 2, 0.5).tolist()
        [[0, 1], [0, 1], [1, 2], [1, 2]]
    """
    ratio = torch.ones((), dtype=torch.float64) * cells / size  # of symbols, too, in float64
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * ratio - 0.5
    first = (centre - radius).ceil().clamp(0, cells - 1)
    last = (centre + radius).floor().clamp(0, cells - 1)
    nearest = centre.round().clamp(0, cells - 1)
    return torch.stack([first.minimum(nearest), last.maximum(nearest) + 1], dim=1).long()


def cell_places(
    grid: tuple[int, int], size: tuple[int, int], rows: tuple[int, int], like: Tensor
) -> Tensor:
    """Return row and column of pixels, in cells from the grid's middle.

    Args:
        grid: (h, w).
        size: (H', W'), the grid of pixels.
        rows: (start, stop) of the wanted rows.
        like: gives dtype and device.

    Returns:
        (1, 2, R, W').

    Example:
        >>> import torch
        >>> cell_places((1, 2), (1, 4), (0, 1), torch.empty(0)).flatten().tolist()
        [0.0, 0.0, 0.0, 0.0, -0.75, -0.25, 0.25, 0.75]
    """
    row = torch.arange(rows[0], rows[1], dtype=like.dtype, device=like.device)
    col = torch.arange(size[1], dtype=like.dtype, device=like.device)
    row = (row + 0.5) * (grid[0] / size[0]) - grid[0] / 2
    col = (col + 0.5) * (grid[1] / size[1]) - grid[1] / 2
    return torch.stack(torch.meshgrid(row, col, indexing="ij"))[None]


def inclusive_grid(
    size: tuple[int, int], device: torch.device, rows: slice = slice(None)
) -> Tensor:
    """Row and column of every position of some rows, from -1 to 1 inclusive: (2, R, W) in float32.

    Example:
        >>> inclusive_grid((1, 3), torch.device("cpu"))[1].tolist()
        [[-1.0, 0.0, 1.0]]
    """
    row = linspace(-1, 1, size[0], device=device, dtype=torch.float32)[rows]
    col = linspace(-1, 1, size[1], device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(row, col, indexing="ij"))
