"""FeatUp's views of an image: pad, zoom, crop, mirror (arXiv 2403.10516, section 3).

The same crop applies to an image and to a map of the image's size, so that a view's features can
be compared with the moved map.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import shape_text
from upfeat.ops.padding import reflect_pad


class Crop(NamedTuple):
    """Where a view comes from: zoom of the padded image, first row and column there, mirrored."""

    zoom: float = 1.0
    row: int = 0
    column: int = 0
    flip: bool = False


def draw_crop(
    generator: torch.Generator, size: tuple[int, int], max_pad: int, max_zoom: float
) -> Crop:
    """Draw a crop: mirrored and zoomed with probability one half each, anywhere in the image.

    Args:
        generator: source of the draws.
        size: (H, W) of the image.
        max_pad: how many mirrored pixels a view may show at each side.
        max_zoom: zooms are uniform in [1, max_zoom].

    Example:
        >>> import torch
        >>> draw_crop(torch.Generator().manual_seed(0), (8, 8), max_pad=2, max_zoom=1.0).zoom
        1.0
    """

    def uniform() -> float:
        options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        return float(torch.rand((), **options).item())  # type: ignore[call-overload]

    flip = uniform() < 0.5
    zoom = 1 + uniform() * (max_zoom - 1) if uniform() < 0.5 else 1.0
    row, column = (int(uniform() * (int((side + 2 * max_pad) * zoom) - side + 1)) for side in size)
    return Crop(zoom, row, column, flip)


def take_crop(x: Tensor, crop: Crop, max_pad: int) -> Tensor:
    """Show a view of (B, C, H, W) at the map's own size.

    Args:
        x: an image, or a map of its size.
        crop: from `draw_crop`, with the same ``max_pad``.
        max_pad: less than both sides, as the border is mirrored.

    Raises:
        ValueError: the crop leaves the padded map.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 2, 6, 8)
        >>> take_crop(x, Crop(row=3, column=3), max_pad=3).equal(x)
        True
    """
    height, width = x.shape[2:]
    padded = reflect_pad(x, max_pad)
    if crop.zoom > 1:
        padded = F.interpolate(padded, scale_factor=crop.zoom, mode="bilinear")
    view = padded[:, :, crop.row : crop.row + height, crop.column : crop.column + width]
    if view.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"{crop} leaves the padded map {shape_text(padded)} of {shape_text(x)}; draw it with "
            f"draw_crop(generator, {(height, width)}, {max_pad}, ...)"
        )
    return view.flip(3) if crop.flip else view
