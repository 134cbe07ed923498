"""Geometric correspondence: two posed views of one thing matched by upsampled features.

Probe3D (arXiv 2404.08636): the cells of one view that have depth are matched to those of the other
by cosine, the 1,000 clearest matches by the ratio test are kept, and judged by how far the matched
points lie apart, in metres and in pixels.

* ``navi``: crops of 512 around an object, cells of 4 pixels, features enlarged bicubically; recall
  within 1, 2 and 5 cm and 5, 25 and 50 pixels; recall at 2 cm by the angle between the views.
* ``scannet``: frames of 480x640, cells of 4 pixels, features read bilinearly; recall within 5, 10
  and 20 pixels of the reduced frame, the centimetres beside it; recall at 10 pixels by the angle.

Upsamplers give maps of the cells' grid, which is our choice; ``low-res`` is enlarged to it. Data:
NAVI, ScanNet's pairs, and RGB-D folders with poses (:mod:`upfeat.data.view_pairs`).

Legend: ``C`` feature channels, ``H W`` grid of cells, ``N`` cells with depth, ``M`` matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat._settings import Sides
from upfeat.backbones import Backbone
from upfeat.data.surfaces import grid_points
from upfeat.data.view_pairs import PosedView, ViewPairFile, ViewPairs, view_pairs
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import (
    angle_bins,
    cell_features,
    match_errors,
    ratio_matches,
    rotation_angle,
)
from upfeat.evaluation.registry import (
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    ScoreKind,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
from upfeat.ops.images import resize_antialiased
from upfeat.pipeline import Pipeline

__all__ = [
    "DATA_SETS",
    "PRESETS",
    "GeometricConfig",
    "geometric_preset",
    "run_geometric_correspondence",
]

TASK = "geometric-correspondence"
CENTIMETRES = 100


class GeometricConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        input_size: (height, width) to which a picture is resized for the backbone.
        grid: (height, width) of the cells.
        points: ``picture``: those of the pixels in the cells' corners; ``grid``: of the reduced
            depth map and camera.
        enlarge: how a map is brought to the grid; ``bilinear`` mixes with zeros at the border.
        pixel_size: side of a cell in the pixels that errors are counted in.
        matches: at most so many are kept.
        metres: limits of the recall in space.
        pixels: limits of the recall in the second view.
        edges: of the bins of angles, in degrees.
        binned: whose recall is binned, at its middle limit.
    """

    preset: Literal["navi", "scannet"] = "navi"
    input_size: Sides = (512, 512)
    grid: Sides = (128, 128)
    points: Literal["picture", "grid"] = "picture"
    enlarge: Literal["bicubic", "bilinear"] = "bicubic"
    pixel_size: PositiveFloat = 4.0
    matches: PositiveInt = 1000
    metres: tuple[PositiveFloat, ...] = Field(default=(0.01, 0.02, 0.05), min_length=1)
    pixels: tuple[PositiveFloat, ...] = Field(default=(5, 25, 50), min_length=1)
    edges: tuple[float, ...] = Field(default=(0, 30, 60, 90, 120), min_length=2)
    binned: Literal["metres", "pixels"] = "metres"


DATA_SETS = ("navi", "scannet", "rgbd")
PRESETS: dict[str, dict[str, Any]] = {
    "navi": {},
    "scannet": {
        "input_size": (480, 640),
        "grid": (120, 160),
        "points": "grid",
        "enlarge": "bilinear",
        "pixel_size": 1.0,
        "pixels": (5, 10, 20),
        "edges": (0, 15, 30, 60, 180),
        "binned": "pixels",
    },
}


geometric_preset = Presets(GeometricConfig, PRESETS, DATA_SETS)


def run_geometric_correspondence(
    config: GeometricConfig,
    data: ViewPairs,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Match all pairs of views with several upsamplers, see :attr:`Protocol.run`.

    The cache also keeps the pairs so far, from which an interrupted run goes on. Scores are recalls
    in percent of all matches.

    Raises:
        ValueError: the data is broken, a view has too little depth, or a method does not fit.
    """
    data = data.select(limit=config.limit)
    matching = _Matching(config, Path(out), on_progress or silent, data, backbone, Path(cache))
    return matching.run(methods)


class _Row(NamedTuple):
    """A pair: angle of its views, number of matches, and those within each limit."""

    angle: float
    matches: int
    metres: list[int]
    pixels: list[int]


class _Cells(NamedTuple):
    """The cells of a view that have depth: features (N, C), points (N, 3), and the camera."""

    features: Tensor
    points: Tensor
    camera: Tensor


@dataclass(eq=False)
class _Matching(ProtocolRun):
    """One backbone on one set of pairs."""

    task = TASK

    config: GeometricConfig
    data: ViewPairs
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        size, cache = self.config.input_size, self.cache / "features"
        self.pipe = Pipeline(self.backbone, input_size=size, fit="exact", cache=cache)
        self.facts = {
            "splits": described_splits(self.data, items="pairs"),
            "backbone": self.pipe.identity,
            "stored_features": "float16",
        }

    def measure(self, pending: Pending) -> Measured:
        """Match all pairs and count the hits."""
        files = self.data.files
        rows = self.rows(pending, self.cache / TASK, "matching", files, self.match)
        found = [_Row(*rows[file.name]) for file in files]
        scores = seed_scores([self.scores(found)], percent=lambda name: False)
        return scores, {"matches": sum(row.matches for row in found)}

    def match(self, method: Method, file: ViewPairFile) -> _Row:
        """Match a pair."""
        pair = self.data.read(file)
        first, second = (self.cells(method, file.name, view) for view in pair[:2])
        matches = ratio_matches(first.features, second.features, self.config.matches)
        source, target = matches.source.cpu(), matches.target.cpu()
        errors = match_errors(first.points[source], second.points[target], pair.pose, second.camera)
        counts = [
            [int((each < limit).sum()) for limit in limits]
            for each, limits in zip(errors, (self.config.metres, self.config.pixels), strict=True)
        ]
        return _Row(rotation_angle(pair.pose), len(source), *counts)

    def cells(self, method: Method, name: str, view: PosedView) -> _Cells:
        """Return the cells of a view that have depth."""
        config, grid = self.config, self.config.grid
        camera = view.camera.clone()
        scale = torch.tensor([grid[1] / view.depth.shape[1], grid[0] / view.depth.shape[0]])
        camera[:2] *= scale[:, None]  # in cells
        if config.points == "grid":
            reduced = F.interpolate(view.depth[None, None], grid, mode="nearest")[0, 0]
            points = grid_points(reduced, camera)
        else:
            points = F.interpolate(grid_points(view.depth, view.camera)[None], grid)[0]
        flat = points.flatten(1).T  # (H*W, 3)
        known = flat[:, 2] > 0
        if int(known.sum()) < 2:
            raise ValueError(f"a view of {name} has {int(known.sum())} cells with depth, needs 2")
        camera[:2] *= config.pixel_size
        features = self.map(method, view.image)
        return _Cells(features[known.to(features.device)], flat[known], camera)

    def map(self, method: Method, image: Tensor) -> Tensor:
        """Return the features of all cells (H*W, C)."""
        config, size = self.config, self.config.input_size
        if image.shape[1:] != size:
            image = resize_antialiased(image[None], size)[0].clamp(0, 1)
        encoded = self.pipe.encode(image, size)
        if isinstance(method, LowRes):
            found = encoded.features
        else:
            found = method.on(self.pipe).upsample(encoded, config.grid)[None]
        if config.enlarge == "bicubic":
            return cell_features(found[0], config.grid)
        places = F.affine_grid(
            torch.eye(2, 3).to(found)[None], [1, 1, *config.grid], align_corners=False
        )
        return F.grid_sample(found, places, align_corners=False)[0].flatten(1).T

    def scores(self, rows: Sequence[_Row]) -> dict[str, float]:
        """Return recalls over all matches, and binned by the angle over the pairs."""
        config, total = self.config, sum(row.matches for row in rows)
        scores = {}
        for limits, part, name in (
            (config.metres, "metres", _metres_name),
            (config.pixels, "pixels", _pixels_name),
        ):
            for number, limit in enumerate(limits):
                hits = sum(getattr(row, part)[number] for row in rows)
                scores[name(limit)] = 100 * hits / total
        middle = len(getattr(config, config.binned)) // 2
        each = [100 * getattr(row, config.binned)[middle] / row.matches for row in rows]
        means = angle_bins(each, [row.angle for row in rows], config.edges)
        for (low, high), mean in zip(pairwise(config.edges), means, strict=True):
            if mean == mean:
                scores[_bin_name(low, high)] = mean
        return scores


def _metres_name(limit: float) -> str:
    return f"recall_{CENTIMETRES * limit:g}cm"


def _pixels_name(limit: float) -> str:
    return f"recall_{limit:g}px"


def _bin_name(low: float, high: float) -> str:
    return f"angle_{low:g}_to_{high:g}"


def _declared() -> dict[str, ScoreKind]:
    """Return the scores of all presets, in the order of the columns."""
    found: dict[str, ScoreKind] = {}
    configs = [geometric_preset(name, "rgbd") for name in PRESETS]
    for config in configs:
        found |= {
            _metres_name(m): higher(f"recall at {CENTIMETRES * m:g} cm") for m in config.metres
        }
        found |= {_pixels_name(p): higher(f"recall at {p:g} px") for p in config.pixels}
    for config in configs:
        found |= {
            _bin_name(low, high): higher(f"{low:g} to {high:g}°")
            for low, high in pairwise(config.edges)
        }
    return found


register_protocol(
    Protocol(
        name=TASK,
        title="Geometric correspondence",
        summary="Match two views with known poses by upsampled features (recall).",
        scores=_declared(),
        headline=("recall_2cm",),
        caption="percent of all matches; angles: mean over the pairs",
        configure=geometric_preset,
        presets=tuple(PRESETS),
        data=DATA_SETS,
        inputs=lambda request: {
            "data": view_pairs(str(request.data), request.root),
            "cache": request.cache,
        },
        run=run_geometric_correspondence,
        items="pairs",
    )
)
