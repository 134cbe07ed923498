"""ReSFU: attention to nine sub-pixel neighbours, scored by paired differences, at any whole ratio.

Paper: Zhou et al., "A Refreshed Similarity-based Upsampler for Direct High-Ratio Feature
Upsampling", 2024, arXiv 2407.02283. Original: github.com/zmhhmz/ReSFU at 62e9d9c6. No weights are
published apart from segmenters'.

Unlike the stacks of factor two it goes to the end size at once. Queries come from a sharp guide
(here the image), keys from the features. Queries are brought into line with the keys by a guided
filter for semantics, keys are blurred queries for detail; each pair is scored by a "paired central
difference convolution" (differences between dilated neighbours and the centre, section 3.3). A
softmax over nine taps weighs the features at positions one coarse cell apart around the pixel
("fine-grained neighbour selection", section 3.4).

The taps are whole cells apart and sampled bilinearly, so that a pixel sees 4 x 4 cells: its nine
weights are spread over them, and the windows are mixed by the operator of CARAFE.

Legend: B batch, C feature channels, K value channels, h w low-resolution grid, s_y s_x whole ratio,
H W = s_y h, s_x w, d embedding channels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError
from upfeat.ops import guided_filter, window_reassembly
from upfeat.ops.images import Size, gaussian_blur
from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import resize_to

HIDDEN = 128  # channels of a score block
FAR = -1e7  # added to the logit of a tap beyond the map
NORM_GROUPS = 32  # of guide and features, or one a channel where there are fewer


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class PairedDifference(nn.Module):
    """Score a key against a query: nine logits for each pixel.

    Args:
        dim: channels d of key and query.
        groups: of the convolutions.
        gn_dim: groups of the group norms.
        lr_mult: factor on the gradients of all parameters of the block.
    """

    def __init__(self, dim: int, groups: int, gn_dim: int, lr_mult: float) -> None:
        super().__init__()
        self.groups, self.lr_mult = groups, lr_mult
        self.norm = nn.GroupNorm(gn_dim, dim)
        self.weight = nn.Parameter(torch.empty(HIDDEN, dim // groups, 3, 3))
        self.bias = nn.Parameter(torch.zeros(1, HIDDEN, 1, 1))
        self.channel_compressor = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1, groups=groups),
            nn.ReLU(),
            nn.GroupNorm(gn_dim, HIDDEN),
            nn.Conv2d(HIDDEN, 9, 1),
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, key: Tensor, query: Tensor, scale: Size) -> Tensor:
        """Return (B, 9, H, W) of key and query (B, d, H, W)."""
        if self.lr_mult != 1:  # the inputs' gradients are scaled back
            key = _ScaledGradient.apply(key, 1 / self.lr_mult)
            query = _ScaledGradient.apply(query, 1 / self.lr_mult)
        key, query = self.norm(key), self.norm(query)
        around = F.conv2d(
            replicate_border(key, scale), self.weight, dilation=scale, groups=self.groups
        )
        centre = F.conv2d(query, self.weight.sum((2, 3), keepdim=True), groups=self.groups)
        scores = self.channel_compressor(around - centre + self.bias)
        return scores if self.lr_mult == 1 else _ScaledGradient.apply(scores, self.lr_mult)


def replicate_border(x: Tensor, border: Size) -> Tensor:
    """Repeat the outermost rows and columns: (B, C, H, W) to (B, C, H + 2 b_y, W + 2 b_x)."""
    for axis, width in zip((2, 3), border, strict=True):
        place = torch.arange(-width, x.shape[axis] + width, device=x.device)
        x = x.index_select(axis, place.clamp(0, x.shape[axis] - 1))
    return x


def taps_inside(size: int, scale: int, device: torch.device) -> Tensor:
    """Whether the three taps of each pixel of an axis lie on the map: (3, size) booleans."""
    place = torch.arange(size, device=device)
    place = place + scale * torch.arange(-1, 2, device=device)[:, None]
    return (place >= 0) & (place < size)


def spread_taps(weights: Tensor, axis: int, scale: int) -> Tensor:
    """Turn weights of 3 taps, sampled bilinearly, into weights of 4 cells, along one axis.

    Weights are (B, n, 3, H, W), taps in axis 2; the axis is 3 for rows, 4 for columns.
    Pixel P lies (P + 0.5) / s - 0.5 cells behind the first cell's centre: a share f behind some
    cell. Tap t then takes 1 - f of cell t and f of cell t + 1.
    """
    pixel = torch.arange(weights.shape[axis], device=weights.device)
    share = ((2 * pixel + 1 - scale) % (2 * scale)).to(weights.dtype) / (2 * scale)
    share = share[:, None] if axis == 3 else share  # (H, 1) or (W)
    none = torch.zeros_like(weights[:, :, :1])
    return torch.cat((weights * (1 - share), none), 2) + torch.cat((none, weights * share), 2)


def mix_neighbours(weights: Tensor, values: Tensor, scale: Size) -> Tensor:
    """Average values at the nine positions around each pixel, one cell apart, clamped to the map.

    Weights (B, 9, s_y h, s_x w), taps row-major, and values (B, K, h, w): (B, K, s_y h, s_x w).
    """
    height, width = weights.shape[2:]
    cells = weights.unflatten(1, (3, 3))  # (B, row tap, column tap, H, W)
    cells = spread_taps(cells, 4, scale[1])  # (B, 3, 4, H, W)
    cells = spread_taps(cells.transpose(1, 2), 3, scale[0]).transpose(1, 2)  # (B, 4, 4, H, W)
    # Pixels between the same centres of cells share their 4 x 4 window. Such blocks begin half a
    # cell before the map; two cells repeated on each side make the clamping.
    top, left = scale[0] - scale[0] // 2, scale[1] - scale[1] // 2
    border = (left, scale[1] - left, top, scale[0] - top)
    padded = F.pad(cells.flatten(1, 2), border)[:, None]  # (B, 1, 16, (h + 1) s_y, (w + 1) s_x)
    out = window_reassembly(replicate_border(values, (2, 2)), padded, kernel_size=4)
    return out[:, :, top : top + height, left : left + width]


class ReSFUBlock(nn.Module):
    """The module of the paper: a guide (B, dim_y, H, W) and features (B, dim_x, h, w)."""

    def __init__(
        self,
        dim_y: int,
        dim_x: int,
        groups: int = 4,
        embedding_dim: int = 32,
        gn_dim: int = 8,
        radius: int = 8,
        eps: float = 1e-3,
        gf_scale: int = 2,
        lr_mult: float = 1.0,
    ) -> None:
        super().__init__()
        self.radius, self.eps, self.gf_scale = radius, eps, gf_scale
        self.norm_y = nn.GroupNorm(min(NORM_GROUPS, dim_y), dim_y)
        self.norm_x = nn.GroupNorm(min(NORM_GROUPS, dim_x), dim_x)
        self.q = nn.Conv2d(dim_y, embedding_dim, 1)
        self.k = nn.Conv2d(dim_x, embedding_dim, 1)
        self.semantic_scores = PairedDifference(embedding_dim, groups, gn_dim, lr_mult)
        self.detail_scores = PairedDifference(embedding_dim, groups, gn_dim, lr_mult)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def attend(self, guide: Tensor, features: Tensor, scale: Size) -> Tensor:
        """Return the weights of the nine taps, (B, 9, H, W)."""
        size = (guide.shape[2], guide.shape[3])
        query = self.q(self.norm_y(guide))  # (B, d, H, W)
        norm = self.norm_x  # not called as a module, which refuses a grid of a single cell
        normed = torch.group_norm(features, norm.num_groups, norm.weight, norm.bias, norm.eps)
        key = resize_to(self.k(normed), size)
        filtered = guided_filter(query, key, self.radius, self.eps, self.gf_scale)
        scores = self.semantic_scores(key, filtered, scale)
        scores = scores + self.detail_scores(
            gaussian_blur(query, 1.0, 3, "replicate"), query, scale
        )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        rows = taps_inside(size[0], scale[0], scores.device)[:, None, :, None]
        cols = taps_inside(size[1], scale[1], scores.device)[None, :, None]
        outside = ~(rows & cols).flatten(0, 1)  # (3, 3, H, W) -> (9, H, W)
        return (scores + FAR * outside).softmax(1).to(features.dtype)

    def forward(self, guide: Tensor, features: Tensor, values: Tensor, scale: Size) -> Tensor:
        """Mix values (B, K, h, w): (B, K, H, W)."""
        return mix_neighbours(self.attend(guide, features, scale), values, scale)


@register_upsampler("resfu")
class ReSFU(WholeMapUpsampler):
    """ReSFU (arXiv 2407.02283), guided by the image, straight to the asked size.

    The original needs a guide that is a whole number of times the grid. Here the ratio along each
    axis is rounded up to the next whole number, 2 at least, the image resized to that size, and the
    result resized bilinearly where that is not the asked one. Published modules load if their guide
    had three channels. The original's width of the guided filter is no parameter here, and its
    guide of other features is not served.

    Args:
        feature_dim: channels C of the features; from 32 on a multiple of 32.
        groups: of the convolutions that score.
        embedding_dim: channels d of queries and keys.
        gn_dim: groups of the norms in the scores.
        radius: of the guided filter.
        eps: of the guided filter.
        gf_scale: subsampling of the guided filter.
        lr_mult: factor on the gradients of the scoring blocks (500 in the paper's settings).

    Raises:
        ValueError: channels that do not divide.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("resfu", feature_dim=16)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)).shape
        torch.Size([1, 16, 28, 42])
    """

    info = UpsamplerInfo(
        name="resfu",
        summary="Attention to nine neighbours, straight to the next whole ratio; then bilinear.",
        when=(
            "It is trained inside your network, together with the task, with the image as a "
            "guide and one step to the output."
        ),
        claim=(
            "Similarity-based upsampling, straight to a high ratio, with finer detail than stacks."
        ),
        as_baseline={
            "JAFAR": (
                "default settings, straight to the target size, trained jointly with the linear "
                "probe, per dataset and task"
            )
        },
        paper="A Refreshed Similarity-based Upsampler for Direct High-Ratio Feature Upsampling",
        year=2024,
        arxiv="2407.02283",
        code="https://github.com/zmhhmz/ReSFU",
        code_license="see the repository",
        task_agnostic=False,
        abilities=Abilities(linear=True, any_size=False),
    )

    def __init__(
        self,
        feature_dim: int,
        groups: int = 4,
        embedding_dim: int = 32,
        gn_dim: int = 8,
        radius: int = 8,
        eps: float = 1e-3,
        gf_scale: int = 2,
        lr_mult: float = 1.0,
    ) -> None:
        super().__init__()
        if feature_dim > NORM_GROUPS and feature_dim % NORM_GROUPS:
            raise ValueError(
                f"resfu normalises features in {NORM_GROUPS} groups, which do not divide "
                f"feature_dim={feature_dim}"
            )
        if embedding_dim % groups or embedding_dim % gn_dim or HIDDEN % groups or HIDDEN % gn_dim:
            raise ValueError(
                f"groups={groups} and gn_dim={gn_dim} must divide embedding_dim={embedding_dim} "
                f"and {HIDDEN}"
            )
        if gf_scale < 1 or radius < gf_scale:
            raise ValueError(f"need 1 <= gf_scale <= radius, got {gf_scale} and {radius}")
        self.block = ReSFUBlock(
            3, feature_dim, groups, embedding_dim, gn_dim, radius, eps, gf_scale, lr_mult
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Mix at the next whole ratio, then resize."""
        grid = (features.shape[2], features.shape[3])
        scale = (max(2, -(-output_size[0] // grid[0])), max(2, -(-output_size[1] // grid[1])))
        guide = resize_to(image, (scale[0] * grid[0], scale[1] * grid[1]))
        return resize_to(self.block(guide, features, values, scale), output_size)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths and groups; norms and guided filter are the original's defaults."""
        state = cls.convert_official(state)
        embedding_dim, guide = state["block.q.weight"].shape[:2]
        if guide != 3:
            raise CheckpointError(
                f"the resfu state dict was trained with a guide of {guide} channels; upfeat guides "
                "it by the image, which has 3"
            )
        width = state["block.semantic_scores.weight"].shape[1]
        return {
            "feature_dim": state["block.k.weight"].shape[1],
            "groups": embedding_dim // width,
            "embedding_dim": embedding_dim,
        }

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the guided filter's constant kernel of ones; a state dict of ours passes through."""
        if all(key.startswith("block.") for key in state):
            return dict(state)
        kernel = state["GF.kernel"]
        if not bool((kernel == 1).all()):
            raise CheckpointError("GF.kernel of a resfu state dict must hold ones only")
        return {f"block.{key}": tensor for key, tensor in state.items() if key != "GF.kernel"}
