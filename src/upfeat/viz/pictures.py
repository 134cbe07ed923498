"""Pictures of one photo's maps: cosines, the nearest word, masks, depth, features in one basis.

Maps of different sizes that share three principal components and one scaling were made for
LoftUp's comparison of training targets (arXiv 2504.14032).

Legend: ``C`` channels, ``M`` masks, ``H W`` photo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upfeat.errors import UnknownNameError, shape_text
from upfeat.objectives.masks import refine_with_masks
from upfeat.ops.colors import class_colors, class_palette
from upfeat.ops.images import resize_bilinear
from upfeat.viz.panel import (
    PanelPicture,
    Place,
    draw_cross,
    draw_grid,
    from_pil,
    heat_colors,
    photo_pixels,
    shown_size,
    to_pil,
    with_legend,
)
from upfeat.viz.pca import PCABasis

if TYPE_CHECKING:
    from PIL import Image

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
    """Return the smallest cosine of all maps, and 1: one scale of colours for all of them."""
    return min(float(shown.values.min()) for shown in maps), 1.0


def similarity_picture(
    values: Tensor, mark: Place, scale: tuple[float, float], *, side: int = 448
) -> Tensor:
    """Colour cosines (H, W) from the lower end of a scale (black) to its upper end (pale yellow).

    Args:
        values: (H, W) cosines.
        mark: place of the pixel that all others are compared with; a cross is drawn there.
        scale: cosines of the first and the last colour, see :func:`shared_scale`.
        side: longer side of the picture, in pixels.

    Returns:
        (3, S, S') uint8.
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
    """
    if not maps:
        raise ValueError("no methods to draw; give at least one")
    scale = shared_scale(maps)
    cells = [PanelPicture(_marked(photo_pixels(photo), mark, side), "image")]
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
    """
    if not maps:
        raise ValueError("no methods to draw; give at least one")
    palette = class_palette(len(words))
    cells = [PanelPicture(photo_pixels(photo), "image")]
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

    size = shown_size(picture, side)[::-1]
    canvas = to_pil(picture).resize(size, Image.Resampling.BICUBIC)
    draw_cross(ImageDraw.Draw(canvas), size, mark)
    return from_pil(canvas)


def shared_basis(
    maps: Mapping[str, Tensor], fit_on: str, percentiles: tuple[float, float] = (1.0, 99.0)
) -> PCABasis:
    """Fit the basis of all pictures to one map, or to all.

    Args:
        maps: (C, h, w) each, by name.
        fit_on: the name of one, or ``"all"``.
        percentiles: of the projections, what becomes 0 and 255.

    Raises:
        UnknownNameError: no such map.
    """
    if fit_on == "all":
        return PCABasis.fit(list(maps.values()), percentiles=percentiles)
    if fit_on not in maps:
        raise UnknownNameError("map to fit the colours to", fit_on, ("all", *maps))
    return PCABasis.fit(maps[fit_on], percentiles=percentiles)


def mask_picture(photo: Tensor, masks: Tensor) -> Tensor:
    """Fill every mask with its mean colour and draw its border.

    Args:
        photo: (3, H, W) in [0, 1].
        masks: bool (M, H, W).

    Returns:
        (3, H, W) uint8.

    Example:
        >>> import torch
        >>> from upfeat.viz.pictures import mask_picture
        >>> masks = torch.tensor([[[True, True, False, False]], [[False, False, True, True]]])
        >>> photo = torch.tensor([0.0, 0.5, 1.0, 1.0]).expand(3, 1, 4)
        >>> mask_picture(photo, masks)[0].tolist()
        [[64, 64, 0, 255]]
    """
    filled = refine_with_masks(photo[None], masks[None], alpha=1.0)[0].clamp(0, 1)
    border = torch.zeros_like(masks[:1])
    border[:, 1:] |= (masks[:, 1:] != masks[:, :-1]).any(0, keepdim=True)
    border[:, :, 1:] |= (masks[:, :, 1:] != masks[:, :, :-1]).any(0, keepdim=True)
    return (filled.masked_fill(border, 0) * 255).round().to(torch.uint8)


def depth_picture(depth: Tensor) -> Tensor:
    """Colour depth, near bright and far dark, between its 1st and 99th percentile.

    Args:
        depth: (H, W); what is not positive and finite is unknown and grey.

    Returns:
        (3, H, W) uint8.
    """
    if depth.dim() != 2:
        raise ValueError(f"depth must be (H, W), got {shape_text(depth)}")
    depth = depth.detach().to("cpu", torch.float64)
    known = depth.isfinite() & (depth > 0)
    if not bool(known.any()):
        raise ValueError("no depth is known: all values are zero, negative or not finite")
    low, high = (torch.quantile(depth[known], share) for share in (0.01, 0.99))
    share = ((depth - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return heat_colors(1 - share.nan_to_num()).masked_fill(~known, 128)


def targets_panel(
    photo: Tensor,
    maps: Mapping[str, Tensor],
    basis: PCABasis,
    *,
    captions: Mapping[str, str],
    others: Sequence[PanelPicture] = (),
    side: int = 320,
    notes: Sequence[str] = (),
) -> "Image.Image":
    """Draw the photo, further pictures, and all maps in the colours of one basis.

    Args:
        photo: (3, H, W) in [0, 1].
        maps: (C, h, w) each, by name, in order; those of less than half the photo's height are
            enlarged without smoothing, so that their cells show.
        basis: see :func:`shared_basis`.
        captions: text below each map, by name; default the name.
        others: pictures between the photo and the maps, such as masks and depth.
        side: longer side of each picture, in pixels.
        notes: lines of text below.
    """
    size = (photo.shape[1], photo.shape[2])
    cells = [PanelPicture(photo_pixels(photo), f"photo  {size[0]}x{size[1]}"), *others]
    for name, made in maps.items():
        colors = basis.colors(basis.project(made)).cpu()
        cells.append(
            PanelPicture(colors, captions.get(name, name), blocks=2 * made.shape[1] < size[0])
        )
    columns = len(cells) if len(cells) <= 4 else -(-len(cells) // 2)
    return draw_grid(cells, size, side, columns=columns, notes=notes)
