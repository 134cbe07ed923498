"""FeatUp's joint bilateral upsampler: four learned x2 stages, guided by the image.

Paper: Fu, Hamilton, Brandt, Feldman, Zhang, Freeman, "FeatUp: A Model-Agnostic Framework for
Features at Any Resolution", ICLR 2024, arXiv 2403.10516. Original: github.com/mhamilton723/FeatUp
(MIT). Weights: Lightning checkpoints on the authors' Azure storage (same repository).

A stage (section 3.2) resizes the features bicubically to twice their size and mixes, around every
pixel, 7 x 7 of them with

    K = normalise(softmax(tau <P(p + t), P(p)>) exp(-|t|^2 / (2 sigma^2))) + 0.1 MLP(K, image)

where P is a projection of the image, averaged to the stage's size. The correction by the small
network is not renormalised: weights may be negative, and need not sum to one.

Bicubic resizing is linear, so resizing and mixing are one sum over 7 x 7 *coarse* cells, whose
weights are K times the two axes' resizing matrices; neither the resized map nor its windows are
ever built. The last layer, out = s + 0.1 (W s + b), commutes with a sum that is the same for all
channels: outside of training it is applied to the coarse features, and 0.1 b to the output.

Legend: B batch, C channels, h w a stage's source, H W = 2h 2w its guidance, k = 7.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import OMEGACONF_GLOBALS, HubFile
from upfeat.errors import shape_text
from upfeat.ops import adaptive_convolution, window_similarity
from upfeat.ops.images import average_areas, border_index, reflect_pad, resize_bilinear
from upfeat.ops.runtime import without_autocast
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

RADIUS = 3
SIDE = 2 * RADIUS + 1
KEY_DIM = 32
STAGES = 4


Taps = tuple[Tensor, Tensor]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel; its affine part is a constant, never trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        last = x.permute(0, 2, 3, 1)
        out = F.layer_norm(last, last.shape[3:], self.weight, self.bias)
        return out.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """One x2 stage (``JBULearnedRange``); the number of feature channels does not matter to it."""

    def __init__(self) -> None:
        super().__init__()
        taps = SIDE * SIDE
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = _mlp(3, KEY_DIM)
        self.fixup_proj = _mlp(taps + 3, taps)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        """Upsample (B, C, h, w) to the guidance's size, (B, 3, H, W) -> (B, C, H, W)."""
        size = (guidance.shape[2], guidance.shape[3])
        kernel = self.kernel(guidance, self.keys(guidance))
        if size == (2 * source.shape[2], 2 * source.shape[3]):
            return self.mix(source, kernel, taps_of(source), (0, size[0]))
        fine = F.interpolate(source, size, mode="bicubic")
        return adaptive_convolution(reflect_pad(fine, RADIUS), kernel)

    def mix(self, source: Tensor, kernel: Tensor, taps: Taps, rows: tuple[int, int]) -> Tensor:
        """Resize and mix (B, C, h, w) into fine rows (even to even): (B, C, rows, 2w)."""
        height = source.shape[2]
        down, across = taps[0][rows[0] : rows[1]], taps[1]  # (rows, k, k), (2w, k, k)
        coarse = torch.einsum("byxij,yiu,xjv->byxuv", kernel, down, across)
        first, last = rows[0] // 2 - RADIUS, rows[1] // 2 + RADIUS
        above, below = max(0, -first), max(0, last - height)
        part = source[:, :, max(0, first) : min(last, height)]
        return adaptive_convolution(F.pad(part, (RADIUS, RADIUS, above, below)), coarse, ratio=2)

    def keys(self, guidance: Tensor) -> Tensor:
        """Project the guidance and mirror its border: (B, 32, H + 6, W + 6)."""
        return reflect_pad(self.range_proj(guidance), RADIUS)

    def kernel(self, guidance: Tensor, keys: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """Weights of some rows of fine pixels: (B, rows, W, 7, 7)."""
        start, stop = rows or (0, guidance.shape[2])
        around = keys[:, :, start : stop + 2 * RADIUS]
        query = around[:, :, RADIUS:-RADIUS, RADIUS:-RADIUS]
        temperature = self.range_temp.exp().clamp(1e-4, 1e4)
        logits = temperature * window_similarity(query, around, SIDE)  # (B, rows, W, 7, 7)
        spatial = self.spatial().flatten().to(logits.dtype)
        weights = logits.flatten(3).softmax(-1) * spatial
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-7)
        seen = torch.cat((weights, guidance[:, :, start:stop].permute(0, 2, 3, 1)), -1)
        fixed = self.fixup_proj(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (weights + 0.1 * fixed).unflatten(3, (SIDE, SIDE))

    def spatial(self) -> Tensor:
        """The kernel over distance, not normalised: (7, 7), in float32 at least."""
        wide = torch.promote_types(self.sigma_spatial.dtype, torch.float32)
        sigma = self.sigma_spatial.to(wide)
        axis = torch.linspace(-1, 1, SIDE, device=sigma.device, dtype=sigma.dtype)
        square = axis[:, None].square() + axis.square()
        return torch.exp(-square / (2 * sigma.square()))


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(outputs, outputs, 1)
    )


def taps_of(source: Tensor) -> Taps:
    """Return `resizing_taps` of the rows and of the columns of a map (B, C, h, w)."""
    return resizing_taps(source.shape[2], source), resizing_taps(source.shape[3], source)


def resizing_taps(cells: int, like: Tensor) -> Tensor:
    """Share of 7 coarse cells in the 7 fine pixels around each one, on an axis: (2n, 7, 7).

    Row [p, i] says how fine pixel p + i - 3, mirrored at the border, comes from the coarse cells
    p // 2 - 3 ... p // 2 + 3 by bicubic resizing.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    eye = torch.eye(cells, device=like.device, dtype=wide)[None, None]
    matrix = F.interpolate(eye, (2 * cells, cells), mode="bicubic")[0, 0]  # (2n, n)
    fine = torch.arange(2 * cells, device=like.device)
    mirrored = border_index(2 * cells, RADIUS, "reflect").to(like.device)  # (2n + 6,)
    near = mirrored.unfold(0, SIDE, 1)  # (2n, 7): the pixels around each one
    cell = fine[:, None] // 2 + torch.arange(SIDE, device=like.device)  # (2n, 7), padded by 3
    padded = F.pad(matrix, [RADIUS] * 2)
    return padded[near[:, :, None], cell[:, None]].to(like.dtype)


def _record(tag: str, name: str, backbone: str, width: int, norm: bool = True) -> Checkpoint:
    folder = "" if norm else "no_norm/"
    filename = f"{name}_jbu_stack_cocostuff.ckpt"
    return Checkpoint(
        tag=tag,
        file=HubFile(filename=f"featup/{folder}{filename}", url=f"{AZURE}/{folder}{filename}"),
        backbone=backbone,
        feature_dim=width,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="COCO-Stuff, train",
        code_license="MIT",
        weights_license="MIT (repository)",
        backbone_license="as the backbone's",
        paper="2403.10516",
        note="Trained behind a norm of the channels, which the file holds."
        if norm
        else "Trained on the backbone's features as they are.",
    )


AZURE = "https://marhamilresearch4.blob.core.windows.net/feature-upsampling-public/pretrained"
_BACKBONES = (
    ("dino16", "dino16", "timm/vit_small_patch16_224.dino", 384),
    ("dinov2", "dinov2", "timm/vit_small_patch14_dinov2.lvd142m", 384),
    ("clip", "clip", "clip/ViT-B-16.openai(last_block='attention', image_norm='imagenet')", 512),
    ("vit", "vit", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 384),
    ("resnet50", "resnet50", "timm/resnet50.tv_in1k", 2048),
)
CHECKPOINTS = (
    *(_record(*row) for row in _BACKBONES),
    *(_record(f"{row[0]}_no_norm", *row[1:], norm=False) for row in _BACKBONES),
    _record("maskclip", "maskclip", "clip/ViT-B-16.openai(image_norm='imagenet')", 512, norm=False),
)


class State(NamedTuple):
    """What the last stage needs for any of its rows."""

    source: Tensor  # (B, C, 8h, 8w)
    guidance: Tensor  # (B, 3, 16h, 16w)
    keys: Tensor  # (B, 32, 16h + 6, 16w + 6)
    taps: Taps  # (16h, 7, 7) and (16w, 7, 7)
    output_size: tuple[int, int]


@register_upsampler("featup_jbu", checkpoints=CHECKPOINTS)
class FeatUpJBU(Upsampler):
    """FeatUp's joint bilateral upsampler (arXiv 2403.10516, section 3.2).

    The stack multiplies the grid by 16; any other output size is a bilinear resize of that.

    Args:
        feature_dim: C.
        channel_norm: normalise the channels of each pixel first, as the published variants "with
            norm" do; its affine part is constant. Read from the file for published weights.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("featup_jbu", feature_dim=8).eval()
        >>> up(torch.randn(1, 3, 28, 42), torch.randn(1, 8, 2, 3)).shape
        torch.Size([1, 8, 28, 42])
    """

    info = UpsamplerInfo(
        name="featup_jbu",
        summary="Four learned joint bilateral x2 stages (x16), then a bilinear resize.",
        when="Your backbone is one of those with published weights, or you compare with FeatUp.",
        claim=(
            "A feed-forward stack that restores lost resolution and can replace the features of a "
            "network in any task."
        ),
        as_baseline={
            "JAFAR": (
                "four x2 stages (x16), then bilinear; retrained on ImageNet for 50,000 steps of "
                "batch 4; the official DINOv2 file in a table of its own"
            ),
            "LoftUp": (
                "official variant; also retrained under LoftUp's objective, one epoch of 1 M "
                "images of SA-1B"
            ),
        },
        paper="FeatUp: A Model-Agnostic Framework for Features at Any Resolution",
        year=2024,
        arxiv="2403.10516",
        code="https://github.com/mhamilton723/FeatUp",
        code_license="MIT",
        weights_license="MIT (repository)",
        abilities=Abilities(mixes_values=False, any_size=False, tiles=True),
        factor=2**STAGES,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    whole_in_training = True
    overlap = 3  # fine rows between an output row's and its neighbours'
    official_keys = ("state_dict",)
    official_globals = OMEGACONF_GLOBALS

    def __init__(self, feature_dim: int, channel_norm: bool = True) -> None:
        super().__init__()
        self.channel_norm = ChannelNorm(feature_dim) if channel_norm else nn.Identity()
        for index in range(1, STAGES + 1):
            self.add_module(f"up{index}", Stage())
        self.fixup_proj = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(feature_dim, feature_dim, 1))

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        if min(features.shape[2:]) < 2:
            raise ValueError(
                f"featup_jbu mirrors its border and needs a grid of at least 2x2 cells, got "
                f"features {shape_text(features)}; enlarge the image"
            )

    def stages(self) -> list[Stage]:
        """The four stages in order."""
        return [self.get_submodule(f"up{index}") for index in range(1, STAGES + 1)]  # type: ignore[misc]

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> State:
        """Run three stages, and make the guidance of the last."""
        x = self.channel_norm(features)
        if not self.training:
            x = x + 0.1 * F.conv2d(x, self._last.weight)
        *first, last = self.stages()
        for stage in first:
            x = stage(x, _shrunk(image, x))
        guidance = _shrunk(image, x)
        return State(x, guidance, last.keys(guidance), taps_of(x), output_size)

    def decode(self, state: State, values: Tensor, rows: slice) -> Tensor:
        """Run the last stage for the fine rows between which the output's lie, and resize them."""
        fine, size = state.guidance.shape[2], state.output_size
        part = source_rows(rows, size[0], fine)
        stage = self.stages()[-1]
        kernel = stage.kernel(state.guidance, state.keys, part)
        x = stage.mix(state.source, kernel, state.taps, part)
        if self.training:
            x = x + 0.1 * self.fixup_proj(x)
        x = bilinear_rows(x, part[0], fine, rows, size)  # (B, C, r, 16w) -> (B, C, R, W')
        return x if self.training else x + 0.1 * cast(Tensor, self._last.bias)[:, None, None]

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count the fine rows of a row with their weights, and the row's resizing."""
        channels, height, width = features.shape[1:]
        fine = 2 ** (2 * STAGES) * height * width // output_size[0]
        return fine * (channels + 4 * SIDE * SIDE) + 3 * channels * output_size[1]

    @property
    def _last(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.fixup_proj[1])

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the width, and whether the file was trained behind a channel norm."""
        own = cls.convert_official(state)
        return {
            "feature_dim": own["fixup_proj.1.weight"].shape[0],
            "channel_norm": "channel_norm.weight" in own,
        }

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the stack, and the norm where there is one, out of a Lightning checkpoint.

        The backbone (``model.*``), the downsampler and the scale network lie beside them.
        """
        state = {
            key.replace("model.1.norm.", "channel_norm."): value for key, value in state.items()
        }
        own = {key.removeprefix("upsampler."): value for key, value in state.items()}
        kept = ("up1.", "up2.", "up3.", "up4.", "fixup_proj.", "channel_norm.")
        return {key: value for key, value in own.items() if key.startswith(kept)}


def _shrunk(image: Tensor, source: Tensor) -> Tensor:
    """The guidance of a stage: the image averaged to twice the source's size."""
    return average_areas(image, (2 * source.shape[2], 2 * source.shape[3]))


def source_rows(rows: slice, height: int, source: int) -> tuple[int, int]:
    """Rows of a source, even to even, between which some of the output's lie."""
    if rows.stop - rows.start == height:
        return 0, source
    first, last = ((row + 0.5) * source / height - 0.5 for row in (rows.start, rows.stop - 1))
    return max(0, math.floor(first) // 2 * 2), min(source, (math.floor(last) + 3) // 2 * 2)


def bilinear_rows(x: Tensor, first: int, source: int, rows: slice, size: tuple[int, int]) -> Tensor:
    """Rows of the bilinear resize to a size; x holds those of the source from the first one on.

    (B, C, r, w) of (B, C, source, w) -> (B, C, R, W').
    """
    height, count = size[0], rows.stop - rows.start
    if source != height and count != height:
        place = torch.arange(rows.start, rows.stop, device=x.device, dtype=torch.float64) + 0.5
        place = (place * (source / height) - 0.5).clamp(0, source - 1) - first  # (R,)
        # Shares that fall off linearly with the distance: (R, r).
        shares = (1 - (place[:, None] - torch.arange(x.shape[2], device=x.device)).abs()).clamp(0)
        with without_autocast(x):
            pixels = x.permute(0, 2, 3, 1).flatten(2)  # (B, r, w C)
            x = (shares.to(x.dtype) @ pixels).unflatten(2, (x.shape[3], -1)).permute(0, 3, 1, 2)
    elif source == height:
        x = x[:, :, rows.start - first : rows.stop - first]
    return x if x.shape[2:] == (count, size[1]) else resize_bilinear(x, (count, size[1]))
