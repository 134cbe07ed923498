"""DySample: upsampling as sampling, at positions that the features themselves decide.

Paper: Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023, arXiv 2308.15085.
Original: github.com/tiny-smart/dysample at 81a1de5c. No weights are published apart from detectors'
and segmenters'.

A stage predicts an offset for each of the s x s pixels of a cell and each group of channels, by one
1x1 convolution, and samples the features bilinearly there (section 3.2). The offsets start at the
regular positions of bilinear interpolation and are scaled by 0.25, or by half a learned sigmoid
("dynamic scope"). Style "lp" convolves before the pixel shuffle, "pl" after it. The image is not
looked at. JAFAR's comparison stacks four stages of factor two; what comes out is then resized
bilinearly to the asked size.

Legend: B batch, C feature channels, h w low-resolution grid, s factor of a stage, g groups.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError
from upfeat.ops.runtime import compute_dtype, without_autocast
from upfeat.upsamplers.base import Abilities, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import DEFAULT_STAGES, StageStack, count_stages, resize_to, stage_keys

Style = Literal["lp", "pl"]

SCOPE = 0.25  # of a cell: how far the static scope lets a position move for an offset of 1


class DySampleStage(nn.Module):
    """One DySample module: (B, C, h, w) to (B, C, s * h, s * w)."""

    init_pos: Tensor

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        style: Style = "lp",
        groups: int = 4,
        dyscope: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.style, self.groups = scale, style, groups
        wide, deep = channels, 2 * groups * scale**2
        if style == "pl":
            wide, deep = channels // scale**2, 2 * groups
        self.offset = nn.Conv2d(wide, deep, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.scope = nn.Conv2d(wide, deep, 1, bias=False) if dyscope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
        self.register_buffer("init_pos", regular_positions(scale, groups))

    def offsets(self, features: Tensor) -> Tensor:
        """Return offsets from the cell's centre, in cells: (B, 2 * g * s * s, h, w), x before y."""
        source = F.pixel_shuffle(features, self.scale) if self.style == "pl" else features
        offset = self.offset(source)
        if self.scope is not None:
            offset = offset * self.scope(source).sigmoid()
        if self.style == "pl":
            offset = F.pixel_unshuffle(offset, self.scale)
        factor = SCOPE if self.scope is None else 2 * SCOPE
        wide = torch.promote_types(offset.dtype, torch.float32)
        return offset.to(wide) * factor + self.init_pos.to(wide)

    def forward(self, features: Tensor) -> Tensor:
        """Sample (B, C, h, w) at the predicted positions: (B, C, s * h, s * w)."""
        offset = self.offsets(features)
        height, width = features.shape[2:]
        row = torch.arange(height, device=offset.device, dtype=offset.dtype)
        col = torch.arange(width, device=offset.device, dtype=offset.dtype)
        place = torch.stack(torch.meshgrid(col, row, indexing="xy"))  # (2, h, w), x before y
        offset = offset.unflatten(1, (2, -1)) + place[:, None]  # (B, 2, g * s * s, h, w)
        position = F.pixel_shuffle(offset.flatten(1, 2), self.scale)  # (B, 2 * g, s * h, s * w)
        position = position.unflatten(1, (2, self.groups)).transpose(1, 2)  # (B, g, 2, s h, s w)
        return grouped_sampling(features, position)


def grouped_sampling(features: Tensor, positions: Tensor) -> Tensor:
    """Sample each group of channels bilinearly at its positions; beyond the map its border goes on.

    Positions (B, g, 2, H', W') are column (x), then row (y), in pixels of the map (B, C, h, w),
    whose first pixel has its centre at 0.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[0.0, 1.0, 2.0]]]])
        >>> positions = torch.tensor([0.5, 7.0]).reshape(1, 1, 1, 1, 2).expand(1, 1, 2, 1, 2)
        >>> grouped_sampling(features, positions).flatten().tolist()
        [0.5, 2.0]
    """
    groups, dtype = positions.shape[1], compute_dtype(features, positions)
    size = positions.new_tensor((features.shape[3], features.shape[2]), dtype=dtype)
    with without_autocast(features):
        grid = positions.to(dtype).movedim(2, -1)  # (B, g, H', W', 2)
        grid = (2 * grid + 1) / size - 1  # -1 and 1 are the outer edges of the map
        grouped = features.to(dtype).unflatten(1, (groups, -1)).flatten(0, 1)  # (B * g, C / g, ...)
        out = F.grid_sample(grouped, grid.flatten(0, 1), padding_mode="border", align_corners=False)
    return out.unflatten(0, (-1, groups)).flatten(1, 2).to(features.dtype)


def regular_positions(scale: int, groups: int) -> Tensor:
    """Offsets of bilinear interpolation, (1, 2 * g * s * s, 1, 1): axis x y, group, row, column."""
    step = (torch.arange(scale) - (scale - 1) / 2) / scale
    y, x = torch.meshgrid(step, step, indexing="ij")
    both = torch.stack((x, y))[:, None].expand(-1, groups, -1, -1)  # (2, g, s, s)
    return both.reshape(1, -1, 1, 1)


@register_upsampler("dysample")
class DySample(StageStack):
    """DySample (arXiv 2308.15085): a stack of modules that sample at learned positions.

    A published single module loads as a stack of one stage; its tensors tell everything.

    Args:
        feature_dim: channels C of the features, a multiple of ``groups`` (and of ``scale`` squared
            for style "pl").
        stages: modules in the stack.
        scale: factor s of each.
        style: ``"lp"`` or ``"pl"``.
        groups: groups of channels with positions of their own.
        dyscope: scale the offsets by a learned sigmoid.

    Raises:
        ValueError: channels that do not divide, or an unknown style.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("dysample", feature_dim=16, style="pl", dyscope=True)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)).shape
        torch.Size([1, 16, 28, 42])
    """

    info = UpsamplerInfo(
        name="dysample",
        summary="Bilinear sampling at positions read from features; four x2 stages, then bilinear.",
        when="It is trained inside your network, together with the task, and must cost little.",
        claim="Upsampling as learned point sampling: no dynamic convolution, few parameters, fast.",
        as_baseline={
            "JAFAR": (
                "four x2 modules, trained jointly with the linear probe, per dataset and task; "
                "default settings"
            )
        },
        paper="Learning to Upsample by Learning to Sample",
        year=2023,
        arxiv="2308.15085",
        code="https://github.com/tiny-smart/dysample",
        code_license="see the repository",
        task_agnostic=False,
        abilities=Abilities(mixes_values=False, any_size=False),
        factor=16,
    )

    def __init__(
        self,
        feature_dim: int,
        stages: int = DEFAULT_STAGES,
        scale: int = 2,
        style: Style = "lp",
        groups: int = 4,
        dyscope: bool = False,
    ) -> None:
        super().__init__()
        if style not in ("lp", "pl"):
            raise ValueError(f"style must be 'lp' or 'pl', got {style!r}")
        if groups < 1 or feature_dim % groups:
            raise ValueError(f"groups={groups} does not divide feature_dim={feature_dim}")
        if style == "pl" and feature_dim % scale**2:
            raise ValueError(
                f"style 'pl' needs a feature_dim that scale^2 = {scale**2} divides, got "
                f"{feature_dim}; use style 'lp'"
            )
        self.add_stages(
            stages, scale, lambda: DySampleStage(feature_dim, scale, style, groups, dyscope)
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Run the stages; neither the image nor other values are looked at."""
        for stage in self.children():
            features = stage(features)
        return resize_to(features, output_size)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths, style and factor; the regular positions tell the factor."""
        stack = stage_keys(state)
        deep, wide = stack["up1.offset.weight"].shape[:2]
        regular = stack["up1.init_pos"].flatten()
        scale = len(regular[: len(regular) // 2].unique())
        style = "lp" if deep == len(regular) else "pl"
        groups = len(regular) // (2 * scale**2)
        expected = regular_positions(scale, max(groups, 1)).flatten()
        if regular.shape != expected.shape or not torch.allclose(regular.float(), expected):
            raise CheckpointError(
                "up1.init_pos of the dysample state dict does not hold the regular positions of "
                f"any factor: it has {len(regular)} entries with {scale} different columns"
            )
        return {
            "feature_dim": wide if style == "lp" else wide * scale**2,
            "stages": count_stages(stack),
            "scale": scale,
            "style": style,
            "groups": groups,
            "dyscope": "up1.scope.weight" in stack,
        }
