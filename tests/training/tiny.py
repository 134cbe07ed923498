"""A tiny training run: features of three channels, a JAFAR of eight."""

from __future__ import annotations

from typing import Any

import torch

import upfeat
from upfeat.training import (
    BackboneConfig,
    DataConfig,
    OptimizerConfig,
    Parts,
    TrainConfig,
)

SIDE = 32
LOFTUP = {"name": "loftup", "config": {"num_heads": 1, "num_layers": 1, "n_freqs": 2}}
JAFAR = {"name": "jafar", "config": {"qk_dim": 8}}


class Images:
    """Random images by position; ``broken`` positions are NaN."""

    def __init__(self, count: int = 7, broken: tuple[int, ...] = ()) -> None:
        self.count = count
        self.broken = broken

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, count: int) -> dict[str, Any]:
        images = []
        for position in range(start, start + count):
            generator = torch.Generator().manual_seed(position % self.count)
            image = torch.rand(3, SIDE, SIDE, generator=generator)
            images.append(image * float("nan") if position in self.broken else image)
        paths = [f"image{position % self.count}.jpg" for position in range(start, start + count)]
        return {"image": torch.stack(images), "paths": paths}

    def describe(self) -> dict[str, Any]:
        return {"images": self.count}


def tiny_config(**changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "backbones": (BackboneConfig(name="upfeat/vit_compact_patch16"),),
        "upsampler": JAFAR,
        "objective": {"name": "multi_resolution"},
        "data": DataConfig(crop=SIDE),
        "optimizer": OptimizerConfig(lr=1e-3),
        "steps": 4,
        "batch_size": 2,
        "device": "cpu",
        "logging": {"every": 1},
        "checkpoint": {"every": 2},
    }
    return TrainConfig(**content | changes)


def tiny_parts(config: TrainConfig, images: Images | None = None) -> Parts:
    """Seeded parts that need no files; the backbone is a fixed random projection of patches."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, 4, 4, generator=generator)
    backbone = upfeat.CallableBackbone(
        lambda x: torch.nn.functional.conv2d(x, weight.to(x), stride=4), dim=3, patch_size=4
    )
    torch.manual_seed(config.seed)
    upsampler = upfeat.create_upsampler(
        config.upsampler.name, feature_dim=3, **config.upsampler.config
    )
    frozen = config.upsampler.freeze_batch_norm
    return Parts([backbone], upsampler, config.objective.build(), images or Images(), frozen)
