"""ViT-Up: a transformer that answers at any point, from the backbone's hidden states.

Paper: arXiv 2606.14024, 2026. Original: github.com/krispinwandel/vit-up at 9a74487c, without a
licence file; written from a description of it. Weights: Hugging Face, Krispin/vit-up, CC BY-NC-SA
4.0. They belong to a backbone with low-rank adapters inside and are not loaded here.

A query starts as the finely spaced patch embedding at its point. Each block lets it attend to all
tokens of one hidden state, with rotary positions, and adds the nearest token, modulated by the
point's place within it. Positions are continuous: a map is a query at each pixel's centre.

Departures: the features are the hidden states themselves, of an untouched backbone, one layer's
channels after the other's (``layers=`` of a backbone); the patch embedding is a convolution of this
module, trained with it, instead of the backbone's. The original squashes each image to a square.

Legend: B batch, L levels, d channels of one, C = L d feature channels, h w grid, n = h w tokens,
N points, H' W' output.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError
from upfeat.ops.coordinates import pixel_centres, sample_at
from upfeat.ops.images import Size, resize_bilinear
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import NOT_COMPARED

FINER = 8  # patches of the query's image to a token, on each axis
HIGHEST = 10.0  # frequency of the code of a place in its token, in half turns; the lowest is 1


def feed_forward(dim: int, hidden: int, norm: bool = True) -> nn.Sequential:
    """Layer norm, d to hidden, GELU, hidden to d."""
    layers: list[nn.Module] = [nn.LayerNorm(dim)] if norm else []
    return nn.Sequential(*layers, nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring channels of (B, heads, N, D) by angles (B, N, D/2)."""
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, N, D/2) each
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class PointAttention(nn.Module):
    """Attention of points to all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, heads, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, tokens: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, d) to rotated keys and values, (B, heads, n, D) each."""
        return rotated(self.split(self.k_proj(tokens)), angles), self.split(self.v_proj(tokens))

    def forward(self, points: Tensor, angles: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, N, d) to the same."""
        query = rotated(self.split(self.q_proj(points)), angles)
        mixed = F.scaled_dot_product_attention(query, keys, values)  # (B, heads, N, D)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class NearestToken(nn.Module):
    """The token that a point lies in, modulated by its place there (``featx``)."""

    def __init__(self, dim: int, bands: int) -> None:
        super().__init__()
        self.norm_input = nn.LayerNorm(dim)
        code, out = nn.Linear(4 * bands + 2, dim), nn.Linear(dim, 2 * dim)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.gamma_beta_mlp = nn.Sequential(code, nn.GELU(), out)
        self.post_mlp = feed_forward(dim, 4 * dim)

    def forward(self, token: Tensor, code: Tensor) -> Tensor:
        """(B, N, d) and (B, N, 4 bands + 2) to (B, N, d)."""
        gamma, beta = self.gamma_beta_mlp(code).chunk(2, dim=-1)
        return self.post_mlp((1 + gamma) * self.norm_input(token) + beta)


class PointBlock(nn.Module):
    """One block: section 4.2 of the description, step 4."""

    def __init__(self, dim: int, heads: int, bands: int) -> None:
        super().__init__()
        self.transition_mlp = feed_forward(dim, 2 * dim)
        self.norm_q_global, self.norm_h_global = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross_attention = PointAttention(dim, heads)
        self.featx, self.norm_h_local = NearestToken(dim, bands), nn.LayerNorm(dim)
        self.norm_post, self.mlp = nn.LayerNorm(dim), feed_forward(dim, 4 * dim, norm=False)

    def keys_values(self, tokens: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, d) to what :meth:`forward` attends to."""
        return self.cross_attention.keys_values(self.norm_h_global(tokens), angles)

    def forward(
        self, q: Tensor, angles: Tensor, memory: tuple[Tensor, Tensor], token: Tensor, code: Tensor
    ) -> Tensor:
        """Points (B, N, d) to the same."""
        q = q + self.transition_mlp(q)
        q = q + self.cross_attention(self.norm_q_global(q), angles, *memory)
        q = q + self.norm_h_local(self.featx(token, code))  # the norm acts on the result
        return q + self.mlp(self.norm_post(q))


class ViTUpState(NamedTuple):
    """Patches (B, d, 8h, 8w), tokens (B, L, n, d), keys and values by block, and two sizes."""

    patches: Tensor
    tokens: Tensor
    memories: list[tuple[Tensor, Tensor]]
    grid: Size
    output_size: Size


@register_upsampler("vit_up")
class ViTUp(Upsampler):
    """ViT-Up (arXiv 2606.14024): continuous coordinates, answers from the hidden states.

    The output has the features' channels: those of each level, upsampled. With several levels the
    last ones are what the paper uses; with one, every block reads it. The cost grows with pixels
    times tokens; there is no locality.

    Args:
        feature_dim: C, channels of all levels together.
        levels: L, hidden states in the features, one for each block, or 1. The paper's are
            the outputs of every second of twelve blocks, ``layers=(1, 3, 5, 7, 9, 11)``.
        num_blocks: blocks of the point transformer.
        num_heads: attention heads; d must be divisible by four times as many. None: the paper's, of
            64 channels.
        patch_size: side of the query's patches; the image is resized to 8 of them a cell.
        bands: frequencies of the code of a place within its token.
        rope_base: ratio that spans the frequencies of the rotary code.

    Raises:
        ValueError: channels that do not divide, or levels that are neither 1 nor the blocks'.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("vit_up", feature_dim=48, levels=2, num_blocks=2)
        >>> image, features = torch.rand(1, 3, 32, 48), torch.rand(1, 48, 2, 3)
        >>> up(image, features, (16, 24)).shape
        torch.Size([1, 48, 16, 24])
        >>> up.query(image, features, torch.tensor([[[0.1, -0.7]]])).shape
        torch.Size([1, 1, 48])
    """

    info = UpsamplerInfo(
        name="vit_up",
        summary="A transformer that answers at any point, from the backbone's hidden states.",
        when="You train per backbone, can read several of its layers, and need few points.",
        claim="Denser and more accurate features than earlier upsamplers, above all for matching.",
        as_baseline=NOT_COMPARED,
        paper="ViT-Up",
        year=2026,
        arxiv="2606.14024",
        code="https://github.com/krispinwandel/vit-up",
        code_license="none stated",
        weights_license="CC BY-NC-SA 4.0 (not loaded here)",
        abilities=Abilities(mixes_values=False, tiles=True, query=True),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    positions_apart = True
    freqs: Tensor  # of the code of a place within a token, (bands,)

    def __init__(
        self,
        feature_dim: int,
        levels: int = 1,
        num_blocks: int = 6,
        num_heads: int | None = None,
        patch_size: int = 16,
        bands: int = 16,
        rope_base: float = 100.0,
    ) -> None:
        super().__init__()
        if levels not in (1, num_blocks):
            raise ValueError(f"levels must be 1 or num_blocks={num_blocks}, got {levels}")
        dim = feature_dim // levels
        heads = max(1, dim // 64) if num_heads is None else num_heads
        if feature_dim % (4 * levels * heads):
            raise ValueError(
                f"feature_dim={feature_dim} must be divisible by 4 x levels x num_heads="
                f"{4 * levels * heads}: features of {levels} levels, one after the other"
            )
        self.levels, self.num_heads, self.rope_base = levels, heads, rope_base
        self.patch_size = patch_size
        self.patch_embedding = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(PointBlock(dim, heads, bands) for _ in range(num_blocks))
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for _ in range(levels)
        )
        steps = torch.linspace(0, math.log(HIGHEST), bands, dtype=torch.float32)
        self.register_buffer("freqs", steps.exp())

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> ViTUpState:
        """Embed the patches of the enlarged image, and project the tokens for each block."""
        grid = (features.shape[2], features.shape[3])
        size = (FINER * grid[0] * self.patch_size, FINER * grid[1] * self.patch_size)
        patches = self.patch_embedding(resize_bilinear(image, size))  # (B, d, 8h, 8w)
        tokens = features.unflatten(1, (self.levels, -1)).flatten(3).mT  # (B, L, n, d)
        return self.prepared(patches, tokens, grid, output_size)

    def prepared(
        self, patches: Tensor, tokens: Tensor, grid: Size, output_size: Size
    ) -> ViTUpState:
        """Keys and values of each block, from patches (B, d, 8h, 8w) and tokens (B, L, n, d)."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        place = pixel_centres(grid, device=tokens.device, dtype=wide)[None]  # (1, n, 2)
        angles = self.angles(place, grid)
        blocks: list[PointBlock] = list(self.blocks)  # type: ignore[arg-type]
        memories = [
            block.keys_values(tokens[:, min(number, self.levels - 1)], angles)
            for number, block in enumerate(blocks)
        ]
        return ViTUpState(patches, tokens, memories, grid, output_size)

    def decode(self, state: ViTUpState, values: Tensor, rows: slice) -> Tensor:
        """Answer at the centres of rows of pixels."""
        height, width = state.output_size
        wide = torch.promote_types(values.dtype, torch.float32)
        axes = [
            (2 * torch.arange(*span, device=values.device, dtype=wide) + 1) / side - 1
            for span, side in (((rows.start, rows.stop), height), ((0, width), width))
        ]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        out = self.decode_at(state, values, centres.expand(len(values), -1, -1))  # (B, R W', C)
        return out.mT.unflatten(2, (-1, width))

    def decode_at(self, state: ViTUpState, values: Tensor, coords: Tensor) -> Tensor:
        """Run the points through all blocks; the levels' channels lie one after the other."""
        cells = coords.new_tensor(state.grid)
        place = (coords + 1) / 2 * cells  # in tokens, row and column
        nearest = (place - 0.5).round().clamp(min=0).minimum(cells - 1)
        index = (nearest[..., 0] * state.grid[1] + nearest[..., 1]).long()  # (B, N)
        code = self.code((place - 0.5 - nearest).flip(-1)).to(values.dtype)
        angles = self.angles(coords, state.grid)
        q, found = sample_at(state.patches, coords), []
        for number, block in enumerate(self.blocks):
            tokens = state.tokens[:, min(number, self.levels - 1)]  # (B, n, d)
            token = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
            q = block(q, angles, state.memories[number], token, code)
            if self.levels > 1:
                found.append(self.decoders[number](q))
        return torch.cat(found, dim=2) if found else self.decoders[0](q)

    def code(self, offset: Tensor) -> Tensor:
        """Code of places (B, N, 2), x and y within the token: (B, N, 4 bands + 2)."""
        phase = math.pi * offset[..., None] * self.freqs.to(offset.dtype)  # (B, N, 2, bands)
        waves = torch.cat((phase.sin().flatten(-2), phase.cos().flatten(-2)), dim=-1)
        return torch.cat((offset, waves), dim=-1)

    def angles(self, coords: Tensor, grid: Size) -> Tensor:
        """Rotary angles of positions (B, N, 2), row and column: (B, N, D/2), columns first."""
        pairs = self.patch_embedding.out_channels // self.num_heads // 4
        steps = torch.arange(pairs, device=coords.device, dtype=coords.dtype) / pairs
        place = ((coords + 1) / 2 * coords.new_tensor(grid)).flip(-1)  # in tokens, x and y
        return (2 * math.pi * place[..., None] * self.rope_base**-steps).flatten(-2)

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row's points in all levels and in the widest layers of a block."""
        return output_size[1] * (2 * features.shape[1] + 12 * features.shape[1] // self.levels)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; heads and the rotary code leave no trace in the tensors."""
        own = cls.convert_official(state)
        dim, _, patch, _ = own["patch_embedding.weight"].shape
        levels = len({key.split(".")[1] for key in own if key.startswith("decoders.")})
        blocks = len({key.split(".")[1] for key in own if key.startswith("blocks.")})
        sizes = {"feature_dim": dim * levels, "levels": levels, "num_blocks": blocks}
        return sizes | {"patch_size": patch, "bands": len(own["freqs"])}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename official keys and drop level 0, the patches themselves; ours pass unchanged."""
        if "patch_embedding.weight" not in state:
            raise CheckpointError(
                "published vit_up files have no patch embedding: they belong to a backbone with "
                "adapters inside, which upfeat does not run; see upfeat train vit_up_small"
            )
        if "rel_pos_enc.freqs" not in state:
            return dict(state)
        return {
            _own_key(key): value
            for key, value in state.items()
            if not key.startswith("decoder_mlp.0.")
        }


def _own_key(key: str) -> str:
    if key.startswith("decoder_mlp."):
        _, level, _, rest = key.split(".", 3)
        return f"decoders.{int(level) - 1}.{rest}"
    key = key.replace("vit_up_blocks.", "blocks.").replace("rel_pos_enc.", "")
    return key.replace(".mlp.", ".") if key.startswith("blocks.") else key
