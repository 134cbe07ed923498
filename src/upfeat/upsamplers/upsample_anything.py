"""Upsample Anything: anisotropic kernels that are fitted to one image at test time.

Paper: Seo et al., "Upsample Anything: A Simple and Hard to Beat Baseline for Feature Upsampling",
2025. Original: github.com/seominseok0429/Upsample-Anything-A-Simple-and-Hard-to-Beat-Baseline-for-
Feature-Upsampling at 6a02ae76. No weights: every image gets its own.

Each cell of the feature grid carries a Gaussian: two standard deviations, an angle, and a standard
deviation over colour. They are optimised until the filter rebuilds the image from its own
low-resolution version; the same filter then enlarges the features.

The logarithm of a weight is quadratic in the pixel's place and colour, so for the pixels of one
cell and the taps around it all weights are one matrix product::

    log w(p, q) = phi(p) . psi(q),   phi = (x^2, xy, y^2, x, y, 1, r, g, b, |colour|^2)

Legend: B batch, K value channels, h w grid, s pixels per cell and axis, T taps, P = sy sx pixels of
a cell, F = 10 terms of phi. Weights exist for one row of cells at a time.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.images import resize_antialiased
from upfeat.upsamplers.base import NO_EXPORT, Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to
from upfeat.upsamplers.weights import NOT_COMPARED

MAX_RADIUS = 8  # cells
RADIUS_PER_SIGMA = 2.0
LEARNING_RATE = 0.1
# The learning rate falls as if to 1e-8 of itself after 5100 steps.
DECAY = 1e-8 ** (1 / 5100)
START = {"sx_raw": math.log(16), "sy_raw": math.log(16), "th_raw": 0.0, "sr_raw": math.log(0.12)}
SIGMA_FLOOR, VARIANCE_EPS = 1e-6, 1e-8

Maps = dict[str, Tensor]


@dataclass(frozen=True)
class TapGeometry:
    """Which cells the taps of every cell are, and where their centres lie.

    Attributes:
        cells: (h, w, T) index of the cell, clamped at the border; each clamped tap counts.
        place: (2, h, w, T) row and column of its centre from that of the pixels' own cell.
        square: (T,) squared distance of the tap in cells, before clamping.
        scale: pixels per cell (sy, sx).
    """

    cells: Tensor
    place: Tensor
    square: Tensor
    scale: tuple[int, int]

    @classmethod
    def build(cls, grid: tuple[int, int], scale: tuple[int, int], like: Tensor) -> "TapGeometry":
        """Return the taps of a grid, in the type and on the device of ``like``."""
        reach = range(-MAX_RADIUS, MAX_RADIUS + 1)
        steps = [(i, j) for i in reach for j in reach if i * i + j * j <= MAX_RADIUS**2]
        table = torch.tensor(steps, device=like.device).T  # (2, T)
        axes = []
        for length, step in zip(grid, table, strict=True):
            own = torch.arange(length, device=like.device)[:, None]  # (L, 1)
            axes.append(((own + step).clamp(0, length - 1), own))
        (rows, own_row), (cols, own_col) = axes  # (h, T), (w, T)
        cells = rows[:, None] * grid[1] + cols[None]  # (h, w, T)
        down = ((rows - own_row) * scale[0])[:, None].expand(cells.shape)
        right = ((cols - own_col) * scale[1])[None].expand(cells.shape)
        place = torch.stack((down, right)).to(like)
        return cls(cells, place, table.square().sum(0), scale)


def tap_terms(maps: Maps, colors: Tensor, geometry: TapGeometry) -> Tensor:
    """psi: what a tap contributes to the logarithm of its weights, (h, w, T, F).

    Raw parameters are (1, 1, h, w) each, colours those of the low-resolution guide (3, h, w).
    """
    sx, sy = (maps[name].exp().clamp(min=SIGMA_FLOOR) for name in ("sx_raw", "sy_raw"))
    sr = maps["sr_raw"].exp().clamp(min=SIGMA_FLOOR)
    along, across, color = (1 / (2 * sigma.square() + VARIANCE_EPS) for sigma in (sx, sy, sr))
    angle = torch.pi * maps["th_raw"].tanh()
    cos, sin = angle.cos(), angle.sin()
    # The quadratic form of the rotated distance: a dx^2 + 2 b dx dy + d dy^2.
    a = cos.square() * along + sin.square() * across
    b = cos * sin * (along - across)
    d = sin.square() * along + cos.square() * across
    every = torch.cat([part.flatten()[None] for part in (a, b, d, color)] + [colors.flatten(1)])
    every = every[:, geometry.cells]  # (7, h * w) -> (7, h, w, T)
    a, b, d, color = every[:4]
    rgb = every[4:]
    cy, cx = geometry.place
    terms = [
        -a,
        -2 * b,
        -d,
        2 * (a * cx + b * cy),
        2 * (b * cx + d * cy),
        -(a * cx * cx + 2 * b * cx * cy + d * cy * cy) - color * rgb.square().sum(0),
        *(2 * color * rgb),
        -color,
    ]
    return torch.stack(terms, dim=-1)


def pixel_terms(guide: Tensor, geometry: TapGeometry) -> Tensor:
    """phi: place in its cell and colour of every pixel, (3, H, W) -> (h, w, P, F)."""
    sy, sx = geometry.scale
    y, x = (torch.arange(s, device=guide.device, dtype=guide.dtype) - (s - 1) / 2 for s in (sy, sx))
    y, x = (part.flatten() for part in torch.meshgrid(y, x, indexing="ij"))  # (P,)
    place = torch.stack((x * x, x * y, y * y, x, y, torch.ones_like(x)), dim=-1)  # (P, 6)
    colors = _by_cell(guide, geometry.scale)  # (h, w, P, 3)
    square = colors.square().sum(-1, keepdim=True)
    place = place.expand(*colors.shape[:2], -1, -1)
    return torch.cat((place, colors, square), dim=-1)


def reach_of_pixels(maps: Maps, geometry: TapGeometry) -> Tensor | None:
    """Squared radius within which a pixel has taps, (h, w, P, 1); None where all taps count."""
    sigma = torch.maximum(maps["sx_raw"].exp(), maps["sy_raw"].exp()).detach()
    size = [n * s for n, s in zip(sigma.shape[2:], geometry.scale, strict=True)]
    sigma = F.interpolate(sigma, size, mode="bilinear")
    radius = (RADIUS_PER_SIGMA * sigma).ceil().clamp(1, MAX_RADIUS)
    if radius.min() == MAX_RADIUS:
        return None
    return _by_cell(radius[0], geometry.scale).square()


def _by_cell(x: Tensor, scale: tuple[int, int]) -> Tensor:
    """(x, H, W) -> (h, w, P, x)."""
    x = x.unflatten(2, (-1, scale[1])).unflatten(1, (-1, scale[0]))  # (x, h, sy, w, sx)
    return x.permute(1, 3, 2, 4, 0).flatten(2, 3)


def _by_pixel(x: Tensor, scale: tuple[int, int]) -> Tensor:
    """The inverse: (R, w, P, x) -> (x, R * sy, W)."""
    x = x.unflatten(2, scale).permute(4, 0, 2, 1, 3)  # (x, R, sy, w, sx)
    return x.flatten(3, 4).flatten(1, 2)


def mix(phi: Tensor, psi: Tensor, reach: Tensor | None, square: Tensor, values: Tensor) -> Tensor:
    """Mix the taps' values: (w, P, F), (w, T, F), (w, T, K) -> (w, P, K)."""
    logits = phi @ psi.transpose(-1, -2)  # (w, P, T)
    if reach is not None:
        logits = logits.masked_fill(square > reach, float("-inf"))
    return logits.softmax(-1) @ values


def terms(maps: Maps, guide: Tensor, geometry: TapGeometry) -> tuple[Tensor, Tensor]:
    """Psi (h, w, T, F) and phi (h, w, P, F) of a guide (1, 3, H, W)."""
    # Only differences of colours count; smaller numbers cancel less.
    guide = guide - guide.mean((2, 3), keepdim=True)
    size = geometry.cells.shape[:2]
    small = F.interpolate(guide, size, mode="bilinear")  # (1, 3, h, w), at the taps
    return tap_terms(maps, small[0], geometry), pixel_terms(guide[0], geometry)


def starting_maps(grid: tuple[int, int], like: Tensor) -> Maps:
    """The raw parameters before the first step, (1, 1, h, w) each."""
    return {name: like.new_full((1, 1, *grid), value) for name, value in START.items()}


def reconstruction_loss(maps: Maps, guide: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean absolute error of the image rebuilt from its low resolution; fills ``.grad``.

    Rows of cells are differentiated one by one, so that memory does not grow with the image. The
    maps are leaves; the sides of the guide (1, 3, H, W) are multiples of the grid's.
    """
    scale = (guide.shape[2] // grid[0], guide.shape[3] // grid[1])
    geometry = TapGeometry.build(grid, scale, guide)
    small = F.interpolate(guide, grid, mode="bicubic")[0]  # (3, h, w)
    psi, phi = terms(maps, guide, geometry)
    cut = [terms_of_row.requires_grad_() for terms_of_row in psi.detach()]  # (w, T, F) each
    reach = reach_of_pixels(maps, geometry)
    values = small.flatten(1).T[geometry.cells]  # (h, w, T, 3)
    target = _by_cell(guide[0], scale)
    total = guide.new_zeros(())
    for row in range(grid[0]):
        near = None if reach is None else reach[row]
        out = mix(phi[row], cut[row], near, geometry.square, values[row])  # (w, P, 3)
        loss = (out - target[row]).abs().sum() / target.numel()
        loss.backward()
        total += loss.detach()
    psi.backward(torch.stack([cast(Tensor, terms_of_row.grad) for terms_of_row in cut]))
    return total


def optimise(
    guide: Tensor, grid: tuple[int, int], steps: int, progress: bool = False
) -> tuple[Maps, list[float]]:
    """Fit the maps to one image: Adam with a falling learning rate, no random numbers.

    The sides of the guide (1, 3, H, W) in [0, 1] are multiples of the grid's. Returns the raw
    parameters (1, 1, h, w), and the loss before each update.
    """
    from rich.progress import track

    losses = []
    # The caller's modes end here: the fit needs gradients and exact numbers of its own.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(guide.device.type, enabled=False),
    ):
        guide = guide.detach().clone(memory_format=torch.contiguous_format)
        maps = {k: v.requires_grad_() for k, v in starting_maps(grid, guide).items()}
        optimizer = torch.optim.Adam(maps.values(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
        for _ in track(range(steps), "fitting the image", disable=not progress, transient=True):
            optimizer.zero_grad()
            losses.append(reconstruction_loss(maps, guide, grid).item())
            optimizer.step()
            schedule.step()
    return {name: value.detach() for name, value in maps.items()}, losses


def apply_filter(maps: Maps, guide: Tensor, values: Tensor) -> Tensor:
    """Enlarge values (1, K, h, w), guided by (1, 3, s h, s w), to (1, K, s h, s w)."""
    grid = (values.shape[2], values.shape[3])
    scale = (guide.shape[2] // grid[0], guide.shape[3] // grid[1])
    geometry = TapGeometry.build(grid, scale, guide)
    psi, phi = terms(maps, guide, geometry)
    reach = reach_of_pixels(maps, geometry)
    cells = values[0].flatten(1).T  # (h * w, K)
    rows = []
    for row in range(grid[0]):
        near = None if reach is None else reach[row]
        out = mix(phi[row], psi[row], near, geometry.square, cells[geometry.cells[row]])
        rows.append(_by_pixel(out[None], scale))  # (K, sy, W)
    return torch.cat(rows, dim=1)[None]


@register_upsampler("upsample_anything")
class UpsampleAnything(WholeMapUpsampler):
    """Upsample Anything (2025): fits anisotropic kernels to each image, then filters the features.

    The weights depend on the image alone, and on the features' grid. The fit starts from fixed
    numbers and draws none, so it repeats itself exactly on one machine; it is not smooth in the
    image (kernels start round, where the angle has no gradient but rounding), so that other
    machines may differ by a few percent of the output's spread. The factor is whole: an output that
    is no multiple of the grid is made at the next smaller multiple and resized bilinearly.

    Gradients reach features and image through the filter; the fitted kernels count as constants.

    Args:
        steps: updates of the fit, for every image of every call.
        progress: show a bar while fitting.

    Raises:
        ValueError: ``steps`` is negative.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("upsample_anything", steps=2)
        >>> up(torch.rand(1, 3, 32, 24), torch.rand(1, 8, 4, 3)).shape
        torch.Size([1, 8, 32, 24])
    """

    info = UpsamplerInfo(
        name="upsample_anything",
        summary="Anisotropic kernels fitted to each image at test time; no training.",
        when="You have few images, no weights, and minutes for each image.",
        claim=(
            "Kernels fitted to a single image at test time are hard to beat by trained upsamplers, "
            "for features and other maps."
        ),
        as_baseline=NOT_COMPARED,
        paper="Upsample Anything: A Simple and Hard to Beat Baseline for Feature Upsampling",
        year=2025,
        code="https://github.com/seominseok0429/Upsample-Anything-A-Simple-and-Hard-to-Beat-"
        "Baseline-for-Feature-Upsampling",
        code_license="not recorded; see the repository",
        abilities=Abilities(
            linear=True,
            any_size=False,
            universal=True,
            per_image=True,
            compile=False,
            export=NO_EXPORT,
        ),
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )

    def __init__(self, steps: int = 51, progress: bool = False) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        self.steps, self.progress = steps, progress

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Fit the kernels to each image, then enlarge its values with them."""
        grid = (values.shape[2], values.shape[3])
        height, width = (
            cells * max(1, asked // cells) for cells, asked in zip(grid, output_size, strict=True)
        )
        size = (height, width)
        wide = torch.promote_types(values.dtype, torch.float32)
        with torch.autocast(values.device.type, enabled=False):
            guide, values = image.to(wide).contiguous(), values.to(wide)  # strides change rounding
            if guide.shape[-2:] != size:
                guide = resize_antialiased(guide, size)
            outputs = []
            for one, mixed in zip(guide.split(1), values.split(1), strict=True):
                maps, _ = optimise(one, grid, self.steps, self.progress)
                outputs.append(apply_filter(maps, one, mixed))
            out = torch.cat(outputs)
            return resize_to(out, output_size)
