"""NAF: neighbourhood attention between a filtered image and any backbone's features.

Paper: Chambon, Couairon, Zablocki, Boulch, Thome, Cord, "NAF: Zero-Shot Feature Upsampling via
Neighborhood Attention Filtering", 2025, arXiv 2511.18452. Original: github.com/valeoai/NAF
(Apache-2.0). Weights: release "model" of that repository.

Two small convolutional branches look at the image; their output, rotated by its position, gives the
queries, and pooled to the features' grid the keys. The features enter as values only, so one model
serves every backbone. Channel group g takes the weights of head g: a linear head that mixes groups
does not commute with NAF.

Legend: B batch, K value channels, h w feature grid, H W image, H' W' output, D query channels.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.errors import shape_text
from upfeat.ops import cross_scale_neighborhood_attention
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

GROUPS = 8  # of the group norms
GUIDANCE_FACTOR = 4  # the image is reduced when it is more than this times the output


class Block(nn.Module):
    """Group norm, SiLU, convolution, twice; no residual."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, kernel_size)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, kernel_size)


class Branch(nn.Module):
    """A stem convolution and blocks, all of one kernel size, with reflected borders."""

    def __init__(self, width: int, kernel_size: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, kernel_size)
        self.blocks = nn.ModuleList(Block(width, kernel_size) for _ in range(blocks))

    def stages(self) -> list[tuple[nn.GroupNorm, nn.Conv2d]]:
        """What follows the stem: (norm, convolution) pairs with a SiLU between."""
        pairs = [((b.norm1, b.conv1), (b.norm2, b.conv2)) for b in self.blocks]
        return [stage for pair in pairs for stage in pair]  # type: ignore[misc]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D/2, H, W)."""
        x = reflected(image, self.stem)
        for norm, conv in self.stages():
            x = reflected(F.silu(norm(x)), conv)
        return x


def reflected(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a convolution that keeps the size; borders are reflected."""
    pad = conv.kernel_size[0] // 2
    return conv(F.pad(x, (pad, pad, pad, pad), mode="reflect") if pad else x)


def rotate(x: Tensor, angles: Tensor, num_heads: int) -> Tensor:
    """Turn the channel pairs (j, j + half) of each head: (B, D, H, W) by (half, H, W) angles."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    # (B, D, H, W) -> (B, heads, 2, half, H, W)
    first, second = x.unflatten(1, (num_heads, 2, -1)).unbind(2)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=2)
    return turned.flatten(1, 3)  # (B, D, H, W)


# Official key (after the prefix "image_encoder.") -> ours; blocks are counted from 1 there.
_BRANCHES = {"encoder": "pixel", "sem_encoder": "context"}


def _own_key(key: str) -> str:
    key = key.removeprefix("image_encoder.")
    if key == "rope.periods":
        return "periods"
    match = re.match(r"(encoder|sem_encoder)\.(\d+)\.(.*)", key)
    if match is None:
        return key
    branch, index, rest = _BRANCHES[match[1]], int(match[2]), match[3]
    return f"{branch}.blocks.{index - 1}.{rest}" if index else f"{branch}.stem.{rest}"


CHECKPOINTS = (
    Checkpoint(
        tag="release",
        file=HubFile(
            filename="naf_release.pth",
            url="https://github.com/valeoai/NAF/releases/download/model/naf_release.pth",
        ),
        backbone="any (trained with timm/vit_base_patch16_dinov3.lvd1689m)",
        feature_dim=None,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="ImageNet-1k, 25,000 steps of 4 images",
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        backbone_license="DINOv3 License",
        paper="2511.18452",
        note="Guidance with ImageNet mean and std, whatever the backbone.",
    ),
)


@register_upsampler("naf", checkpoints=CHECKPOINTS)
class NAF(Upsampler):
    """NAF (arXiv 2511.18452): dilated neighbourhood attention, one head per channel group.

    Args:
        dim: D, channels of queries and keys; half from each branch.
        heads_attn: attention heads; must divide D and the channels of the values.
        heads_rope: heads of the rotary code; D must be divisible by 4 x heads_rope.
        kernel_size: side of the neighbourhood, in cells of the feature grid.
        rope_base: ratio that spans the periods of the rotary code.
        rope_rescale: in training, coordinates are multiplied by a factor drawn log-uniformly from
            [1 / rope_rescale, rope_rescale]; None for no such jitter.
        img_layers: blocks of each branch.
        prescale: how an image of more than 4 times the output is reduced first: ``"released"`` as
            the published model does, to at most 4 times the *shorter* side of the output on
            both axes, which bends the aspect ratio; ``"aspect"`` keeps it.
        rope_cache: keep the drawn factor as long as the output size stays the same, in eval mode
            too, as the released training did (there the factor was drawn once per run). False
            draws for each training step and never rescales in eval mode.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("naf", dim=32).eval()
        >>> up(torch.randn(1, 3, 36, 48), torch.randn(1, 8, 9, 12)).shape
        torch.Size([1, 8, 36, 48])
    """

    info = UpsamplerInfo(
        name="naf",
        summary="Neighbourhood attention from a filtered image to any backbone's features.",
        paper="NAF: Zero-Shot Feature Upsampling via Neighborhood Attention Filtering",
        year=2025,
        arxiv="2511.18452",
        code="https://github.com/valeoai/NAF",
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        universal=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )

    def __init__(
        self,
        dim: int = 256,
        heads_attn: int = 4,
        heads_rope: int = 4,
        kernel_size: int = 9,
        rope_base: float = 100.0,
        rope_rescale: float | None = 2.0,
        img_layers: int = 2,
        prescale: Literal["released", "aspect"] = "released",
        rope_cache: bool = True,
    ) -> None:
        super().__init__()
        if dim % (4 * heads_rope) or dim % heads_attn or dim % (2 * GROUPS):
            raise ValueError(
                f"dim={dim} must be divisible by 4 x heads_rope={4 * heads_rope}, by heads_attn="
                f"{heads_attn} and by {2 * GROUPS} (two branches of {GROUPS} norm groups)"
            )
        if prescale not in ("released", "aspect"):
            raise ValueError(f"prescale must be 'released' or 'aspect', got {prescale!r}")
        if rope_rescale is not None and rope_rescale < 1:
            raise ValueError(f"rope_rescale must be at least 1 or None, got {rope_rescale}")
        self.heads_attn, self.heads_rope, self.kernel_size = heads_attn, heads_rope, kernel_size
        self.rope_rescale, self.rope_cache, self.prescale = rope_rescale, rope_cache, prescale
        self._rescaled: tuple[tuple[int, int], float] | None = None
        self.pixel = Branch(dim // 2, 1, img_layers)
        self.context = Branch(dim // 2, 3, img_layers)
        half = dim // heads_rope // 2
        exponents = 2 * torch.arange(half // 2, dtype=torch.float32) / half
        self.periods: Tensor
        self.register_buffer("periods", rope_base**exponents)  # (D / (4 heads_rope),)

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        for name, tensor in (("features", features), ("values", values)):
            if tensor is not None and tensor.shape[1] % self.heads_attn:
                channels = tensor.shape[1]
                raise ValueError(
                    f"naf gives each of its {self.heads_attn} heads a group of channels; {name} "
                    f"{shape_text(tensor)} have {channels}: pad them with zeros to "
                    f"{channels + -channels % self.heads_attn} and drop the surplus of the output"
                )
        if min(self.guidance_size(image, output_size)) < 2:
            raise ValueError(
                f"naf reflects the borders of the guidance image and needs at least 2x2 pixels, got "
                f"{shape_text(image)}; enlarge the image"
            )
        for axis, name in enumerate(("rows", "columns")):
            cells, length = features.shape[2 + axis], output_size[axis]
            dilation = length // cells
            if dilation < 1:
                raise ValueError(
                    f"naf cannot reduce: the output has {length} {name}, the features {cells}; ask "
                    "for an output at least as large as the feature grid"
                )
            if self.kernel_size * dilation > length:
                raise ValueError(
                    f"naf needs kernel_size x dilation <= output size: {self.kernel_size} x {dilation} "
                    f"> {length} {name}, because the feature grid has only {cells} {name}; give a "
                    f"larger image to the backbone (a grid of {self.kernel_size} at least), or build "
                    f"naf with kernel_size={cells}"
                )

    def guidance_size(self, image: Tensor, output_size: tuple[int, int]) -> tuple[int, int]:
        """The size at which the image is looked at."""
        height, width = image.shape[-2:]
        most = (GUIDANCE_FACTOR * output_size[0], GUIDANCE_FACTOR * output_size[1])
        if height <= most[0] and width <= most[1]:
            return height, width
        if self.prescale == "released":
            return min(height, *most), min(width, *most)
        factor = max(height / most[0], width / most[1])
        return max(1, round(height / factor)), max(1, round(width / factor))

    def _prescaled(self, image: Tensor, output_size: tuple[int, int]) -> Tensor:
        size = self.guidance_size(image, output_size)
        return image if image.shape[-2:] == size else F.interpolate(image, size, mode="bilinear")

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        angles = self.angles(output_size, self.rescaling(output_size))
        image = self._prescaled(image, output_size)
        x = torch.cat((self.pixel(image), self.context(image)), dim=1)  # (B, D, H, W)
        query = rotate(F.adaptive_avg_pool2d(x, output_size), angles, self.heads_rope)
        grid = (features.shape[2], features.shape[3])
        key = F.adaptive_avg_pool2d(query, grid)  # (B, D, h, w)
        return cross_scale_neighborhood_attention(
            query, key, values, self.heads_attn, kernel_size=self.kernel_size
        )

    def rescaling(self, output_size: tuple[int, int]) -> float:
        """The factor on the coordinates of the rotary code: drawn in training, else 1."""
        if self.rope_cache and self._rescaled is not None and self._rescaled[0] == output_size:
            return self._rescaled[1]
        factor = 1.0
        if self.training and self.rope_rescale is not None:
            reach = math.log(self.rope_rescale)
            factor = math.exp(torch.empty(()).uniform_(-reach, reach).item())
        if self.rope_cache:
            self._rescaled = (output_size, factor)
        return factor

    def angles(
        self, output_size: tuple[int, int], factor: float = 1.0, rows: slice = slice(None)
    ) -> Tensor:
        """Angles of the rotary code for output rows: (D / (2 heads_rope), rows, W'), float32 at least.

        The first half of the channels turns with the row, the second with the column.
        """
        wide = torch.promote_types(self.periods.dtype, torch.float32)
        turns = []
        for length in output_size:
            index = torch.arange(length, device=self.periods.device, dtype=wide)
            coordinate = (2 * ((index + 0.5) / length) - 1) * factor  # (L,) in [-1, 1]
            turns.append(2 * math.pi * coordinate / self.periods.to(wide)[:, None])  # (q, L)
        row, col = turns[0][:, rows], turns[1]
        size = (len(row), row.shape[1], col.shape[1])  # (q, rows, W')
        return torch.cat((row[:, :, None].expand(size), col[:, None, :].expand(size)))

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; ``heads_attn`` and ``kernel_size`` leave no trace in the tensors."""
        own = cls.convert_official(state)
        dim = 2 * own["pixel.stem.weight"].shape[0]
        blocks = {key.split(".")[2] for key in own if key.startswith("pixel.blocks.")}
        return {
            "dim": dim,
            "heads_rope": dim // (4 * own["periods"].numel()),
            "img_layers": len(blocks),
        }

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of an official state dict; ours pass unchanged."""
        return {_own_key(key): value for key, value in state.items()}
