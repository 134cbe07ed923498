"""Sharpening a feature map with class-agnostic masks, as LoftUp's targets are.

Inside a mask every feature moves towards the mask's mean: x <- (1 - alpha) x + alpha mean. What
happens where masks overlap is a choice, see :func:`refine_with_masks`.

Legend: ``B`` batch, ``M`` masks of an image (padding: maps without a positive value), ``N`` pixels.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import check_map, shape_text
from upfeat.objectives.losses import to_float32

__all__ = ["MaskOrder", "mask_similarity", "refine_with_masks", "resize_masks"]

MaskOrder = Literal["sequential", "free"]


def check_masks(masks: Tensor, batch: int) -> None:
    """Raise ``ValueError`` unless masks are (B, M, H, W) for this batch; M may be 0."""
    if not isinstance(masks, Tensor) or masks.dim() != 4 or masks.shape[0] != batch:
        got = shape_text(masks) if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(
            f"masks must be (B, M, H, W) with B = {batch}, positive inside a mask, got {got}; pad "
            "the masks of an image with maps of -1 or 0 up to the batch's largest number"
        )


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks (B, M, H, W) of any dtype to a size by nearest neighbour; returns booleans."""
    inside = masks > 0
    if tuple(masks.shape[-2:]) == size or masks.shape[1] == 0:
        return inside if masks.shape[1] else inside.new_zeros(*masks.shape[:2], *size)
    return F.interpolate(inside.to(torch.uint8), size, mode="nearest").bool()


def refine_with_masks(
    features: Tensor, masks: Tensor, alpha: float, order: MaskOrder = "sequential"
) -> Tensor:
    """Move the features inside each mask towards the mask's mean.

    Args:
        features: (B, C, H, W).
        masks: (B, M, H, W), positive inside; empty masks and padding change nothing. Another size
            is resized by nearest neighbour.
        alpha: 0 keeps the features, 1 makes each mask constant (LoftUp's code: 0.8 in stage 1,
            0.5 in stage 2).
        order: ``"sequential"`` as in the released code: masks act one after the other on the map
            as it is by then, so the result depends on their order where they overlap. ``"free"``
            (chosen here): all means are taken of the given features, and a pixel in several masks
            moves towards the average of their means.

    Returns:
        (B, C, H, W), float32 at least.

    Raises:
        ValueError: shapes that do not fit, alpha outside [0, 1], an unknown order.

    Example:
        >>> import torch
        >>> features = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 1, 3)
        >>> masks = torch.tensor([1, 1, 0]).view(1, 1, 1, 3)
        >>> refine_with_masks(features, masks, 0.5).flatten().tolist()
        [1.5, 2.5, 5.0]
    """
    check_map(features, "features", "(B, C, H, W)")
    check_masks(masks, features.shape[0])
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if order not in ("sequential", "free"):
        raise ValueError(f"order must be 'sequential' or 'free', got {order!r}")
    refine = _refine_in_order if order == "sequential" else _refine_at_once
    size = (features.shape[2], features.shape[3])
    inside = resize_masks(masks, size).flatten(2)  # (B, M, N)
    tokens = to_float32(features).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
    refined = [refine(*pair, alpha) for pair in zip(tokens, inside, strict=True)]
    return torch.stack(refined).transpose(1, 2).unflatten(2, size)


def _refine_in_order(tokens: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """(N, C) and (M, N) -> (N, C); each mask sees what the ones before it left."""
    tokens = tokens.contiguous().clone()
    for mask in masks:
        index = mask.nonzero().squeeze(1)
        if len(index):
            chosen = tokens[index]
            tokens[index] = torch.lerp(chosen, chosen.mean(0, keepdim=True), alpha)
    return tokens


def _refine_at_once(tokens: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """(N, C) and (M, N) -> (N, C); no mask sees another one's work."""
    member = masks.to(tokens.dtype)
    means = (member @ tokens) / member.sum(1, keepdim=True).clamp(min=1)  # (M, C)
    cover = member.sum(0)[:, None]  # (N, 1): masks over each pixel
    pull = (member.T @ means) / cover.clamp(min=1)
    return torch.where(cover > 0, torch.lerp(tokens, pull, alpha), tokens)


def mask_similarity(features: Tensor, masks: Tensor) -> Tensor:
    """Return how far features lie from the means of their masks, squared.

    Optional in LoftUp's released training, off by default: the mean over the values inside a mask
    of their squared deviation from its mean, then over the non-empty masks of the whole batch.

    Args:
        features: (B, C, H, W).
        masks: (B, M, H, W), as in :func:`refine_with_masks`.
    """
    check_map(features, "features", "(B, C, H, W)")
    check_masks(masks, features.shape[0])
    inside = resize_masks(masks, (features.shape[2], features.shape[3])).flatten(2)
    tokens = to_float32(features).flatten(2).transpose(1, 2)  # (B, N, C)
    losses = []
    for image, image_masks in zip(tokens, inside, strict=True):
        for mask in image_masks:
            index = mask.nonzero().squeeze(1)
            if len(index):
                chosen = image[index]
                losses.append((chosen - chosen.mean(0, keepdim=True)).square().mean())
    return torch.stack(losses).mean() if losses else tokens.sum() * 0
