"""upfeat: sharp feature maps from vision foundation models, at any resolution.

The names below load on first use, so that ``import upfeat`` needs torch and little else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upfeat.backbones import (
        Backbone,
        CallableBackbone,
        create_backbone,
        large_image,
        list_backbones,
        shift_and_interleave,
        strided,
    )
    from upfeat.extraction import open_store
    from upfeat.loading import load_upsampler
    from upfeat.pipeline import Pipeline, PipelineOutput
    from upfeat.upsamplers import (
        Abilities,
        Upsampler,
        UpsamplerInfo,
        create_upsampler,
        fold_head,
        from_official,
        list_upsamplers,
    )

__version__ = "0.1.0"

_HOMES = {
    "Abilities": "upfeat.upsamplers",
    "Backbone": "upfeat.backbones",
    "CallableBackbone": "upfeat.backbones",
    "Pipeline": "upfeat.pipeline",
    "PipelineOutput": "upfeat.pipeline",
    "Upsampler": "upfeat.upsamplers",
    "UpsamplerInfo": "upfeat.upsamplers",
    "create_backbone": "upfeat.backbones",
    "create_upsampler": "upfeat.upsamplers",
    "fold_head": "upfeat.upsamplers",
    "from_official": "upfeat.upsamplers",
    "large_image": "upfeat.backbones",
    "list_backbones": "upfeat.backbones",
    "list_upsamplers": "upfeat.upsamplers",
    "load_upsampler": "upfeat.loading",
    "open_store": "upfeat.extraction",
    "shift_and_interleave": "upfeat.backbones",
    "strided": "upfeat.backbones",
}

__all__ = [
    "Abilities",
    "Backbone",
    "CallableBackbone",
    "Pipeline",
    "PipelineOutput",
    "Upsampler",
    "UpsamplerInfo",
    "create_backbone",
    "create_upsampler",
    "fold_head",
    "from_official",
    "large_image",
    "list_backbones",
    "list_upsamplers",
    "load_upsampler",
    "open_store",
    "shift_and_interleave",
    "strided",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'upfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted([*globals(), *__all__])
