"""Small instances of every registered method, built once for each width and dtype."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch

import upfeat
from upfeat.upsamplers.base import Abilities
from upfeat.upsamplers.registry import needs_feature_dim

_BLOCK = {"block": "single", "widths": [6]}
_DOUBLE = {"block": "double", "widths": [8]}
_FIT = {
    "pca_dim": 6,
    "n_freqs": 3,
    "steps": 2,
    "views": 3,
    "views_per_step": 2,
    "max_pad": 4,
}
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "anyup": {"qk_dim": 16, "window_ratio": 0.2},
    "anyup/natten": {"qk_dim": 16, "window_ratio": 0.3, "attention": "natten"},
    "carafe": {"compressed_channels": 8, "up_kernel": 3, "stages": 2},
    "dysample": {"stages": 2},
    "dysample/pl": {"stages": 2, "style": "pl", "dyscope": True},
    "featup_implicit": _FIT,
    "guided_filter": {"radius": 2},
    "guided_filter/gray": {"radius": 1, "guide": "gray"},
    "jafar": {"qk_dim": 16},
    "joint_bilateral_learned": {"key_dim": 8, "radius": 2},
    "kin": {"dim": 8},
    "lift/twice": {"iterations": 2},
    "liif": {"hidden_dim": 16, "num_hidden": 2},
    "loftup": {"n_freqs": 4, "num_heads": 2},
    "loftup/learnable": {"n_freqs": 3, "position": "learnable", "lr_size": 4},
    "naf": {"dim": 32, "heads_attn": 4, "heads_rope": 2, "kernel_size": 3},
    "naf/even": {"dim": 48, "heads_attn": 2, "heads_rope": 3, "kernel_size": 4, "img_layers": 1},
    "pixelup": {
        **{"d_enc": 16, "num_heads_encoder": 2, "num_heads_decoder": 2, "rope_directions": 2},
        **{"kernel_size": 3, "smallest_side": 96, "encoder": "test_convnext"},
    },
    "raysup": {"qk_dim": 64, "num_heads": 2},
    "sapa": {"embedding_dim": 16, "up_kernel_size": 3, "stages": 2},
    "sapa/gate": {"embedding_dim": 16, "stages": 1, "q_mode": "gate"},
    "uplift": {"taps": 9, "encoder": [_BLOCK, _BLOCK], "decoder": [_DOUBLE, _DOUBLE]},
    "uplift/layer": {
        "taps": 9,
        "encoder": [_BLOCK, _BLOCK],
        "decoder": [_DOUBLE, _DOUBLE],
        "norm": "layer",
        "refiner": _BLOCK,
        "iterations": 1,
    },
    "upsample_anything": {"steps": 2},
    "vit_up": {"num_blocks": 2, "num_heads": 2, "patch_size": 2, "bands": 4},
    "vit_up/levels": {"levels": 2, "num_blocks": 2, "num_heads": 1, "patch_size": 3},
}
"""Constructor arguments by name, or by name and a word for further settings."""

WIDTHS = (8, 16)
"""Feature widths of the methods that are built for one or have heads with channels of their own."""

SMALLEST_GRID = {
    **{"anyup": 2, "anyup/natten": 3, "featup_jbu": 2, "naf": 3, "naf/even": 4},
    "pixelup": 3,
    "raysup": 6,
}
"""Smaller grids are refused; one for those that are not named."""

GROUPED = ("naf", "raysup")
"""Each head has a group of channels, and the image's borders are reflected."""

CANNOT_REDUCE = ("anyup/natten", "naf", "naf/even", "raysup")
"""They refuse outputs below the grid."""

FLOAT32_ERROR = {
    "featup_implicit": 0.2,
    # Frequencies up to e^10 see the rounding of the image.
    "loftup": 0.05,
    "loftup/learnable": 0.05,
    # At the rim of the spiral code a rounding of the rotation is multiplied by its frequencies.
    "pixelup": 0.1,
    # A point on the border of two tokens lies in either of them by rounding.
    "vit_up": 0.1,
    "vit_up/levels": 0.1,
}
"""Mean difference of float32 to float64 in the scale of the output, where it is above 2e-3."""

DECIDED_BY_ROUNDING = ("upsample_anything",)
"""Kernels start round, where rounding alone turns them: types of numbers give other kernels."""

STRIDED = ("kin", "lift", "wrc")
"""With strided convolutions. Where their output is one pixel wide, torch's backward pass on the CPU
reads memory that nobody wrote, in bfloat16 (torch 2.13): the weight's gradient may be NaN."""


def methods() -> list[str]:
    """Return every registered method, and those that are tried with further settings."""
    return sorted({*upfeat.list_upsamplers(), *_SMALL})


def registered(method: str) -> str:
    """Return the name in the registry."""
    return method.partition("/")[0]


def abilities(method: str) -> Abilities:
    """Return what the method can do."""
    return instance(method, WIDTHS[0], torch.float32).info.abilities


@functools.cache
def instance(method: str, width: int, dtype: torch.dtype) -> upfeat.Upsampler:
    """Return an instance in evaluation mode; the weights are those of float32, rounded.

    Fresh weights are zero in places, which hides what the layers before them do: noise is added.
    """
    if dtype != torch.float32:
        return copy.deepcopy(instance(method, width, torch.float32)).to(dtype)
    torch.manual_seed(1)
    name = registered(method)
    extra = {"feature_dim": width} if needs_feature_dim(name) else {}
    model = upfeat.create_upsampler(name, **extra, **_SMALL.get(method, {})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model
