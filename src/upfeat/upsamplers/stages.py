"""What stacks of upsampling stages share: how they are built, run and loaded.

Stages are numbered ``up1``, ``up2``, ... as in FeatUp's stacks, which feed each one's output to the
next. What comes out of the last one is resized bilinearly to the asked size.
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from upfeat.ops.images import resize_bilinear
from upfeat.upsamplers.base import WholeMapUpsampler

DEFAULT_STAGES = 4
"""Stages of factor two in the papers' comparisons: 16 together."""


def resize_to(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (B, C, h, w) bilinearly where it does not have the size yet."""
    if (features.shape[2], features.shape[3]) == size:
        return features
    return resize_bilinear(features, size)


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


class StageStack(WholeMapUpsampler):
    """Base class of the stacks; a published single module loads as a stack of one stage."""

    def add_stages(self, stages: int, factor: int, build: Callable[[], nn.Module]) -> None:
        """Build the stages, each of which multiplies the grid by a factor.

        Raises:
            ValueError: no stage is asked for.
        """
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        for number in range(1, stages + 1):
            self.add_module(f"up{number}", build())
        self.info = dataclasses.replace(self.info, factor=factor**stages)

    def run_stage(
        self, stage: nn.Module, image: Tensor, features: Tensor, values: Tensor | None
    ) -> Tensor:
        """Upsample values, or the features (B, C, h, w) where there are none, by one stage."""
        return stage(features, values)

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Run the stages; values go through beside the features that decide the weights."""
        width, shared = features.shape[1], values is features
        both = features if shared else torch.cat((features, values), dim=1)
        for stage in self.children():
            both = self.run_stage(stage, image, both[:, :width], None if shared else both)
        return resize_to(both if shared else both[:, width:], output_size)

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Number the stages; a stack keeps its keys."""
        return stage_keys(state)
