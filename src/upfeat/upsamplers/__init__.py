"""Upsamplers: one file a method, one contract, one registry.

Importing a method's file enters it into the registry.
"""

from upfeat.upsamplers import anyup as anyup
from upfeat.upsamplers import carafe as carafe
from upfeat.upsamplers import dysample as dysample
from upfeat.upsamplers import featup_implicit as featup_implicit
from upfeat.upsamplers import featup_jbu as featup_jbu
from upfeat.upsamplers import guided_filter as guided_filter
from upfeat.upsamplers import ifa as ifa
from upfeat.upsamplers import interpolation as interpolation
from upfeat.upsamplers import jafar as jafar
from upfeat.upsamplers import joint_bilateral as joint_bilateral
from upfeat.upsamplers import joint_bilateral_filter as joint_bilateral_filter
from upfeat.upsamplers import kin as kin
from upfeat.upsamplers import lift as lift
from upfeat.upsamplers import liif as liif
from upfeat.upsamplers import loftup as loftup
from upfeat.upsamplers import naf as naf
from upfeat.upsamplers import resfu as resfu
from upfeat.upsamplers import resize_conv as resize_conv
from upfeat.upsamplers import sapa as sapa
from upfeat.upsamplers import uplift as uplift
from upfeat.upsamplers import upsample_anything as upsample_anything
from upfeat.upsamplers.base import Abilities, Upsampler, UpsamplerInfo, WholeMapUpsampler
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
    "Abilities",
    "Checkpoint",
    "FoldedHead",
    "Upsampler",
    "UpsamplerInfo",
    "WholeMapUpsampler",
    "create_upsampler",
    "fold_head",
    "from_official",
    "list_upsamplers",
    "needs_feature_dim",
    "register_upsampler",
]
