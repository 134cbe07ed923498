"""Necks, encoder-decoders and heads of the map from above: dense, and sparse in dense torch.

A sparse map is a dense tensor, 0 off its active cells, with a map of 0 and 1 (B, 1, X, Y) that says
which are active. Keys of the parameters are those of the published code; sparse kernels are stored
as (out, kh, kw, in).
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS: Mapping[str, int] = {"binimg": 1, "offsets": 2, "centerness": 1}
"""Channels of the heads: a vehicle's logit, offsets to its centre, how close to a centre."""

WIDTHS = (64, 128, 256)

NORM_EPSILON = 1e-5


# -- dense ----------------------------------------------------------------------------------------


def _conv3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


class Neck(nn.Module):
    """Bring upsampled features to the width of the map from above.

    Args:
        channels: C of the features.
        width: of the output.
        middle: of the layers between; C if None.
    """

    def __init__(self, channels: int, width: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or channels
        self.layers = nn.Sequential(
            *(_conv3(channels, middle), nn.InstanceNorm2d(middle), nn.ReLU()),
            *(_conv3(middle, middle), nn.InstanceNorm2d(middle), nn.ReLU()),
        )
        self.tail = nn.Conv2d(middle, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w) of (B, C, h, w)."""
        found: Tensor = self.tail(self.layers(x))
        return found


class _DenseBlock(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3(width, width), nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (found + self.downsample(x)).relu()


class _DenseUp(nn.Module):
    """Twice the size, another width, plus what came by."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.upsample_layer = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        found: Tensor = self.upsample_layer(x)
        return found + skip


class EncoderDecoder(nn.Module):
    """SimpleBeV's: the first three stages of a ResNet-18, and back up with sums.

    Args:
        channels: of input and output.
        widths: of the three stages.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.first_conv = nn.Conv2d(channels, first, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = nn.Sequential(_DenseBlock(first, first, 1), _DenseBlock(first, first, 1))
        self.layer2 = nn.Sequential(_DenseBlock(first, second, 2), _DenseBlock(second, second, 1))
        self.layer3 = nn.Sequential(_DenseBlock(second, third, 2), _DenseBlock(third, third, 1))
        self.up3_skip = _DenseUp(third, second)
        self.up2_skip = _DenseUp(second, first)
        self.up1_skip = _DenseUp(first, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X, Y) of the same shape.

        Raises:
            ValueError: a side is no multiple of 8.
        """
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"the grid must have sides that 8 divides, got {tuple(x.shape[2:])}")
        skip2 = self.layer1(self.bn1(self.first_conv(x)).relu())  # (B, ., X/2, Y/2)
        skip3 = self.layer2(skip2)  # (B, ., X/4, Y/4)
        found: Tensor = self.up3_skip(self.layer3(skip3), skip3)
        return self.up1_skip(self.up2_skip(found, skip2), x)


class BevHeads(nn.Module):
    """The three heads on a dense map.

    Args:
        channels: C of the map.
        names: which heads, of ``HEADS``.
    """

    def __init__(self, channels: int, names: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.map_out = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Sequential(
                        _conv3(channels, channels), nn.InstanceNorm2d(channels), nn.ReLU()
                    ),
                    nn.Conv2d(channels, HEADS[name], 1),
                )
                for name in names
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits (B, 1, X, Y), offsets (B, 2, X, Y), centerness (B, 1, X, Y) in 0 to 1."""
        found = {name: head(x) for name, head in self.map_out.items()}
        if "centerness" in found:
            found["centerness"] = found["centerness"].sigmoid()
        return found


# -- sparse: PointBeV -----------------------------------------------------------------------------


class SparseMap(NamedTuple):
    """Values (B, C, X, Y), 0 off the active cells, and which cells are active (B, 1, X, Y)."""

    values: Tensor
    active: Tensor


class _SubmanifoldConv(nn.Module):
    """A convolution whose output has the active cells of its input."""

    def __init__(self, channels: int, width: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        # (out, kh, kw, in)
        self.weight = nn.Parameter(torch.empty(width, kernel, kernel, channels))
        bound = (channels * kernel**2) ** -0.5  # torch's default of a convolution
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def forward(self, x: SparseMap) -> SparseMap:
        # (out, kh, kw, in) -> (out, in, kh, kw)
        kernel = self.weight.permute(0, 3, 1, 2)
        found = F.conv2d(x.values, kernel, self.bias, padding=kernel.shape[-1] // 2)
        return SparseMap(found * x.active, x.active)


class _InverseConv(nn.Module):
    """Back to the cells before a pooling of kernel 3 and stride 2."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, 3, channels))
        bound = (9 * channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: SparseMap, active: Tensor) -> SparseMap:
        # (out, kh, kw, in) -> (in, out, kh, kw)
        kernel = self.weight.permute(3, 0, 1, 2)
        beyond = [
            fine - 2 * coarse + 1
            for fine, coarse in zip(active.shape[-2:], x.values.shape[-2:], strict=True)
        ]
        found = F.conv_transpose2d(x.values, kernel, stride=2, padding=1, output_padding=beyond)
        return SparseMap(found * active, active)


class _ActiveNorm(nn.BatchNorm1d):
    """Batch norm over the active cells of all frames."""

    def forward(self, x: SparseMap) -> SparseMap:  # type: ignore[override]
        channels_last = x.values.movedim(1, -1)  # (B, X, Y, C)
        chosen = x.active[:, 0].bool()
        found = torch.zeros_like(channels_last)
        if bool(chosen.any()):
            found[chosen] = super().forward(channels_last[chosen])  # (cells, C)
        return SparseMap(found.movedim(-1, 1), x.active)


class _Relu(nn.Module):
    def forward(self, x: SparseMap) -> SparseMap:
        return SparseMap(x.values.relu(), x.active)


def _pool(x: SparseMap) -> SparseMap:
    """Max-pool of kernel 3 and stride 2; values come from a ReLU, so that 0 never wins wrongly."""
    return SparseMap(*(F.max_pool2d(part, 3, 2, 1) for part in x))


class _ConvNorm(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv, self.bn = _SubmanifoldConv(channels, width, 3), _ActiveNorm(width)

    def forward(self, x: SparseMap) -> SparseMap:
        return self.bn(self.conv(x))


class _SparseBlock(nn.Module):
    """A basic block; where it widens, nothing goes around it.

    The published block computes a shortcut there and never adds it. Its weights get no gradient;
    they are kept so that a published file loads.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1_bn_relu, self.conv2_bn = _ConvNorm(channels, width), _ConvNorm(width, width)
        self.relu = _Relu()
        if channels != width:
            dead = nn.Sequential(_SubmanifoldConv(channels, width, 1), _ActiveNorm(width))
            self.downsample = dead.requires_grad_(False)

    def forward(self, x: SparseMap) -> SparseMap:
        found: SparseMap = self.conv2_bn(self.relu(self.conv1_bn_relu(x)))
        if found.values.shape == x.values.shape:
            found = SparseMap(found.values + x.values, x.active)
        result: SparseMap = self.relu(found)
        return result


class _SparseUp(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.upsample_layer = nn.ModuleList([_InverseConv(channels, width), _ActiveNorm(width)])

    def forward(self, x: SparseMap, skip: SparseMap) -> SparseMap:
        inverse, norm = self.upsample_layer
        found = norm(inverse(x, skip.active))
        return SparseMap(found.values + skip.values, skip.active)


class SparseUNet(nn.Module):
    """PointBeV's U-net; on a full grid it is an ordinary dense one.

    Args:
        channels: of input and output.
        middle: width of the first stage; 2 and 4 times that in the others.
    """

    def __init__(self, channels: int, middle: int = 64) -> None:
        super().__init__()
        first, second, third = middle, 2 * middle, 4 * middle
        stem = nn.Sequential(_SubmanifoldConv(channels, first, 7), _ActiveNorm(first), _Relu())
        self.encoder = nn.ModuleDict(
            {
                "first_conv": stem,
                "layer_1": nn.Sequential(_SparseBlock(first, first), _SparseBlock(first, first)),
                "layer_2": nn.Sequential(_SparseBlock(first, second), _SparseBlock(second, second)),
                "layer_3": nn.Sequential(_SparseBlock(second, third), _SparseBlock(third, third)),
            }
        )
        self.decoder = nn.ModuleDict(
            {
                "up_3": _SparseUp(third, second),
                "up_2": _SparseUp(second, first),
                "up_1": _SparseUp(first, channels),
            }
        )

    def levels(self, x: SparseMap) -> tuple[SparseMap, SparseMap, SparseMap]:
        """Return the two skip connections, at half and a quarter of the size, and the bottom."""
        skip2 = _pool(self.encoder["layer_1"](self.encoder["first_conv"](x)))
        skip3 = _pool(self.encoder["layer_2"](skip2))
        return skip2, skip3, _pool(self.encoder["layer_3"](skip3))

    def forward(self, x: SparseMap) -> SparseMap:
        """Return a map of the same shape and cells."""
        skip2, skip3, bottom = self.levels(x)
        found = self.decoder["up_2"](self.decoder["up_3"](bottom, skip3), skip2)
        result: SparseMap = self.decoder["up_1"](found, x)
        return result


class _CellNorm(nn.Module):
    """Norm of each active cell over its own channels.

    The published code gives a table (cells, channels) to a 1-D instance norm, which reads it as one
    sequence a cell.
    """

    def forward(self, x: SparseMap) -> SparseMap:
        found = F.layer_norm(x.values.movedim(1, -1), x.values.shape[1:2], eps=NORM_EPSILON)
        return SparseMap(found.movedim(-1, 1) * x.active, x.active)


def _head(channels: int, outputs: int) -> nn.Module:
    first = nn.Sequential(_SubmanifoldConv(channels, channels, 3), _CellNorm(), _Relu())
    return nn.Sequential(first, _SubmanifoldConv(channels, outputs, 1, bias=True))


class SparseHeads(nn.Module):
    """The three heads on a sparse map; 0 off its cells.

    Args:
        channels: C of the map.
        names: which heads, of ``HEADS``.
    """

    def __init__(self, channels: int, names: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.map_out = nn.ModuleDict({name: _head(channels, HEADS[name]) for name in names})

    def forward(self, x: SparseMap) -> dict[str, Tensor]:
        """Return logits (B, 1, X, Y), offsets (B, 2, X, Y) and centerness (B, 1, X, Y)."""
        found = {name: head(x).values for name, head in self.map_out.items()}
        if "centerness" in found:
            found["centerness"] = found["centerness"].sigmoid() * x.active
        return found


# -- which pillars ---------------------------------------------------------------------------------


def coarse_cells(size: tuple[int, int], count: int) -> Tensor:
    """Return ``count`` random cells of a grid (X, Y), the same for all frames; flat, row by row."""
    return torch.randperm(math.prod(size))[:count]


@torch.no_grad()
def fine_cells(logits: Tensor, sampled: Tensor, count: int, anchors: int, window: int) -> Tensor:
    """Return the cells of the second pass: windows around those that look most like a vehicle.

    Of more candidates than asked for, the first from the smallest x, then y are taken, as the
    published code does; of fewer, all, and random other cells.

    Args:
        logits: (B, 1, X, Y) of the first pass.
        sampled: the same shape, 1 where the first pass computed them.
        count: cells a frame.
        anchors: cells with the highest probability.
        window: side of the square around an anchor, odd.

    Returns:
        (B, count), flat, row by row.
    """
    scores = (logits.sigmoid() * sampled).flip(2, 3).flatten(1)  # from the smallest x and y
    best = scores.topk(min(anchors, scores.shape[1])).indices
    marks = torch.zeros_like(scores).scatter_(1, best, 1.0).view(logits.shape)
    near = F.max_pool2d(marks, window, 1, window // 2).flatten(1) > 0
    chosen = []
    for candidates in near:
        first = candidates.nonzero()[:count, 0]
        others = (~candidates).nonzero()[:, 0]
        drawn = torch.randperm(len(others)).to(others.device)[: count - len(first)]
        chosen.append(torch.cat((first, others[drawn])))
    return scores.shape[1] - 1 - torch.stack(chosen)


def merge_passes(
    coarse: Mapping[str, Tensor], fine: Mapping[str, Tensor], sampled: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the mean of two passes where both computed a cell, else the one that did.

    Args:
        coarse: outputs of the heads, 0 off its cells.
        fine: the same of the second pass.
        sampled: (B, 1, X, Y) of either pass.

    Returns:
        The outputs, and the cells of either pass (B, 1, X, Y).
    """
    passes = (sampled[0] + sampled[1]).clamp(min=1)
    merged = {name: (coarse[name] + fine[name]) / passes for name in coarse}
    return merged, torch.maximum(*sampled)
