"""PixelUp's guide: the frozen ConvNeXt, and the blocks of the queries that grow from it.

Described in ``pixelup.py``. Legend: B batch, C channels of a stage, D query channels, S T a stage's
map, K directions.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._compat import ensure_torchvision_operators
from upfeat.checkpoints import (
    HubFile,
    find_weights,
    load_strictly,
    read_checkpoint,
    unwrap_state,
)
from upfeat.layers.norm import RMSNorm
from upfeat.ops import cross_scale_neighborhood_attention
from upfeat.ops.images import Size

__all__ = [
    "ENCODERS",
    "Enlarged",
    "PixelEncoder",
    "SpiralCode",
    "StageAttention",
    "frozen_encoder",
    "over_channels",
]

GROUPS = 8  # of the group norms
PIXEL_WIDTH = 64
PIXEL_STRIDE = 16  # of the pixel encoder's image, in pixels of the semantic one
STRIDES = [4, 8, 16, 32]  # of the ConvNeXt's stages
# By the width of the first stage and the blocks of the third.
ENCODERS = {
    **{(24, 4): "test_convnext", (40, 6): "convnext_atto", (48, 6): "convnext_femto"},
    **{(64, 6): "convnext_pico", (80, 8): "convnext_nano", (96, 9): "convnext_tiny"},
    **{(96, 27): "convnext_small", (128, 27): "convnext_base", (192, 27): "convnext_large"},
}
ROPE_BASE, ROPE_SPAN = 10_000.0, 14.0


def frozen_encoder(name: str, weights: str | None) -> nn.Module:
    """Build a ConvNeXt of timm that gives its four stages; its weights are buffers.

    Args:
        name: as timm calls it.
        weights: a file in timm's layout; ``"timm"`` for the published ones, from the local folders
            or the hub; None leaves them random.
    """
    ensure_torchvision_operators()
    import timm

    encoder: Any = timm.create_model(name, features_only=True)
    if encoder.feature_info.reduction() != STRIDES:
        raise ValueError(
            f"pixelup needs an encoder with stages of strides {STRIDES}, {name} has "
            f"{encoder.feature_info.reduction()}; take a ConvNeXt of timm"
        )
    if weights is not None:
        hub = HubFile(filename="model.safetensors", repository=f"timm/{name}")
        file = None if weights == "timm" else weights
        path = find_weights(f"the encoder timm/{name}", [name], file=file, hub=hub)
        content = unwrap_state(read_checkpoint(path))
        state = {
            key.replace("stem.", "stem_").replace("stages.", "stages_"): value
            for key, value in content.items()
            if not key.startswith(("head.", "norm_pre."))
        }
        load_strictly(encoder, state, origin=str(path), name=name)
    for module in encoder.modules():
        for key, value in list(module.named_parameters(recurse=False)):
            delattr(module, key)
            module.register_buffer(key, value.detach())
    return encoder.eval()


def over_channels(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer over the last axis to the channels of a map (B, C, H, W)."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


class ResidualPixels(nn.Module):
    """Group norm, SiLU, 1x1 convolution, twice, and the input added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(GROUPS, dim), nn.SiLU(), nn.Conv2d(dim, dim, 1, bias=False)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to the same."""
        return x + self.net(x)


class PixelEncoder(nn.Module):
    """The first queries: colours and what is around them, of a small image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, PIXEL_WIDTH, 3, padding=1, bias=False)
        self.r1, self.r2 = ResidualPixels(PIXEL_WIDTH), ResidualPixels(PIXEL_WIDTH)
        self.expand = nn.Conv2d(PIXEL_WIDTH, dim, 1, bias=False)
        self.r3, self.r4 = ResidualPixels(dim), ResidualPixels(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D, H, W)."""
        return self.r4(self.r3(self.expand(self.r2(self.r1(self.stem(image))))))


class Enlarged(nn.Module):
    """Twice the size by repetition, then a 3x3 convolution."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, T) to (B, D, 2S, 2T)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class StageAttention(nn.Module):
    """Queries attend to the neighbourhood in a stage of twice their spacing; then feed-forward."""

    def __init__(self, dim: int, stage_dim: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.heads, self.kernel_size = heads, kernel_size
        self.norm_q, self.norm_kv, self.norm_ffn = RMSNorm(dim), RMSNorm(stage_dim), RMSNorm(dim)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(stage_dim, dim, bias=False)
        self.v_proj = nn.Linear(stage_dim, dim, bias=False)
        expand, reduce = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.ffn = nn.Sequential(expand, nn.GELU(), reduce)

    def forward(self, query: Tensor, stage: Tensor) -> Tensor:
        """(B, D, 2S, 2T) and (B, C, S, T) to (B, D, 2S, 2T), the queries added."""
        around = over_channels(self.norm_kv, stage)
        mixed = query + cross_scale_neighborhood_attention(
            over_channels(self.q_proj, over_channels(self.norm_q, query)),
            over_channels(self.k_proj, around),
            over_channels(self.v_proj, around),
            self.heads,
            kernel_size=self.kernel_size,
        )
        return mixed + over_channels(self.ffn, over_channels(self.norm_ffn, mixed))


class SpiralCode(nn.Module):
    """A rotary code along several directions of the map, each with its share of the channels.

    The place along direction k is a row coordinate, turned by 90 k / K degrees about the centre of
    the square around the map; it is zero where the turned square does not reach.
    """

    freqs: Tensor  # (D / 2K,), the fastest first

    def __init__(self, dim: int, directions: int) -> None:
        super().__init__()
        self.directions = directions
        share = dim // directions
        steps = torch.arange(share // 2 - 1, -1, -1, dtype=torch.float64) / (share // 2 - 1)
        freqs = ROPE_BASE ** (steps - (share - 2) / share)
        self.register_buffer("freqs", freqs.to(torch.get_default_dtype()))

    def places(self, like: Tensor, size: Size) -> Tensor:
        """Return the place of each pixel along each direction: (K, H, W)."""
        side, count = max(size), self.directions
        wide = torch.promote_types(like.dtype, torch.float32)
        place = ROPE_SPAN * torch.arange(side, device=like.device, dtype=wide) / side
        centre = torch.linspace(-1, 1, side, device=like.device, dtype=wide)
        turns = [math.pi / 2 * k / count for k in range(count)]
        cos, sin = (place.new_tensor([w(t) for t in turns])[:, None] for w in (math.cos, math.sin))
        along, across = cos * centre, sin * centre  # (K, side) each
        # Column and row from which each pixel reads, (K, side, side, 2); sums as in the original.
        grid = torch.stack(
            (along[:, None] - across[:, :, None], across[:, None] + along[:, :, None]), dim=-1
        )
        square = place[:, None].expand(count, 1, side, side)
        return F.grid_sample(square, grid, align_corners=True)[:, 0, : size[0], : size[1]]

    def forward(self, x: Tensor) -> Tensor:
        """Turn the pairs of neighbouring channels of (B, D, H, W) by frequency times place."""
        places = self.places(x, (x.shape[2], x.shape[3]))
        # Channels are blocks of two frequencies; in a block a direction has two pairs: (D/4K, 2).
        freqs = self.freqs.to(places.dtype).unflatten(0, (-1, 2))
        angles = torch.einsum("gp,khw->gkphw", freqs, places)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.unflatten(1, (-1, self.directions, 2, 2)).unbind(4)  # (B, D/4K, K, 2, H, W) each
        return torch.stack((a * cos - b * sin, b * cos + a * sin), 4).flatten(1, 4)
