"""Whole networks: maps of the cameras in, maps from above out.

A network starts behind the upsampler and the neck. All of them lift with the same geometry, and
end in the same three heads.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from upfeat.evaluation.probes.bev.attention import POINTS, BevFormerEncoder, Views
from upfeat.evaluation.probes.bev.frames import view_settings
from upfeat.evaluation.probes.bev.lifting import (
    MEAN_EPSILON,
    BevGrid,
    Cameras,
    ConvCompressor,
    CoordinateEmbedding,
    PillarCompressor,
    camera_mean,
    move_points,
    project,
)
from upfeat.evaluation.probes.bev.trunks import (
    HEADS,
    BevHeads,
    EncoderDecoder,
    SparseHeads,
    SparseMap,
    SparseUNet,
    coarse_cells,
    fine_cells,
    merge_passes,
)
from upfeat.evaluation.registry import ProtocolConfig


class BevConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        image_size: of a camera's image, see
            :func:`upfeat.evaluation.probes.bev.frames.view_settings`.
        image_filter: ``nearest`` as released, or ``bilinear`` with antialiasing.
        out_stride: pixels of the image for a cell of the upsampled map; the row ``low-res`` takes
            the backbone's grid instead.
        neck: two 3x3 convolutions behind the upsampler, or one 1x1, which goes before it where
            that gives the same numbers.
        neck_width: of the former; None for the features' own.
        width: of the cameras' maps and of the map from above.
        grid_size: cells along x and y of 100 m x 100 m.
        heights: voxels of a pillar.
        coordinate_embedding: add where a voxel is (not in BevFormer).
        embedding_width: of the layers for that.
        sampling: ``released`` reads half a cell off, ``exact`` does not, ``simplebev`` is that of
            SimpleBeV's own code.
        skew: of the intrinsics at the map's scale, see
            :func:`upfeat.evaluation.probes.bev.frames.feature_intrinsics`.
        trunk: widths of the dense encoder-decoder.
        sparse_width: of PointBeV's first stage.
        coarse_points, fine_points: PointBeV's pillars of the two passes.
        anchors: cells around which the second pass looks.
        fine_patch_size: side of the square around an anchor.
        bevformer_count: of layers.
        bevformer_feed_forward: width of their last part.
        bevformer_layers, bevformer_references: see
            :class:`upfeat.evaluation.probes.bev.attention.BevFormerEncoder`.
        bevformer_decoder: none as released, or the dense encoder-decoder.
        aux_heads: also learn centres and offsets.
        min_visibility: less visible vehicles are ignored, 1 (none) to 4.
        augment: draw views of the cameras and a motion of the grid in training.
        upsampler_init: ``scratch`` takes an entry's class and options, and random weights of the
            seed; ``pretrained`` starts from the entry's own weights.
        epochs, batch: of the training; a last, smaller batch is left out.
        learning_rate: the largest of one cycle.
        warm_up: share of the steps in which it rises.
        start_division, end_division: of the largest rate at the start, and of that at the end.
        weight_decay: of AdamW.
        gradient_clip: largest norm of all gradients.
        validate_every: epochs between two validations.
        checkpoint: the validation whose scores count.
        seeds: each trains everything anew.
    """

    preset: Literal["simplebev", "pointbev", "bevformer"]
    image_size: str = "224x490"
    image_filter: Literal["nearest", "bilinear"] = "nearest"
    out_stride: PositiveInt = 4
    neck: Literal["double_conv", "conv1"] = "double_conv"
    neck_width: PositiveInt | None = None
    width: PositiveInt = 128
    grid_size: tuple[PositiveInt, PositiveInt] = (200, 200)
    heights: PositiveInt = 8
    coordinate_embedding: bool = True
    embedding_width: PositiveInt = 256
    sampling: Literal["released", "exact", "simplebev"] = "released"
    skew: Literal["fixed", "released"] = "fixed"
    trunk: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256)
    sparse_width: PositiveInt = 64
    coarse_points: PositiveInt = 2500
    fine_points: PositiveInt = 2500
    anchors: PositiveInt = 100
    fine_patch_size: PositiveInt = 9
    bevformer_count: PositiveInt = 6
    bevformer_feed_forward: PositiveInt = 1028
    bevformer_layers: Literal["as_released", "chained"] = "as_released"
    bevformer_references: Literal["as_released", "swapped"] = "as_released"
    bevformer_decoder: Literal["none", "dense"] = "none"
    aux_heads: bool = True
    min_visibility: int = Field(default=1, ge=1, le=4)
    augment: bool = True
    upsampler_init: Literal["scratch", "pretrained"] = "scratch"
    epochs: PositiveInt = 100
    batch: PositiveInt = 1
    learning_rate: PositiveFloat = 3e-4
    warm_up: float = Field(default=0.05, gt=0, lt=1)
    start_division: PositiveFloat = 3.0
    end_division: PositiveFloat = 20.0
    weight_decay: NonNegativeFloat = 1e-7
    gradient_clip: PositiveFloat = 5.0
    validate_every: PositiveInt = 1
    checkpoint: Literal["best", "last"] = "best"
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "BevConfig":
        view_settings(self.image_size)
        rows, columns = self.grid_size
        dense = self.preset == "simplebev" or (
            self.preset == "bevformer" and self.bevformer_decoder == "dense"
        )
        if dense and (rows % 8 or columns % 8):
            raise ValueError(f"grid_size must be multiples of 8, got {self.grid_size}")
        if min(self.grid_size) < 2 or self.heights < 2:
            raise ValueError("the grid must have two cells along each axis")
        if self.preset == "bevformer" and (POINTS % self.heights or self.width % 4):
            raise ValueError("bevformer needs a width that 4 divides, and heights that divide 8")
        if self.preset == "pointbev":
            if max(self.coarse_points, self.fine_points) > rows * columns:
                raise ValueError(f"the grid has {rows * columns} pillars; ask for no more points")
            if self.fine_patch_size % 2 == 0:
                raise ValueError(f"fine_patch_size must be odd, got {self.fine_patch_size}")
        return self


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

    def __init__(self, config: BevConfig, grid: BevGrid) -> None:
        super().__init__()
        self.sampling, self.heights = config.sampling, config.heights
        # (X, Y, Z, 3) -> (X*Y, Z, 3)
        self.register_buffer("points", grid.points().flatten(0, 1), persistent=False)
        bounds = [max(map(abs, limits)) for limits in (grid.x, grid.y, grid.z)]
        self.coordembd = None
        if config.coordinate_embedding:
            self.coordembd = CoordinateEmbedding(config.width, bounds, config.embedding_width)

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
        config: the protocol; ``width`` is C of the cameras' maps and of the map from above.
    """

    def __init__(self, config: BevConfig) -> None:
        super().__init__()
        self.grid = BevGrid.around(config.grid_size, config.heights)
        self.names = tuple(HEADS) if config.aux_heads else ("binimg",)

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

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.lifting import Cameras
        >>> from upfeat.evaluation.probes.bev.networks import BevConfig, SimpleBev
        >>> small = {"width": 8, "grid_size": (16, 16), "heights": 2, "trunk": (4, 8, 16)}
        >>> network = SimpleBev(BevConfig(preset="simplebev", data="nuscenes", **small))
        >>> eye = torch.eye(3).expand(1, 2, 3, 3)
        >>> cameras = Cameras(eye, torch.zeros(1, 2, 3), eye)
        >>> found = network(torch.rand(1, 2, 8, 4, 6), cameras, torch.eye(4)[None])
        >>> found.maps["binimg"].shape
        torch.Size([1, 1, 16, 16])
    """

    def __init__(self, config: BevConfig) -> None:
        super().__init__(config)
        self.view_transform = _Lift(config, self.grid)
        self.compressor = ConvCompressor(config.width, config.heights)
        self.decoder = EncoderDecoder(config.width, config.trunk)
        self.heads = BevHeads(config.width, self.names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs; arguments as :class:`BevNetwork`."""
        pillars = self.view_transform(maps, cameras, motion, None, MEAN_EPSILON)
        # (B, C*Z, X*Y) -> (B, C*Z, X, Y)
        seen = self.compressor(pillars.unflatten(2, self.grid.size))
        return BevOutput(self.heads(self.decoder(seen)))


class PointBev(BevNetwork):
    """PointBeV: some pillars at random, then some around what looks like a vehicle.

    In evaluation mode all pillars are computed in one pass.
    """

    def __init__(self, config: BevConfig) -> None:
        super().__init__(config)
        self.coarse, self.fine = config.coarse_points, config.fine_points
        self.anchors, self.window = config.anchors, config.fine_patch_size
        self.view_transform = _Lift(config, self.grid)
        self.compressor = PillarCompressor(config.width, config.heights)
        self.decoder = SparseUNet(config.width, config.sparse_width)
        self.heads = SparseHeads(config.width, self.names)

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
    """BevFormer: a query for each cell looks at the cameras."""

    points: Tensor

    def __init__(self, config: BevConfig) -> None:
        super().__init__(config)
        # (X, Y, Z, 3) -> (X*Y*Z, 3)
        self.register_buffer("points", self.grid.points().flatten(0, 2), persistent=False)
        self.view_transform = BevFormerEncoder(
            config.width,
            config.grid_size,
            count=config.bevformer_count,
            feed_forward=config.bevformer_feed_forward,
            layers=config.bevformer_layers,
            references=config.bevformer_references,
        )
        self.decoder: nn.Module = nn.Identity()
        if config.bevformer_decoder == "dense":
            self.decoder = EncoderDecoder(config.width, config.trunk)
        self.heads = BevHeads(config.width, self.names)

    def forward(self, maps: Tensor, cameras: Cameras, motion: Tensor) -> BevOutput:
        """Return the heads' outputs; arguments as :class:`BevNetwork`."""
        projection = project(move_points(self.points, motion), cameras)
        views = Views.of(projection, maps.shape[-2:], self.grid.heights)
        return BevOutput(self.heads(self.decoder(self.view_transform(maps, views))))


def build_network(config: BevConfig) -> BevNetwork:
    """Return the network of a preset, behind the neck."""
    networks = {"simplebev": SimpleBev, "pointbev": PointBev, "bevformer": BevFormer}
    return networks[config.preset](config)
