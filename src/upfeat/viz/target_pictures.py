"""Feature maps of one photo side by side in one basis, with what was used to make them.

Made for LoftUp's comparison of training targets (arXiv 2504.14032), where maps of different sizes
share three principal components and one scaling.

Legend: ``C`` channels, ``M`` masks, ``H W`` photo.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upfeat.errors import UnknownNameError, shape_text
from upfeat.objectives.masks import refine_with_masks
from upfeat.viz.panel import PanelPicture, draw_grid, heat_colors
from upfeat.viz.pca import PCABasis

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["depth_picture", "mask_picture", "shared_basis", "targets_panel"]


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

    Example:
        >>> import torch
        >>> from upfeat.viz.target_pictures import shared_basis
        >>> maps = {"low": torch.rand(8, 2, 2), "high": torch.rand(8, 6, 6)}
        >>> shared_basis(maps, "low").components.shape
        torch.Size([3, 8])
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
        >>> from upfeat.viz.target_pictures import mask_picture
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

    Example:
        >>> import torch
        >>> from upfeat.viz.target_pictures import depth_picture
        >>> depth_picture(torch.tensor([[1.0, 2.0, 0.0]])).shape
        torch.Size([3, 1, 3])
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

    Example:
        >>> import torch
        >>> from upfeat.viz.target_pictures import shared_basis, targets_panel
        >>> maps = {"low": torch.rand(8, 2, 3), "high": torch.rand(8, 16, 24)}
        >>> basis = shared_basis(maps, "low")
        >>> targets_panel(torch.rand(3, 16, 24), maps, basis, captions={}, side=96).width
        312
    """
    pixels = (photo.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    size = (photo.shape[1], photo.shape[2])
    cells = [PanelPicture(pixels, f"photo  {size[0]}x{size[1]}"), *others]
    for name, made in maps.items():
        colors = basis.colors(basis.project(made)).cpu()
        cells.append(
            PanelPicture(colors, captions.get(name, name), blocks=2 * made.shape[1] < size[0])
        )
    columns = len(cells) if len(cells) <= 4 else -(-len(cells) // 2)
    return draw_grid(cells, size, side, columns=columns, notes=notes)
