"""One image, learnt by heart: each signal can be driven down by the method that can follow it.

LoftUp regresses and so has no floor of its own; a method that mixes the given features cannot leave
their convex hull. What remains random from step to step (views, crops, draws of the size) is fixed
or left out here, as it sets a floor that no training removes.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.objectives.setups import DIM, tiny_backbone, tiny_batch, tiny_upsampler
from upfeat.objectives import (
    CropsConfig,
    DepthTargetConfig,
    DoubledInputConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    ObjectiveConfig,
    SelfDistillationConfig,
)

CASES: dict[str, tuple[ObjectiveConfig, int]] = {
    "multi_resolution": (MultiResolutionConfig(scale=(0.5, 0.5), noise=1.0), 30),
    "mask_refined": (MaskRefinedConfig(order="free"), 60),
    "self_distillation": (SelfDistillationConfig(scale=2.0, crop_multiple=4), 60),
    "doubled_input": (DoubledInputConfig(levels=1), 30),
    "depth_target": (DepthTargetConfig(), 300),
    "crops": (CropsConfig(augmented_weight=0.0, downsample_weight=0.0), 150),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_falls_by_ten(name: str) -> None:
    config, steps = CASES[name]
    backbone, upsampler = tiny_backbone(), tiny_upsampler("loftup")
    # Features that do not look around: two crops then say the same of a place.
    backbone.function[2] = nn.Conv2d(DIM, DIM, 1).requires_grad_(False)
    batch = tiny_batch(1, side=32)
    objective = config.build()
    objective.prepare(upsampler, backbone, (32, 32))
    parameters = [*upsampler.parameters(), *objective.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(1, steps + 1):
        loss = objective.step(batch, backbone, upsampler, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step, upsampler)
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 10
