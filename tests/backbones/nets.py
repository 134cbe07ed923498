"""Small random networks of timm for the tests of the backbones."""

from __future__ import annotations

from typing import Any

import torch

from upfeat.backbones import Backbone, create_backbone

# Vision transformers with two blocks: (name, options, channels, patch).
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2}, 192, 16),
    "dinov2_registers": (
        "vit_small_patch14_reg4_dinov2",
        {"depth": 2, "embed_dim": 48, "num_heads": 2, "image_size": 98},
        48,
        14,
    ),
    "siglip": (
        "vit_base_patch16_siglip_224",
        {"depth": 2, "embed_dim": 48, "num_heads": 2},
        48,
        16,
    ),
    "deit3": ("deit3_small_patch16_224", {"depth": 2}, 384, 16),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 2}, 192, 14),
    "dinov3": (
        "vit_small_patch16_dinov3",
        {"depth": 2, "embed_dim": 64, "num_heads": 2},
        64,
        16,
    ),
}

# Hierarchical and convolutional networks: (name, options, channels and stride of each layer).
PYRAMIDS: dict[str, tuple[str, dict[str, Any], list[tuple[int, int]]]] = {
    "resnet": ("resnet18", {}, [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
    "convnext": ("convnext_atto", {}, [(40, 4), (80, 8), (160, 16), (320, 32)]),
    "efficientnet": (
        "tf_efficientnetv2_b0",
        {},
        [(16, 2), (32, 4), (48, 8), (112, 16), (192, 32)],
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
        [(24, 4), (48, 8), (96, 16), (192, 32)],
    ),
}


def build(key: str, **options: Any) -> Backbone:
    """Returns a random network of one of the two tables."""
    torch.manual_seed(0)
    name, own = {**TRANSFORMERS, **PYRAMIDS}[key][:2]
    return create_backbone(f"timm/{name}", weights="random", **{**own, **options})
