"""Drawing pictures side by side with captions, with Pillow only, and colours of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upfeat.errors import shape_text

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "PanelPicture",
    "Place",
    "draw_cross",
    "draw_grid",
    "draw_panel",
    "heat_colors",
    "to_pil",
    "with_legend",
]

Place = tuple[float, float]
"""Row and column as shares of height and width, 0 to 1."""

# Black, violet, red, orange, pale yellow: lightness rises all the way.
_STOPS = ((0, 0, 0), (78, 18, 110), (176, 44, 88), (240, 112, 32), (252, 236, 140))
_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)
_MARK, _MARK_EDGE = (255, 255, 255), (0, 0, 0)
_MIN_SIDE = 256  # small pictures are enlarged to this, so that a caption fits


@dataclass(frozen=True)
class PanelPicture:
    """One picture of a panel.

    Attributes:
        picture: (3, h, w) uint8.
        caption: one line of text above it (in a grid: below).
        blocks: enlarge without smoothing.
        extent: height and width that the picture covers, in units of the panel's image; what lies
            beyond 1 is cut off.
    """

    picture: Tensor
    caption: str
    blocks: bool = False
    extent: tuple[float, float] = (1.0, 1.0)


def to_pil(picture: Tensor) -> "Image.Image":
    """Return (3, H, W) uint8 as a PIL image.

    Raises:
        ValueError: another shape or dtype.
    """
    from PIL import Image

    if picture.dim() != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
        raise ValueError(
            f"a picture must be (3, H, W) uint8, got {shape_text(picture)} {picture.dtype}"
        )
    # (3, H, W) -> (H, W, 3)
    return Image.fromarray(picture.cpu().permute(1, 2, 0).contiguous().numpy())


def from_pil(image: "Image.Image") -> Tensor:
    """Return an RGB image of PIL as (3, H, W) uint8."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def photo_pixels(photo: Tensor) -> Tensor:
    """Return a photo in [0, 1] as uint8 of the same shape, on the CPU."""
    return (photo.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def shown_size(picture: Tensor, side: int) -> tuple[int, int]:
    """Return height and width of a picture (..., H, W) whose longer side becomes ``side``."""
    height, width = picture.shape[-2:]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_panel(
    cells: Sequence[PanelPicture], size: tuple[int, int], max_side: int
) -> "Image.Image":
    """Draw pictures of one scene in a row, all at one size, each under its caption.

    Args:
        cells: the pictures, left to right.
        size: (H, W) of the scene; sets the aspect ratio.
        max_side: longer side of each picture, in pixels; small scenes are enlarged to 256.

    Raises:
        ValueError: ``max_side`` is too small to draw in.
    """
    from PIL import Image, ImageDraw

    if max_side < 16:
        raise ValueError(f"max_side must be at least 16, got {max_side}")
    longer = max(size)
    scale = min(max_side, max(longer, _MIN_SIDE)) / longer
    height, width = (max(1, round(side * scale)) for side in size)
    text = max(12, round(max(height, width) / 32))
    gap, bar = max(6, text // 2), round(text * 1.9)
    panel = Image.new(
        "RGB", (len(cells) * width + (len(cells) + 1) * gap, height + bar + gap), _BACKGROUND
    )
    draw = ImageDraw.Draw(panel)
    for i, cell in enumerate(cells):
        left = gap + i * (width + gap)
        font, caption = _fit_text(draw, cell.caption, text, width)
        draw.text((left, bar / 2), caption, fill=_INK, font=font, anchor="lm")
        panel.paste(_scaled(cell, (width, height)), (left, bar))
    return panel


def draw_grid(
    cells: Sequence[PanelPicture],
    size: tuple[int, int],
    side: int,
    *,
    columns: int,
    notes: Sequence[str] = (),
) -> "Image.Image":
    """Draw pictures of one scene in rows, each above its caption, and notes below them all.

    Args:
        cells: the pictures, in reading order.
        size: (H, W) of the scene; sets the aspect ratio.
        side: longer side of each picture, in pixels.
        columns: pictures in a row.
        notes: lines of text, wrapped to the panel's width.

    Raises:
        ValueError: ``side`` or ``columns`` is too small to draw in.
    """
    from PIL import Image, ImageDraw, ImageFont

    if side < 16 or columns < 1:
        raise ValueError(f"side must be at least 16 and columns 1, got {side} and {columns}")
    height, width = (max(1, round(part * side / max(size))) for part in size)
    text = max(12, side // 24)
    gap, bar = 6, round(text * 1.5)
    rows = -(-len(cells) // columns)
    total = columns * (width + gap) + gap
    font = ImageFont.load_default(text)
    lines = [line for note in notes for line in _wrapped(note, font, total - 2 * gap)]
    below = rows * (height + bar + gap) + gap
    panel = Image.new("RGB", (total, below + len(lines) * bar), _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for i, cell in enumerate(cells):
        left = gap + i % columns * (width + gap)
        top = gap + i // columns * (height + bar + gap)
        panel.paste(_scaled(cell, (width, height)), (left, top))
        fitted, caption = _fit_text(draw, cell.caption, text, width)
        draw.text((left, top + height + bar / 2), caption, fill=_INK, font=fitted, anchor="lm")
    for i, line in enumerate(lines):
        draw.text((gap, below + (i + 0.5) * bar), line, fill=_INK, font=font, anchor="lm")
    return panel


def with_legend(
    panel: "Image.Image", classes: Sequence[tuple[str, tuple[int, int, int]]]
) -> "Image.Image":
    """Return a panel with the names of classes below it, each behind a square of its colour.

    Args:
        panel: what stands above.
        classes: names and colours (red, green, blue).
    """
    from PIL import Image, ImageDraw, ImageFont

    text, gap = 14, 6
    font, line = ImageFont.load_default(text), text + 2 * gap
    places, left, top = [], gap, panel.height
    for name, _ in classes:
        width = 2 * gap + text + round(font.getlength(name)) + gap
        if left > gap and left + width > panel.width:
            left, top = gap, top + line
        places.append((left, top))
        left += width
    whole = Image.new("RGB", (panel.width, top + line + 2), _BACKGROUND)
    whole.paste(panel)
    draw = ImageDraw.Draw(whole)
    for (name, color), (x, y) in zip(classes, places, strict=True):
        draw.rectangle((x, y + gap, x + text, y + gap + text), fill=color)
        draw.text((x + text + gap, y + gap + text / 2), name, fill=_INK, font=font, anchor="lm")
    return whole


def draw_cross(draw: "ImageDraw.ImageDraw", size: tuple[int, int], mark: Place) -> None:
    """Draw a white cross with a dark edge.

    Args:
        draw: of the picture.
        size: (width, height) of the picture.
        mark: place of the cross.
    """
    y, x = mark[0] * size[1], mark[1] * size[0]
    arm, line = max(size) / 36, max(size) / 240
    for color, wider in ((_MARK_EDGE, line * 0.6), (_MARK, 0.0)):
        long, thick = arm + wider, line / 2 + wider
        draw.rectangle((x - long, y - thick, x + long, y + thick), fill=color)
        draw.rectangle((x - thick, y - long, x + thick, y + long), fill=color)


def _wrapped(
    note: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int
) -> list[str]:
    """Break a note between words into lines of at most ``width`` pixels."""
    lines = [""]
    for word in note.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _scaled(cell: PanelPicture, size: tuple[int, int]) -> "Image.Image":
    """Return the covered part of a picture at ``size`` (width, height)."""
    from PIL import Image

    picture = to_pil(cell.picture)
    box = (0.0, 0.0, picture.width / cell.extent[1], picture.height / cell.extent[0])
    if cell.blocks:
        resample = Image.Resampling.NEAREST
    elif picture.width > size[0]:
        resample = Image.Resampling.LANCZOS
    else:
        resample = Image.Resampling.BICUBIC
    return picture.resize(size, resample, box=box)


def _fit_text(
    draw: object, text: str, size: int, width: int
) -> tuple["ImageFont.FreeTypeFont | ImageFont.ImageFont", str]:
    """Return a font and the text, made smaller or, in the end, shorter until it fits the width."""
    from PIL import ImageFont

    while True:
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return font, text
        if size > 10:
            size -= 1
        elif len(text) > 1:
            text = text[:-2] + "…"
        else:
            return font, text


def heat_colors(share: Tensor) -> Tensor:
    """Colour numbers from 0 (black) over violet, red and orange to 1 (pale yellow).

    Args:
        share: (H, W), clamped to [0, 1].

    Returns:
        (3, H, W) uint8 on the CPU.

    Example:
        >>> import torch
        >>> from upfeat.viz.panel import heat_colors
        >>> heat_colors(torch.tensor([[0.0, 0.25, 1.0]]))[:, 0].T.tolist()
        [[0, 0, 0], [78, 18, 110], [252, 236, 140]]
    """
    stops = torch.tensor(_STOPS, dtype=torch.float64)
    place = share.detach().to("cpu", torch.float64).clamp(0, 1) * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    colors = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])
    return colors.round().to(torch.uint8).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
