"""Interpolation: the baselines that look at no image.

``nearest``, ``bilinear`` and ``bicubic`` have the semantics of ``torch.nn.functional.interpolate``
(``align_corners=False``, no antialiasing, bicubic a = -0.75; nearest is torch's ``"nearest"``).
Origin: textbook; no weights.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.upsamplers.base import Tile, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler


def _info(name: str, summary: str) -> UpsamplerInfo:
    return UpsamplerInfo(name=name, summary=summary, universal=True, commutes_with_head=True)


class Interpolation(Upsampler):
    """Resizes the features and ignores the image, apart from its size."""

    supports_tiles = True
    mode: ClassVar[str]

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        return F.interpolate(values, output_size, mode=self.mode)

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
        # A band and the gathered rows it is made of: six times the band at the worst (bicubic).
        step = max(1, max_bytes // (6 * row_bytes))
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield slice(start, stop), slice(0, width), self._band(values, output_size, start, stop)

    def _band(self, values: Tensor, output_size: tuple[int, int], start: int, stop: int) -> Tensor:
        """Interpolate output rows ``start:stop`` only: (B, K, h, w) -> (B, K, stop - start, W')."""
        height, width = output_size
        index, weight = self._taps(values, height, start, stop)
        # (B, K, h, w) -> (B, K, rows, taps, w), weighted and summed over the taps
        band = (values[:, :, index] * weight[..., None]).sum(dim=3)
        return F.interpolate(band, (stop - start, width), mode=self.mode)

    def _taps(self, values: Tensor, height: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return source rows and their weights, both (rows, taps), for rows ``start:stop``.

        They are read off by interpolating the identity: column i of the identity resized along
        its rows holds what source row i contributes, with torch's own rounding.
        """
        source = values.shape[2]
        wide = torch.promote_types(values.dtype, torch.float32)
        identity = torch.eye(source, dtype=wide, device=values.device)
        # (1, 1, h, h) -> (H', h): one row of weights for each output row
        weights = F.interpolate(identity[None, None], (height, source), mode=self.mode)[0, 0]
        rows = weights[start:stop]
        taps = min(source, 4)
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

    info = _info("nearest", "Nearest-neighbour interpolation of the features.")
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

    info = _info("bilinear", "Bilinear interpolation of the features.")
    mode = "bilinear"


@register_upsampler("bicubic")
class Bicubic(Interpolation):
    """Bicubic interpolation (a = -0.75) without aligned corners or antialiasing.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("bicubic")
        >>> up(torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)).shape
        torch.Size([1, 5, 8, 8])
    """

    info = _info("bicubic", "Bicubic interpolation of the features.")
    mode = "bicubic"
