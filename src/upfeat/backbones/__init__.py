"""Backbones: frozen networks that turn an image into a coarse map of features.

One file a provider; ``base`` holds the contract and the registry.
"""

from upfeat.backbones.base import Backbone, create_backbone, list_backbones, register_provider
from upfeat.backbones.baselines import large_image, shift_and_interleave, strided
from upfeat.backbones.wrapping import CallableBackbone, as_backbone

__all__ = [
    "Backbone",
    "CallableBackbone",
    "as_backbone",
    "create_backbone",
    "large_image",
    "list_backbones",
    "register_provider",
    "shift_and_interleave",
    "strided",
]
