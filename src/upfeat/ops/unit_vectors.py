"""Vectors of length one, whatever precision they come in."""

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_vectors(x: Tensor, dim: int = 1) -> Tensor:
    """Divide vectors by their Euclidean norm; a vector of zeros stays zero.

    Computed in float32 at least: torch's own bound on the norm, 1e-12, is zero in float16, where a
    single vector of zeros becomes NaN.

    Args:
        x: (..., C, ...), floating point.
        dim: the axis of the vectors.

    Returns:
        The shape and type of ``x``.

    Example:
        >>> import torch
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).half()).tolist()
        [[0.60009765625, 0.7998046875], [0.0, 0.0]]
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim).to(x.dtype)


def cosine(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    """Return the cosine of pairs of vectors, in float32 at least; 0 where one is zero.

    Args:
        a: (..., C, ...), floating point.
        b: as ``a``.
        dim: the axis of the vectors, which the result lacks.

    Example:
        >>> import torch
        >>> cosine(torch.zeros(1, 8).half(), torch.ones(1, 8).half()).tolist()
        [0.0]
    """
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    return F.cosine_similarity(a, b, dim=dim)
