"""Measures to colours by one ramp, and PNG files."""

import base64
import io

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.ops.colors import UNKNOWN

__all__ = [
    "RAMP",
    "covered_part",
    "data_uri",
    "png_bytes",
    "ramp_colors",
]

RAMP: tuple[tuple[int, int, int], ...] = (
    (20, 16, 48), (72, 30, 110), (140, 44, 118), (204, 72, 92), (240, 126, 66), (250, 190, 98),
    (253, 240, 190),
)  # fmt: skip
"""Dark to light, so that order survives print without colour."""


def ramp_colors(values: Tensor, low: float, high: float) -> Tensor:
    """Return (3, H, W) uint8 of values (H, W), ``low`` dark and ``high`` light.

    Args:
        values: numbers; NaN is drawn grey, what lies outside is clipped.
        low: start of the scale that all pictures share.
        high: end of it.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.report.pictures import RAMP, ramp_colors
        >>> colors = ramp_colors(torch.tensor([[0.0, 5.0]]), 0.0, 5.0)
        >>> tuple(colors[:, 0, 1].tolist()) == RAMP[-1]
        True
    """
    if values.dim() != 2:
        raise ValueError(f"wanted values (H, W), got {shape_text(values)}")
    span = high - low if high > low else 1.0
    unknown = values.isnan()
    place = ((values.double() - low) / span).nan_to_num(0.0).clamp(0, 1) * (len(RAMP) - 1)
    ramp = torch.tensor([*RAMP, RAMP[-1]], dtype=torch.float64)
    lower = place.floor().long()
    part = (place - lower)[..., None]
    mixed = ramp[lower] * (1 - part) + ramp[lower + 1] * part  # (H, W, 3)
    mixed[unknown] = torch.tensor(UNKNOWN, dtype=torch.float64)
    return mixed.round().to(torch.uint8).permute(2, 0, 1)


def covered_part(colors: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Cut off what a coarse map covers beyond the image, and enlarge it without smoothing.

    Args:
        colors: (3, h, w) uint8.
        extent: height and width that it covers, in units of the image.
        size: (H, W) of the image.

    Returns:
        The map itself where it covers just the image, else (3, H, W).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.report.pictures import covered_part
        >>> covered_part(torch.zeros(3, 2, 2, dtype=torch.uint8), (1.0, 1.5), (20, 24)).shape
        torch.Size([3, 20, 24])
    """
    if extent == (1.0, 1.0):
        return colors
    rows, cols = (
        ((torch.arange(side) + 0.5) / side / part * cells).long().clamp(max=cells - 1)
        for side, part, cells in zip(size, extent, colors.shape[-2:], strict=True)
    )
    return colors[:, rows][:, :, cols]


def png_bytes(colors: Tensor, largest: int = 640) -> tuple[bytes, tuple[int, int]]:
    """Return a PNG file of (3, H, W) uint8 and its size; larger pictures are reduced.

    Few colours give a palette PNG, several times smaller, reduced without mixing colours.

    Args:
        colors: the picture.
        largest: longer side, in pixels.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.report.pictures import png_bytes
        >>> content, size = png_bytes(torch.zeros(3, 8, 1280, dtype=torch.uint8))
        >>> content[1:4], size
        (b'PNG', (4, 640))
    """
    from PIL import Image

    if colors.dim() != 3 or colors.shape[0] != 3 or colors.dtype != torch.uint8:
        raise ValueError(
            f"a picture must be (3, H, W) uint8, got {shape_text(colors)} {colors.dtype}"
        )
    # (3, H, W) -> (H, W, 3)
    picture = Image.fromarray(colors.cpu().permute(1, 2, 0).contiguous().numpy())
    few = picture.getcolors(256) is not None
    scale = min(1.0, largest / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        mixing = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
        picture = picture.resize((width, height), mixing)
    if few:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue(), (picture.height, picture.width)


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that needs no network.

    Example:
        >>> from upfeat.evaluation.report.pictures import data_uri
        >>> data_uri(b"abc")
        'data:image/png;base64,YWJj'
    """
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
