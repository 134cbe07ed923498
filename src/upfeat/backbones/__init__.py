"""Backbones: frozen networks that turn an image into a coarse map of features.

One file a provider; ``base`` holds the contract and the registry.
"""

from upfeat.backbones.base import Backbone, create_backbone, list_backbones, register_provider
from upfeat.backbones.callable import CallableBackbone
from upfeat.backbones.large_image import large_image
from upfeat.backbones.strided import strided

__all__ = [
    "Backbone",
    "CallableBackbone",
    "create_backbone",
    "large_image",
    "list_backbones",
    "register_provider",
    "strided",
]
