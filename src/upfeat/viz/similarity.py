"""Pictures of answers: how alike pixels are, and which word each is nearest to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.ops.colors import class_colors, class_palette
from upfeat.ops.images import resize_bilinear
from upfeat.viz.panel import (
    PanelPicture,
    Place,
    draw_cross,
    draw_grid,
    heat_colors,
    to_pil,
    with_legend,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "AnswerMap",
    "overlay_picture",
    "shared_scale",
    "similarity_panel",
    "similarity_picture",
    "words_panel",
]

_SHARE = 0.62  # of the class's colour over the photo


@dataclass(frozen=True, eq=False)
class AnswerMap:
    """What one method answers.

    Attributes:
        name: of the method.
        values: (H, W): cosines, or the number of the nearest word.
        note: stands behind the name, such as the time.
    """

    name: str
    values: Tensor
    note: str = ""

    @property
    def caption(self) -> str:
        """Name and note."""
        return f"{self.name}  {self.note}".rstrip()


def shared_scale(maps: Sequence[AnswerMap]) -> tuple[float, float]:
    """Return the smallest cosine of all maps, and 1: one scale of colours for all of them.

    Example:
        >>> import torch
        >>> from upfeat.viz.similarity import AnswerMap, shared_scale
        >>> shared_scale([AnswerMap("a", torch.tensor([[0.5, 1.0]]))])
        (0.5, 1.0)
    """
    return min(float(shown.values.min()) for shown in maps), 1.0


def similarity_picture(
    values: Tensor, mark: Place, scale: tuple[float, float], *, side: int = 448
) -> Tensor:
    """Colour cosines from the lower end of a scale (black) to its upper end (pale yellow).

    Args:
        values: (H, W) cosines.
        mark: place of the pixel that all others are compared with; a cross is drawn there.
        scale: cosines of the first and the last colour, see :func:`shared_scale`.
        side: longer side of the picture, in pixels.

    Returns:
        (3, S, S') uint8.

    Example:
        >>> import torch
        >>> from upfeat.viz import similarity_picture
        >>> similarity_picture(torch.rand(4, 8), (0.5, 0.5), (0.0, 1.0), side=100).shape
        torch.Size([3, 50, 100])
    """
    low, high = scale
    return _marked(heat_colors((values - low) / max(high - low, 1e-6)), mark, side)


def similarity_panel(
    photo: Tensor,
    maps: Sequence[AnswerMap],
    mark: Place,
    *,
    side: int = 320,
    notes: Sequence[str] = (),
) -> "Image.Image":
    """Draw the photo with a cross and, beside it, how alike every method finds the other pixels.

    One scale of colours serves all maps (:func:`shared_scale`); a line below says which.

    Args:
        photo: (3, H, W) in [0, 1].
        maps: cosines, a map a method.
        mark: place of the pixel that all others are compared with.
        side: longer side of each picture, in pixels.
        notes: further lines of text below.

    Raises:
        ValueError: no maps.

    Example:
        >>> import torch
        >>> from upfeat.viz import AnswerMap, similarity_panel
        >>> maps = [AnswerMap(name, torch.rand(8, 8)) for name in ("low-res", "kin")]
        >>> similarity_panel(torch.rand(3, 16, 16), maps, (0.5, 0.5), side=100).width
        324
    """
    if not maps:
        raise ValueError("no methods to draw; give at least one")
    scale = shared_scale(maps)
    pixels = (photo.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    cells = [PanelPicture(_marked(pixels, mark, side), "image")]
    cells += [
        PanelPicture(similarity_picture(shown.values, mark, scale, side=side), shown.caption)
        for shown in maps
    ]
    lines = (
        f"Cosine with the pixel under the cross: {scale[0]:.2f} (black) to 1 (yellow).",
        *notes,
    )
    size = (photo.shape[-2], photo.shape[-1])
    return draw_grid(cells, size, side, columns=_columns(len(cells)), notes=lines)


def overlay_picture(
    photo: Tensor, labels: Tensor, palette: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Lay the colours of classes over a photo.

    Args:
        photo: (3, H, W) in [0, 1], resized where the labels have another size.
        labels: (H', W') whole numbers.
        palette: a colour for each class.

    Returns:
        (3, H', W') uint8.

    Raises:
        ValueError: another shape, or a class without a colour.

    Example:
        >>> import torch
        >>> from upfeat.viz import overlay_picture
        >>> labels = torch.zeros(2, 2, dtype=torch.int64)
        >>> overlay_picture(torch.zeros(3, 2, 2), labels, [(100, 0, 200)])[:, 0, 0].tolist()
        [62, 0, 124]
    """
    if photo.dim() != 3 or labels.dim() != 2:
        raise ValueError(
            f"wanted a photo (3, H, W) and labels (H, W), got {shape_text(photo)} and "
            f"{shape_text(labels)}"
        )
    size = (labels.shape[0], labels.shape[1])
    pixels = photo.detach().float().cpu().clamp(0, 1)
    if pixels.shape[1:] != labels.shape:
        pixels = resize_bilinear(pixels[None], size)[0]
    colors = class_colors(labels.cpu(), tuple(palette)).float()
    return (_SHARE * colors + (1 - _SHARE) * 255 * pixels).round().to(torch.uint8)


def words_panel(
    photo: Tensor,
    maps: Sequence[AnswerMap],
    words: Sequence[str],
    *,
    side: int = 320,
    notes: Sequence[str] = (),
) -> "Image.Image":
    """Draw the photo and, beside it, the nearest word of each pixel by every method, and a legend.

    Args:
        photo: (3, H, W) in [0, 1].
        maps: numbers of words, a map a method.
        words: of the legend.
        side: longer side of each picture, in pixels.
        notes: lines of text below.

    Raises:
        ValueError: no maps.

    Example:
        >>> import torch
        >>> from upfeat.viz import AnswerMap, words_panel
        >>> maps = [AnswerMap("kin", torch.randint(0, 2, (16, 16)))]
        >>> words_panel(torch.rand(3, 16, 16), maps, ["dog", "grass"], side=100).width
        218
    """
    if not maps:
        raise ValueError("no methods to draw; give at least one")
    palette = class_palette(len(words))
    pixels = (photo.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    cells = [PanelPicture(pixels, "image")]
    cells += [
        PanelPicture(overlay_picture(photo, shown.values, palette), shown.caption) for shown in maps
    ]
    size = (photo.shape[-2], photo.shape[-1])
    panel = draw_grid(cells, size, side, columns=_columns(len(cells)), notes=notes)
    return with_legend(panel, tuple(zip(words, palette, strict=True)))


def _columns(count: int) -> int:
    """Spread pictures evenly over rows of at most four."""
    return -(-count // -(-count // 4))


def _marked(picture: Tensor, mark: Place, side: int) -> Tensor:
    """Return a picture (3, H, W) at ``side`` with a cross: (3, S, S') uint8."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[1:]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = to_pil(picture).resize(size, Image.Resampling.BICUBIC)
    draw_cross(ImageDraw.Draw(canvas), size, mark)
    # (S, S', 3) -> (3, S, S')
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
