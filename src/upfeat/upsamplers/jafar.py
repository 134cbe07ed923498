"""JAFAR: queries from the image, keys from image and features, values are the raw features.

Paper: Couairon et al., "JAFAR: Jack up Any Feature at Any Resolution", 2025, arXiv 2506.11136.
Original: github.com/PaulCouairon/JAFAR at 94d4d545 (Apache-2.0). Weights: its release page.

Every output pixel is a convex combination of all low-resolution features. Keys are the encoded
image, pooled to the low-resolution grid and modulated by the features (section 3.3, spatial feature
transform); the attention weights are averaged over the heads. Where the paper's text and the
published weights differ the weights win: queries are normalised and pass a 3x3 convolution after
pooling.

Legend: B batch, C feature channels, K value channels, d query/key channels, h w low-resolution
grid, H W guidance image, H' W' output, N = H'W', n = hw.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from upfeat.checkpoints import OMEGACONF_GLOBALS, HubFile
from upfeat.errors import check_choice
from upfeat.layers import CrossAttentionQueriesAndKeys, GuidanceEncoder, PointwiseEncoder
from upfeat.layers.guidance import convert_cross_decode, join_official
from upfeat.ops import group_norm, head_averaged_attention, stream, unit_vectors
from upfeat.ops.coordinates import sample_at
from upfeat.upsamplers.base import (
    ANY_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.jafar_ours import OURS, ablated_keys, ablation_layers
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint


class SpatialFeatureTransform(nn.Module):
    """gamma(S) * x + beta(S) with 1x1 convolutions; gamma is not offset by one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Conv2d(dim, dim, 1, bias=False)
        self.beta = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """Modulate ``x`` by ``semantics``, both (B, d, h, w)."""
        return self.gamma(semantics) * x + self.beta(semantics)


# -- published weights ------------------------------------------------------------------------

NOTE = "The guidance image is normalised as the backbone's input."
SWAPPED = (
    "The original README swaps the links of ViT-B/16 and DINO ViT-B/16; this record goes by the "
    f"file name. {NOTE}"
)
TUNED = (
    "The backbone is a CLIP fine-tuned as a classifier: 768 channels and no text space. For open "
    "vocabulary train the recipe jafar_maskclip_paper."
)
IMAGENET, HALF, CLIP = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
)
# Tag, file name, what timm's name has beyond it, channels, mean and std, note.
PUBLISHED = (
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", "", 384, IMAGENET, NOTE),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", "", 768, IMAGENET, NOTE),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2", ".lvd142m", 384, IMAGENET, NOTE),
    ("dino_vitb16", "vit_base_patch16_224.dino", "", 768, IMAGENET, SWAPPED),
    ("augreg_vitb16", "vit_base_patch16_224", ".augreg2_in21k_ft_in1k", 768, HALF, SWAPPED),
    ("clip_vitb16_384", "vit_base_patch16_clip_384", ".laion2b_ft_in12k_in1k", 768, CLIP, TUNED),
    ("siglip2_vitb16_512", "vit_base_patch16_siglip_512.v2_webli", "", 768, HALF, NOTE),
)

CHECKPOINTS = tuple(
    Checkpoint(
        tag=tag,
        file=HubFile(
            filename=f"{model}.pth",
            url=f"https://github.com/PaulCouairon/JAFAR/releases/download/Weights/{model}.pth",
        ),
        backbone=f"timm/{model}{rest}",
        feature_dim=feature_dim,
        image_mean=mean,
        image_std=std,
        training_data="ImageNet-1k train, 448 x 448; 100,000 steps of 4 images",
        code_license="Apache-2.0",
        weights_license="not stated (the code is Apache-2.0)",
        backbone_license="Apache-2.0",
        paper="2506.11136",
        config={"num_heads": 4},
        note=note,
    )
    for tag, model, rest, feature_dim, (mean, std), note in PUBLISHED
)


class JAFARState(NamedTuple):
    """Convolved queries (B, d, H', W') and projected keys (B, n, d)."""

    query: stream.Map
    key: Tensor


@register_upsampler("jafar", checkpoints=CHECKPOINTS + OURS)
class JAFAR(Upsampler):
    """JAFAR (arXiv 2506.11136): global cross-attention with head-averaged weights on raw features.

    Official state dicts load strictly, in both layouts of the attention's projections. The
    original's attention also stores a value path (``norm_v``, value and output projections) without
    influence on the output: those tensors must be there in the right shapes, and are dropped.

    Args:
        feature_dim: channels C of the features (``v_dim`` of the original).
        qk_dim: channels d of queries and keys, a multiple of 8 and of ``num_heads``.
        kernel_size: of the first image convolution, odd.
        num_heads: heads of the attention.
        keys: what keys are made of (table 5): ``"sft"``, the published method, ``"linear"`` or
            ``"concat"``; see `ablation_layers`.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=32)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3), output_size=(14, 21)).shape
        torch.Size([1, 16, 14, 21])
    """

    info = UpsamplerInfo(
        name="jafar",
        summary="Cross-attention of image queries to all low-resolution features, kept raw.",
        when=(
            "There are weights for your backbone, or you can train them; sharp at any size, and "
            "a linear head can be applied first."
        ),
        claim=(
            "Attention from image queries to semantically modulated keys gives sharp features at "
            "any size, though trained at low resolution only."
        ),
        as_baseline={"JAFAR": "the paper's own method", "LoftUp": "not compared (published later)"},
        paper="JAFAR: Jack up Any Feature at Any Resolution",
        year=2025,
        arxiv="2506.11136",
        code="https://github.com/PaulCouairon/JAFAR",
        code_license="Apache-2.0",
        weights_license="not stated (the code is Apache-2.0)",
        abilities=Abilities(linear=True, tiles=True, query=True, export=ANY_SIZE),
    )
    streams = True
    official_keys = ("jafar",)
    official_globals = OMEGACONF_GLOBALS

    def __init__(
        self,
        feature_dim: int,
        qk_dim: int = 128,
        kernel_size: int = 1,
        num_heads: int = 4,
        keys: Literal["sft", "linear", "concat"] = "sft",
    ) -> None:
        super().__init__()
        check_choice("keys", keys, ("sft", "linear", "concat"))
        self.keys = keys
        self.guidance = GuidanceEncoder(qk_dim, kernel_size, with_keys=keys != "linear")
        if keys == "sft":
            self.key_features_encoder = PointwiseEncoder(feature_dim, qk_dim)
            self.sft_key = SpatialFeatureTransform(qk_dim)
        for name, layer in ablation_layers(keys, feature_dim, qk_dim):
            self.add_module(name, layer)
        self.attention = CrossAttentionQueriesAndKeys(qk_dim, num_heads)

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> JAFARState:
        """Queries from the image; keys from the image, modulated by the features (section 3.3)."""
        grid, unit = (features.shape[2], features.shape[3]), unit_vectors(features)
        if self.keys == "sft":
            query, own = self.guidance(image, output_size, grid)  # (B, d, H', W'), (B, d, h, w)
            key = self.sft_key(group_norm(own, 8), self.key_features_encoder(unit))
        else:
            query, key = ablated_keys(self, image, unit, output_size)
        query = self.attention.conv2d(group_norm(query, 8))
        return JAFARState(query, self.attention.keys(key))

    def decode(self, state: JAFARState, values: Tensor, rows: slice) -> Tensor:
        """Mix the values with the attention weights, averaged over the heads (equation 1)."""
        query = self.attention.queries(state.query[:, :, rows])  # (B, R W', d)
        return self._attend(query, state, values).mT.unflatten(2, (-1, state.query.shape[3]))

    def decode_at(self, state: JAFARState, values: Tensor, coords: Tensor) -> Tensor:
        """Attend from the queries of all pixels, read between them bilinearly."""
        query = state.query[:, :, :]  # (B, d, H', W')
        pixels = self.attention.queries(query).mT.unflatten(2, query.shape[2:])
        return self._attend(sample_at(pixels, coords), state, values)

    def _attend(self, query: Tensor, state: JAFARState, values: Tensor) -> Tensor:
        """(B, N, d), and values (B, K, h, w), to (B, N, K)."""
        mixed = values.flatten(2).mT  # (B, K, h, w) -> (B, n, K)
        return head_averaged_attention(query, state.key, mixed, self.attention.num_heads)

    @property
    def unused_parameters(self) -> int:
        """Of the value path: ``norm_v`` (C), a projection C to d, one d to d, both with bias."""
        channels, d = self.config["feature_dim"], self.attention.conv2d.in_channels
        return int(channels + (channels + 1) * d + (d + 1) * d)

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of values, and of queries on their way."""
        return output_size[1] * (values.shape[1] + 6 * self.attention.conv2d.in_channels)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes from the tensors; ``num_heads`` cannot be read and is 4 by default."""
        prefix = "guidance." if "guidance.rope.freqs" in state else ""
        qk_dim, feature_dim = state["key_features_encoder.0.weight"].shape[:2]
        kernel_size = state[f"{prefix}image_encoder.0.weight"].shape[-1]
        return {"feature_dim": feature_dim, "qk_dim": qk_dim, "kernel_size": kernel_size}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the official keys and drop the value path; a state dict of ours passes through."""
        if "guidance.rope.freqs" in state:
            return dict(state)
        feature_dim = state["key_features_encoder.0.weight"].shape[1]
        attention = convert_cross_decode(
            state, feature_dim, unused={"norm_v.weight": (feature_dim,)}
        )
        return join_official(state, attention)
