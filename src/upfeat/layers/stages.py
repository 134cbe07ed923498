"""What stacks of upsampling stages share: their keys, and the end size.

Stages are numbered ``up1``, ``up2``, ... as in FeatUp's stacks, which feed each one's output to
the next.
"""

from collections.abc import Mapping

from torch import Tensor

from upfeat.ops.images import resize_bilinear

DEFAULT_STAGES = 4
"""Stages of factor two in the papers' comparisons: 16 together."""


def stage_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the keys of a stack: those of a single published module become its first stage.

    Example:
        >>> import torch
        >>> list(stage_keys({"q.weight": torch.zeros(1)}))
        ['up1.q.weight']
    """
    if all(key.startswith("up") and key[2:3].isdigit() for key in state):
        return dict(state)
    return {f"up1.{key}": tensor for key, tensor in state.items()}


def count_stages(state: Mapping[str, Tensor]) -> int:
    """Return the number of stages in the keys of a stack."""
    return len({key.partition(".")[0] for key in state})


def check_stages(stages: int) -> None:
    """Raise ``ValueError`` unless there is a stage at least."""
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")


def resize_to(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (B, C, h, w) bilinearly where it does not have the size yet."""
    if (features.shape[2], features.shape[3]) == size:
        return features
    return resize_bilinear(features, size)
