"""Which coarse cells one pixel of the upsampled map is made of, as numbers and as pictures.

After LoftUp (Huang et al., arXiv 2504.14032), figures 8 and C.5: dots on the photo whose density
follows the attention of the pixel under the cross. The paper shows a cross-attention's softmax;
here every method whose output is a weighted mean of the features is shown as well, by its exact
weights.

Legend: ``L`` maps of weights, ``h w`` low-resolution grid, ``n = h w`` cells, ``H W`` guidance
image, ``H' W'`` output. Places are (row, column) as shares of height and width, 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upfeat.errors import UnsupportedError, check_call, shape_text
from upfeat.layers.attention import attention_modules, record_attention
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
)

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from upfeat.upsamplers.base import Upsampler

DOTS = 300  # of a picture, the number that the protocol names
_FINER = 3  # pictures are drawn so many times larger and reduced, so that edges are smooth
_DOT, _DOT_EDGE = (255, 214, 10), (40, 20, 0)


@torch.no_grad()
def attended_regions(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    position: Sequence[int],
    output_size: Sequence[int] | int | None = None,
) -> Tensor:
    """Return the weights over the low-resolution cells of one pixel of the output.

    Where ``info.abilities.linear``, the output is a weighted mean of the features with one set
    of weights for all channels. They are read exactly, by mixing one-hot values: channel i is 1 in
    cell i and 0 elsewhere. A method that asks the cells through ``nn.MultiheadAttention`` (LoftUp)
    gives the softmax of each block, averaged over the heads; its output is not that mean, since
    values are projected and further layers follow.

    Args:
        upsampler: in evaluation mode.
        image: (1, 3, H, W), normalised as in ``Upsampler.forward``.
        features: (1, C, h, w).
        position: row and column of the pixel in the output, from 0.
        output_size: (H', W') or the shorter side; default (H, W).

    Returns:
        (L, h, w), float32 at least; each map sums to 1. L is 1, or the number of attention blocks.
        Kernels with negative lobes (bicubic, lanczos) have negative weights.

    Raises:
        UnsupportedError: the method has no weights over cells that could be shown.
        ValueError: more than one image, or a position outside the output.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.viz import attended_regions
        >>> image, features = torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)
        >>> attended_regions(upfeat.create_upsampler("bilinear"), image, features, (0, 3))
        tensor([[[0.6250, 0.3750],
                 [0.0000, 0.0000]]])
    """
    size = check_call(image, features, output_size, None)
    if len(image) != 1:
        raise ValueError(f"the weights of one image are read, got a batch of {len(image)}")
    row, col = _checked(position, size)
    if upsampler.info.abilities.linear:
        return _mixing_weights(upsampler, image, features, (row, col), size)
    if attention_modules(upsampler) and upsampler.info.abilities.query:
        return _softmax_weights(upsampler, image, features, (row, col), size)
    raise UnsupportedError(
        f"{upsampler.info.name} has no single set of weights over the cells: it neither mixes the "
        "features with one set for all channels (info.abilities.linear) nor asks them through "
        "nn.MultiheadAttention; take such a method, for example jafar, anyup, kin or loftup"
    )


def _checked(position: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    row, col = (int(place) for place in position)
    if (row, col) != tuple(position) or not (0 <= row < size[0] and 0 <= col < size[1]):
        raise ValueError(
            f"position must be a row and a column of the output {size}, counted from 0, got "
            f"{tuple(position)}"
        )
    return row, col


def _centre(position: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor:
    """Where ``query()`` finds the pixel: (1, 1, 2), float64 for codes of high frequency."""
    place = [(2 * index + 1) / side - 1 for index, side in zip(position, size, strict=True)]
    return torch.tensor([[place]], dtype=torch.float64, device=like.device)


def _mixing_weights(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    position: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """What the pixel takes of every cell, (1, h, w)."""
    grid = (features.shape[2], features.shape[3])
    one_hot = torch.eye(grid[0] * grid[1], dtype=features.dtype, device=features.device)
    values = one_hot.unflatten(1, grid)[None]  # (n, n) -> (1, n, h, w)
    row, col = position
    if upsampler.info.abilities.query:
        places = _centre(position, size, features)
        weights = upsampler.query(image, features, places, values, size)[0, 0]  # (n,)
    elif upsampler.info.abilities.tiles:
        tiles = upsampler.tiles(image, features, size, values)
        rows, tile = next(pair for pair in tiles if row < pair[0].stop)  # those behind are not made
        weights = tile[0, :, row - rows.start, col]
    else:
        weights = upsampler(image, features, size, values)[0, :, row, col]
    return _widened(weights).unflatten(0, grid)[None]


def _softmax_weights(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    position: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """The attention of every block in the order of their calls, averaged over heads, (L, h, w)."""
    with record_attention(upsampler) as recorded:
        upsampler.query(image, features, _centre(position, size, features), output_size=size)
    grid = (features.shape[2], features.shape[3])
    for weights in recorded:  # (1, 1, n)
        if weights.numel() != grid[0] * grid[1]:
            raise UnsupportedError(
                f"an attention of {upsampler.info.name} has weights {shape_text(weights)} for one "
                f"pixel, which are none over the {grid[0]}x{grid[1]} cells"
            )
    return torch.stack([_widened(weights).reshape(grid) for weights in recorded])


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# -- what a distribution says ----------------------------------------------------------------------


def _distribution(weights: Tensor) -> Tensor:
    """Weights (h, w) as probabilities, float64 on the CPU; negative ones count as 0."""
    if weights.dim() != 2 or weights.numel() == 0:
        raise ValueError(f"weights must be one map (h, w), got {shape_text(weights)}")
    positive = weights.detach().to("cpu", torch.float64).clamp(min=0)
    total = positive.sum()
    if not (bool(positive.isfinite().all()) and total > 0):
        raise ValueError("weights must be finite and not all zero or negative")
    return positive / total


def effective_cells(weights: Tensor) -> float:
    """Return over how many cells weights (h, w) are spread: exp of their entropy, 1 to n.

    Negative ones count as 0.
    """
    entropy: Tensor = torch.special.entr(_distribution(weights)).sum()
    return float(entropy.exp())


def sample_dots(weights: Tensor, count: int = DOTS, seed: int = 0) -> Tensor:
    """Draw dots whose density follows the weights.

    Cells are drawn with replacement, and each dot lies anywhere in its cell with equal chance.

    Args:
        weights: (h, w); negative ones count as 0.
        count: number of dots.
        seed: of both draws; the same on every machine.

    Returns:
        (count, 2) float64, places (row, column) in [0, 1).
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    chances = _distribution(weights)
    generator = torch.Generator().manual_seed(seed)
    cells = torch.multinomial(chances.flatten(), count, replacement=True, generator=generator)
    inside = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    width = weights.shape[1]
    corner = torch.stack((cells // width, cells % width), dim=1)  # (N, 2)
    return (corner + inside) / torch.tensor(weights.shape, dtype=torch.float64)


# -- pictures --------------------------------------------------------------------------------------


def dot_picture(
    photo: Tensor,
    weights: Tensor,
    mark: Place,
    *,
    count: int = DOTS,
    seed: int = 0,
    side: int = 448,
) -> Tensor:
    """Draw dots that follow the weights, and a cross, on the photo: (3, S, S') uint8.

    Args:
        photo: (3, H, W) in [0, 1]; the cells cover it exactly.
        weights: (h, w).
        mark: place of the cross.
        count: number of dots, see :func:`sample_dots`.
        seed: of the dots.
        side: longer side of the picture, in pixels.
    """
    from PIL import ImageDraw

    size = shown_size(photo, side)
    canvas = _enlarged(photo * 0.8, size)
    draw = ImageDraw.Draw(canvas)
    radius = max(2.0, side / 130) * _FINER
    for y, x in (sample_dots(weights, count, seed) * torch.tensor(canvas.size[::-1])).tolist():
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=_DOT, outline=_DOT_EDGE, width=_FINER)
    return _finished(canvas, draw, mark, size)


def heat_picture(photo: Tensor, weights: Tensor, mark: Place, *, side: int = 448) -> Tensor:
    """Colour every cell by its weight, over the photo in grey, with a cross: (3, S, S') uint8.

    Colours run from 0 to the largest weight and cover the photo the more the larger the weight is.

    Args:
        photo: (3, H, W) in [0, 1]; the cells cover it exactly.
        weights: (h, w); negative ones count as 0.
        mark: place of the cross.
        side: longer side of the picture, in pixels.
    """
    from PIL import Image, ImageDraw

    size = shown_size(photo, side)
    chances = _distribution(weights)
    share = chances / chances.max()
    colors = to_pil(heat_colors(share))
    alpha = Image.fromarray((share.sqrt() * 217).round().to(torch.uint8).numpy())
    grey = photo.float().mean(0, keepdim=True).expand(3, -1, -1)
    canvas = _enlarged(0.55 * grey, size)
    blocks = colors.resize(canvas.size, Image.Resampling.NEAREST)
    canvas.paste(blocks, mask=alpha.resize(canvas.size, Image.Resampling.NEAREST))
    return _finished(canvas, ImageDraw.Draw(canvas), mark, size)


def _enlarged(photo: Tensor, size: tuple[int, int]) -> "Image.Image":
    from PIL import Image

    finer = (size[1] * _FINER, size[0] * _FINER)
    return to_pil(photo_pixels(photo)).resize(finer, Image.Resampling.BICUBIC)


def _finished(
    canvas: "Image.Image", draw: "ImageDraw.ImageDraw", mark: Place, size: tuple[int, int]
) -> Tensor:
    """Draw the cross and reduce the canvas: (3, S, S') uint8."""
    from PIL import Image

    draw_cross(draw, canvas.size, mark)
    return from_pil(canvas.resize((size[1], size[0]), Image.Resampling.BOX))


@dataclass(frozen=True, eq=False)
class Attended:
    """What one method takes for one pixel.

    Attributes:
        name: of the method.
        weights: (L, h, w), see :func:`attended_regions`.
    """

    name: str
    weights: Tensor


def attention_panel(
    photo: Tensor,
    methods: Sequence[Attended],
    mark: Place,
    *,
    count: int = DOTS,
    seed: int = 0,
    side: int = 320,
    notes: Sequence[str] = (),
) -> "Image.Image":
    """Draw several methods side by side: dots above, heat maps below, a column for each block.

    Under the heat map stand the largest weight and over how many cells the weights are spread
    (:func:`effective_cells`); each heat map is scaled to its own largest weight.

    Args:
        photo: (3, H, W) in [0, 1], as the networks saw it.
        methods: what they take for one and the same pixel.
        mark: place of that pixel.
        count: number of dots, see :func:`sample_dots`.
        seed: of the dots.
        side: longer side of each picture, in pixels.
        notes: lines of text below.
    """
    if not methods:
        raise ValueError("no methods to draw; give at least one")
    dots, heat = [], []
    for method in methods:
        blocks = len(method.weights)
        for block, weights in enumerate(method.weights, 1):
            title = method.name if blocks == 1 else f"{method.name}, block {block} of {blocks}"
            drawn = dot_picture(photo, weights, mark, count=count, seed=seed, side=side)
            dots.append(PanelPicture(drawn, title))
            spread = f"spread over {effective_cells(weights):.3g} cells"
            caption = f"largest {float(weights.max()):.2g}, {spread}"
            heat.append(PanelPicture(heat_picture(photo, weights, mark, side=side), caption))
    size = (photo.shape[1], photo.shape[2])
    return draw_grid([*dots, *heat], size, side, columns=len(dots), notes=notes)
