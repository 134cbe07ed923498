"""What of JAFAR is our own: weights in the package, and our reading of the keys of its table 5.

The paper (arXiv 2506.11136) compares its keys, image keys modulated by the features, with two
others. There is no code of these: unit-length features, and 1x1 convolutions without bias, are how
we read them.

Legend: B batch, C feature channels, d query/key channels, h w low-resolution grid, H' W' output.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upfeat.layers import PointwiseEncoder
from upfeat.ops import group_norm, stream
from upfeat.upsamplers.weights import own_checkpoint

if TYPE_CHECKING:
    from upfeat.upsamplers.jafar import JAFAR

__all__ = ["OURS", "ablated_keys", "ablation_layers"]

HALF = (0.5, 0.5, 0.5)
OURS = tuple(
    own_checkpoint(
        "jafar", tag, sha256, backbone, 192, HALF, HALF, paper="2506.11136", config={"qk_dim": 64}
    )
    for tag, backbone, sha256 in (
        (
            "vit_tiny_patch16_augreg",
            "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            "f05bf9090e2e8045427fba2fd05c7d398701c1b3181e551a42dc43cd86d2c8d7",
        ),
        (
            "vit_compact_patch16",
            "upfeat/vit_compact_patch16",
            "0405f30d945237dec682c1e4b0055e55d2709112320c6fde0c20eedbd332a8d3",
        ),
    )
)


def ablation_layers(keys: str, feature_dim: int, dim: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of keys that are not modulated, with their names.

    Args:
        keys: ``"linear"``: the features alone, by a 1x1 convolution; ``"concat"``: image keys and
            features joined, by a 1x1 convolution; ``"sft"``: none.
        feature_dim: C.
        dim: d.

    Example:
        >>> [name for name, _ in ablation_layers("concat", 8, 16)]
        ['key_features_encoder', 'joined_key']
    """
    if keys == "linear":
        yield "linear_key", nn.Conv2d(feature_dim, dim, 1, bias=False)
    elif keys == "concat":
        yield "key_features_encoder", PointwiseEncoder(feature_dim, dim)
        yield "joined_key", nn.Conv2d(2 * dim, dim, 1, bias=False)


def ablated_keys(
    model: "JAFAR", image: Tensor, unit: Tensor, output_size: tuple[int, int]
) -> tuple[stream.Map, Tensor]:
    """Return queries (B, d, H', W') and keys (B, d, h, w) of the ablations.

    Args:
        model: with the layers of :func:`ablation_layers`.
        image: (B, 3, H, W).
        unit: features of unit length, (B, C, h, w).
        output_size: (H', W').
    """
    layer = dict(model.named_children())
    if model.keys == "linear":
        return model.guidance.query(image, output_size), layer["linear_key"](unit)
    query, own = model.guidance(image, output_size, (unit.shape[2], unit.shape[3]))
    joined = torch.cat((layer["key_features_encoder"](unit), group_norm(own, 8)), dim=1)
    return query, layer["joined_key"](joined)  # (B, 2d, h, w) -> (B, d, h, w)
