"""PixelUp: attention whose queries grow, stage by stage, from a frozen ConvNeXt's features.

Paper: "PixelUp", 2026, arXiv 2608.02792. Original: github.com/deepankkumar/PixelUp v0.1.0, which
could not be read; this follows what its port in github.com/shijie-at-me/NAF (40d9ad97) computes.

The image, enlarged, goes through a frozen ConvNeXt and a small pixel encoder. From coarse to fine,
queries are doubled, take in the next finer stage, and attend to it. With a spiral rotary code they
are the decoder's queries, and pooled to the features' grid its keys. One set of weights, the mean
of the heads, mixes all channels of the raw features.

Departures: the original's decoder computes in bfloat16, which moves its output by up to 0.02. The
options of its code that no published file uses are left out.

Legend: B batch, K value channels, h w feature grid, H W image, H' W' output, D query channels,
S T an encoder's map.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.errors import shape_text
from upfeat.layers.norm import RMSNorm
from upfeat.ops import cross_scale_neighborhood_attention
from upfeat.ops.images import Size, average_areas, normalize, resize_bilinear
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.pixelup_guide import (
    ENCODERS,
    GROUPS,
    PIXEL_STRIDE,
    STRIDES,
    Enlarged,
    PixelEncoder,
    SpiralCode,
    StageAttention,
    frozen_encoder,
    over_channels,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to
from upfeat.upsamplers.weights import NOT_COMPARED, Checkpoint

UNUSED = ("refiner.", "ce.", "proj_s")  # keys of official files that no output depends on


class HeadProjection(nn.Module):
    """Norms and projections of the decoder's queries and keys."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)
        self.q_proj, self.k_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))


class PixelUpState(NamedTuple):
    """The code at the output or a multiple of it, (B, D, nH', nW'), keys (B, D, h, w), and n."""

    code: Tensor
    key: Tensor
    multiple: int


def _record(letter: str, size: str) -> Checkpoint:
    name = f"convnext_{size}.dinov3_lvd1689m"
    address = "https://github.com/deepankkumar/PixelUp/releases/download/v0.1.0"
    return Checkpoint(
        tag=f"convnext_{letter}",
        file=HubFile(
            filename=f"pixelup_convnext_{letter}.pth",
            url=f"{address}/pixelup_convnext_{letter}.pth",
        ),
        backbone=f"any (guided by timm/{name}, which the file holds)",
        feature_dim=None,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="134,473 images of SA-1B and COCO, as a reader of the paper reports",
        code_license="MIT, as its port says",
        weights_license="not stated; the file holds a DINOv3 network",
        backbone_license="DINOv3 License",
        paper="2608.02792",
        config={"encoder": name},
        note="Not tried: the release could not be reached when this was written.",
    )


@register_upsampler("pixelup", checkpoints=(_record("s", "small"), _record("t", "tiny")))
class PixelUp(Upsampler):
    """PixelUp (arXiv 2608.02792): queries grown from a frozen ConvNeXt, one set of weights.

    The guidance has semantics of its own, so a comparison with methods that see the image alone is
    not like for like. Files of ``save_pretrained`` hold the encoder, whose licence binds them.

    Args:
        d_enc: D, channels of queries and keys.
        num_heads_encoder: heads of the attention to the encoder's stages.
        num_heads_decoder: heads of the attention to the features.
        rope_directions: of the spiral code; D must be divisible by four times as many.
        kernel_size: side of the neighbourhoods, in cells.
        semantic_scale: the encoder's image, in sizes of the output, rounded to multiples of 32.
        smallest_side: of the encoder's image; smaller outputs are averages of a larger one.
        encoder: a ConvNeXt of timm, frozen.
        encoder_weights: where a new instance takes the encoder's weights from: a file in timm's
            layout, or ``"timm"`` for the published ones (local folders, then the hub); None: random
            ones, until a file is loaded.

    Raises:
        ValueError: channels that do not divide, or a kernel wider than the coarsest stage.

    Example:
        >>> import torch, upfeat
        >>> options = {"d_enc": 32, "num_heads_encoder": 2, "num_heads_decoder": 2}
        >>> options |= {"rope_directions": 4, "kernel_size": 3, "smallest_side": 96}
        >>> up = upfeat.create_upsampler("pixelup", encoder="test_convnext", **options).eval()
        >>> up(torch.randn(1, 3, 48, 64), torch.randn(1, 8, 6, 8)).shape
        torch.Size([1, 8, 48, 64])
    """

    info = UpsamplerInfo(
        name="pixelup",
        summary="Attention with queries grown from a frozen ConvNeXt, one set of weights.",
        when="You can afford a second network as guide; its semantics help where colours do not.",
        claim="Sharper and more accurate segmentation than NAF, above all near boundaries.",
        as_baseline=NOT_COMPARED,
        paper="PixelUp",
        year=2026,
        arxiv="2608.02792",
        code="https://github.com/deepankkumar/PixelUp",
        code_license="MIT, as its port says",
        weights_license="not stated; the files hold a DINOv3 network",
        abilities=Abilities(linear=True, universal=True, tiles=True),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )

    def __init__(
        self,
        d_enc: int = 384,
        num_heads_encoder: int = 6,
        num_heads_decoder: int = 6,
        rope_directions: int = 16,
        kernel_size: int = 9,
        semantic_scale: float = 2.0,
        smallest_side: int = 576,
        encoder: str = "convnext_small.dinov3_lvd1689m",
        encoder_weights: str | None = None,
    ) -> None:
        super().__init__()
        parts = (GROUPS, 4 * rope_directions, num_heads_encoder, num_heads_decoder)
        if any(d_enc % part for part in parts) or d_enc == 4 * rope_directions:
            raise ValueError(
                f"d_enc={d_enc} must be divisible by {GROUPS}, both numbers of heads and 4 x "
                f"rope_directions={parts[1]}, and larger than that; got heads {parts[2:]}"
            )
        if smallest_side // STRIDES[-1] < kernel_size:
            raise ValueError(
                f"kernel_size={kernel_size} needs smallest_side of at least "
                f"{STRIDES[-1] * kernel_size}, got {smallest_side}"
            )
        self.heads, self.kernel_size = num_heads_decoder, kernel_size
        self.semantic_scale = semantic_scale
        self.smallest_output = math.ceil(smallest_side / semantic_scale)
        self.encoder = frozen_encoder(encoder, encoder_weights)
        self.config["encoder_weights"] = None  # they are part of the state dict from now on
        self.pixel_enc = PixelEncoder(d_enc)
        for level, width in enumerate(self.encoder.feature_info.channels()):  # type: ignore[operator, union-attr]
            self.add_module(f"up_s{level}", Enlarged(width, d_enc))
            if level:
                attention = StageAttention(d_enc, width, num_heads_encoder, kernel_size)
                self.add_module(f"cross_s{level}", attention)
        self.smooth = nn.Conv2d(d_enc, d_enc, 1, bias=False)
        nn.init.dirac_(self.smooth.weight)
        self.rope = SpiralCode(d_enc, rope_directions)
        self.attention = HeadProjection(d_enc)

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        multiple = self.multiple(output_size)
        for axis, name in enumerate(("rows", "columns")):
            cells, length = features.shape[2 + axis], multiple * output_size[axis]
            if self.kernel_size * max(1, length // cells) > length:
                raise ValueError(
                    f"pixelup looks at {self.kernel_size} cells along each axis, the feature grid "
                    f"{shape_text(features)} has {cells} {name}; enlarge the backbone's image "
                    f"until it has {self.kernel_size}, or build pixelup with kernel_size={cells}"
                )

    def multiple(self, output_size: tuple[int, int]) -> int:
        """Return how many times larger than the output the map is that is averaged."""
        return -(-self.smallest_output // min(self.smallest_output, *output_size))

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> PixelUpState:
        """Grow the queries and pool the keys out of them."""
        multiple = self.multiple(output_size)
        size = (multiple * output_size[0], multiple * output_size[1])
        code = self.rope(self.smooth(self.queries(image, size)))  # (B, D, 8S, 8T)
        keys = average_areas(code, (features.shape[2], features.shape[3]))
        keys = over_channels(self.attention.k_proj, over_channels(self.attention.norm_k, keys))
        larger = code.shape[2] >= size[0] and code.shape[3] >= size[1]
        code = average_areas(code, size) if larger else resize_to(code, size)
        return PixelUpState(code, keys, multiple)

    def queries(self, image: Tensor, size: Size) -> Tensor:
        """Grow queries of an image for an output size: (B, D, 8S, 8T), S T the coarsest stage."""
        stride = STRIDES[-1]
        height, width = (
            stride * max(1, round(self.semantic_scale * side / stride)) for side in size
        )
        mean, std = (image.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        colors = (image * std + mean).clamp(0, 1)
        guide = normalize(resize_bilinear(colors, (height, width)), IMAGENET_MEAN, IMAGENET_STD)
        stages = self.encoder(guide.detach())  # (B, C, S, T) each, the finest first
        query = resize_bilinear(guide, (height // PIXEL_STRIDE, width // PIXEL_STRIDE))
        query = self.pixel_enc(query)
        for level in range(len(stages) - 1, -1, -1):
            stage = stages[level]
            if stage is not stages[-1]:
                query = F.interpolate(query, scale_factor=2.0, mode="bilinear")
            query = query + self.get_submodule(f"up_s{level}")(stage)
            if level:  # the attention adds its queries already: as released, they count twice
                query = query + self.get_submodule(f"cross_s{level}")(query, stage)
        return query

    def decode(self, state: PixelUpState, values: Tensor, rows: slice) -> Tensor:
        """Attend to the neighbourhood of every pixel with the mean of the heads' weights."""
        size = (state.code.shape[2], state.code.shape[3])
        cells = (values.shape[2], values.shape[3])
        fine = slice(state.multiple * rows.start, state.multiple * rows.stop)
        code = over_channels(self.attention.norm_q, state.code[:, :, fine])
        steps = (max(1, size[0] // cells[0]), max(1, size[1] // cells[1]))
        reduces = size[0] < cells[0] or size[1] < cells[1]
        out = cross_scale_neighborhood_attention(
            over_channels(self.attention.q_proj, code),
            state.key,
            values,
            self.heads,
            kernel_size=self.kernel_size,
            output_size=size,
            dilation=steps if reduces else None,
            head_values="shared",
            rows=(fine.start, fine.stop),
        )
        return out if state.multiple == 1 else F.avg_pool2d(out, state.multiple)

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count the rows of values and of queries that one output row averages."""
        pixels = self.multiple(output_size) ** 2 * output_size[1]
        return pixels * (values.shape[1] + 2 * self.config["d_enc"])

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read sizes and encoder; heads, kernel and scale leave no trace in the tensors."""
        own = cls.convert_official(state)
        dim, width = len(own["smooth.weight"]), own["up_s0.conv.weight"].shape[1]
        blocks = {key.split(".")[3] for key in own if key.startswith("encoder.stages_2.blocks.")}
        config: dict[str, Any] = {
            "d_enc": dim,
            "rope_directions": dim // (2 * len(own["rope.freqs"])),
        }
        if (width, len(blocks)) in ENCODERS:
            config["encoder"] = ENCODERS[width, len(blocks)]
        return config

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the encoder's keys and drop what is unused; ours pass unchanged."""
        own = {}
        for key, value in state.items():
            name = key.removeprefix("module.")
            inner = name.removeprefix("semantic_encoder.model.").removeprefix("convnext.model.")
            if not name.startswith(UNUSED):
                own[name if inner == name else f"encoder.{inner}"] = value
        return own
