"""NAF: neighbourhood attention between a filtered image and any backbone's features.

Paper: Chambon et al., "NAF: Zero-Shot Feature Upsampling via Neighborhood Attention Filtering",
2025, arXiv 2511.18452. Original: github.com/valeoai/NAF (Apache-2.0). Weights: its release page.

Two small convolutional branches look at the image; their output, rotated by its position, gives the
queries, and pooled to the features' grid the keys. The features enter as values only, so one model
serves every backbone. Channel group g takes the weights of head g: a linear head that mixes groups
does not commute with NAF.

Legend: B batch, K value channels, h w feature grid, H W image, H' W' output, D query channels.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.errors import shape_text
from upfeat.ops import cross_scale_neighborhood_attention, rotary_code, stream
from upfeat.ops.images import average_areas
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.naf_diveup import DIVEUP, check_grid, clamped_dilation
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import NOT_COMPARED, Checkpoint

GROUPS = 8  # of the group norms
ADDRESS = "https://github.com/valeoai/NAF/releases/download/model"
GUIDANCE_FACTOR = 4  # the image is reduced when it is more than this times the output


def convolution(in_dim: int, dim: int, size: int) -> nn.Conv2d:
    """Build a convolution that keeps the size of a map; borders are reflected."""
    mode: Literal["reflect", "zeros"] = "reflect" if size > 1 else "zeros"
    return nn.Conv2d(in_dim, dim, size, padding=size // 2, padding_mode=mode)


class Block(nn.Module):
    """Group norm, SiLU, convolution, twice; no residual."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, dim), nn.GroupNorm(GROUPS, dim)
        self.conv1, self.conv2 = convolution(dim, dim, size), convolution(dim, dim, size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D/2, H, W) to the same."""
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Branch(nn.Module):
    """A stem convolution and blocks, all of one kernel size."""

    def __init__(self, dim: int, size: int, blocks: int) -> None:
        super().__init__()
        self.stem = convolution(3, dim, size)
        self.blocks = nn.Sequential(*(Block(dim, size) for _ in range(blocks)))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D/2, H, W)."""
        return self.blocks(self.stem(image))


class NAFState(NamedTuple):
    """Queries (B, D, H', W') and keys (B, D, h, w)."""

    query: stream.Map
    key: Tensor


def _own_key(key: str) -> str:
    """Rename an official key; blocks are counted from 1 there."""
    key = key.removeprefix("image_encoder.")
    match = re.match(r"(encoder|sem_encoder)\.(\d+)\.(.*)", key)
    if match is None:
        return "periods" if key == "rope.periods" else key
    branch, index = "context" if match[1] == "sem_encoder" else "pixel", int(match[2])
    return f"{branch}.blocks.{index - 1}.{match[3]}" if index else f"{branch}.stem.{match[3]}"


CHECKPOINTS = (
    Checkpoint(
        tag="release",
        file=HubFile(filename="naf_release.pth", url=f"{ADDRESS}/naf_release.pth"),
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
    DIVEUP,
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
        prescale: how an image of more than 4 times the output is reduced first: ``"released"``, as
            published, to at most 4 times the *shorter* side of the output on both axes, which bends
            the aspect ratio; ``"aspect"`` keeps it.
        rope_cache: keep the drawn factor while the output size stays the same, as released.
        clamp_dilation: as DiveUp (arXiv 2603.13571): the neighbourhood of a grid smaller than the
            kernel is drawn together until it fits the output, and outputs may be smaller than the
            features. Other grids give the same numbers.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("naf", dim=32).eval()
        >>> up(torch.randn(1, 3, 36, 48), torch.randn(1, 8, 9, 12)).shape
        torch.Size([1, 8, 36, 48])
    """

    info = UpsamplerInfo(
        name="naf",
        summary="Neighbourhood attention from a filtered image to any backbone's features.",
        when=(
            "You have any backbone and can download one file; each pixel attends to nearby cells "
            "only."
        ),
        claim=(
            "Upsamples any backbone's features without retraining, faster than earlier attention."
        ),
        as_baseline=NOT_COMPARED,
        paper="NAF: Zero-Shot Feature Upsampling via Neighborhood Attention Filtering",
        year=2025,
        arxiv="2511.18452",
        code="https://github.com/valeoai/NAF",
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        abilities=Abilities(universal=True, tiles=True),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    streams = True
    periods: Tensor  # of the rotary code, (D / (4 heads_rope),)

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
        clamp_dilation: bool = False,
    ) -> None:
        super().__init__()
        if dim % (4 * heads_rope) or dim % heads_attn or dim % (2 * GROUPS):
            raise ValueError(
                f"dim={dim} must be divisible by 4 x heads_rope={4 * heads_rope}, heads_attn="
                f"{heads_attn} and {2 * GROUPS} (two branches of {GROUPS} norm groups)"
            )
        if prescale not in ("released", "aspect"):
            raise ValueError(f"prescale must be 'released' or 'aspect', got {prescale!r}")
        if rope_rescale is not None and rope_rescale < 1:
            raise ValueError(f"rope_rescale must be at least 1 or None, got {rope_rescale}")
        self.heads_attn, self.heads_rope, self.kernel_size = heads_attn, heads_rope, kernel_size
        self.rope_rescale, self.rope_cache, self.prescale = rope_rescale, rope_cache, prescale
        self.clamp_dilation = clamp_dilation
        self._rescaled: tuple[tuple[int, int], float] | None = None
        self.pixel = Branch(dim // 2, 1, img_layers)
        self.context = Branch(dim // 2, 3, img_layers)
        count = dim // (4 * heads_rope)
        self.register_buffer("periods", rope_base ** (torch.arange(count).float() / count))

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
            what = "naf reflects the borders of the guidance image and needs at least 2x2 pixels"
            raise ValueError(f"{what}, got {shape_text(image)}; enlarge the image")
        grid = (features.shape[2], features.shape[3])
        check_grid(grid, output_size, self.kernel_size, self.clamp_dilation)

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

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> NAFState:
        """Queries from the image; keys are their averages over the cells of the features."""
        size = self.guidance_size(image, output_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear")
        image = stream.lazy(image)
        query = torch.cat((self.pixel(image), self.context(image)), dim=1)  # (B, D, H, W)
        query = average_areas(query, output_size)
        query = rotary_code(query, self.periods, self.heads_rope, self.rescaling(output_size))
        key = average_areas(query, (features.shape[2], features.shape[3]))
        return NAFState(query, stream.whole(key))

    def decode(self, state: NAFState, values: Tensor, rows: slice) -> Tensor:
        """Attend to the neighbourhood of every pixel; channel group g takes head g's weights."""
        size = (state.query.shape[2], state.query.shape[3])
        grid = (values.shape[2], values.shape[3])
        steps = clamped_dilation(grid, size, self.kernel_size) if self.clamp_dilation else None
        return cross_scale_neighborhood_attention(
            state.query[:, :, rows],
            state.key,
            values,
            self.heads_attn,
            kernel_size=self.kernel_size,
            output_size=size,
            dilation=steps,
            rows=(rows.start, rows.stop),
        )

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of values, and of queries and what they are made of."""
        return output_size[1] * (values.shape[1] + 3 * self.config["dim"])

    def rescaling(self, output_size: tuple[int, int]) -> float:
        """Draw the factor on the coordinates of the rotary code in training; it is 1 otherwise."""
        if not self.training or self.rope_rescale is None:
            return 1.0
        if not self.rope_cache or self._rescaled is None or self._rescaled[0] != output_size:
            reach = math.log(self.rope_rescale)
            self._rescaled = output_size, math.exp(torch.empty(()).uniform_(-reach, reach).item())
        return self._rescaled[1]

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; ``heads_attn`` and ``kernel_size`` leave no trace in the tensors."""
        own = cls.convert_official(state)
        dim, quarter = 2 * len(own["pixel.stem.weight"]), 4 * own["periods"].numel()
        blocks = {key.split(".")[2] for key in own if key.startswith("pixel.blocks.")}
        return {"dim": dim, "heads_rope": dim // quarter, "img_layers": len(blocks)}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of an official state dict; ours pass unchanged."""
        return {_own_key(key): value for key, value in state.items()}
