"""Position codes of maps: learned angles, rotary angles, Fourier features.

1. Learned (arXiv 2506.11136, 2510.12764), on all channels at once, with a and b their halves:

    angle[p, j] = row_p * freqs[0, j] + col_p * freqs[1, j]
    out[p] = x[p] * cos(angle[p]) + rot(x[p]) * sin(angle[p]),    rot(a, b) = (-b, a)

   As a pair (j, j + d/2) may mix a row angle with a column angle, it is no orthogonal rotation.

2. Rotary with fixed periods (arXiv 2508.10104, 2511.18452): coordinates are pixel centres in
   [-1, 1], angle = 2 pi coordinate / period. The first half of a head's pairs turns with the row,
   the second with the column.

3. Fourier features (arXiv 2403.10516, 2504.14032) with w_k = exp(-2 + 12 k / (n - 1)) and learned
   phases P: [sin(w_k x_i + P[0, k, i]), cos(w_k x_i + P[1, k, i])], frequency slow, input fast.
   The highest frequency turns a rounding of the input into an angle 22026 times as large:
   inputs, frequencies and angles are float32 at least.

Legend: B batch, d or D channels, H W (H' W') map, R rows, q periods (a head has 4 q channels), m
inputs, n frequencies.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import reference, stream
from upfeat.ops.coordinates import inclusive_grid
from upfeat.ops.reference import half_rotation, unit_coordinates
from upfeat.ops.runtime import compute_dtype, wants_reference

# Pixels of a band in the backward pass: its few temporaries stay in the cache and are reused.
BAND_PIXELS = 8192


def position_code(x: Tensor, freqs: Tensor) -> Tensor:
    """Apply the learned position code to a map.

    Args:
        x: (B, d, H, W) with even d; channels_last is fastest.
        freqs: (2, d), angular frequencies of rows and columns.

    Returns:
        (B, d, H, W) in the type of ``x``, in channels_last strides.

    Raises:
        ValueError: if d is odd or ``freqs`` has another width.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 4, 3, 5)
        >>> torch.equal(position_code(x, torch.zeros(2, 4)), x)
        True
    """
    if has_torch_function((x,)):
        return handle_torch_function(position_code, (x,), x, freqs)
    if x.shape[1] % 2 or tuple(freqs.shape) != (2, x.shape[1]):
        raise ValueError(
            f"x {tuple(x.shape)} must have an even number of channels d and freqs "
            f"{tuple(freqs.shape)} the shape (2, d)"
        )
    if wants_reference():
        return reference.position_code(x, freqs)
    return _PositionCode.apply(x, freqs)


@stream.recorded_as(position_code)
def _code_rows(x: Any, freqs: Tensor) -> Any:
    tables = angle_tables(freqs.detach(), _size(x))

    def code(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        if out.data_ptr() != strip.data_ptr():
            out.copy_(strip)
        apply_position_code_(out.flatten(0, 1), tables, rows)  # (R, W, d)
        return out

    return stream.row_local(x, code)


class AngleTables(NamedTuple):
    """Cosine and sine of the two parts of an angle: rows (H, 1, d) and columns (W, d)."""

    row_cos: Tensor
    row_sin: Tensor
    col_cos: Tensor
    col_sin: Tensor

    def rows(self, rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles of image rows ``rows``, (rows, W, d) each."""
        row_cos, row_sin = self.row_cos[slice(*rows)], self.row_sin[slice(*rows)]
        cos = (row_cos * self.col_cos).addcmul_(row_sin, self.col_sin, value=-1)
        return cos, (row_sin * self.col_cos).addcmul_(row_cos, self.col_sin)


def angle_tables(freqs: Tensor, size: tuple[int, int]) -> AngleTables:
    """Return the tables of an image of ``size``, in float32 at least.

    The angle is a sum, so its cosine follows from those of rows and columns: products cost a third
    of what cosines cost.

    Example:
        >>> freqs = torch.randn(2, 4)
        >>> cos, sin = angle_tables(freqs, (6, 5)).rows((2, 4))
        >>> angle = reference.position_angles(freqs, (6, 5), (2, 4))
        >>> torch.allclose(cos, angle.cos(), atol=1e-6), torch.allclose(sin, angle.sin(), atol=1e-6)
        (True, True)
    """
    dtype = compute_dtype(freqs)
    row, col = (
        unit_coordinates(length, dtype, freqs.device)[:, None] * axis
        for length, axis in zip(size, freqs.to(dtype), strict=True)
    )  # (H, d), (W, d)
    row = row[:, None]  # (H, 1, d)
    return AngleTables(row.cos(), row.sin(), col.cos(), col.sin())


def apply_position_code_(band: Tensor, tables: AngleTables, rows: tuple[int, int]) -> None:
    """Apply the code in place to the pixels of image rows ``rows``: band (rows * W, d)."""
    cos, sin = tables.rows(rows)
    _turn_(band, cos.flatten(0, 1), sin.flatten(0, 1))


def _turn_(band: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> None:
    """In place x cos + rot(x) sin, or its transpose for ``sign`` -1."""
    half = band.shape[-1] // 2
    cos, sin = cos.to(band.dtype), sin.to(band.dtype)
    a, b = band[:, :half], band[:, half:]
    if sign > 0:  # out = (a cos_a - b sin_a, b cos_b + a sin_b)
        cross_a, cross_b = b * sin[:, :half], a * sin[:, half:]
    else:  # the adjoint: (a cos_a + b sin_b, b cos_b - a sin_a)
        cross_a, cross_b = b * sin[:, half:], a * sin[:, :half]
    band.mul_(cos)
    a.sub_(cross_a, alpha=sign)
    b.add_(cross_b, alpha=sign)


class _PositionCode(torch.autograd.Function):
    """Keeps only its input for the backward pass and makes the angles anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, freqs: Tensor) -> Tensor:
        ctx.save_for_backward(x, freqs)
        out = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, d)
        if out.data_ptr() == x.data_ptr():
            out = out.clone()
        tables = angle_tables(freqs, _size(x))
        for rows in _row_bands(x):
            for pixels in out[:, slice(*rows)]:  # (rows, W, d)
                apply_position_code_(pixels.flatten(0, 1), tables, rows)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, freqs = ctx.saved_tensors
        dtype = compute_dtype(freqs)
        out = grad.permute(0, 2, 3, 1).contiguous()  # (B, H, W, d)
        if out.data_ptr() == grad.data_ptr():
            out = out.clone()
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, d)
        row = unit_coordinates(x.shape[2], dtype, x.device)
        col = unit_coordinates(x.shape[3], dtype, x.device)
        tables = angle_tables(freqs, _size(x))
        grad_freqs = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        for rows in _row_bands(x):
            band = slice(*rows)
            cos, sin = tables.rows(rows)  # (rows, W, d)
            for item in range(x.shape[0]):
                if ctx.needs_input_grad[1]:
                    here = pixels[item, band].to(dtype)
                    # d out / d angle = -x sin + rot(x) cos
                    slope = half_rotation(here).mul_(cos).addcmul_(here, sin, value=-1)
                    slope.mul_(out[item, band])
                    grad_freqs[0] += row[band] @ slope.sum(1)
                    grad_freqs[1] += col @ slope.sum(0)
                _turn_(out[item, band].flatten(0, 1), cos.flatten(0, 1), sin.flatten(0, 1), -1)
        return out.permute(0, 3, 1, 2), grad_freqs.to(freqs.dtype)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _row_bands(x: Tensor) -> list[tuple[int, int]]:
    """Split the image rows into bands of about `BAND_PIXELS` pixels."""
    height, width = _size(x)
    step = max(1, BAND_PIXELS // width)
    return [(start, min(start + step, height)) for start in range(0, height, step)]


Turn = tuple[Tensor, Tensor]


def rotary_code(x: Tensor, periods: Tensor, num_heads: int, factor: float = 1.0) -> Tensor:
    """Turn the channel pairs (j, j + 2 q) of each head of a map by the angles of the pixels.

    Args:
        x: (B, D, H', W'), D = num_heads * 4 q; heads are consecutive groups of channels.
        periods: (q,), shared by both axes.
        num_heads: of the code.
        factor: multiplies the coordinates.

    Returns:
        (B, D, H', W') in the type of ``x``; angles are computed in float32 at least.

    Example:
        >>> x = torch.randn(1, 8, 3, 5)
        >>> turned = rotary_code(x, torch.tensor([1.0, 4.0]), num_heads=1)
        >>> torch.allclose(turned.norm(dim=1), x.norm(dim=1), atol=1e-5)
        True
    """
    if has_torch_function((x,)):
        return handle_torch_function(rotary_code, (x,), x, periods, num_heads, factor)
    turn = grid_turn((x.shape[2], x.shape[3]), periods, factor)
    return rotate_pairs(x.permute(0, 2, 3, 1), turn, num_heads).permute(0, 3, 1, 2)


@stream.recorded_as(rotary_code)
def _rotate_rows(x: Any, periods: Tensor, num_heads: int, factor: float = 1.0) -> Any:
    rows_and_cols = [axis_turn(length, periods, factor) for length in _size(x)]

    def turn_(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        if out.data_ptr() != strip.data_ptr():
            out.copy_(strip)
        (row_cos, row_sin), col = rows_and_cols
        row = row_cos[slice(*rows)], row_sin[slice(*rows)]
        cos, sin = (t.to(out.dtype).unsqueeze(-2) for t in join_turns(row, col))  # (R, W', 1, 2 q)
        first, second = out.unflatten(-1, (num_heads, 2, -1)).unbind(-2)  # (R, W', heads, 2 q)
        cross = second * sin
        second.mul_(cos).addcmul_(first, sin)
        first.mul_(cos).sub_(cross)
        return out

    return stream.row_local(x, turn_)


def grid_turn(size: tuple[int, int], periods: Tensor, factor: float = 1.0) -> Turn:
    """Return cosines and sines of the pixels' angles, (H', W', 2 q) each, float32 at least.

    Args:
        size: (H', W').
        periods: (q,), shared by both axes.
        factor: multiplies the coordinates.

    Example:
        >>> cos, sin = grid_turn((4, 6), torch.ones(2))
        >>> cos.shape
        torch.Size([4, 6, 4])
    """
    row, col = (axis_turn(length, periods, factor) for length in size)
    return join_turns(row, col)


def axis_turn(length: int, periods: Tensor, factor: float) -> Turn:
    """Return cosines and sines of the angles along one axis, (L, q) each."""
    wide = compute_dtype(periods)
    index = torch.arange(length, device=periods.device, dtype=wide)
    coordinate = (2 * ((index + 0.5) / length) - 1) * factor  # (L,) in [-1, 1]
    angle = 2 * math.pi * coordinate[:, None] / periods.to(wide)  # (L, q)
    return angle.cos(), angle.sin()


def join_turns(row: Turn, col: Turn) -> Turn:
    """Join those of rows, (R, q) each, and of columns, (W', q), to (R, W', 2 q)."""
    shape = (row[0].shape[0], col[0].shape[0], -1)
    cos, sin = (
        torch.cat((r[:, None].expand(shape), c[None].expand(shape)), -1)
        for r, c in zip(row, col, strict=True)
    )
    return cos, sin


def rotate_pairs(x: Tensor, turn: Turn, num_heads: int) -> Tensor:
    """Turn the channel pairs (j, j + 2 q) of each head of ``x`` (..., R, W', D).

    Args:
        x: heads are consecutive groups of channels.
        turn: of :func:`grid_turn`.
        num_heads: D = num_heads * 4 q.

    Example:
        >>> turn = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)  # a quarter turn
        >>> rotate_pairs(torch.tensor([[[1.0, 2.0]]]), turn, num_heads=1).flatten().tolist()
        [-2.0, 1.0]
    """
    cos, sin = (t.to(x.dtype).unsqueeze(-2) for t in turn)  # (R, W', 1, 2 q)
    first, second = x.unflatten(-1, (num_heads, 2, -1)).unbind(-2)  # (..., heads, 2 q) each
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-2).flatten(-3)  # (..., D)


def fourier_features(inputs: Tensor, phases: Tensor) -> Tensor:
    """Return the features of each position.

    Args:
        inputs: (..., m, H, W), float32 or float64.
        phases: (2, m, n) for the sines and the cosines. The published phases are *stored* (m, n)
            but *read* in memory order as (n, m); so are these.

    Returns:
        (..., 2 n m, H, W) in the dtype of ``inputs``: sines, then cosines.

    Example:
        >>> fourier_features(torch.zeros(3, 4, 5), torch.zeros(2, 3, 7)).sum((1, 2))[20:23].tolist()
        [0.0, 20.0, 20.0]
    """
    count, steps = phases.shape[1:]
    frequencies = _frequencies(steps, inputs)
    phases = phases.to(inputs.dtype).reshape(2, steps, count, 1, 1)  # (2, n, m, 1, 1)
    angles = inputs.unsqueeze(-4) * frequencies[:, None, None, None]  # (..., n, m, H, W)
    waves = torch.cat(((angles + phases[0]).sin(), (angles + phases[1]).cos()), dim=-4)
    return waves.flatten(-4, -3)  # (..., 2n, m, H, W) -> (..., 2nm, H, W)


def _frequencies(steps: int, like: Tensor) -> Tensor:
    return torch.linspace(-2, 10, steps, device=like.device, dtype=like.dtype).exp()


def pixel_features(colors: Tensor, phases: Tensor) -> Tensor:
    """Describe the pixels of an image: Fourier features of place and colour, and the colours.

    Args:
        colors: (B, 3, H, W), float32 or float64.
        phases: (2, m, n): with m = 5 places and colours pass the sines, and the colours stand
            behind them; with m = 2 the places alone are described.

    Returns:
        (B, 10 n + 3, H, W) or (B, 4 n, H, W) in the dtype of ``colors``.

    Example:
        >>> pixel_features(torch.rand(1, 3, 4, 5), torch.zeros(2, 5, 7)).shape
        torch.Size([1, 73, 4, 5])
    """
    if has_torch_function((colors,)):
        return handle_torch_function(pixel_features, (colors,), colors, phases)
    grid = inclusive_grid((colors.shape[2], colors.shape[3]), colors.device).to(colors.dtype)
    return describe(grid.expand(len(colors), -1, -1, -1), colors, phases)


def describe(places: Tensor, colors: Tensor, phases: Tensor) -> Tensor:
    """Return :func:`pixel_features` for places (..., 2, H, W) and their colours (..., 3, H, W).

    Example:
        >>> describe(torch.zeros(2, 4, 5), torch.rand(3, 4, 5), torch.zeros(2, 2, 7)).shape
        torch.Size([28, 4, 5])
    """
    if phases.shape[1] == 2:
        return fourier_features(places, phases)
    return torch.cat((fourier_features(torch.cat((places, colors), -3), phases), colors), -3)


@stream.recorded_as(pixel_features)
def _describe_rows(colors: Any, phases: Tensor) -> Any:
    size, colored = (colors.shape[2], colors.shape[3]), phases.shape[1] == 5
    count, steps = phases.shape[1:]
    waves = 2 * count * steps

    def features(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        places = inclusive_grid(size, strip.device, slice(*rows)).to(out.dtype).permute(1, 2, 0)
        inputs = torch.cat((places, strip), -1) if colored else places  # (R, W, m)
        angles = out[:, :, :waves].unflatten(2, (2, steps, count))  # (R, W, 2, n, m), in place
        frequencies = _frequencies(steps, out)[:, None]
        shifts = phases.detach().to(out.dtype).reshape(2, steps, count)
        # Product and sum are rounded one after the other, as above: high frequencies show it.
        for part, wave_ in enumerate((torch.sin_, torch.cos_)):
            wave_(
                torch.mul(inputs[:, :, None], frequencies, out=angles[:, :, part]).add_(
                    shifts[part]
                )
            )
        if colored:
            out[:, :, waves:] = strip
        return out

    return stream.row_local(colors, features, waves + 3 * colored)
