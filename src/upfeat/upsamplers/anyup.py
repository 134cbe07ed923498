"""AnyUp: one set of weights for the features of every backbone.

Paper: Wimmer et al., "AnyUp: Universal Feature Upsampling", ICLR 2026, arXiv 2510.12764.
Original: github.com/wimmerth/anyup at 351807a9 (CC-BY-4.0). Weights: its release page.

As in JAFAR, an output pixel is a convex combination of raw low-resolution features. New are the
feature unification (section 3.2), which maps any number of channels to a fixed number, and local
attention: a query sees a window of the low-resolution grid around its own place (section 3.3).

Legend: B batch, C feature channels, K value channels, d query/key channels, O filters of the
unification, h w low-resolution grid, H W guidance image, H' W' output, N = H'W', n = hw.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from upfeat.checkpoints import OMEGACONF_GLOBALS, HubFile
from upfeat.errors import check_choice
from upfeat.layers import (
    CrossAttentionQueriesAndKeys,
    GuidanceEncoder,
    PointwiseEncoder,
    PointwiseResidualBlock,
)
from upfeat.layers.feature_unification import FeatureUnification, Unification
from upfeat.layers.guidance import convert_cross_decode, join_official
from upfeat.ops import cross_scale_neighborhood_attention, stream, unit_vectors, windowed_attention
from upfeat.ops.runtime import without_autocast
from upfeat.upsamplers.base import (
    ANY_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import NOT_COMPARED, Checkpoint

Attention = Literal["window", "natten"]
Span = tuple[int, int]


def natten_kernel(window_ratio: float, cells: int) -> int:
    """Return the cells that the neighbourhood variant sees along an axis of ``cells`` cells.

    Example:
        >>> natten_kernel(0.1, 16), natten_kernel(0.1, 20), natten_kernel(0.0, 16)
        (3, 5, 16)
    """
    if not 0 < window_ratio < 0.5:
        return cells
    kernel = max(round(2 * window_ratio * cells), 3)
    return kernel + (kernel + 1) % 2


def _record(tag: str, release: str, sha256: str, backbone: str) -> Checkpoint:
    file = f"anyup_{tag}.pth"
    address = f"https://github.com/wimmerth/anyup/releases/download/{release}/{file}"
    return Checkpoint(
        tag=tag,
        file=HubFile(filename=file, url=address, sha256=sha256),
        backbone=backbone,
        feature_dim=None,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="ImageNet-1k train, shorter side at least 448; 100,000 steps of 4 images",
        code_license="CC-BY-4.0",
        weights_license="CC-BY-4.0",
        backbone_license="none needed: the weights serve any backbone",
        paper="2510.12764",
        config={"num_heads": 4, "window_ratio": 0.1},
        note="ImageNet mean and std for the guidance image, whatever the backbone.",
    )


CHECKPOINTS = (
    _record(
        "paper",
        "checkpoint",
        "9d035c0f27114a6f32bdd3d8ed93b6cd39dad4b8f8bf94e69fddbfbf022901b2",
        "any; trained on DINOv2 ViT-S/14",
    ),
    _record(
        "multi_backbone",
        "checkpoint_v2",
        "b6cc407da8986c7e5c9098e61f7531767a9aca8fff20a1bc6c99d488e61aac59",
        "any; trained on DINOv2 ViT-S/14 with and without registers, CLIP, SigLIP 2 and ViT-B/16",
    ),
)

# The layers of a residual block: official number -> our name.
LAYERS = {"block.0.": "norm1.", "block.2.": "conv1.", "block.3.": "norm2.", "block.5.": "conv2."}


class AnyUpState(NamedTuple):
    """Convolved queries (B, d, H', W'), projected keys (B, n, d) and the grid (h, w)."""

    query: stream.Map
    key: Tensor
    grid: tuple[int, int]


@register_upsampler("anyup", checkpoints=CHECKPOINTS)
class AnyUp(Upsampler):
    """AnyUp (arXiv 2510.12764): local cross-attention on raw features of any backbone.

    Official state dicts load strictly; the value path of the original's attention has no influence
    on the output: its tensors must be there in the right shapes, and are dropped.

    Args:
        qk_dim: channels d of queries and keys, a multiple of 8 and of ``num_heads``.
        kernel_size: of the first image convolution, odd.
        kernel_size_lfu: of the feature unification's filters, odd.
        window_ratio: half width of a query's window as a share of the image; 0 sees everything.
        num_heads: heads of the attention.
        init_gaussian_derivatives: start the unification from derivatives of a Gaussian.
        lfu_dim: filters O of the unification; default ``qk_dim``.
        attention: "window", as published; "natten": the original's NATTEN decoder, a fixed number
            of low-resolution cells for each query (weights convert from the plain ones; the outputs
            are close, not equal).
        unification: "released", the layout of the published weights; "filterwise", as the paper
            describes it (see `FeatureUnification`). Not interchangeable for trained weights.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("anyup", qk_dim=16)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 10, 4, 6), output_size=(14, 21)).shape
        torch.Size([1, 10, 14, 21])
    """

    info = UpsamplerInfo(
        name="anyup",
        summary="Local cross-attention of image queries to raw features of any backbone.",
        when=(
            "You have any backbone and can download one file; closest to the features of a larger "
            "input in our tables, below KIN in segmentation and video, at twice its time."
        ),
        claim="One model, trained once, upsamples the features of any backbone to any size.",
        as_baseline=NOT_COMPARED,
        paper="AnyUp: Universal Feature Upsampling",
        year=2026,
        arxiv="2510.12764",
        code="https://github.com/wimmerth/anyup",
        code_license="CC-BY-4.0",
        weights_license="CC-BY-4.0",
        abilities=Abilities(linear=True, universal=True, tiles=True, export=ANY_SIZE),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    streams = True
    official_keys = ("anyup",)
    official_globals = OMEGACONF_GLOBALS

    def __init__(
        self,
        qk_dim: int = 128,
        kernel_size: int = 1,
        kernel_size_lfu: int = 5,
        window_ratio: float = 0.1,
        num_heads: int = 4,
        init_gaussian_derivatives: bool = False,
        lfu_dim: int | None = None,
        attention: Attention = "window",
        unification: Unification = "released",
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ("window", "natten"))
        check_choice("unification", unification, ("released", "filterwise"))
        filters = qk_dim if lfu_dim is None else lfu_dim
        self.kind = attention
        self.window_ratio = window_ratio
        self.guidance = GuidanceEncoder(qk_dim, kernel_size)
        self.key_features_encoder = nn.Sequential(
            FeatureUnification(filters, kernel_size_lfu, unification, init_gaussian_derivatives),
            PointwiseResidualBlock(filters, qk_dim),
            PointwiseResidualBlock(qk_dim),
        )
        self.aggregation = PointwiseEncoder(2 * qk_dim, qk_dim, kernel_size=3)
        self.attention = CrossAttentionQueriesAndKeys(qk_dim, num_heads)

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> AnyUpState:
        """Queries from the image; keys from the image and the unified features (section 3)."""
        grid = (features.shape[2], features.shape[3])
        query, key = self.guidance(image, output_size, grid)  # (B, d, H', W'), (B, d, h, w)
        # All shares of the unification are close to 1 / O: half precision loses what tells them
        # apart before the first group norm enlarges it.
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        with without_autocast(features):
            semantics = self.key_features_encoder(unit_vectors(wide))  # (B, d, h, w)
        joined = torch.cat((key[:, :, :], semantics.to(key.dtype)), dim=1)  # (B, 2 d, h, w)
        keys = self.attention.keys(self.aggregation(joined))
        return AnyUpState(self.attention.conv2d(query), keys, grid)

    def decode(self, state: AnyUpState, values: Tensor, rows: slice) -> Tensor:
        """Mix the values of a window, with the weights averaged over the heads (section 3.3)."""
        size = (state.query.shape[2], state.query.shape[3])
        query = self.attention.queries(state.query[:, :, rows])  # (B, R W', d)
        attend = self._windowed if self.kind == "window" else self._neighborhood
        return attend(query, state, values, size, (rows.start, rows.stop))

    def _windowed(
        self, query: Tensor, state: AnyUpState, values: Tensor, size: tuple[int, int], rows: Span
    ) -> Tensor:
        mixed = windowed_attention(
            query, state.key, values.flatten(2).mT, self.attention.num_heads,
            output_size=size, grid_size=state.grid, window_ratio=self.window_ratio, rows=rows,
        )  # fmt: skip
        return mixed.mT.unflatten(2, (-1, size[1]))  # (B, R W', K) -> (B, K, R, W')

    def _neighborhood(
        self, query: Tensor, state: AnyUpState, values: Tensor, size: tuple[int, int], rows: Span
    ) -> Tensor:
        return cross_scale_neighborhood_attention(
            query.mT.unflatten(2, (-1, size[1])),  # (B, R W', d) -> (B, d, R, W')
            state.key.mT.unflatten(2, state.grid),  # (B, n, d) -> (B, d, h, w)
            values,
            self.attention.num_heads,
            kernel_size=self._kernel(state.grid),
            output_size=size,
            head_values="shared",
            rows=rows,
        )

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of values, and of queries on their way."""
        return output_size[1] * (values.shape[1] + 6 * self.attention.conv2d.in_channels)

    def _kernel(self, grid: tuple[int, int]) -> tuple[int, int]:
        return natten_kernel(self.window_ratio, grid[0]), natten_kernel(self.window_ratio, grid[1])

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        """Refuse grids below 2x2, and what the NATTEN variant cannot do."""
        super()._check(image, features, output_size, values)
        grid = (features.shape[2], features.shape[3])
        least = 2 if self.kind == "window" else 3
        if min(grid) < least:
            raise ValueError(
                f"anyup needs a feature grid of at least {least}x{least}, got {grid[0]}x{grid[1]}; "
                "give the backbone a larger image"
            )
        if self.kind == "natten":
            kernel = self._kernel(grid)
            if any(k > n or size < n for k, n, size in zip(kernel, grid, output_size, strict=True)):
                raise ValueError(
                    "attention='natten' needs an output at least as large as the grid and a window "
                    f"of {kernel} cells inside it, got output {output_size} and grid {grid}; "
                    "use attention='window', or another size or window_ratio"
                )

    @property
    def unused_parameters(self) -> int:
        """Of the value path: two projections d to d, with bias."""
        d = self.attention.conv2d.in_channels
        return int(2 * (d + 1) * d)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; ``num_heads`` and ``window_ratio`` cannot be read: defaults."""
        prefix = "guidance." if "guidance.rope.freqs" in state else ""
        filters, _, kernel_size_lfu, _ = state["key_features_encoder.0.basis"].shape
        qk_dim = state[f"{prefix}rope.freqs"].shape[1]
        return {
            "qk_dim": qk_dim,
            "kernel_size": state[f"{prefix}image_encoder.0.weight"].shape[-1],
            "kernel_size_lfu": kernel_size_lfu,
            "lfu_dim": None if filters == qk_dim else filters,
            "attention": "natten" if "cross_decode.norm_q.weight" in state else "window",
        }

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the official keys, of the plain and of the NATTEN decoder; ours pass through."""
        if "guidance.rope.freqs" in state:
            return dict(state)
        decoder = "cross_decode."
        if f"{decoder}norm_q.weight" in state:  # the NATTEN decoder has no value path
            attention = {
                key.removeprefix(decoder).removeprefix("cross_attn."): tensor.flatten(1)
                if key.endswith("_proj.weight")
                else tensor
                for key, tensor in state.items()
                if key.startswith(decoder)
            }
        else:
            qk_dim = state["rope.freqs"].shape[1]
            attention = convert_cross_decode(state, value_dim=qk_dim)
        own = join_official(state, attention)
        for official, ours in LAYERS.items():
            own = {name.replace(official, ours): tensor for name, tensor in own.items()}
        return own
