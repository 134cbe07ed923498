"""The grid seen from above: centres of its cells, and where a frame's augmentation moves them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BevGrid", "draw_bev_motion", "move_points"]

EXTENT = 50.0  # metres to each side
HEIGHTS = (-3.375, 5.375)  # metres, centres of the lowest and the highest voxel
MOTION = (30.0, 20.0)  # metres along x and y
TURN = 20.0  # degrees of yaw


@dataclass(frozen=True)
class BevGrid:
    """Cells of equal size around the car, each a pillar of voxels.

    Attributes:
        size: (X, Y), rows and columns.
        heights: Z, voxels of a pillar.
        x, y, z: centres of the first and the last voxel along each axis, in metres.

    Example:
        >>> from upfeat.evaluation.probes.bev.grid import BevGrid
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

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.grid import draw_bev_motion
        >>> motion = draw_bev_motion(torch.Generator().manual_seed(0))
        >>> bool(motion[0, 3].abs() <= 30), bool(motion[2, 3] == 0)
        (True, True)
    """
    drawn = 2 * torch.rand(6, generator=generator, dtype=torch.float64) - 1
    yaw = torch.deg2rad(TURN * drawn[3])
    motion = torch.eye(4, dtype=torch.float64)
    motion[0, 0] = motion[1, 1] = yaw.cos()
    motion[1, 0], motion[0, 1] = yaw.sin(), -yaw.sin()
    motion[0, 3], motion[1, 3] = MOTION[0] * drawn[0], MOTION[1] * drawn[1]
    return motion


def move_points(points: Tensor, motion: Tensor) -> Tensor:
    """Return points (P, 3) or (B, P, 3) after the motions (B, 4, 4) of some frames, (B, P, 3).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.grid import move_points
        >>> motion = torch.eye(4)
        >>> motion[0, 3] = 2.0
        >>> move_points(torch.tensor([[1.0, 1.0, 1.0]]), motion[None]).tolist()
        [[[3.0, 1.0, 1.0]]]
    """
    extended = F.pad(points, (0, 1), value=1.0)  # (..., P, 4)
    return (motion.to(points) @ extended.mT)[:, :3].transpose(1, 2)
