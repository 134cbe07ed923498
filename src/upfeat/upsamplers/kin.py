"""KIN: every pixel takes the features of its kin among the cells around it. Our universal method.

No paper: designed and trained for this package. From the field it takes that an output pixel is a
convex combination of raw low-resolution features (JAFAR, AnyUp), a local window (AnyUp, NAF), and
masks as the source of sharp targets (LoftUp); from joint bilateral upsampling the sum of a spatial
and a range term in one softmax. New are three things:

* the guidance is a small convolutional pyramid instead of 1x1 convolutions at full resolution: it
  sees contours, not colours alone;
* the features enter the pyramid by their inner products alone (each cell's likeness to its eight
  neighbours), so any width of any backbone is understood in the same way, and the order of channels
  does not matter;
* the cells carry a learned trust: a cell between two regions mixes both, and is taken from less.

    score(p, j) = q(p) . k(j) + trust(j) - |p - j|^2 / (2 sigma^2)

Such a combination is smooth within a region: two pixels of one object have nearly the same output
whatever their colours. Segmentation gains by it; matching pixels between frames loses. ``detail``
adds what the colours say beyond it. Cells and their colours, each less the mean of the 3x3 cells
around it, are fitted by one linear function for the whole image; its slopes are multiplied by how
far the pixel's colour lies from the same combination of the cells' colours.

Legend: B batch, C feature channels, K value channels, d query/key channels, h w low-resolution
grid, H W guidance image, H' W' output, R rows of a strip, N positions, n = hw, D = d + 3.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.strided import StridedConv2d
from upfeat.ops import unit_vectors, windowed_attention
from upfeat.ops.coordinates import cell_places, sample_at
from upfeat.ops.images import Size, average_areas, crop, resize_antialiased
from upfeat.ops.runtime import without_autocast
from upfeat.ops.symbolic import (
    antialias_weights,
    area_weights,
    exporting,
    resize_axes,
    same_size,
)
from upfeat.upsamplers.base import (
    ANY_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint, own_checkpoint

WIDTHS = (16, 32, 64, 96, 128)
STEP = 16
"""Pixels of the pyramid's coarsest cell."""
MOST_PIXELS = 32
"""Guidance pixels for each cell of the features; a finer image is reduced to it first."""
DETAIL_EPS = 1e-4
"""Variance of colours, RGB in [0, 1], below which they say nothing."""


class ResidualUnit(nn.Module):
    """x + s * conv(gelu(conv(gelu(x)))), s a learned scale of each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.scale = nn.Parameter(torch.full((1, dim, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to the same shape."""
        return x + self.scale * self.conv2(F.gelu(self.conv1(F.gelu(x))))


class Pyramid(nn.Module):
    """Down to a sixteenth, joined there with the features' encoding, and up again."""

    def __init__(self) -> None:
        super().__init__()
        steps = list(itertools.pairwise(WIDTHS))
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.down = nn.ModuleList(StridedConv2d(a, b, 3, 2, 1) for a, b in steps)
        self.encode = nn.ModuleList(ResidualUnit(b) for _, b in steps)
        self.cells = nn.Sequential(
            nn.Conv2d(WIDTHS[-1] + 8, WIDTHS[-1], 3, padding=1),
            ResidualUnit(WIDTHS[-1]),
            ResidualUnit(WIDTHS[-1]),
        )
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.decode = nn.ModuleList(ResidualUnit(a) for a, _ in steps[1:])

    def forward(self, image: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
        """Map an image and the cells' likeness (B, 8, h, w) to pixels and cells.

        Returns:
            (B, 2 * WIDTHS[0], H, W) and (B, WIDTHS[-1], h, w).
        """
        grid = (likeness.shape[2], likeness.shape[3])
        levels = [F.gelu(self.stem(image))]
        for down, encode in zip(self.down, self.encode, strict=True):
            levels.append(encode(down(levels[-1])))  # (B, WIDTHS[i], H / 2^i, W / 2^i)
        x = levels.pop()
        cells = self.cells(torch.cat([resize_map(x, grid), likeness], dim=1))
        x = x + resize_map(cells, (x.shape[2], x.shape[3]), pool=False)
        for i in (3, 2, 1):
            level = levels.pop()
            up = resize_map(self.lateral[i](x), (level.shape[2], level.shape[3]), pool=False)
            x = self.decode[i - 1](level + up)
        level = levels.pop()
        up = resize_map(self.lateral[0](x), (level.shape[2], level.shape[3]), pool=False)
        return torch.cat([level, up], dim=1), cells


def resize_map(x: Tensor, size: tuple[int, int], *, pool: bool = True) -> Tensor:
    """Resize (B, C, H, W): averages of areas where it shrinks, else bilinear interpolation."""
    own = (x.shape[2], x.shape[3])
    if same_size(own, size):
        return x
    if exporting() and pool:
        return resize_axes(x, size, _weights_of(own, size))
    if pool and own[0] >= size[0] and own[1] >= size[1]:
        return average_areas(x, size)
    return resize_antialiased(x, size) if pool else F.interpolate(x, size, mode="bilinear")


def _weights_of(own: Size, size: Size) -> Callable[[int, int, Tensor], Tensor]:
    """Return the weights of `resize_map`, for a graph that decides by sizes it will be given."""

    def weights(length: int, wanted: int, like: Tensor) -> Tensor:
        sides = [torch.full((), a, device=like.device) >= b for a, b in zip(own, size, strict=True)]
        enlarged = antialias_weights(length, wanted, like)
        return torch.where(sides[0] & sides[1], area_weights(length, wanted, like), enlarged)

    return weights


def neighbour_likeness(features: Tensor) -> Tensor:
    """Inner products of each cell with its eight neighbours: (B, C, h, w) -> (B, 8, h, w).

    Example:
        >>> neighbour_likeness(torch.ones(1, 2, 3, 4)).unique().tolist()
        [2.0]
    """
    height, width = features.shape[2:]
    padded = F.pad(features, [1] * 4, mode="replicate")
    steps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    products = [(features * padded[:, :, i : i + height, j : j + width]).sum(1) for i, j in steps]
    return torch.stack(products, dim=1)


def beyond_neighbours(cells: Tensor) -> Tensor:
    """Subtract from each cell the mean of the 3x3 cells around it, (B, C, h, w)."""
    return cells - F.avg_pool2d(cells, 3, 1, 1, count_include_pad=False)


def inverse_3x3(matrix: Tensor) -> Tensor:
    """Invert symmetric matrices (B, 3, 3) by cofactors, which every export format can express."""
    rows = matrix.unbind(1)  # (B, 3) each
    cofactors = [torch.linalg.cross(rows[i - 2], rows[i - 1]) for i in range(3)]
    determinant = (rows[0] * cofactors[0]).sum(1)[:, None, None]
    return torch.stack(cofactors, dim=2) / determinant


class KINState(NamedTuple):
    """What is computed once per image.

    Attributes:
        pixels: codes of the output's pixels, (B, 2 WIDTHS[0], H', W').
        keys: (B, n, D), float32 at least.
        grid: (h, w).
        fit: maps the cells' values beyond their neighbours' to slopes of the colours, (B, 3, n), or
            None without detail.
        color: of the output's pixels, (B, 3, H', W'), or None.
        cell_colors: their means over the cells, (B, n, 3), or None.
    """

    pixels: Tensor
    keys: Tensor
    grid: Size
    fit: Tensor | None = None
    color: Tensor | None = None
    cell_colors: Tensor | None = None


V1 = (
    "The first weights of this method; their training images include the training splits of MSRC, "
    "CamVid and NYUv2. Not in the wheel: the file lies in the folder weights of upfeat's source "
    "repository."
)


def _ours(tag: str, sha256: str, **facts: Any) -> Checkpoint:
    anything = "any; trained on three small networks"
    means = (IMAGENET_MEAN, IMAGENET_STD)
    return own_checkpoint("kin", tag, sha256, anything, None, *means, **facts)


OURS = (
    _ours(
        "upfeat",
        "01a7657b8b9e4a46b1325784b5ffcab2e85377ae6938d393999b3e69cd62ee73",
        config={"detail": 0.75, "sigma": 1.25},
        training_data="1917 images with regions: BSDS500's training split and thirteen small sets "
        "of public repositories",
    ),
    _ours(
        "upfeat_v1",
        "1d8db3efaf5cdb61292c7d73cd1cbc985b5ff62f5a35d09f2447158731aba37d",
        note=V1,
        bundled=False,
    ),
)


@register_upsampler("kin", checkpoints=OURS)
class KIN(Upsampler):
    """KIN: learned joint bilateral upsampling for the features of any backbone.

    Args:
        dim: channels d of the learned part of queries and keys.
        radius: of the window, in cells of the low-resolution grid.
        detail: weight of the detail that colours add. At 0 the output is a convex combination of
            the cells around. The weights ``kin.upfeat`` come with 0.75. More is for matching pixels
            between images (video, correspondence), where it gains most. The detail of a constant
            map is 0, but the output may leave the range of the values.
        sigma: standard deviation of the nearness, in cells; None: what the weights have learned
            (0.79 in ``kin.upfeat``, which comes with 1.25). A wider one averages more cells, which
            gains where single cells are noisy (segmentation of classes, depth), and costs where
            neighbouring pixels or small objects must differ (video).

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("kin").eval()
        >>> up(torch.rand(1, 3, 64, 96), torch.rand(1, 10, 4, 6)).shape
        torch.Size([1, 10, 64, 96])
    """

    info = UpsamplerInfo(
        name="kin",
        summary="Learned joint bilateral upsampling for any backbone's features. Ours.",
        when="You have any backbone and want no download or training; the default of the commands.",
        claim="Ours, without a paper: `docs/results.md` holds what was measured.",
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        abilities=Abilities(
            linear=True,
            universal=True,
            tiles=True,
            query=True,
            export=ANY_SIZE,
        ),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )

    def __init__(
        self,
        dim: int = 32,
        radius: float = 5.0,
        detail: float = 0.0,
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or not radius > 0:
            raise ValueError(f"dim and radius must be positive, got {dim} and {radius}")
        if not detail >= 0:
            raise ValueError(f"detail must not be negative, got {detail}")
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma must be positive or None, got {sigma}")
        self.dim, self.radius, self.detail, self.sigma = dim, radius, detail, sigma
        self.pyramid = Pyramid()
        self.queries = nn.Sequential(
            nn.Conv2d(2 * WIDTHS[0], 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1)
        )
        self.keys = nn.Sequential(
            nn.Conv2d(WIDTHS[-1] + dim, 2 * dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * dim, 2 * dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * dim, dim + 1, 1),
        )
        if sigma is None:
            self.log_nearness = nn.Parameter(torch.zeros(()))  # 1 / sigma
        else:  # kept, so that weights with a learned one can be loaded
            self.register_buffer("log_nearness", torch.zeros(()))
        self.log_guidance = nn.Parameter(torch.tensor(math.log(4.0)))

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> KINState:
        """Run the pyramid: codes of the pixels, and a key for each cell."""
        grid = (features.shape[2], features.shape[3])
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        unit = unit_vectors(wide - wide.mean((2, 3), keepdim=True))
        likeness = neighbour_likeness(unit).to(image.dtype)
        size = (image.shape[2], image.shape[3])
        least = torch.sym_min if exporting() else min  # PyTorch 2.6 compiles `min` only
        reduced = [least(n, MOST_PIXELS * cells) for n, cells in zip(size, grid, strict=True)]
        guidance = resize_map(image, (reduced[0], reduced[1]))
        edge = [(n + STEP - 1) // STEP * STEP - n for n in reversed(reduced)]  # right, bottom
        padded = F.pad(guidance, [0, edge[0], 0, edge[1]], mode="replicate")
        pixels, cells = self.pyramid(padded, likeness)
        pixels = crop(pixels, (reduced[0], reduced[1]))
        pooled = self.queries(resize_map(pixels, grid))  # (B, d, h, w)
        key = self.keys(torch.cat([cells, pooled], dim=1))  # (B, d + 1, h, w)
        place = cell_places(grid, grid, (0, grid[0]), wide)  # (1, 2, h, w)
        offset = self._sharpness(wide) * place.square().sum(1, keepdim=True) / 2
        trust = key[:, -1:].to(wide.dtype) - offset
        parts = [(key[:, :-1] + pooled).to(wide.dtype), place.expand(len(image), -1, -1, -1)]
        keys = torch.cat([*parts, trust], dim=1).flatten(2).mT
        pixels = resize_map(pixels, output_size)
        if not self.detail:
            return KINState(pixels, keys, grid)
        return KINState(pixels, keys, grid, *self._colors(image, grid, output_size))

    def _colors(
        self, image: Tensor, grid: tuple[int, int], output_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the fit of values by the cells' colours, and colours of pixels and of cells."""
        color = image.to(torch.promote_types(image.dtype, torch.float32))
        color = color * color.new_tensor(IMAGENET_STD)[:, None, None]  # RGB in [0, 1], shifted
        cells = average_areas(color, grid)
        steps = beyond_neighbours(cells).flatten(2)  # (B, 3, h, w) -> (B, 3, n)
        ridge = DETAIL_EPS * torch.eye(3, dtype=steps.dtype, device=steps.device)
        with without_autocast(steps):  # half precision would lose small variances
            fit = inverse_3x3(steps @ steps.mT / steps.shape[2] + ridge) @ steps / steps.shape[2]
        return fit, resize_antialiased(color, output_size), cells.flatten(2).mT

    def encode_values(self, state: KINState, values: Tensor) -> Tensor:
        """Lay a cell's values side by side: (B, n, K), with detail (B, n + 3, K + 3).

        The detail's three columns are the cells' colours, its three rows the slopes.
        """
        cells = values.flatten(2).mT  # (B, K, h, w) -> (B, n, K)
        if state.fit is None or state.cell_colors is None:
            return cells.contiguous()
        steps = beyond_neighbours(values.to(state.fit.dtype)).flatten(2).mT  # (B, n, K)
        slopes = F.pad(self.detail * state.fit @ steps, [0, 3]).to(values.dtype)  # (B, 3, K + 3)
        cells = torch.cat([cells, state.cell_colors.to(values.dtype)], dim=2)  # (B, n, K + 3)
        return torch.cat([cells, slopes], dim=1)

    def decode(self, state: KINState, values: Tensor, rows: slice) -> Tensor:
        """Mix the values of the cells around each pixel, and add the detail."""
        pixels, grid, cells = state.pixels, state.grid, state.keys.shape[1]
        size, span = (pixels.shape[2], pixels.shape[3]), (rows.start, rows.stop)
        place = cell_places(grid, size, span, state.keys).expand(len(pixels), -1, -1, -1)
        own = self.queries(pixels[:, :, rows])  # (B, d, R, W')
        mixed = windowed_attention(
            self._join(own, place),
            state.keys,
            values[:, :cells],
            num_heads=1,
            output_size=size,
            grid_size=grid,
            radius=self.radius,
            rows=span,
            scale=1.0,
        )  # (B, R W', K or K + 3)
        if state.color is not None:
            mixed = self._detailed(mixed, state.color[:, :, rows].flatten(2).mT, values[:, cells:])
        return mixed.mT.unflatten(2, (-1, size[1]))  # (B, R W', K) -> (B, K, R, W')

    def decode_at(self, state: KINState, values: Tensor, coords: Tensor) -> Tensor:
        """Read the codes between their pixels, and mix by the same scores."""
        grid, wide, count = state.grid, state.keys.dtype, state.keys.shape[1]
        own = self.queries(sample_at(state.pixels, coords).mT[..., None])  # (B, d, N, 1)
        cells = torch.tensor(grid, device=coords.device, dtype=wide)
        places = coords.to(wide) * cells / 2  # (B, N, 2), in cells from the grid's middle
        scores = self._join(own, places.mT[..., None]) @ state.keys.mT  # (B, N, n)
        weights = scores.masked_fill(~self._visible(places, grid), -math.inf).softmax(-1)
        out = (weights @ values[:, :count].to(wide)).to(values.dtype)  # (B, N, K or K + 3)
        if state.color is None:
            return out
        return self._detailed(out, sample_at(state.color, coords), values[:, count:])

    @staticmethod
    def _detailed(mixed: Tensor, color: Tensor, slopes: Tensor) -> Tensor:
        """Add what colours (B, N, 3) say beyond the mixed ones: (B, N, K + 3) -> (B, N, K)."""
        residual = color.to(mixed.dtype) - mixed[..., -3:]
        return mixed[..., :-3] + residual @ slopes[..., :-3]

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of queries, of the output and its detail, and copies of them."""
        rows = 3 if self.detail else 2
        return output_size[1] * (rows * values.shape[1] + 6 * self.dim)

    def _join(self, own: Tensor, place: Tensor) -> Tensor:
        """Join learned (B, d, R, W) and place parts (B, 2, R, W): queries (B, R W, D)."""
        wide = place.dtype
        guidance = self.log_guidance.to(wide).exp() / math.sqrt(self.dim)
        near = place * self._sharpness(place)
        parts = [own.to(wide) * guidance, near, torch.ones_like(place[:, :1])]
        return torch.cat(parts, dim=1).flatten(2).mT

    def _sharpness(self, like: Tensor) -> Tensor:
        """Return 1 / sigma^2, the given or the learned one."""
        if self.sigma is not None:
            return like.new_tensor(self.sigma**-2)
        return (2 * self.log_nearness.to(like.dtype)).exp()

    def _visible(self, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return which cells lie within the window of places (B, N, 2): (B, N, n)."""
        axes = []
        for axis, count in enumerate(grid):
            centre = (places[..., axis] + (count - 1) / 2)[..., None]  # (B, N, 1)
            cell = torch.arange(count, device=places.device, dtype=places.dtype)
            nearest = centre.round().clamp(0, count - 1)
            axes.append(((cell - centre).abs() <= self.radius) | (cell == nearest))
        return (axes[0][..., :, None] & axes[1][..., None, :]).flatten(2)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read d; ``radius`` cannot be read: default."""
        return {"dim": state["queries.2.weight"].shape[0]}
