"""Position tables of vision transformers, brought to other grids by the rules in use.

Legend: ``N`` positions of the prefix and of the ``n`` cells, ``C`` width, ``h w`` grid.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import check_choice, shape_text
from upfeat.ops.images import resize_antialiased

__all__ = ["PositionRule", "resize_positions"]

PositionRule = Literal["offset", "resize", "cpe", "cpe-corners"]


def resize_positions(
    table: Tensor, grid: Sequence[int], rule: PositionRule, *, prefix: int = 1
) -> Tensor:
    """Bring a learned position table to another grid; a table of that grid stays as it is.

    Args:
        table: (1, N, C), rows of the prefix first, then those of a square grid, row by row.
        grid: (h, w) of the image.
        rule: one of

            * ``"offset"``: bicubic by the factor (side + 0.1) / old side, without antialias, as in
              DINO, DINOv2's hub, and CLIP in FeatUp, LoftUp and ProxyCLIP;
            * ``"resize"``: bicubic to the size, with antialias, as in timm, open_clip and Probe3D;
            * ``"cpe"``: bilinear to a square of the longer side, its top left window, as in RADIO;
            * ``"cpe-corners"``: the same with aligned corners, as RADIO did until June 2025.
        prefix: rows that belong to no cell; they stay as they are.

    Returns:
        (1, prefix + h*w, C) in the table's dtype.

    Raises:
        ValueError: no such rule, or the table is not of a square grid.
    """
    check_choice("rule", rule, get_args(PositionRule))
    side = math.isqrt(table.shape[1] - prefix)
    if side * side != table.shape[1] - prefix or not side:
        raise ValueError(
            f"a table of {prefix} prefix rows and a square grid expected, got {shape_text(table)}"
        )
    height, width = grid
    if (height, width) == (side, side):
        return table
    # (1, n, C) -> (1, C, side, side)
    cells = table[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule == "offset":
        factor = ((height + 0.1) / side, (width + 0.1) / side)
        # The factor itself maps the coordinates, not the ratio of the sizes.
        cells = F.interpolate(
            cells, scale_factor=factor, mode="bicubic", recompute_scale_factor=False
        )
    elif rule == "resize":
        cells = resize_antialiased(cells, (height, width), "bicubic")
    else:
        longer = max(height, width)
        corners = rule == "cpe-corners"
        cells = F.interpolate(cells, (longer, longer), mode="bilinear", align_corners=corners)
        cells = cells[..., :height, :width]
    rows = cells.flatten(2).mT.to(table.dtype)  # (1, C, h, w) -> (1, h*w, C)
    return torch.cat([table[:, :prefix], rows], dim=1)
