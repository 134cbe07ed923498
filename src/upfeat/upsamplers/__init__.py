"""Upsamplers: one file a method, one contract, one registry.

Importing a method's file enters it into the registry.
"""

from upfeat.upsamplers import anyup as anyup
from upfeat.upsamplers import interpolation as interpolation
from upfeat.upsamplers import jafar as jafar
from upfeat.upsamplers import joint_bilateral as joint_bilateral
from upfeat.upsamplers import loftup as loftup
from upfeat.upsamplers import naf as naf
from upfeat.upsamplers.base import Upsampler, UpsamplerInfo
from upfeat.upsamplers.folding import FoldedHead, fold_head
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
    "FoldedHead",
    "Upsampler",
    "UpsamplerInfo",
    "create_upsampler",
    "fold_head",
    "from_official",
    "list_upsamplers",
    "needs_feature_dim",
    "register_upsampler",
]
