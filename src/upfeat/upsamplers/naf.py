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
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.errors import shape_text
from upfeat.ops import cross_scale_neighborhood_attention
from upfeat.ops._dispatch import Scratch, records_graph
from upfeat.ops.banded_convolution import prepare_kernel
from upfeat.ops.banded_pooling import PooledRows, pool_columns, pooling_weights
from upfeat.ops.group_moments import band_pixels
from upfeat.ops.memory import new_large
from upfeat.ops.normed_convolutions import GroupNormWeights, NormedConvolutions
from upfeat.ops.padding import reflect_pad
from upfeat.ops.rotary_code import grid_turn, rotate_pairs
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Tile,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

Span = tuple[int, int]

BAND_BYTES = 64 * 2**20  # of queries per call of the attention, outside tiles()
GROUPS = 8  # of the group norms
KEPT_BYTES = (
    2304 * 2**20
)  # what maps of one image may take in inference; larger ones are recomputed
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
    return conv(reflect_pad(x, conv.kernel_size[0] // 2))


def _encoded(branch: Branch, image: Tensor, scratch: Scratch, keep: bool) -> NormedConvolutions:
    """A branch over one image (3, H, W), to be read in row bands."""
    convs = [branch.stem, *(conv for _, conv in branch.stages())]
    dtype = image.dtype
    kernels = [prepare_kernel(conv.weight.to(dtype), conv.bias.to(dtype)) for conv in convs]  # type: ignore[union-attr]
    norms = [
        GroupNormWeights(norm.num_groups, norm.eps, norm.weight, norm.bias)
        for norm, _ in branch.stages()
    ]
    return NormedConvolutions(image, kernels, norms, scratch, keep)


def _grid(features: Tensor) -> tuple[int, int]:
    return features.shape[2], features.shape[3]


class _Queries:
    """Queries and keys of one image for inference, in bounded memory.

    The keys are the pooled queries, so all queries are computed once before the first row of the
    output; they are kept if they fit into the budget and computed a second time otherwise.
    """

    def __init__(
        self,
        model: "NAF",
        image: Tensor,
        output_size: tuple[int, int],
        grid: tuple[int, int],
        factor: float,
        budget: int = KEPT_BYTES,
    ) -> None:
        self.model, self.output_size, self.factor = model, output_size, factor
        device = image.device.type
        if torch.is_autocast_enabled(device):
            image = image.to(torch.get_autocast_dtype(device))
        self.size, self.width = (image.shape[1], image.shape[2]), model.config["dim"]
        scratch = Scratch(image, image.dtype)
        bytes_of = image.element_size() * self.width
        keep = bytes_of * output_size[0] * output_size[1]
        branch = bytes_of // 2 * self.size[0] * self.size[1]
        with torch.autocast(device, enabled=False):
            context = _encoded(model.context, image, scratch, keep=branch <= budget)
            budget -= branch if context.map is not None else 0
            pixel = _encoded(model.pixel, image, scratch, keep=branch <= budget)
            budget -= branch if pixel.map is not None else 0
            self.branches = [pixel, context]
            self.map = new_large(image, *output_size, self.width) if keep <= budget else None
            self.key = self._pool(grid, image)
        if self.map is not None:
            self.branches = []

    def _pool(self, grid: tuple[int, int], image: Tensor) -> Tensor:
        """Run over all queries once; returns the keys (1, D, h, w)."""
        height, width = self.output_size
        wide = torch.promote_types(image.dtype, torch.float32)
        weights = pooling_weights(height, grid[0], image.device).to(wide)  # (h, H')
        key = image.new_zeros(grid[0], grid[1] * self.width, dtype=wide)
        step = max(1, band_pixels(image.new_empty(0, self.width)) // width)
        for start, stop, rows in self._rotated(step):
            if self.map is not None:
                self.map[start:stop] = rows
            pooled = pool_columns(rows, grid[1]).flatten(1)  # (R, w * D)
            key.addmm_(weights[:, start:stop], pooled.to(wide))
        return key.view(1, *grid, self.width).permute(0, 3, 1, 2).to(image.dtype)

    def _rotated(self, step: int) -> Iterator[tuple[int, int, Tensor]]:
        """A pass over the queries: start, stop, (R, W', D)."""
        model, readers = self.model, [branch.reader() for branch in self.branches]

        def encoded(start: int, stop: int) -> Tensor:
            # The readers share buffers: the first one's rows are copied before the second reads.
            both = self.branches[0].scratch.take("both", stop - start, self.size[1], self.width)
            for part, read in zip(both.chunk(2, dim=-1), readers, strict=True):
                part.copy_(read(start, stop))
            return both

        pooled = PooledRows(encoded, self.size, self.output_size)
        for start in range(0, self.output_size[0], step):
            stop = min(start + step, self.output_size[0])
            turn = grid_turn(self.output_size, model.periods, self.factor, slice(start, stop))
            yield start, stop, rotate_pairs(pooled.read(start, stop), turn, model.heads_rope)

    def bands(self, max_bytes: int, channels: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Bands of queries: start, stop, (1, D, R, W'); rows of ``channels`` must fit, too."""
        height, width = self.output_size
        row_bytes = width * max(self.width, channels) * self.key.element_size()
        step = min(height, max(1, max_bytes // row_bytes))
        if self.map is None:
            bands = self._rotated(step)
        else:
            edges = [(start, min(start + step, height)) for start in range(0, height, step)]
            bands = ((start, stop, self.map[start:stop]) for start, stop in edges)
        for start, stop, rows in bands:
            yield start, stop, rows.permute(2, 0, 1)[None]


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
        claim=(
            "Upsamples any backbone's features without retraining, faster than earlier attention."
        ),
        as_baseline={
            "JAFAR": "not compared (published later)",
            "LoftUp": "not compared (published later)",
        },
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
                "naf reflects the borders of the guidance image and needs at least 2x2 pixels, got "
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
                    f"naf needs kernel_size x dilation <= output size, got {self.kernel_size} x "
                    f"{dilation} > {length} {name}, as the feature grid has only {cells} {name}; "
                    f"enlarge the backbone's image until the grid has {self.kernel_size}, or build "
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
        image = self._prescaled(image, output_size)
        factor = self.rescaling(output_size)
        if not records_graph():
            return self._in_bands(image, features, output_size, values, factor)
        x = torch.cat((self.pixel(image), self.context(image)), dim=1)  # (B, D, H, W)
        x = F.adaptive_avg_pool2d(x, output_size).permute(0, 2, 3, 1)  # (B, H', W', D)
        turn = grid_turn(output_size, self.periods, factor)
        query = rotate_pairs(x, turn, self.heads_rope).permute(0, 3, 1, 2)
        key = F.adaptive_avg_pool2d(query, _grid(features))  # (B, D, h, w)
        return self._attend(query, key, values, output_size, (0, output_size[0]))

    def _attend(
        self, query: Tensor, key: Tensor, values: Tensor, output_size: tuple[int, int], rows: Span
    ) -> Tensor:
        """Some rows of the output: (B, D, R, W'), (B, D, h, w), (B, K, h, w) -> (B, K, R, W')."""
        return cross_scale_neighborhood_attention(
            query,
            key,
            values,
            self.heads_attn,
            kernel_size=self.kernel_size,
            output_size=output_size,
            rows=rows,
        )

    def _in_bands(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        factor: float,
    ) -> Tensor:
        height, width = output_size
        out: Tensor | None = None
        for i in range(len(image)):
            queries = _Queries(self, image[i], output_size, _grid(features), factor)
            for start, stop, query in queries.bands(BAND_BYTES):
                part = self._attend(
                    query, queries.key, values[i : i + 1], output_size, (start, stop)
                )
                if part.shape[2] == height and len(image) == 1:
                    return part
                if out is None:
                    out = new_large(part, len(image), height, width, part.shape[1])
                out[i, start:stop] = part[0].permute(1, 2, 0)
        assert out is not None  # check_call refuses empty batches
        return out.permute(0, 3, 1, 2)  # (B, K, H', W'), channels last in memory

    @torch.no_grad()
    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        width = output_size[1]
        image = self._prescaled(image, output_size)
        factor = self.rescaling(output_size)
        every = [
            _Queries(self, one, output_size, _grid(features), factor, KEPT_BYTES // len(image))
            for one in image
        ]
        key = torch.cat([queries.key for queries in every])  # (B, D, h, w)
        # Shares of the budget: a third each for the tile, its queries and the attention's buffers.
        for bands in zip(
            *(q.bands(max_bytes // (3 * len(image)), values.shape[1]) for q in every), strict=True
        ):
            start, stop = bands[0][:2]
            query = torch.cat([band[2] for band in bands])  # (B, D, R, W')
            tile = self._attend(query, key, values, output_size, (start, stop))
            yield slice(start, stop), slice(0, width), tile

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
