"""Interpolation: the baselines that look at no image.

``nearest``, ``bilinear``, ``bicubic`` and ``area`` have the semantics of
``torch.nn.functional.interpolate`` (``align_corners=False``, no antialiasing, bicubic a = -0.75;
nearest is torch's ``"nearest"``, area is adaptive average pooling). ``lanczos`` is Pillow's filter
of that name, as two products with matrices, so that gradients flow. Origin: textbook; no weights.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops._dispatch import without_autocast
from upfeat.ops.images import resize_bilinear
from upfeat.upsamplers.base import Abilities, Tile, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler

LOBES = 3


def _info(
    name: str,
    summary: str,
    claim: str = "Textbook interpolation; no claim.",
    **as_baseline: str,
) -> UpsamplerInfo:
    abilities = Abilities(linear=True, universal=True, tiles=True)
    return UpsamplerInfo(
        name=name, summary=summary, claim=claim, as_baseline=as_baseline, abilities=abilities
    )


class Interpolation(Upsampler):
    """Resizes the features and ignores the image, apart from its size."""

    mode: ClassVar[str]

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        return self._resize(values, output_size)

    def _resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(values, size, mode=self.mode)

    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        height, width = output_size
        row_bytes = values.shape[0] * values.shape[1] * width * values.element_size()
        # A band and the gathered rows it is made of.
        _, taps = self._taps(values, height, 0, height)
        step = max(1, max_bytes // ((taps.shape[1] + 2) * row_bytes))
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield slice(start, stop), slice(0, width), self._band(values, output_size, start, stop)

    def _band(self, values: Tensor, output_size: tuple[int, int], start: int, stop: int) -> Tensor:
        """Interpolate output rows ``start:stop`` only: (B, K, h, w) -> (B, K, stop - start, W')."""
        height, width = output_size
        index, weight = self._taps(values, height, start, stop)
        # (B, K, h, w) -> (B, K, rows, taps, w), weighted and summed over the taps
        band = (values[:, :, index] * weight[..., None]).sum(dim=3)
        return self._resize(band, (stop - start, width))

    def _taps(self, values: Tensor, height: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return source rows and their weights, both (rows, taps), for rows ``start:stop``.

        They are read off by interpolating the identity: column i of the identity resized along
        its rows holds what source row i contributes, with torch's own rounding.
        """
        source = values.shape[2]
        wide = torch.promote_types(values.dtype, torch.float32)
        identity = torch.eye(source, dtype=wide, device=values.device)
        # (1, 1, h, h) -> (H', h): one row of weights for each output row
        weights = self._resize(identity[None, None], (height, source))[0, 0]
        rows = weights[start:stop]
        taps = max(1, int((weights != 0).sum(1).max()))
        index = rows.abs().topk(taps, dim=1).indices
        return index, rows.gather(1, index).to(values.dtype)


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
        "nearest", "Nearest-neighbour interpolation of the features.", JAFAR="to the target size"
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
        claim="Textbook interpolation; the baseline that every method has to beat.",
        JAFAR="to the target size; also the last step of every method with a fixed factor",
        LoftUp="to the target size",
    )
    mode = "bilinear"

    def _resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_bilinear(values, size)


@register_upsampler("bicubic")
class Bicubic(Interpolation):
    """Bicubic interpolation (a = -0.75) without aligned corners or antialiasing.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("bicubic")
        >>> up(torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)).shape
        torch.Size([1, 5, 8, 8])
    """

    info = _info(
        "bicubic",
        "Bicubic interpolation of the features.",
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

    info = _info("area", "Area interpolation of the features: means of overlapped cells.")
    mode = "area"


@register_upsampler("lanczos")
class Lanczos(Interpolation):
    """Lanczos interpolation with three lobes, as Pillow's ``LANCZOS``, antialiased downwards.

    Weights are sinc(x) sinc(x / 3), renormalised where the border cuts them off.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("lanczos")
        >>> up(torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)).shape
        torch.Size([1, 5, 8, 8])
    """

    info = _info("lanczos", "Lanczos interpolation (three lobes) of the features.")
    mode = "lanczos"

    def _resize(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        rows, cols = (
            lanczos_weights(length, wanted, wide)
            for length, wanted in zip(values.shape[2:], size, strict=True)
        )
        with without_autocast(values):
            # (H', h) @ (B, K, h, w) @ (w, W')
            return (rows @ wide @ cols.T).to(values.dtype)


def lanczos_weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """What each of ``length`` places gives to each of ``wanted``: (wanted, length), rows sum to 1.

    Example:
        >>> import torch
        >>> lanczos_weights(4, 4, torch.empty(())).round().diag().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    factor = length / wanted
    stretch = max(factor, 1.0)  # downwards the filter is widened: antialiasing
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
