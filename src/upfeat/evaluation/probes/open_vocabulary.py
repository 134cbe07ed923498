"""Parts of open-vocabulary segmentation: words, windows, ProxyCLIP's attention, MaskCLIP's options.

MaskCLIP: C. Zhou et al., arXiv 2112.01071. ProxyCLIP: M. Lan et al., "ProxyCLIP: Proxy Attention
Improves CLIP for Open-Vocabulary Segmentation", ECCV 2024, arXiv 2408.04883. The words' embeddings
are :mod:`upfeat.similarity.maps`.

Legend: ``B`` batch, ``W`` words, ``h w`` grid, ``n`` its cells, ``H W'`` image.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.sizes import Size
from upfeat.errors import check_file
from upfeat.evaluation.registry import known_entry
from upfeat.ops import unit_vectors
from upfeat.ops.images import resize_bilinear
from upfeat.ops.runtime import STRIP_BYTES
from upfeat.similarity.maps import CLIP_SCALE

Words = tuple[tuple[str, ...], ...]
"""The words of each class."""


# -- words ---------------------------------------------------------------------------------------


@cache
def _tables() -> dict[str, Any]:
    file = resources.files("upfeat.evaluation.probes") / "words.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["words"]
    return content


def class_words(source: str, data: str) -> Words:
    """Return the words of ``maskclip`` or ``proxyclip`` for each class of a data set.

    Raises:
        UnknownNameError: the source has no words for the set.

    Example:
        >>> from upfeat.evaluation.probes.open_vocabulary import class_words
        >>> class_words("proxyclip", "voc")[4]
        ('ship',)
    """
    sets = known_entry("words", source, _tables())
    return tuple(tuple(words) for words in known_entry("data set", data, sets))


def read_words(path: str | Path) -> Words:
    """Read the words of each class from a text file.

    A line is a class, in the order of the data's classes; several words have commas between them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a class has no word, or the file is empty.
    """
    check_file(path, "list of words")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [tuple(word.strip() for word in line.split(",")) for line in lines]
    for number, row in enumerate(rows):
        if not all(row):
            raise ValueError(
                f"{path}, line {number + 1}: class {number} has an empty word; write a class a "
                "line, its words with commas between them, and no empty line"
            )
    if not rows:
        raise ValueError(f"{path} is empty; write a class a line")
    return tuple(rows)


# -- windows -------------------------------------------------------------------------------------


def window_places(size: Size, window: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of each window; the last of an axis is moved back into the image.

    A side of the image ``size`` that is smaller than the window gives one window of its length.

    Raises:
        ValueError: the stride would leave pixels out.

    Example:
        >>> from upfeat.evaluation.probes.open_vocabulary import window_places
        >>> [(rows.start, columns.start) for rows, columns in window_places((4, 7), 4, 2)]
        [(0, 0), (0, 2), (0, 3)]
    """
    if not 0 < stride <= window:
        raise ValueError(f"the stride must be from 1 to the window, {window}, got {stride}")
    axes = []
    for side in size:
        count = max(side - window + stride - 1, 0) // stride + 1
        ends = [min(place * stride + window, side) for place in range(count)]
        axes.append([slice(max(end - window, 0), end) for end in ends])
    yield from ((rows, columns) for rows in axes[0] for columns in axes[1])


def slide(
    image: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    window: int,
    stride: int,
    multiple: int = 1,
    padding: Tensor | None = None,
) -> Tensor:
    """Average the outputs of a function on overlapping windows (ProxyCLIP's rule).

    Args:
        image: (B, 3, H, W').
        function: of a window (B, 3, s, t), sides multiples of ``multiple``; gives (B, W, s, t).
        window: side of the windows.
        stride: distance of two windows.
        multiple: windows are padded to multiples of this on both sides, the smaller half first;
            the padding is cut from what the function gives.
        padding: (3,) value of the padded pixels; None for 0.

    Returns:
        (B, W, H, W')

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.open_vocabulary import slide
        >>> image = torch.rand(1, 3, 5, 9)
        >>> torch.allclose(slide(image, lambda part: part, window=4, stride=2, multiple=8), image)
        True
    """
    total, count = image.new_zeros(()), image.new_zeros(1, 1, *image.shape[-2:])
    height, width = image.shape[-2:]
    fill = image.new_zeros(3) if padding is None else padding.to(image)
    for rows, columns in window_places((height, width), window, stride):
        part = image[..., rows, columns]
        sides = [-side % multiple for side in part.shape[-2:]]
        top, left = sides[0] // 2, sides[1] // 2
        shifted = part - fill[:, None, None]
        padded = F.pad(shifted, (left, sides[1] - left, top, sides[0] - top))
        result = function(padded + fill[:, None, None])
        result = result[..., top : top + part.shape[-2], left : left + part.shape[-1]]
        if not total.dim():
            total = result.new_zeros(*result.shape[:2], height, width)
        total[..., rows, columns] += result
        count[..., rows, columns] += 1
    return total / count


# -- ProxyCLIP -----------------------------------------------------------------------------------


def proxy_attention(
    proxy: Tensor, values: Tensor, *, beta: float = 1.2, gamma: float = 3.0
) -> Tensor:
    """Mix CLIP's values as another backbone's features resemble each other.

    With S the cosines of all pairs of cells, the weights are the softmax over the second cell of
    ``gamma * (S - beta * mean(S))``, negative ones left out. mean(S) is the squared length of the
    mean unit vector, and the rows are computed in blocks: no N x N matrix is formed.

    Args:
        proxy: (B, P, H, W), such as upsampled features.
        values: (B, D, h, w), resized bilinearly to the proxy's grid.
        beta: share of the mean similarity that is taken off.
        gamma: sharpness.

    Returns:
        (B, D, H, W) in the dtype of the values. Where no cell is similar enough, a cell takes its
        own values.
    """
    size = (proxy.shape[2], proxy.shape[3])
    if values.shape[2:] != proxy.shape[2:]:
        values = resize_bilinear(values, size)
    cells = values.flatten(2).mT  # (B, N, D)
    vectors = unit_vectors(proxy.to(values.dtype), dim=1).flatten(2)  # (B, P, N)
    mean = vectors.mean(2).square().sum(1)[:, None, None]  # (B, 1, 1)
    count = cells.shape[1]
    step = max(1, STRIP_BYTES // (len(proxy) * count * values.element_size()))
    mixed = torch.empty_like(cells)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        weights = (vectors[:, :, rows].mT @ vectors - beta * mean) * gamma  # (B, R, N)
        weights.masked_fill_(weights < 0, -torch.inf)
        own = weights.diagonal(rows.start, 1, 2)  # a view: (B, R)
        own.masked_fill_(own == -torch.inf, 0)
        mixed[:, rows] = weights.softmax(-1) @ cells
    return mixed.mT.reshape(*values.shape[:2], *size)  # (B, N, D) -> (B, D, H, W)


# -- MaskCLIP's refinements ----------------------------------------------------------------------


def denoise_words(logits: Tensor, threshold: float) -> Tensor:
    """Take out words that no cell of an image is sure of (MaskCLIP, prompt denoising).

    Of cosines (B, W, h, w) a word stays if its probability, a softmax of 100 times the cosines over
    the words, reaches the threshold somewhere; a word that is taken out has -100.
    """
    best = (CLIP_SCALE * logits).softmax(1).amax((2, 3), keepdim=True)  # (B, W, 1, 1)
    return logits.masked_fill(best < threshold, -100.0)


def smooth_by_keys(logits: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Replace uncertain cells' probabilities by those of cells with similar keys (MaskCLIP).

    Args:
        logits: cosines (B, W, h, w).
        keys: (B, n, D) of the last block; they are brought to unit length over the n cells, not
            over the channels, as the original does.
        threshold: cells whose largest probability is below this are replaced.

    Returns:
        (B, W, h, w) probabilities, and sums of them with weights where a cell was replaced.
    """
    probabilities = (CLIP_SCALE * logits).softmax(1)
    keys = unit_vectors(keys, dim=1)
    # Similarity of all cells times their probabilities: (B, n, n) (B, n, W).
    smoothed = keys @ (keys.mT @ probabilities.flatten(2).mT)
    unsure = probabilities.amax(1, keepdim=True) < threshold  # (B, 1, h, w)
    return torch.where(unsure, smoothed.mT.reshape(logits.shape), probabilities)
