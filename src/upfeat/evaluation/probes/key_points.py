"""Geometry of images and key points in the published forms of semantic correspondence.

* ``square`` (ViT-Up): the image in the middle of a black square; whole pixels.
* ``lift`` (LiFT, WRC): the same at a fixed side, resized by Lanczos; features are normalised on
  their own grid, then enlarged to a pixel each.
* ``recall`` (Probe3D): the image at the left and top of a white square; positions as fractions of
  the map's sides.

Legend: ``C`` channels, ``K`` points ``(x, y)``, NaN where not shown, ``S`` side of the square,
``G`` side of its map, ``H W`` image.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.evaluation.metrics import SquareCanvas, match_cells
from upfeat.ops import unit_vectors
from upfeat.ops.images import resize_antialiased


def shown_points(points: Tensor) -> Tensor:
    """Return which points (K, 2) are not NaN, (K,)."""
    return ~points.isnan().any(1)


# -- square --------------------------------------------------------------------------------------


def square_image(image: Tensor, side: int) -> Tensor:
    """Pad an image (3, H, W) with black to a square and resize it to (3, S, S).

    An odd difference of the sides leaves the square a pixel short, which the resize squashes.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.key_points import square_image
        >>> square_image(torch.ones(3, 2, 4), 4)[0].int().tolist()
        [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    """
    canvas = SquareCanvas.centred((image.shape[1], image.shape[2]))
    left, top = canvas.left, canvas.top
    padded = F.pad(image, (left, left, top, top))
    return resize_antialiased(padded[None], (side, side))[0]


def square_matches(
    queries: Tensor, strips: Iterable[Tensor], canvas: SquareCanvas, grid: int
) -> Tensor:
    """Return where features (K, C) are found in an image: its whole pixels (K, 2), float64.

    The strips are consecutive rows of the target's map, (C, R, G) each.
    """
    return canvas.pixels(match_cells(queries, strips).cpu(), grid)


# -- lift ----------------------------------------------------------------------------------------


class LiftCanvas(NamedTuple):
    """An image in the middle of a square of fixed side.

    Attributes:
        scale: pixels of the square for one of the image.
        size: (H, W) of the resized image.
        left, top: pixels before it.
    """

    scale: float
    size: tuple[int, int]
    left: int
    top: int

    def place(self, points: Tensor) -> Tensor:
        """Return points (K, 2) of the image as those of the square."""
        return points * self.scale + points.new_tensor([self.left, self.top])


def lift_canvas(size: tuple[int, int], side: int) -> LiftCanvas:
    """Return how an image (H, W) lies in a square of a side; a rounded half goes to even.

    Example:
        >>> from upfeat.evaluation.probes.key_points import lift_canvas
        >>> lift_canvas((45, 70), 48)
        LiftCanvas(scale=0.6857142857142857, size=(31, 48), left=0, top=8)
    """
    scale = side / max(size)
    height, width = (round(length * scale) for length in size)
    return LiftCanvas(scale, (height, width), (side - width) // 2, (side - height) // 2)


def lift_image(image: Tensor, side: int) -> Tensor:
    """Resize the longer side of an image (3, H, W) by Lanczos and centre it on black, (3, S, S)."""
    from PIL import Image

    height, width = image.shape[1:]
    canvas = lift_canvas((height, width), side)
    # (3, H, W) -> (H, W, 3)
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    resized = Image.fromarray(pixels).resize(canvas.size[::-1], Image.Resampling.LANCZOS)
    square = torch.zeros(3, side, side)
    rows = slice(canvas.top, canvas.top + canvas.size[0])
    cols = slice(canvas.left, canvas.left + canvas.size[1])
    square[:, rows, cols] = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    return square


def lift_matches(source: Tensor, target: Tensor, points: Tensor, side: int) -> Tensor:
    """Return where points of one square are found in another: its whole pixels (K, 2), float64.

    The maps are (C, G, G), the points (K, 2) those of the source's square of side S.
    """
    # In float64 and rounded to float32: at the border, where the map goes on unchanged, pixels
    # that are equal come out equal, and the first of them counts.
    first, second = (
        F.interpolate(unit_vectors(one[None].double()), (side, side), mode="bilinear")[0]
        for one in (source, target)
    )
    shown = shown_points(points)
    column, row = points[shown].floor().long().clamp(0, side - 1).T
    queries = first[:, row, column].T  # (C, K) -> (K, C)
    best = (queries @ second.flatten(1)).float().argmax(1).cpu()  # not normalised again
    found = torch.full_like(points, math.nan, dtype=torch.float64)
    found[shown] = torch.stack([best % side, best // side], 1).double()
    return found


# -- recall --------------------------------------------------------------------------------------


def recall_image(image: Tensor, side: int) -> Tensor:
    """Pad an image (3, H, W) with white at the right and bottom, and resize it to (3, S, S)."""
    height, width = image.shape[1:]
    longer = max(height, width)
    padded = F.pad(image, (0, longer - width, 0, longer - height), value=1.0)
    return resize_antialiased(padded[None], (side, side), "bicubic")[0].clamp(0, 1)


def recall_matches(source: Tensor, target: Tensor, points: Tensor, side: int) -> Tensor:
    """Return where points of one square are found in another, as shares (K, 2) of its sides.

    The maps are (C, G, G), the points (K, 2) those of the source's square of side S.
    """
    first, second = unit_vectors(source[None]), unit_vectors(target[None])[0]
    shown = shown_points(points)
    places = (2 * points[shown].to(first) / side - 1)[None, None]  # (1, 1, K, 2)
    sampled = F.grid_sample(first, places, mode="bilinear", align_corners=True)
    queries = sampled[0, :, 0].T  # (1, C, 1, K) -> (K, C)
    best = (queries @ second.flatten(1)).argmax(1).cpu()
    height, width = second.shape[1:]
    found = torch.full_like(points, math.nan, dtype=torch.float64)
    found[shown] = torch.stack([best % width / width, best // width / height], 1).double()
    return found
