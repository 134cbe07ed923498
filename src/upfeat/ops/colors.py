"""Colours of classes."""

import colorsys

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "class_colors", "class_palette"]

UNKNOWN = (128, 128, 128)
"""Drawn where a value is NaN or a class is ignored."""

_GOLDEN = 0.618033988749895


def class_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return distinct colours: hues by the golden ratio, three brightnesses in turn.

    Args:
        count: number of classes.

    Example:
        >>> from upfeat.ops.colors import class_palette
        >>> len(set(class_palette(30)))
        30
    """
    colors = []
    for i in range(count):
        hue, value = (0.58 + i * _GOLDEN) % 1.0, (0.85, 0.6, 0.97)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.62, 0.75, 0.42)[i % 3], value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


def class_colors(
    classes: Tensor, palette: tuple[tuple[int, int, int], ...], ignore_index: int | None = None
) -> Tensor:
    """Return (3, H, W) uint8 of a map of classes (H, W).

    Args:
        classes: whole numbers, 0 to one less than the palette's length, or ignored.
        palette: a colour for each class.
        ignore_index: this number is drawn grey.

    Raises:
        ValueError: a class without a colour.

    Example:
        >>> import torch
        >>> from upfeat.ops.colors import class_colors
        >>> class_colors(torch.tensor([[0, 255]]), ((1, 2, 3),), 255)[:, 0].tolist()
        [[1, 128], [2, 128], [3, 128]]
    """
    numbers = classes.long()
    ignored = torch.zeros_like(numbers, dtype=torch.bool)
    if ignore_index is not None:
        ignored = numbers == ignore_index
    known = numbers[~ignored]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < len(palette):
        raise ValueError(
            f"classes {int(known.min())} to {int(known.max())} need as many colours, got "
            f"{len(palette)}"
        )
    table = torch.tensor([*palette, UNKNOWN], dtype=torch.uint8)
    # (H, W) -> (H, W, 3) -> (3, H, W)
    return table[torch.where(ignored, len(palette), numbers)].permute(2, 0, 1)
