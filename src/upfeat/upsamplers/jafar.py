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

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upfeat.checkpoints import OMEGACONF_GLOBALS, HubFile
from upfeat.layers import CrossAttentionQueriesAndKeys, GuidanceEncoder, PointwiseEncoder
from upfeat.layers.bands import (
    BandFunction,
    needs_graph,
    only_values_need_graph,
    query_row_bytes,
    row_bands,
    tile_in_bands,
    upsample_in_bands,
)
from upfeat.layers.cross_attention import convert_cross_decode
from upfeat.layers.guidance import MAP_BYTES, OFFICIAL_PARTS
from upfeat.ops import head_averaged_attention
from upfeat.ops.coordinates import sample_at
from upfeat.ops.group_moments import group_norm
from upfeat.ops.memory import new_large
from upfeat.ops.unit_vectors import unit_vectors
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Tile,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.bundled_weights import bundled_checkpoints
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

Triple = tuple[float, float, float]
QUERY_BYTES = 32 * 2**20  # of a band of query rows and its temporaries, in query()

HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


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


def _record(
    tag: str,
    model: str,
    feature_dim: int,
    mean: Triple,
    std: Triple,
    backbone_license: str,
    *,
    backbone: str | None = None,
    note: str = "",
) -> Checkpoint:
    file = f"{model}.pth"
    address = f"https://github.com/PaulCouairon/JAFAR/releases/download/Weights/{file}"
    return Checkpoint(
        tag=tag,
        file=HubFile(filename=file, url=address),
        backbone=f"timm/{backbone or model}",
        feature_dim=feature_dim,
        image_mean=mean,
        image_std=std,
        training_data="ImageNet-1k train, 448 x 448; 100,000 steps of 4 images",
        code_license="Apache-2.0",
        weights_license="not stated (the code is Apache-2.0)",
        backbone_license=backbone_license,
        paper="2506.11136",
        config={"num_heads": 4},
        note=note or "The guidance image is normalised as the backbone's input.",
    )


SWAPPED = (
    "The original README swaps the links of ViT-B/16 and DINO ViT-B/16; this record goes by the "
    "file name. The guidance image is normalised as the backbone's input."
)

CHECKPOINTS = (
    _record(
        "dinov2_vits14",
        "vit_small_patch14_dinov2.lvd142m",
        384,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "Apache-2.0",
    ),
    _record(
        "dinov2_vitb14",
        "vit_base_patch14_dinov2.lvd142m",
        768,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "Apache-2.0",
    ),
    _record(
        "dinov2_vits14_reg",
        "vit_small_patch14_reg4_dinov2",
        384,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "Apache-2.0",
        backbone="vit_small_patch14_reg4_dinov2.lvd142m",
    ),
    _record(
        "dino_vitb16",
        "vit_base_patch16_224.dino",
        768,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "Apache-2.0",
        note=SWAPPED,
    ),
    _record(
        "augreg_vitb16",
        "vit_base_patch16_224",
        768,
        HALF,
        HALF,
        "Apache-2.0",
        backbone="vit_base_patch16_224.augreg2_in21k_ft_in1k",
        note=SWAPPED,
    ),
    _record(
        "clip_vitb16_384",
        "vit_base_patch16_clip_384",
        768,
        CLIP_MEAN,
        CLIP_STD,
        "Apache-2.0",
        backbone="vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
        note="The backbone is a CLIP finetuned as a classifier: 768 channels and no text space.",
    ),
    _record(
        "siglip2_vitb16_512",
        "vit_base_patch16_siglip_512.v2_webli",
        768,
        HALF,
        HALF,
        "Apache-2.0",
    ),
)


@register_upsampler("jafar", checkpoints=CHECKPOINTS + bundled_checkpoints("jafar"))
class Jafar(Upsampler):
    """JAFAR (arXiv 2506.11136): global cross-attention with head-averaged weights on raw features.

    Official state dicts load strictly, in both layouts of the attention's projections. The
    original's attention also stores a value path (``norm_v``, value and output projections) that
    has no influence on the output: those tensors must be there in the right shapes, and are
    dropped.

    Args:
        feature_dim: channels C of the features (``v_dim`` of the original).
        qk_dim: channels d of queries and keys, a multiple of 8 and of ``num_heads``.
        kernel_size: of the first image convolution, odd.
        num_heads: heads of the attention.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=32)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3), output_size=(14, 21)).shape
        torch.Size([1, 16, 14, 21])
    """

    info = UpsamplerInfo(
        name="jafar",
        summary="Cross-attention of image queries to all low-resolution features, kept raw.",
        paper="JAFAR: Jack up Any Feature at Any Resolution",
        year=2025,
        arxiv="2506.11136",
        code="https://github.com/PaulCouairon/JAFAR",
        code_license="Apache-2.0",
        weights_license="not stated (the code is Apache-2.0)",
        abilities=Abilities(linear=True, tiles=True, query=True),
    )
    official_keys = ("jafar",)
    official_globals = OMEGACONF_GLOBALS

    def __init__(
        self, feature_dim: int, qk_dim: int = 128, kernel_size: int = 1, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.guidance = GuidanceEncoder(qk_dim, kernel_size)
        self.key_features_encoder = PointwiseEncoder(feature_dim, qk_dim)
        self.sft_key = SpatialFeatureTransform(qk_dim)
        self.attention = CrossAttentionQueriesAndKeys(qk_dim, num_heads)

    def keys(self, encoded: Tensor, features: Tensor) -> Tensor:
        """Modulate the pooled image keys (B, d, h, w) by the features (B, C, h, w): (B, n, d)."""
        semantics = self.key_features_encoder(unit_vectors(features))  # (B, d, h, w)
        return self.attention.keys(self.sft_key(group_norm(encoded, 8), semantics))

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        graph = needs_graph(self, image, features, values)
        if not graph and not self.guidance.knows(image):
            return upsample_in_bands(
                self._bands(image, features, output_size, values),
                values,
                output_size,
                query_row_bytes(self.attention, values, output_size),
            )
        query, key = self.guidance(image, output_size, (features.shape[2], features.shape[3]))
        out = head_averaged_attention(
            self.attention.queries(group_norm(query, 8)),  # (B, N, d)
            self.keys(key, features),  # (B, n, d)
            values.flatten(2).transpose(1, 2),  # (B, K, h, w) -> (B, n, K)
            self.attention.num_heads,
        )
        return out.transpose(1, 2).unflatten(2, output_size)  # (B, N, K) -> (B, K, H', W')

    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        batch = len(image)
        prepare = self._bands(image, features, output_size, values, MAP_BYTES // batch, max_bytes)
        row_bytes = query_row_bytes(self.attention, values, output_size)
        graph = only_values_need_graph(self, image, features, values)
        if graph:  # the weights stay until backward
            cells = features.shape[2] * features.shape[3]
            row_bytes += output_size[1] * cells * values.element_size()
        yield from tile_in_bands(prepare, values, output_size, row_bytes, max_bytes, graph)

    def _query(
        self,
        image: Tensor,
        features: Tensor,
        coords: Tensor,
        values: Tensor,
        output_size: tuple[int, int],
    ) -> Tensor:
        """Attend from the queries of all pixels, read between them bilinearly."""
        if needs_graph(self, image, features, values):
            grid = (features.shape[2], features.shape[3])
            query, key = self.guidance(image, output_size, grid)
            tokens = self.attention.queries(group_norm(query, 8))  # (B, N, d)
            keys = self.keys(key, features)  # (B, n, d)
        else:
            tokens, keys = self._encode(image, features, output_size)
        pixels = tokens.mT.unflatten(2, output_size)  # (B, N, d) -> (B, d, H', W')
        mixed = values.flatten(2).mT  # (B, K, h, w) -> (B, n, K)
        asked = sample_at(pixels, coords)
        return head_averaged_attention(asked, keys, mixed, self.attention.num_heads)

    def _encode(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Projected queries (B, N, d) and keys (B, n, d) for inference, band after band."""
        grid, (height, width) = (features.shape[2], features.shape[3]), output_size
        dim = self.attention.conv2d.in_channels
        tokens = new_large(image, len(image), height * width, dim)
        keys = []
        row_bytes = 4 * width * dim * image.element_size()
        for number, item in enumerate(tokens):
            here = slice(number, number + 1)
            encoded, queries = self.guidance.encode_bounded(image[here], output_size, grid)
            keys.append(self.keys(encoded, features[here]))
            norm = queries.statistics(groups=8, eps=1e-5)
            for start, stop in row_bands(height, row_bytes, QUERY_BYTES):
                rows = self.attention.query_rows(queries, (start, stop), norm)
                item[start * width : stop * width] = rows[0]
        return tokens, torch.cat(keys)

    def _bands(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        map_bytes: int = MAP_BYTES,
        max_bytes: int | None = None,
    ) -> Callable[[int], BandFunction]:
        """Return, for a batch item, the function that writes some of its output rows."""
        grid = (features.shape[2], features.shape[3])
        mixed = values.flatten(2).transpose(1, 2)  # (B, K, h, w) -> (B, n, K)

        def prepare(item: int) -> BandFunction:
            one = slice(item, item + 1)
            encoded, queries = self.guidance.encode_bounded(
                image[one], output_size, grid, max_bytes=map_bytes
            )
            key = self.keys(encoded, features[one])
            norm = queries.statistics(groups=8, eps=1e-5)

            def band(rows: tuple[int, int], out: Tensor | None) -> Tensor:
                with torch.no_grad():
                    query = self.attention.query_rows(queries, rows, norm)  # (1, R * W', d)
                return head_averaged_attention(
                    query, key, mixed[one], self.attention.num_heads,
                    max_bytes=max_bytes, keep_bytes=max_bytes or 0, out=out,
                )  # fmt: skip

            return band

        return prepare

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
        out = {f"attention.{key}": tensor for key, tensor in attention.items()}
        for key, tensor in state.items():
            part = key.partition(".")[0]
            if part != "cross_decode":
                out[f"guidance.{key}" if part in OFFICIAL_PARTS else key] = tensor
        return out
