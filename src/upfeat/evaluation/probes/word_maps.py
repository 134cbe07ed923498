"""MaskCLIP's two refinements of the similarities of pixels and words.

Legend: ``B`` batch, ``W`` words, ``h w`` grid, ``n`` its cells, ``D`` width of the keys.
"""

import torch
from torch import Tensor

from upfeat.ops import unit_vectors
from upfeat.similarity.maps import CLIP_SCALE

__all__ = ["denoise_words", "smooth_by_keys"]


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
