"""Tiny backbones, upsamplers, batches and one configuration of every objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import upfeat
from upfeat.objectives import (
    CropsConfig,
    DepthTargetConfig,
    DoubledInputConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    MultiViewConfig,
    MultiViewReconstructionConfig,
    Objective,
    ObjectiveConfig,
    SelfDistillationConfig,
    StoredTargetConfig,
)

DIM, PATCH, SIDE = 12, 4, 48

UPSAMPLERS: dict[str, dict[str, object]] = {
    "jafar": {"feature_dim": DIM, "qk_dim": 16},
    "loftup": {"feature_dim": DIM, "n_freqs": 4, "num_layers": 1},
    "anyup": {"qk_dim": 16},
    "naf": {"dim": 32, "heads_rope": 4, "kernel_size": 3},
}
VIEWS = MultiViewConfig(views=2, projection=6)
CROPS = MultiViewConfig(
    views=2, jitter="crop", zoom=1.0, uncertainty=True, crf_weight=0.01, crf_pixels=50
)
CONFIGS: dict[str, ObjectiveConfig] = {
    "multi_resolution": MultiResolutionConfig(noise=1.0),
    "mask_refined": MaskRefinedConfig(),
    "mask_refined_released": MaskRefinedConfig(
        projection=8, multi_view=VIEWS, similarity_weight=0.1, output_scale=0.5
    ),
    "self_distillation": SelfDistillationConfig(scale=2.0, crop_multiple=4, every=1),
    "self_distillation_released": SelfDistillationConfig(
        input_sizes=(24, 28), distance="affinity_l1", tv_weight=0.05, multi_view=VIEWS
    ),
    "doubled_input": DoubledInputConfig(),
    "depth_target": DepthTargetConfig(output_scale=0.5),
    "multi_view_reconstruction": MultiViewReconstructionConfig(multi_view=CROPS),
    "crops": CropsConfig(crops=2),
    "stored_target": StoredTargetConfig(output_scale=0.5),
}


def tiny_backbone(dim: int = DIM, patch: int = PATCH, seed: int = 0) -> upfeat.Backbone:
    """A patch embedding with a little context: features differ between sizes of an image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, dim, patch, stride=patch), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)
        )
        for parameter in net.parameters():
            parameter.data.mul_(3)
    return upfeat.CallableBackbone(
        net, dim, patch, image_mean=(0.5,) * 3, image_std=(0.25,) * 3, name=f"tiny{patch}"
    )


def tiny_upsampler(name: str, seed: int = 0) -> upfeat.Upsampler:
    """A small upsampler of a kind, in training mode, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return upfeat.create_upsampler(name, **UPSAMPLERS[name]).train()


def tiny_batch(batch: int = 2, side: int = SIDE, masks: int = 3) -> dict[str, Tensor]:
    """Images of coloured stripes with noise; masks overlap, and one of them is padding."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.rand(batch, 3, 6, 6, generator=generator)
    image = nn.functional.interpolate(blocks, (side, side), mode="nearest")
    image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    inside = torch.rand(batch, masks, 6, 6, generator=generator) > 0.6
    inside = nn.functional.interpolate(inside.float(), (side, side), mode="nearest")
    padding = torch.full((batch, 1, side, side), -1.0)
    return {
        "image": image,
        "masks": torch.cat((inside, padding), 1),
        "depth": image.mean(1, keepdim=True) + 1,
        "target": torch.randn(batch, DIM, side, side, generator=generator),
    }


def two_steps_lower_the_loss(model: upfeat.Upsampler, objective: Objective) -> None:
    """Train on one batch: the second loss is lower, and every weight has moved."""
    backbone, before = tiny_backbone(), [p.detach().clone() for p in model.parameters()]
    objective.prepare(model, backbone, (SIDE, SIDE))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = objective.step(tiny_batch(), backbone, model, torch.Generator())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
