"""The learned position code of JAFAR and AnyUp (arXiv 2506.11136, 2510.12764).

    angle[p, j] = row_p * freqs[0, j] + col_p * freqs[1, j]
    out[p] = x[p] * cos(angle[p]) + rot(x[p]) * sin(angle[p]),    rot(a, b) = (-b, a)

with a and b the two halves of the channels. It works on all channels at once, before the query and
key encoders, so it is not rotary attention in the usual sense; and since a pair (j, j + d/2) may
mix a row angle with a column angle, it is no orthogonal rotation either.

Legend: B batch, d channels, H W image.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import stream
from upfeat.ops.runtime import compute_dtype, wants_reference, without_autocast

# Pixels of a band in the backward pass: its few temporaries stay in the cache and are reused.
BAND_PIXELS = 8192


def unit_coordinates(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coordinates of one axis: equally spaced from 0 to 1 inclusive; one pixel gives 0.

    Example:
        >>> unit_coordinates(3, torch.float32, torch.device("cpu")).tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.linspace(0, 1, length, dtype=dtype, device=device)


def position_angles(
    freqs: Tensor, size: tuple[int, int], rows: tuple[int, int] | None = None
) -> Tensor:
    """Return the angles of image rows ``rows`` (default all) as (rows, W, d), in float32 at least.

    Coordinates and angles are never made in half precision, whatever the weights are: at 448 pixels
    bfloat16 could not tell neighbours apart.
    """
    dtype = compute_dtype(freqs)
    start, stop = (0, size[0]) if rows is None else rows
    row = unit_coordinates(size[0], dtype, freqs.device)[start:stop]  # (rows,)
    col = unit_coordinates(size[1], dtype, freqs.device)  # (W,)
    freqs = freqs.to(dtype)
    return row[:, None, None] * freqs[0] + (col[:, None] * freqs[1])  # (rows, W, d)


def half_rotation(x: Tensor) -> Tensor:
    """Map (a, b), the halves of the last axis, to (-b, a)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def position_code_reference(x: Tensor, freqs: Tensor) -> Tensor:
    """The definition. See `position_code`."""
    with without_autocast(x):
        angle = position_angles(freqs, (x.shape[2], x.shape[3]))  # (H, W, d)
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, d)
        out = pixels * angle.cos().to(x.dtype) + half_rotation(pixels) * angle.sin().to(x.dtype)
        return out.permute(0, 3, 1, 2)  # (B, d, H, W)


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
        return position_code_reference(x, freqs)
    return _PositionCode.apply(x, freqs)


@stream.recorded_as(position_code)
def _by_rows(x: Any, freqs: Tensor) -> Any:
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
        >>> angle = position_angles(freqs, (6, 5), (2, 4))
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
