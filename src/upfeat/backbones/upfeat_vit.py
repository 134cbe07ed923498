"""Our own small encoder, whose weights come with the package: ``upfeat/vit_compact_patch16``.

A plain vision transformer (A. Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv
2010.11929) in timm's form with patch 16, width 192 and 5 blocks, distilled from ViT-Tiny by
``tools/distill_encoder.py``. Data, teacher, licences, figures, limits: ``bundled/MODEL_CARD.md``.

It makes the package work on a machine without network. Its features are weaker than its
teacher's, and far from those of a foundation model.

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from upfeat._compat import ensure_torchvision_operators
from upfeat.backbones.base import register_provider
from upfeat.backbones.timm_backbone import TimmBackbone
from upfeat.backbones.timm_weights import load_timm_weights
from upfeat.checkpoints import find_weights
from upfeat.errors import UnknownNameError

NAME = "vit_compact_patch16"
FILE = f"upfeat_{NAME}.fp16.safetensors"
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)
ARCHITECTURE: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 192,
    "depth": 5,
    "num_heads": 3,
}


@contextmanager
def bundled_weights() -> Iterator[Path]:
    """Yield the path of the packaged weight file, also where the package is a zip archive."""
    with resources.as_file(resources.files("upfeat.backbones") / "bundled" / FILE) as path:
        yield path


@register_provider("upfeat", names=lambda pretrained: [NAME])
def create_upfeat_backbone(
    name: str, weights: str | os.PathLike[str] | None = None, *, layer: int = -1, norm: bool = True
) -> TimmBackbone:
    """Build ``upfeat/vit_compact_patch16``; called through :func:`upfeat.create_backbone`.

    Args:
        name: ``vit_compact_patch16``.
        weights: a file of the same architecture; None for the packaged one; ``"random"`` for the
            random initialisation.
        layer: the block (0 to 4, or -5 to -1) whose output is returned.
        norm: apply the final norm; the encoder was trained to match its teacher after it.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> backbone(torch.rand(1, 3, 48, 32)).shape
        torch.Size([1, 192, 3, 2])
    """
    if name != NAME:
        raise UnknownNameError("backbone", f"upfeat/{name}", [f"upfeat/{NAME}"])
    ensure_torchvision_operators()
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(num_classes=0, dynamic_img_size=True, **ARCHITECTURE)
    if weights is None:
        with bundled_weights() as path:
            load_timm_weights(model, path, f"upfeat/{NAME}")
    elif weights != "random":
        path = find_weights(f"upfeat/{NAME}", [FILE], file=weights)
        load_timm_weights(model, path, f"upfeat/{NAME}")
    return TimmBackbone(
        model,
        name=f"upfeat/{NAME}",
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        layer=layer,
        norm=norm,
    )
