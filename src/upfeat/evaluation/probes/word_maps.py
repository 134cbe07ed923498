"""From similarities of pixels and words to classes, with MaskCLIP's two refinements.

Legend: ``B`` batch, ``C`` channels of the text space, ``W`` words, ``K`` classes, ``h w`` grid,
``n`` its cells, ``D`` width of the keys.
"""

import torch
from torch import Tensor

from upfeat.ops import unit_vectors

__all__ = ["classes_of_words", "cosine_maps", "denoise_words", "smooth_by_keys", "word_classes"]

CLIP_SCALE = 100.0  # CLIP's largest logit scale


def cosine_maps(features: Tensor, text: Tensor) -> Tensor:
    """Compute the cosine of each cell with each word.

    Args:
        features: (B, C, h, w).
        text: (W, C) of unit length.

    Returns:
        (B, W, h, w)

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.word_maps import cosine_maps
        >>> cosine_maps(torch.full((1, 2, 1, 1), 5.0), torch.eye(2))[0, :, 0, 0]
        tensor([0.7071, 0.7071])
    """
    return torch.einsum("bchw,kc->bkhw", unit_vectors(features, dim=1), text.to(features))


def denoise_words(logits: Tensor, threshold: float) -> Tensor:
    """Take out words that no cell of an image is sure of (MaskCLIP, prompt denoising).

    Args:
        logits: cosines (B, W, h, w).
        threshold: a word stays if its probability, a softmax of 100 times the cosines over the
            words, reaches this somewhere.

    Returns:
        (B, W, h, w); words that were taken out have -100.
    """
    best = (CLIP_SCALE * logits).softmax(1).amax((2, 3), keepdim=True)  # (B, W, 1, 1)
    return logits.masked_fill(best < threshold, -100.0)


def smooth_by_keys(logits: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Replace what unsure cells say by what cells of similar keys say (MaskCLIP, key smoothing).

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
    # Similarity of all cells times what they say: (B, n, n) (B, n, W).
    said = keys @ (keys.mT @ probabilities.flatten(2).mT)
    unsure = probabilities.amax(1, keepdim=True) < threshold  # (B, 1, h, w)
    return torch.where(unsure, said.mT.reshape(logits.shape), probabilities)


def word_classes(counts: list[int]) -> Tensor:
    """Return the class of each word, from the number of words of each class.

    Example:
        >>> from upfeat.evaluation.probes.word_maps import word_classes
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
        >>> from upfeat.evaluation.probes.word_maps import classes_of_words
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
