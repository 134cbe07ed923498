"""Cosines of upsampled features with vectors: with another pixel's features, or with words.

The upsampled map is never held: it comes in strips of rows, and of each strip stay one channel a
vector, or the number of the nearest word.

Legend: ``B`` batch, ``C`` channels, ``W`` words, ``P`` pixels, ``h w`` grid, ``H' W'`` output.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.sizes import Size
from upfeat.ops import unit_vectors
from upfeat.pipeline import Encoded, Pipeline

__all__ = [
    "CLIP_SCALE",
    "classes_of_words",
    "cosine_maps",
    "pixel_similarity",
    "segment_words",
    "word_classes",
]

CLIP_SCALE = 100.0  # CLIP's largest logit scale


def cosine_maps(features: Tensor, text: Tensor) -> Tensor:
    """Compute the cosine of each cell with each word.

    Args:
        features: (B, C, h, w).
        text: (W, C) of unit length, words or other vectors.

    Returns:
        (B, W, h, w)

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import cosine_maps
        >>> cosine_maps(torch.full((1, 2, 1, 1), 5.0), torch.eye(2))[0, :, 0, 0]
        tensor([0.7071, 0.7071])
    """
    return torch.einsum("bchw,kc->bkhw", unit_vectors(features, dim=1), text.to(features))


def word_classes(counts: list[int]) -> Tensor:
    """Return the class of each word, from the number of words of each class.

    Example:
        >>> from upfeat.similarity.maps import word_classes
        >>> word_classes([0, 2, 1])
        tensor([1, 1, 2])
    """
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def classes_of_words(
    logits: Tensor, classes: Tensor, *, scale: float = 1.0, threshold: float = 0.0
) -> Tensor:
    """Return the class of the most probable word of each cell.

    Args:
        logits: (B, W, h, w).
        classes: (W,) the class of each word.
        scale: of the logits in the softmax over all words.
        threshold: cells whose winner's probability is below this become class 0.

    Returns:
        (B, h, w) int64.

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import classes_of_words
        >>> logits = torch.tensor([0.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
        >>> classes = torch.tensor([0, 3, 1])
        >>> [classes_of_words(logits, classes, threshold=t).item() for t in (0.0, 0.9)]
        [3, 0]
    """
    best, word = logits.max(1)  # the best word's class is the class with the best word
    found = classes.to(word.device)[word]
    if threshold <= 0:
        return found
    probability = (scale * best - (scale * logits).logsumexp(1)).exp()
    return found.masked_fill(probability < threshold, 0)


@torch.no_grad()
def pixel_similarity(
    pipe: Pipeline, encoded: Encoded, pixels: Sequence[tuple[int, int]], size: Size
) -> Tensor:
    """Compute the cosine of every pixel's upsampled features with those of some pixels.

    The upsampled map comes twice: once for the pixels alone, where the method can answer single
    positions, and once in strips.

    Args:
        pipe: backbone and upsampler, with ``fit="resize"`` or ``"exact"``.
        encoded: one image, from ``pipe.encode``.
        pixels: P rows and columns of the output.
        size: (H', W') of the output.

    Returns:
        (P, H', W'), float32, on the CPU.

    Raises:
        ValueError: the image was padded, or a pixel lies outside.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.similarity import pixel_similarity
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"), fit="resize")
        >>> encoded = pipe.encode(torch.rand(3, 32, 48))
        >>> maps = pixel_similarity(pipe, encoded, [(4, 7)], (32, 48))
        >>> maps.shape, round(maps[0, 4, 7].item(), 4)
        (torch.Size([1, 32, 48]), 1.0)
    """
    _check_unpadded(encoded)
    for row, col in pixels:
        if not (0 <= row < size[0] and 0 <= col < size[1]):
            raise ValueError(
                f"pixel {row},{col} lies outside the output of {size[0]} rows and {size[1]} columns"
            )
    flat = torch.tensor([row * size[1] + col for row, col in pixels])
    vectors = unit_vectors(pipe.at(encoded, size, flat).float(), dim=1)  # (P, C)
    maps = torch.empty(len(pixels), *size)
    for rows, tile in pipe.pieces(encoded, size):
        maps[:, rows] = cosine_maps(tile.float(), vectors)[0].cpu()
    return maps.clamp(-1, 1)


@torch.no_grad()
def segment_words(
    pipe: Pipeline,
    encoded: Encoded,
    size: Size,
    text: Tensor,
    classes: Tensor | None = None,
    *,
    threshold: float = 0.0,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Give every pixel the class of the nearest word.

    Words are a linear head: a method that mixes values upsamples one channel a word.

    Args:
        pipe: a backbone of a text space and an upsampler, with ``fit="resize"`` or ``"exact"``.
        encoded: one image, from ``pipe.encode``.
        size: (H', W') of the output.
        text: (W, C) of unit length, see :func:`upfeat.similarity.words.embed_words`.
        classes: (W,) the class of each word; None: each word is a class.
        threshold: pixels whose best word has a probability below this become class 0.
        head: from features to (B, W, h, w) in place of the words' products.

    Returns:
        (H', W') int64, on the CPU.

    Raises:
        ValueError: the image was padded.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.similarity import segment_words
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("nearest"), fit="resize")
        >>> image = torch.zeros(3, 4, 8)
        >>> image[0, :, :4] = image[2, :, 4:] = 1.0
        >>> segment_words(pipe, pipe.encode(image), (1, 4), torch.eye(3)).tolist()
        [[0, 0, 2, 2]]
    """
    _check_unpadded(encoded)
    if classes is None:
        classes = torch.arange(len(text))
    # A pixel's length changes no ranking of its words, only their probabilities.
    by_length = threshold > 0 and head is None
    if head is None and not by_length:
        weight = text[:, :, None, None]  # (W, C, 1, 1)

        def head(features: Tensor) -> Tensor:
            return F.conv2d(features, weight.to(features))

    found = torch.empty(size, dtype=torch.int64)
    for rows, tile in pipe.pieces(encoded, size, head):
        logits = cosine_maps(tile, text) if by_length else tile
        nearest = classes_of_words(logits, classes, scale=CLIP_SCALE, threshold=threshold)
        found[rows] = nearest[0].cpu()
    return found


def _check_unpadded(encoded: Encoded) -> None:
    if encoded.frame.input != encoded.frame.padded:
        raise ValueError(
            f"the image of {encoded.frame.input} was padded to {encoded.frame.padded}; encode it "
            "with Pipeline(..., fit='resize')"
        )
