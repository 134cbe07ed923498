"""Records of the weights that come with the package, ``upfeat/upsamplers/bundled``.

Trained by ``upfeat.training.recipes.bundled`` and put there by ``tools/bundle_upsampler.py``; a
model card and the loss curve lie beside each file.
"""

from typing import Any

from upfeat.checkpoints import HubFile
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD
from upfeat.upsamplers.weights import Checkpoint

__all__ = ["bundled_checkpoints"]

HALF = (0.5, 0.5, 0.5)
VIT_TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
COMPACT = "upfeat/vit_compact_patch16"
DATA = (
    "1941 images: training splits of BSDS500, MSRC v2, CamVid and NYUv2 with their regions, and "
    "900 ImageNet images with superpixels"
)
REGIONS = "1041 images: training splits of BSDS500, MSRC v2, CamVid and NYUv2 with their regions"
LICENSE = "Apache-2.0 (some training images are for research only, see the card)"


def _record(
    name: str,
    tag: str,
    sha256: str,
    backbone: str,
    width: int | None,
    norm: tuple[tuple[float, float, float], tuple[float, float, float]],
    config: dict[str, Any],
    note: str = "",
    data: str = DATA,
) -> Checkpoint:
    return Checkpoint(
        tag=tag,
        file=HubFile(filename=f"{name}.{tag}.safetensors", sha256=sha256),
        backbone=backbone,
        feature_dim=width,
        image_mean=norm[0],
        image_std=norm[1],
        training_data=data,
        code_license="Apache-2.0",
        weights_license=LICENSE,
        backbone_license="Apache-2.0" if width else "none needed: the weights serve any backbone",
        paper={"jafar": "2506.11136", "loftup": "2504.14032"}.get(name, ""),
        config=config,
        note=note,
        bundled=True,
    )


def bundled_checkpoints(name: str) -> tuple[Checkpoint, ...]:
    """Return the records of one method.

    Example:
        >>> from upfeat.upsamplers.bundled_weights import bundled_checkpoints
        >>> [record.tag for record in bundled_checkpoints("kin")]
        ['upfeat']
    """
    return tuple(_record(name, *row) for row in _TABLE.get(name, ()))


_IMAGENET, _HALF = (IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF)
_JAFAR = {"qk_dim": 64}
_LOFTUP = {"token_colors": True, "feature_scale": 3.8}
_STAGES = "LoftUp's first stage only; the tag without _stage1 went on with self-distillation."
# Tag, SHA-256, backbone, width, normalisation of the guidance, constructor arguments, note.
_TABLE: dict[str, tuple[tuple[Any, ...], ...]] = {
    "kin": (
        (
            "upfeat",
            "1d8db3efaf5cdb61292c7d73cd1cbc985b5ff62f5a35d09f2447158731aba37d",
            "any; trained on three small networks",
            None,
            _IMAGENET,
            {},
        ),
    ),
    "jafar": (
        (
            "vit_tiny_patch16_augreg",
            "f05bf9090e2e8045427fba2fd05c7d398701c1b3181e551a42dc43cd86d2c8d7",
            VIT_TINY,
            192,
            _HALF,
            _JAFAR,
        ),
        (
            "vit_compact_patch16",
            "0405f30d945237dec682c1e4b0055e55d2709112320c6fde0c20eedbd332a8d3",
            COMPACT,
            192,
            _HALF,
            _JAFAR,
        ),
    ),
    "loftup": (
        (
            "vit_tiny_patch16_augreg_stage1",
            "1fd0cdc424bcecff12c9c14520bc640e2455319a468f27ba10a66a66df103fdc",
            VIT_TINY,
            192,
            _IMAGENET,
            _LOFTUP,
            _STAGES,
            REGIONS,
        ),
        (
            "vit_tiny_patch16_augreg",
            "ad0ee7174ba55550191a4e65bc83de3e409650d3a47382fbf3bac083f87b1985",
            VIT_TINY,
            192,
            _IMAGENET,
            _LOFTUP,
        ),
        (
            "vit_compact_patch16_stage1",
            "589ac52cabbb34a9ef151c2e377c223e596f0d8a54853f843bbfdefeb7849bdd",
            COMPACT,
            192,
            _IMAGENET,
            {},
            _STAGES,
        ),
        (
            "vit_compact_patch16",
            "0a4b1ba6d4930198542fb30c359b809842369f6ec0215ac0e5ab99aff06896b4",
            COMPACT,
            192,
            _IMAGENET,
            {},
        ),
    ),
}
