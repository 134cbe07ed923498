"""From feature maps of the cameras to voxels of a grid seen from above.

The grid with its motion, projection, sampling, mean, embedding, compressors. Camera frame: x right,
y down, z along the axis; ``rotations`` and ``translations`` map camera to ego frame. Dense
(SimpleBeV) and sparse (PointBeV) paths sample the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXTENT = 50.0  # metres to each side
HEIGHTS = (-3.375, 5.375)  # metres, centres of the lowest and the highest voxel
MOTION = (30.0, 20.0)  # metres along x and y
TURN = 20.0  # degrees of yaw

Sampling = Literal["released", "exact", "simplebev"]

MIN_DEPTH = 1e-6
BORDER = 0.5  # cells of a feature map in which a point does not count
LIMIT = 2.0  # of sampling coordinates
MEAN_EPSILON = 1e-6
FREQUENCIES = (0, 1, 2, 4, 8, 16, 32, 64)  # the first is 0, for the released code halves integers
EMBEDDING_WIDTH = 256
EMBEDDING_RANGE = 1.2  # times the largest coordinate


# -- the grid -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BevGrid:
    """Cells of equal size around the car, each a pillar of voxels.

    Attributes:
        size: (X, Y), rows and columns.
        heights: Z, voxels of a pillar.
        x, y, z: centres of the first and the last voxel along each axis, in metres.

    Example:
        >>> from upfeat.evaluation.probes.bev.lifting import BevGrid
        >>> grid = BevGrid.around((200, 200), 8)
        >>> grid.cell, grid.x, grid.points().shape
        ((0.5, 0.5), (-49.75, 49.75), torch.Size([200, 200, 8, 3]))
    """

    size: tuple[int, int]
    heights: int
    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float] = HEIGHTS

    @classmethod
    def around(cls, size: tuple[int, int], heights: int, extent: float = EXTENT) -> "BevGrid":
        """Return a grid that covers ``extent`` metres to each side.

        Args:
            size: (X, Y).
            heights: Z, over the same range of heights whatever their number.
            extent: metres from the car to each border.
        """
        last = [extent - extent / cells for cells in size]
        return cls(size, heights, (-last[0], last[0]), (-last[1], last[1]))

    @property
    def cell(self) -> tuple[float, float]:
        """Metres of a cell along x and y."""
        return tuple(
            (last - first) / (cells - 1)
            for (first, last), cells in zip((self.x, self.y), self.size, strict=True)
        )  # type: ignore[return-value]

    @property
    def corner(self) -> tuple[float, float]:
        """Smallest x and y of the area, the border of its cells."""
        return self.x[0] - self.cell[0] / 2, self.y[0] - self.cell[1] / 2

    def points(self) -> Tensor:
        """Return the centres of the voxels (X, Y, Z, 3), float32; row and column 0 lie farthest."""
        # Built in float64, as the published code does, then rounded.
        x = np.linspace(self.x[1], self.x[0], self.size[0])
        y = np.linspace(self.y[1], self.y[0], self.size[1])
        z = np.linspace(self.z[0], self.z[1], self.heights)
        return torch.from_numpy(np.stack(np.meshgrid(x, y, z, indexing="ij"), -1)).float()


def draw_bev_motion(generator: torch.Generator) -> Tensor:
    """Return a random shift and yaw (4, 4), float64, that moves the points of a grid.

    Args:
        generator: on the CPU; six numbers are drawn, of which three count.
    """
    drawn = 2 * torch.rand(6, generator=generator, dtype=torch.float64) - 1
    yaw = torch.deg2rad(TURN * drawn[3])
    motion = torch.eye(4, dtype=torch.float64)
    motion[0, 0] = motion[1, 1] = yaw.cos()
    motion[1, 0], motion[0, 1] = yaw.sin(), -yaw.sin()
    motion[0, 3], motion[1, 3] = MOTION[0] * drawn[0], MOTION[1] * drawn[1]
    return motion


def move_points(points: Tensor, motion: Tensor) -> Tensor:
    """Return points (P, 3) or (B, P, 3) after the motions (B, 4, 4) of some frames, (B, P, 3)."""
    extended = F.pad(points, (0, 1), value=1.0)  # (..., P, 4)
    return (motion.to(points) @ extended.mT)[:, :3].transpose(1, 2)


# -- from cameras to voxels -----------------------------------------------------------------------


class Cameras(NamedTuple):
    """Calibration of the cameras of some frames.

    Attributes:
        rotations: (B, N, 3, 3), camera to ego.
        translations: (B, N, 3), metres.
        intrinsics: (B, N, 3, 3), camera to cells of the feature map.
    """

    rotations: Tensor
    translations: Tensor
    intrinsics: Tensor


class Projection(NamedTuple):
    """Points in the maps of the cameras.

    Attributes:
        pixels: (B, N, P, 2), x and y in cells; the map covers [0, w] x [0, h].
        depth: (B, N, P), metres along the camera's axis.
    """

    pixels: Tensor
    depth: Tensor

    def inside(self, size: Sequence[int], first: float = BORDER, last: float = BORDER) -> Tensor:
        """Return which points (B, N, P) lie in front of a camera and inside its map.

        Args:
            size: (h, w) of the map.
            first: cells at the top and the left that do not count.
            last: cells at the bottom and the right that do not count.
        """
        (u, v), (height, width) = self.pixels.unbind(-1), size
        inside = (u > first) & (u < width - last) & (v > first) & (v < height - last)
        return inside & (self.depth > 0)


def project(points: Tensor, cameras: Cameras, sampling: Sampling = "released") -> Projection:
    """Project points of the ego frame into every camera.

    Args:
        points: (B, P, 3), metres.
        cameras: N of each frame.
        sampling: ``simplebev`` inverts a pose as a rigid motion and multiplies it by the
            intrinsics before it moves the points, in the order of SimpleBeV's code; otherwise the
            points go through one after the other, as in PointBeV's. They differ by rounding.
    """
    extended = F.pad(points, (0, 1), value=1.0).transpose(1, 2)[:, None]  # (B, 1, 4, P)
    if sampling == "simplebev":
        turned = cameras.rotations.mT
        moves = _homogeneous(turned, -(turned @ cameras.translations[..., None])[..., 0])
        whole = _homogeneous(cameras.intrinsics, torch.zeros_like(cameras.translations)) @ moves
        seen, found = moves @ extended, whole @ extended  # (B, N, 4, P)
    else:
        moves = _homogeneous(cameras.rotations, cameras.translations).inverse()
        seen = (moves @ extended)[:, :, :3]  # (B, N, 3, P)
        found = cameras.intrinsics @ seen
    pixels = found[:, :, :2] / found[:, :, 2:3].clamp(min=MIN_DEPTH)
    return Projection(pixels.transpose(2, 3), seen[:, :, 2])


def _homogeneous(rotations: Tensor, translations: Tensor) -> Tensor:
    """Return (B, N, 4, 4) of (B, N, 3, 3) and (B, N, 3)."""
    poses = F.pad(rotations, (0, 1, 0, 1))
    poses[..., :3, 3], poses[..., 3, 3] = translations, 1
    return poses


def sampling_grid(pixels: Tensor, size: Sequence[int], sampling: Sampling) -> Tensor:
    """Return coordinates for ``grid_sample`` without aligned corners.

    Args:
        pixels: (..., 2), x and y in cells.
        size: (h, w) of the map.
        sampling: ``exact`` reads at ``pixels``; ``released`` reads about half a cell above and to
            the left of it, as PointBeV's code does, which divides by ``w - 1``; ``simplebev`` is
            SimpleBeV's own, whose first cell has its centre at 0.
    """
    sides = pixels.new_tensor([size[1], size[0]])
    if sampling == "simplebev":
        return (2 * pixels / (sides - 1) - 1).clamp(-LIMIT, LIMIT)
    if sampling == "exact":
        return 2 * pixels / sides - 1
    return ((2 * pixels - sides) / (sides - 1)).clamp(-LIMIT, LIMIT)


def camera_mean(
    features: Tensor,
    projection: Projection,
    *,
    sampling: Sampling = "released",
    epsilon: float = MEAN_EPSILON,
) -> Tensor:
    """Return the mean of what the cameras see at each point.

    A map is sampled only at the points inside it; the others would be multiplied by 0.

    Args:
        features: (B, N, C, h, w).
        projection: P points of each frame.
        sampling: see :func:`sampling_grid`. ``simplebev`` has another border, and counts for each
            channel the cameras whose value is not 0.
        epsilon: added to the number of cameras (dense path); 0 divides by at least one camera
            (sparse path).

    Returns:
        (B, P, C); 0 where no camera sees a point.
    """
    size = features.shape[-2:]
    own = sampling == "simplebev"
    inside = projection.inside(size, -BORDER if own else BORDER)
    grid = sampling_grid(projection.pixels, size, sampling).to(features.dtype)
    means = []
    for frame, maps in enumerate(features):
        total = maps.new_zeros(inside.shape[2], maps.shape[1])  # (P, C)
        count = torch.zeros_like(total[:, : maps.shape[1] if own else 1])
        for camera, one in enumerate(maps):
            seen = inside[frame, camera].nonzero()[:, 0]
            at = grid[frame, camera, seen][None, None]  # (1, 1, p, 2)
            found = F.grid_sample(one[None], at, align_corners=False)[0, :, 0].T  # (p, C)
            total = total.index_add(0, seen, found)
            counted = (found != 0).to(count) if own else count.new_ones(len(seen), 1)
            count = count.index_add(0, seen, counted)
        means.append(total / (count + epsilon if epsilon else count.clamp(min=1)))
    return torch.stack(means)


class CoordinateEmbedding(nn.Module):
    """Fourier features of a voxel's place, through three layers; seen or unseen voxels alike.

    Args:
        channels: of the output.
        bounds: largest absolute x, y and z of the grid, in metres.
        width: of the layers.
    """

    frequencies: Tensor

    def __init__(
        self, channels: int, bounds: Sequence[float], width: int = EMBEDDING_WIDTH
    ) -> None:
        super().__init__()
        sides = (3 * 2 * len(FREQUENCIES), width, width, channels)
        self.layer = nn.Module()
        self.layer.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sides))
        self.limits = [EMBEDDING_RANGE * bound for bound in bounds]
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES).float(), persistent=False)

    def relative(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the ego frame divided by 1.2 times the largest coordinate."""
        # Divided as in the published code: the highest frequency multiplies rounding by 400.
        return points / points.new_tensor(self.limits)

    def forward(self, relative: Tensor) -> Tensor:
        """Return (..., C) of places (..., 3) as :meth:`relative` gives them."""
        angles = 2 * torch.pi * self.frequencies * relative[..., None]  # (..., 3, 8)
        # of x, then y, then z: 8 cosines, then 8 sines
        x = torch.cat((angles.cos(), angles.sin()), -1).flatten(-2)
        for number, layer in enumerate(self.layer.layers):  # type: ignore[arg-type]
            x = layer(F.gelu(x) if number else x)
        return x


class ConvCompressor(nn.Sequential):
    """SimpleBeV's: 3x3 convolution over all heights, instance norm, GELU.

    Args:
        channels: C of a voxel.
        heights: Z.
        width: of the output; C if None.
    """

    def __init__(self, channels: int, heights: int, width: int | None = None) -> None:
        width = width or channels
        conv = nn.Conv2d(channels * heights, width, 3, padding=1, bias=False)
        super().__init__(conv, nn.InstanceNorm2d(width), nn.GELU())


class PillarCompressor(nn.Module):
    """PointBeV's: four layers on each pillar alone.

    Args:
        channels: C of a voxel.
        heights: Z.
        width: of the layers; C if None.
    """

    def __init__(self, channels: int, heights: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels
        inputs = (channels * heights, width, width, width)
        self.layers = nn.ModuleList(nn.Conv2d(count, width, 1) for count in inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, P, 1) of pillars (B, C*Z, P, 1)."""
        for number, layer in enumerate(self.layers):
            x = layer(x.relu() if number else x)
        return x
