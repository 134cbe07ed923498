"""Guided filter as an upsampler: features as local linear functions of the image's colours.

Paper: He, Sun, Tang, "Guided Image Filtering", ECCV 2010, with the fast variant of He, Sun, "Fast
Guided Filter", arXiv 1505.00996: the model is fitted on the feature grid, its coefficients are
enlarged, and the full image is put in. Origin: the papers' formulas; no weights. The form with a
guide channel for each channel (as in ReSFU's module) is :func:`upfeat.ops.guided_filter`.

Legend: B batch, K value channels, G guide channels, h w grid, H' W' output, R rows of a strip.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from upfeat.ops import guided_model
from upfeat.ops.images import average_areas, enlarge_rows, resize_antialiased
from upfeat.upsamplers.base import ANY_SIZE, Abilities, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler


class Guide(NamedTuple):
    """The guide's means in the cells (B, G, h, w), and at the output's size (B, G, H', W')."""

    cells: Tensor
    pixels: Tensor


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
        when=(
            "You want no weights, and predict something smooth such as depth, where it is first in "
            "our table; weak at class boundaries."
        ),
        claim="An edge-preserving filter in linear time, whatever its radius.",
        as_baseline={"JAFAR": "not compared; part of ReSFU"},
        paper="Guided Image Filtering (He et al., ECCV 2010)",
        year=2010,
        arxiv="1505.00996",
        code_license="none (textbook)",
        abilities=Abilities(linear=True, universal=True, tiles=True, export=ANY_SIZE),
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

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Guide:
        """Bring the guide to the grid, where the model is fitted, and to the output's size."""
        guide = self._guide(image)
        cells = average_areas(guide, (features.shape[2], features.shape[3]))
        return Guide(cells, resize_antialiased(guide, output_size))

    def encode_values(self, state: Guide, values: Tensor) -> Tensor:
        """Fit the model: slopes for each guide channel, and offsets, (B, G + 1, K, h, w)."""
        slopes, offsets = guided_model(state.cells, values, self.radius, self.eps)
        return torch.cat((slopes, offsets[:, None]), dim=1)

    def decode(self, state: Guide, values: Tensor, rows: slice) -> Tensor:
        """Enlarge the model, and put the guide's pixels in."""
        size, guide = (state.pixels.shape[2], state.pixels.shape[3]), state.pixels[:, :, rows]
        out = enlarge_rows(values[:, -1], size, rows)
        for channel in range(guide.shape[1]):
            out = out + enlarge_rows(values[:, channel], size, rows) * guide[:, channel, None]
        return out

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of the output, of an enlarged slope, and of their product and sum."""
        return 4 * values.shape[1] * output_size[1]

    def _guide(self, image: Tensor) -> Tensor:
        """The guide (B, G, H, W), float32 at least: variances do not survive half precision."""
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return image if self.guide == "color" else image.mean(1, keepdim=True)
