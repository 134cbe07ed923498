"""Upsamplers: one file a method, one contract, one registry."""

from upfeat.upsamplers import anyup, interpolation, jafar, joint_bilateral, loftup, naf
from upfeat.upsamplers.base import Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import (
    create_upsampler,
    from_official,
    list_upsamplers,
    needs_feature_dim,
    register_upsampler,
)
from upfeat.upsamplers.weights import Checkpoint

__all__ = [
    "Checkpoint",
    "Upsampler",
    "UpsamplerInfo",
    "anyup",
    "create_upsampler",
    "from_official",
    "interpolation",
    "jafar",
    "joint_bilateral",
    "list_upsamplers",
    "needs_feature_dim",
    "register_upsampler",
]
