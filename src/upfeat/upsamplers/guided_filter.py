"""Guided filter as an upsampler: features as local linear functions of the image's colours.

Paper: He, Sun, Tang, "Guided Image Filtering", ECCV 2010, with the fast variant of He, Sun, "Fast
Guided Filter", arXiv 1505.00996: the model is fitted on the feature grid, its coefficients are
enlarged, and the full image is put in. Origin: the papers' formulas; no weights. The form with a
guide channel for each channel (as in ReSFU's module) is :func:`upfeat.ops.guided_filter`.

Legend: B batch, K value channels, G guide channels, h w grid, H' W' output.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.guided_filter import guided_model
from upfeat.ops.images import resize_antialiased
from upfeat.upsamplers.base import Abilities, Tile, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler


@register_upsampler("guided_filter")
class GuidedFilter(Upsampler):
    """Guided filter (He et al., 2010): output = a . I + b with a, b fitted in windows of the grid.

    Args:
        radius: of the windows, in cells.
        eps: smoothing: structure of the image with a variance below it is ignored (RGB in [0, 1]).
        guide: ``"color"`` fits a slope for each colour (equation 14), ``"gray"`` one for their
            mean (equation 5).

    Raises:
        ValueError: a parameter is out of range.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("guided_filter", radius=2)
        >>> up(torch.rand(1, 3, 64, 48), torch.rand(1, 8, 4, 3)).shape
        torch.Size([1, 8, 64, 48])
    """

    info = UpsamplerInfo(
        name="guided_filter",
        summary="Local linear models of the image's colours (He et al.); no training.",
        claim="An edge-preserving filter in linear time, whatever its radius.",
        as_baseline={
            "JAFAR": "not compared; part of ReSFU",
        },
        paper="Guided Image Filtering (He et al., ECCV 2010)",
        year=2010,
        arxiv="1505.00996",
        code_license="none (textbook)",
        abilities=Abilities(linear=True, universal=True, tiles=True),
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )

    def __init__(
        self, radius: int = 4, eps: float = 1e-3, guide: Literal["color", "gray"] = "color"
    ) -> None:
        super().__init__()
        if radius < 1 or not eps > 0:
            raise ValueError(f"radius must be at least 1 and eps positive, got {radius} and {eps}")
        if guide not in ("color", "gray"):
            raise ValueError(f"guide must be 'color' or 'gray', got {guide!r}")
        self.radius, self.eps, self.guide = radius, eps, guide

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        return self._rows(self._fit(image, values), image, output_size, (0, output_size[0]))

    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        height, width = output_size
        model = self._fit(image, values)
        # The tile, one enlarged slope and the rows that both are made of.
        row_bytes = 6 * model[1].element_size() * values.shape[0] * values.shape[1] * width
        step = max(1, max_bytes // row_bytes)
        for start in range(0, height, step):
            rows = (start, min(start + step, height))
            yield slice(*rows), slice(0, width), self._rows(model, image, output_size, rows)

    def _fit(self, image: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes (B, G, K, h, w) and offsets (B, K, h, w) on the grid."""
        grid = (values.shape[2], values.shape[3])
        return guided_model(
            F.adaptive_avg_pool2d(self._guide(image), grid), values, self.radius, self.eps
        )

    def _rows(
        self,
        model: tuple[Tensor, Tensor],
        image: Tensor,
        output_size: tuple[int, int],
        rows: tuple[int, int],
    ) -> Tensor:
        """Output rows ``rows``: (B, K, rows, W')."""
        slopes, offsets = model
        guide = resize_antialiased(self._guide(image), output_size)
        guide = guide[:, :, rows[0] : rows[1]]
        out = _enlarged(offsets, output_size, rows)
        for channel in range(guide.shape[1]):
            large = _enlarged(slopes[:, channel], output_size, rows)
            out = out + large * guide[:, channel, None]
        return out

    def _guide(self, image: Tensor) -> Tensor:
        """The guide (B, G, H, W), float32 at least: variances do not survive half precision."""
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return image if self.guide == "color" else image.mean(1, keepdim=True)


def _enlarged(x: Tensor, size: tuple[int, int], rows: tuple[int, int]) -> Tensor:
    """Rows of the bilinear enlargement: (B, K, h, w) -> (B, K, rows, W')."""
    cells = x.shape[2]
    place = torch.arange(*rows, device=x.device, dtype=x.dtype)
    place = ((place + 0.5) * (cells / size[0]) - 0.5).clamp(0, cells - 1)
    low = place.floor().long()
    share = (place - low)[:, None]  # (rows, 1)
    high = (low + 1).clamp(max=cells - 1)
    band = x[:, :, low] * (1 - share) + x[:, :, high] * share  # (B, K, rows, w)
    return F.interpolate(band, (len(low), size[1]), mode="bilinear")
