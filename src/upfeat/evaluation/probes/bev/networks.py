"""Whole networks: maps of the cameras in, maps from above out.

A network starts behind the upsampler and the neck. All of them lift with the same geometry, and
end in the same three heads.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from upfeat.evaluation.probes.bev.attention import BevFormerEncoder, Views
from upfeat.evaluation.probes.bev.dense import HEADS, BevHeads, EncoderDecoder
from upfeat.evaluation.probes.bev.grid import BevGrid, move_points
from upfeat.evaluation.probes.bev.lifting import (
    MEAN_EPSILON,
    Cameras,
    ConvCompressor,
    CoordinateEmbedding,
    PillarCompressor,
    Sampling,
    camera_mean,
    project,
)
from upfeat.evaluation.probes.bev.sparse import (
    SparseHeads,
    SparseMap,
    SparseUNet,
    coarse_cells,
    fine_cells,
    merge_passes,
)

__all__ = ["BevFormer", "BevNetwork", "BevOutput", "PointBev", "SimpleBev"]


class BevOutput(NamedTuple):
    """Outputs of the heads.

    Attributes:
        maps: of the heads' names, (B, 1 or 2, X, Y).
        sampled: (B, 1, X, Y), 1 where they were computed; None for everywhere.
    """

    maps: dict[str, Tensor]
    sampled: Tensor | None = None


class _Lift(nn.Module):
    """Voxels of pillars from the cameras' maps: mean over the cameras, and where the voxel is."""

    points: Tensor

    def __init__(
        self, width: int, grid: BevGrid, sampling: Sampling, embedding_width: int | None
    ) -> None:
        super().__init__()
        self.sampling, self.heights = sampling, grid.heights
        # (X, Y, Z, 3) -> (X*Y, Z, 3)
        self.register_buffer("points", grid.points().flatten(0, 1), persistent=False)
        bounds = [max(map(abs, limits)) for limits in (grid.x, grid.y, grid.z)]
        self.coordembd = (
            CoordinateEmbedding(width, bounds, embedding_width) if embedding_width else None
        )

    def forward(
        self, maps: Tensor, cameras: Cameras, motion: Tensor, cells: Tensor | None, epsilon: float
    ) -> Tensor:
        """Return pillars (B, C*Z, P), the channel first, of cells (B, P); None for all."""
        points = self.points if cells is None else self.points[cells]
        points = move_points(points.flatten(-3, -2), motion)  # (B, P*Z, 3)
        mean = camera_mean(
            maps, project(points, cameras, self.sampling), sampling=self.sampling, epsilon=epsilon
        )  # (B, P*Z, C)
        if self.coordembd is not None:
            mean = mean + self.coordembd(self.coordembd.relative(points))
        # (B, P*Z, C) -> (B, P, Z, C) -> (B, C, Z, P) -> (B, C*Z, P)
        return mean.unflatten(1, (-1, self.heights)).permute(0, 3, 2, 1).flatten(1, 2)


class BevNetwork(nn.Module):
    """A network behind the neck.

    Args:
        width: C of the cameras' maps and of the map from above.
        grid: of the map.
        names: of the heads.
    """

    def __init__(self, width: int, grid: BevGrid, names: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.width, self.grid, self.names = width, grid, tuple(names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs.

        Args:
            maps: (B, N, C, h, w).
            cameras: N of each frame, with intrinsics for maps of this size.
            motion: (B, 4, 4), the augmentation of the grid.
        """
        raise NotImplementedError


class SimpleBev(BevNetwork):
    """SimpleBeV: the mean over the cameras, a convolution over heights, a dense trunk.

    Args:
        width: C.
        grid: with sides that 8 divides.
        names: of the heads.
        sampling: see :func:`upfeat.evaluation.probes.bev.lifting.sampling_grid`.
        embedding_width: of the embedding of coordinates; None for none.
        trunk: widths of its stages.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.grid import BevGrid
        >>> from upfeat.evaluation.probes.bev.lifting import Cameras
        >>> from upfeat.evaluation.probes.bev.networks import SimpleBev
        >>> network = SimpleBev(8, BevGrid.around((16, 16), 2), trunk=(4, 8, 16))
        >>> eye = torch.eye(3).expand(1, 2, 3, 3)
        >>> cameras = Cameras(eye, torch.zeros(1, 2, 3), eye)
        >>> found = network(torch.rand(1, 2, 8, 4, 6), cameras, torch.eye(4)[None])
        >>> found.maps["binimg"].shape
        torch.Size([1, 1, 16, 16])
    """

    def __init__(
        self,
        width: int,
        grid: BevGrid,
        names: Iterable[str] = HEADS,
        *,
        sampling: Sampling = "released",
        embedding_width: int | None = 256,
        trunk: tuple[int, int, int] = (64, 128, 256),
    ) -> None:
        super().__init__(width, grid, names)
        self.view_transform = _Lift(width, grid, sampling, embedding_width)
        self.compressor = ConvCompressor(width, grid.heights)
        self.decoder = EncoderDecoder(width, trunk)
        self.heads = BevHeads(width, self.names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs; arguments as :class:`BevNetwork`."""
        pillars = self.view_transform(maps, cameras, motion, None, MEAN_EPSILON)
        # (B, C*Z, X*Y) -> (B, C*Z, X, Y)
        seen = self.compressor(pillars.unflatten(2, self.grid.size))
        return BevOutput(self.heads(self.decoder(seen)))


class PointBev(BevNetwork):
    """PointBeV: some pillars at random, then some around what looks like a vehicle.

    In evaluation mode all pillars are computed in one pass.

    Args:
        width: C.
        grid: of the map.
        names: of the heads.
        sampling: see :func:`upfeat.evaluation.probes.bev.lifting.sampling_grid`.
        embedding_width: of the embedding of coordinates; None for none.
        middle: width of the first stage of the sparse network.
        coarse: pillars of the first pass.
        fine: pillars of the second pass.
        anchors: cells of the first pass around which the second looks.
        window: side of the square around an anchor, odd.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.grid import BevGrid
        >>> from upfeat.evaluation.probes.bev.lifting import Cameras
        >>> from upfeat.evaluation.probes.bev.networks import PointBev
        >>> grid = BevGrid.around((16, 16), 2)
        >>> network = PointBev(8, grid, middle=4, coarse=20, fine=20, anchors=2)
        >>> eye = torch.eye(3).expand(1, 2, 3, 3)
        >>> cameras = Cameras(eye, torch.zeros(1, 2, 3), eye)
        >>> found = network(torch.rand(1, 2, 8, 4, 6), cameras, torch.eye(4)[None])
        >>> 20 <= int(found.sampled.sum()) <= 40
        True
    """

    def __init__(
        self,
        width: int,
        grid: BevGrid,
        names: Iterable[str] = HEADS,
        *,
        sampling: Sampling = "released",
        embedding_width: int | None = 256,
        middle: int = 64,
        coarse: int = 2500,
        fine: int = 2500,
        anchors: int = 100,
        window: int = 9,
    ) -> None:
        super().__init__(width, grid, names)
        self.coarse, self.fine, self.anchors, self.window = coarse, fine, anchors, window
        self.view_transform = _Lift(width, grid, sampling, embedding_width)
        self.compressor = PillarCompressor(width, grid.heights)
        self.decoder = SparseUNet(width, middle)
        self.heads = SparseHeads(width, self.names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs; arguments as :class:`BevNetwork`."""
        batch, device = maps.shape[0], maps.device
        if not self.training:
            every = torch.arange(len(self.view_transform.points), device=device)
            found, _ = self.at(maps, cameras, motion, every.expand(batch, -1))
            return BevOutput(found)
        cells = coarse_cells(self.grid.size, self.coarse).to(device).expand(batch, -1)
        coarse, first = self.at(maps, cameras, motion, cells)
        cells = fine_cells(coarse["binimg"], first, self.fine, self.anchors, self.window)
        fine, second = self.at(maps, cameras, motion, cells)
        return BevOutput(*merge_passes(coarse, fine, (first, second)))

    def at(
        self, maps: Tensor, cameras: Cameras, motion: Tensor, cells: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return one pass over cells (B, P), and where they are (B, 1, X, Y)."""
        pillars = self.view_transform(maps, cameras, motion, cells, 0.0)  # (B, C*Z, P)
        found = self.compressor(pillars[..., None])[..., 0]  # (B, C, P)
        batch, width, _ = found.shape
        count = len(self.view_transform.points)
        index = cells[:, None]  # (B, 1, P)
        # (B, C, P) -> (B, C, X*Y) -> (B, C, X, Y)
        values = found.new_zeros(batch, width, count).scatter(2, index.expand_as(found), found)
        active = found.new_zeros(batch, 1, count).scatter(2, index, 1.0)
        values, active = values.unflatten(2, self.grid.size), active.unflatten(2, self.grid.size)
        return self.heads(self.decoder(SparseMap(values, active))), active


class BevFormer(BevNetwork):
    """BevFormer: a query for each cell looks at the cameras.

    Args:
        width: C, a multiple of 4.
        grid: of the map; as many heights as an attention head has points, 8, or a divisor.
        names: of the heads.
        count: of layers.
        feed_forward: width of their last part.
        layers: see :class:`upfeat.evaluation.probes.bev.attention.BevFormerEncoder`.
        references: see there.
        trunk: widths of a dense trunk behind the encoder; None for none, as released.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.grid import BevGrid
        >>> from upfeat.evaluation.probes.bev.lifting import Cameras
        >>> from upfeat.evaluation.probes.bev.networks import BevFormer
        >>> network = BevFormer(8, BevGrid.around((8, 8), 4), count=1, feed_forward=12)
        >>> eye = torch.eye(3).expand(1, 2, 3, 3)
        >>> cameras = Cameras(eye, torch.zeros(1, 2, 3), eye)
        >>> found = network(torch.rand(1, 2, 8, 4, 6), cameras, torch.eye(4)[None])
        >>> found.maps["offsets"].shape
        torch.Size([1, 2, 8, 8])
    """

    points: Tensor

    def __init__(
        self,
        width: int,
        grid: BevGrid,
        names: Iterable[str] = HEADS,
        *,
        count: int = 6,
        feed_forward: int = 1028,
        layers: Literal["as_released", "chained"] = "as_released",
        references: Literal["as_released", "swapped"] = "as_released",
        trunk: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(width, grid, names)
        # (X, Y, Z, 3) -> (X*Y*Z, 3)
        self.register_buffer("points", grid.points().flatten(0, 2), persistent=False)
        self.view_transform = BevFormerEncoder(
            width,
            grid.size,
            count=count,
            feed_forward=feed_forward,
            layers=layers,
            references=references,
        )
        self.decoder = EncoderDecoder(width, trunk) if trunk else nn.Identity()
        self.heads = BevHeads(width, self.names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs; arguments as :class:`BevNetwork`."""
        projection = project(move_points(self.points, motion), cameras)
        views = Views.of(projection, maps.shape[-2:], self.grid.heights)
        return BevOutput(self.heads(self.decoder(self.view_transform(maps, views))))
