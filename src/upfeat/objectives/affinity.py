"""The affinity-matrix loss of LoftUp's second stage, without the matrices.

Two maps are alike if the same pairs of pixels are alike in them: with P and T the unit vectors of
the n pixels, (n, C) each, the loss is the mean over all n^2 pairs of (P P' - T T')^2, or of its
absolute value. For a map of 179 x 179 pixels each matrix would take 4 GB.

The square needs no pair at all. With D = P - T and S = P + T,

    P P' - T T' = (D S' + S D') / 2,    so
    || P P' - T T' ||^2 = ( tr(D'D S'S) + tr(D'S D'S) ) / 2,

four products of C x C matrices, exact and free of cancellation between the two large matrices. The
absolute value is summed over blocks of rows; its gradient is gathered in the same pass.

Legend: ``B`` batch, ``C`` channels, ``h w`` grid, ``n`` pixels inside the border.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import shape_text
from upfeat.objectives.losses import check_pair, to_float32
from upfeat.ops.runtime import TILE_BYTES, wants_reference

__all__ = [
    "AffinityDistance",
    "affinity_loss",
    "affinity_loss_blockwise",
    "affinity_loss_reference",
    "affinity_matrix",
]

AffinityDistance = Literal["l2", "l1"]

BORDER = 0.1
NORM_EPS = 1e-6


def unit_vectors(features: Tensor, border: float) -> Tensor:
    """Cut the border off a map and normalise each pixel: (B, C, h, w) -> (B, n, C)."""
    if not 0 <= border < 0.5:
        raise ValueError(f"border is a share of each side in [0, 0.5), got {border}")
    height, width = features.shape[2:]
    rows = slice(int(border * height), int((1 - border) * height))
    columns = slice(int(border * width), int((1 - border) * width))
    inner = to_float32(features)[:, :, rows, columns]
    if inner.numel() == 0:
        raise ValueError(
            f"nothing is left of a map {shape_text(features)} inside a border of {border}; use "
            "larger maps or border=0"
        )
    tokens = inner.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, n, C)
    return tokens / (tokens.norm(dim=2, keepdim=True) + NORM_EPS)


def affinity_matrix(features: Tensor, border: float = BORDER) -> Tensor:
    """Return the cosine of every pair of pixels inside the border: (B, C, h, w) -> (B, n, n).

    Rows int(border h), …, int((1 - border) h) - 1 are inside, and columns alike.

    Raises:
        ValueError: nothing is left.
    """
    tokens = unit_vectors(features, border)
    return tokens @ tokens.transpose(1, 2)


def affinity_loss_reference(
    pred: Tensor, target: Tensor, distance: AffinityDistance = "l2", border: float = BORDER
) -> Tensor:
    """Compute :func:`affinity_loss` with both matrices in memory; for tests and small maps."""
    check_pair(pred, target)
    compare = _compare(distance)
    return compare(affinity_matrix(pred, border), affinity_matrix(target, border))


def affinity_loss(
    pred: Tensor, target: Tensor, distance: AffinityDistance = "l2", border: float = BORDER
) -> Tensor:
    """Compare the cosines between all pairs of pixels of two maps (LoftUp, second stage).

    Memory grows with n C + C^2 ("l2") or with a fixed block ("l1"), never with n^2.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w); gradients flow to both.
        distance: mean square ("l2") or mean absolute ("l1") difference over batch and pairs.
        border: share cut off at each side, see :func:`affinity_matrix`.

    Raises:
        ValueError: the shapes differ, or nothing is left inside the border.

    Example:
        >>> import torch
        >>> a, b = torch.randn(1, 8, 12, 12), torch.randn(1, 8, 12, 12)
        >>> torch.allclose(affinity_loss(a, b), affinity_loss_reference(a, b))
        True
    """
    if distance != "l2":
        return affinity_loss_blockwise(pred, target, distance, border)
    check_pair(pred, target)
    with torch.autocast(pred.device.type, enabled=False):
        p, t = unit_vectors(pred, border), unit_vectors(target, border)
        difference, total = p - t, p + t  # (B, n, C)
        transposed = difference.transpose(1, 2)  # (B, C, n)
        cross = transposed @ total  # (B, C, C)
        straight = ((transposed @ difference) * (total.transpose(1, 2) @ total)).sum()
        crossed = (cross * cross.transpose(1, 2)).sum()
        batch, n = p.shape[:2]
        return (straight + crossed) / (2 * batch * n**2)


def affinity_loss_blockwise(
    pred: Tensor,
    target: Tensor,
    distance: AffinityDistance = "l2",
    border: float = BORDER,
    max_bytes: int = TILE_BYTES // 4,
) -> Tensor:
    """Compute :func:`affinity_loss` over blocks of rows of the matrices.

    The temporaries of a block take ``max_bytes``; it has at least one row.
    """
    check_pair(pred, target)
    _compare(distance)
    if wants_reference():
        return affinity_loss_reference(pred, target, distance, border)
    with torch.autocast(pred.device.type, enabled=False):
        p, t = unit_vectors(pred, border), unit_vectors(target, border)
        # Three blocks (rows, n) exist at once: two matrices, or a difference and its derivative.
        rows = max(1, max_bytes // (3 * p.shape[1] * p.element_size()))
        loss: Tensor = _BlockwiseAffinity.apply(p, t, distance, rows)
        return loss


def _compare(distance: str) -> Any:
    functions = {"l2": F.mse_loss, "l1": F.l1_loss}
    if distance not in functions:
        raise ValueError(f"distance must be 'l2' or 'l1', got {distance!r}")
    return functions[distance]


class _BlockwiseAffinity(torch.autograd.Function):
    """Sum f(P P' - T T') over blocks of rows and keep the gradient, (n, C) for each map.

    The difference E and f'(E) are symmetric, so the gradient for P is 2 f'(E) P: a block of rows
    of f'(E) gives the same rows of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, distance: str, rows: int) -> Tensor:
        batch, n = pred.shape[:2]
        needs = ctx.needs_input_grad[:2]
        grads = [torch.empty_like(pred) if need else None for need in needs]
        total = pred.new_zeros((), dtype=torch.float64)
        scale = 1 / (batch * n**2)
        for item in range(batch):
            p, t = pred[item], target[item]  # (n, C)
            for start in range(0, n, rows):
                block = slice(start, start + rows)
                # (rows, n)
                error = torch.addmm(p[block] @ p.T, t[block], t.T, alpha=-1)
                if distance == "l2":
                    total += error.square().sum()
                    slope = error.mul_(4 * scale)
                else:
                    total += error.abs().sum()
                    slope = error.sign_().mul_(2 * scale)
                for grad, tokens, sign in zip(grads, (p, t), (1, -1), strict=True):
                    if grad is not None:
                        torch.mm(slope, tokens, out=grad[item, block]).mul_(sign)
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.needs = needs
        return (total * scale).to(pred.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * grad_output if need else None for need in ctx.needs]
        return (*grads, None, None)
