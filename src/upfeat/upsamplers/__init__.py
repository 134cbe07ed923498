"""Upsamplers: one file a method, one contract, one registry.

Importing a method's file enters it into the registry, so every module of this folder is imported
below. A new method is a new file.
"""

import importlib
import pkgutil

from upfeat.upsamplers.base import Abilities, Exports, Upsampler, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.creation import create_upsampler, from_official
from upfeat.upsamplers.fitted import FittedUpsampler
from upfeat.upsamplers.folding import FoldedHead, fold_head
from upfeat.upsamplers.registry import list_upsamplers, needs_feature_dim, register_upsampler
from upfeat.upsamplers.weights import Checkpoint

__all__ = [
    "Abilities",
    "Checkpoint",
    "Exports",
    "FittedUpsampler",
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

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
