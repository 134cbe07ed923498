"""Interpolation: the baselines that look at no image.

``nearest``, ``bilinear``, ``bicubic`` and ``area`` have the semantics of
``torch.nn.functional.interpolate`` (``align_corners=False``, no antialiasing, bicubic a = -0.75;
nearest is torch's ``"nearest"``, area is adaptive average pooling). ``lanczos`` is Pillow's filter
of that name, as two products with matrices, so that gradients flow. Origin: textbook; no weights.

Legend: B batch, K value channels, h w grid, H' W' output, R rows of a strip.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.images import average_areas, resize_bilinear
from upfeat.ops.runtime import without_autocast
from upfeat.upsamplers.base import ANY_SIZE, Abilities, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler

LOBES = 3


def _info(
    name: str,
    summary: str,
    when: str,
    claim: str = "Textbook interpolation; no claim.",
    **as_baseline: str,
) -> UpsamplerInfo:
    abilities = Abilities(linear=True, universal=True, tiles=True, export=ANY_SIZE)
    return UpsamplerInfo(
        name=name,
        summary=summary,
        when=when,
        claim=claim,
        as_baseline=as_baseline,
        abilities=abilities,
    )


class OutputSize(NamedTuple):
    """(H', W'), all that the image says."""

    height: int
    width: int


class Interpolation(Upsampler):
    """Resizes the features and ignores the image, apart from its size."""

    mode: ClassVar[str]
    bounded_decode = True

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> OutputSize:
        """Look at no image."""
        return OutputSize(*output_size)

    def decode(self, state: OutputSize, values: Tensor, rows: slice) -> Tensor:
        """Resize the map, or first what a strip's rows mix along the columns, then along rows."""
        if (rows.start, rows.stop) == (0, state.height):
            return self.resize(values, state)
        index, weight = self._taps(values, state.height, rows)  # (R, taps)
        strip = torch.zeros((), dtype=weight.dtype, device=values.device)
        for tap in range(weight.shape[1]):
            strip = strip + values[:, :, index[:, tap]] * weight[:, tap, None]  # (B, K, R, w)
        return self.resize(strip.to(values.dtype), (len(index), state.width))

    def resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, h, w) to (B, K, *size)."""
        return F.interpolate(values, size, mode=self.mode)

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of the output, and the rows of the grid's width that it is made of."""
        return values.shape[1] * (output_size[1] + 4 * values.shape[3])

    def _taps(self, values: Tensor, height: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return source rows and their weights, both (R, taps), float32 at least.

        They are read off by interpolating the identity: column i of the identity resized along
        its rows holds what source row i contributes, with torch's own rounding.
        """
        source = values.shape[2]
        wide = torch.promote_types(values.dtype, torch.float32)
        identity = torch.eye(source, dtype=wide, device=values.device)
        # (1, 1, h, h) -> (H', h): one row of weights for each output row
        weights = self.resize(identity[None, None], (height, source))[0, 0]
        taps = max(1, int((weights != 0).sum(1).max()))
        index = weights[rows].abs().topk(taps, dim=1).indices
        return index, weights[rows].gather(1, index)


@register_upsampler("nearest")
class Nearest(Interpolation):
    """Nearest-neighbour interpolation (torch's ``"nearest"``: source floor(i * h / H')).

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("nearest")
        >>> up(torch.rand(1, 3, 2, 4), torch.tensor([[[[1.0, 2.0]]]]))[0, 0, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """

    info = _info(
        "nearest",
        "Nearest-neighbour interpolation of the features.",
        "You want to see the coarse grid as it is, or the values must not be mixed.",
        JAFAR="to the target size",
    )
    mode = "nearest"


@register_upsampler("bilinear")
class Bilinear(Interpolation):
    """Bilinear interpolation without aligned corners or antialiasing.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("bilinear")
        >>> up(torch.rand(1, 3, 2, 4), torch.tensor([[[[1.0, 2.0]]]]))[0, 0, 0].tolist()
        [1.0, 1.25, 1.75, 2.0]
    """

    info = _info(
        "bilinear",
        "Bilinear interpolation of the features.",
        "Speed is all that counts; and beside any other method, as the baseline that it must beat.",
        claim="Textbook interpolation; the baseline that every method has to beat.",
        JAFAR="to the target size; also the last step of every method with a fixed factor",
        LoftUp="to the target size",
    )
    mode = "bilinear"

    def resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize with torch's own bilinear kernel, channels last where that is quicker."""
        return resize_bilinear(values, size)


@register_upsampler("bicubic")
class Bicubic(Interpolation):
    """Bicubic interpolation (a = -0.75) without aligned corners or antialiasing."""

    info = _info(
        "bicubic",
        "Bicubic interpolation of the features.",
        "You compare with a table that has it; below bilinear interpolation in most of ours.",
        LoftUp="no row of the tables; the start of its mask-refined pseudo ground truth",
    )
    mode = "bicubic"


@register_upsampler("area")
class Area(Interpolation):
    """Area interpolation: the mean of the cells that a pixel overlaps (adaptive average pooling).

    Upwards by a whole factor that is nearest; it is meant for grids larger than the output.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("area")
        >>> up(torch.rand(1, 3, 1, 3), torch.tensor([[[[1.0, 2.0]]]]))[0, 0, 0].tolist()
        [1.0, 1.5, 2.0]
    """

    info = _info(
        "area",
        "Area interpolation of the features: means of overlapped cells.",
        "The output is smaller than the grid: each cell counts by its share.",
    )
    mode = "area"

    def resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Average the cells that a pixel overlaps."""
        return average_areas(values, size)


@register_upsampler("lanczos")
class Lanczos(Interpolation):
    """Lanczos interpolation with three lobes, as Pillow's ``LANCZOS``, antialiased downwards.

    Weights are sinc(x) sinc(x / 3), renormalised where the border cuts them off.
    """

    info = _info(
        "lanczos",
        "Lanczos interpolation (three lobes) of the features.",
        "You compare with a table that has it; it overshoots at edges.",
    )
    mode = "lanczos"

    def resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Multiply with the weights of both axes."""
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        rows, cols = (
            lanczos_weights(length, wanted, wide)
            for length, wanted in zip(values.shape[2:], size, strict=True)
        )
        with without_autocast(values):
            # (H', h) @ (B, K, h, w) @ (w, W')
            return (rows @ wide @ cols.T).to(values.dtype)


def lanczos_weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """Return what each of ``length`` places gives to each of ``wanted``: (wanted, length)."""
    factor = torch.ones((), dtype=torch.float64, device=like.device) * length / wanted
    stretch = factor.clamp(min=1.0)  # downwards the filter is widened: antialiasing
    centre = (torch.arange(wanted, dtype=torch.float64, device=like.device) + 0.5) * factor
    place = torch.arange(length, dtype=torch.float64, device=like.device) + 0.5
    x = (place - centre[:, None]) / stretch
    weights = torch.sinc(x) * torch.sinc(x / LOBES) * (x.abs() < LOBES)
    # Pillow takes the places from round(centre - 3 stretch) up to round(centre + 3 stretch).
    first = (centre - LOBES * stretch + 0.5).floor()[:, None]
    stop = (centre + LOBES * stretch + 0.5).floor()[:, None]
    index = place - 0.5
    weights = weights * ((index >= first) & (index < stop))
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)
