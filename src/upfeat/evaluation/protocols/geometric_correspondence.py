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

import time
from collections.abc import Sequence
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
from upfeat.data.view_pairs import PosedView, ViewPair, ViewPairs, view_pairs
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import (
    angle_bins,
    cell_features,
    match_errors,
    ratio_matches,
    rotation_angle,
)
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    ScoreKind,
    higher,
    known_entry,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.evaluation.unfinished import Unfinished
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


def geometric_preset(preset: str, data: str, **changes: Any) -> GeometricConfig:
    """Return the settings of a preset for a set.

    Args:
        preset: see ``PRESETS``.
        data: see ``DATA_SETS``.
        **changes: fields of :class:`GeometricConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.geometric_correspondence import geometric_preset
        >>> geometric_preset("scannet", "rgbd").pixels
        (5.0, 10.0, 20.0)
    """
    settings = known_entry("preset", preset, PRESETS)
    known_entry("data set", data, dict.fromkeys(DATA_SETS))
    return GeometricConfig(**{"preset": preset, "data": data} | settings | changes)


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
    """Match all pairs of views with several upsamplers; results that exist are read.

    Args:
        config: the protocol.
        data: the pairs; ``limit`` of the settings applies.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device.
        out: folder of the results, one JSON a method.
        cache: folder of low-resolution features and of the pairs so far, from which an interrupted
            run goes on.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods: recalls in percent of all matches.

    Raises:
        ValueError: the data is broken, a view has too little depth, or a method does not fit.
    """
    data, report = data.select(limit=config.limit), on_progress or silent
    pipe = Pipeline(
        backbone, input_size=config.input_size, fit="exact", cache=Path(cache) / "features"
    )
    split = {data.name: {"pairs": len(data), "fingerprint": data.fingerprint()}}
    results = []
    for method in methods:
        settings = config.model_dump(mode="json") | {
            "splits": split,
            "backbone": pipe.identity,
            "upsampler": method.identity,
            "stored_features": "float16",
        }
        path, known = stored_result(out, TASK, config.data, method.label, settings)
        if known is None:
            rows = Unfinished(Path(cache) / TASK, path.name, settings)
            known = _Matching(config, data, pipe, report).run(method, settings, rows)
            known.save(path)
            rows.remove()
        results.append(known)
    return results


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


class _Matching:
    """One backbone on one set of pairs."""

    def __init__(
        self, config: GeometricConfig, data: ViewPairs, pipe: Pipeline, report: Progress
    ) -> None:
        self.config, self.data, self.pipe, self.report = config, data, pipe, report

    def run(self, method: Method, settings: dict[str, Any], rows: Unfinished) -> Result:
        """Match all pairs and count the hits."""
        start = time.perf_counter()
        try:
            for number, file in enumerate(self.data.files):
                if file.name not in rows.rows:
                    self.report(method.label, "matching", number, len(self.data))
                    rows.put(file.name, self.match(method, file.name, self.data.read(file)))
        except BaseException:
            rows.save()
            raise
        found = [_Row(*rows.rows[file.name]) for file in self.data.files]
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores={name: Score.of([round(s, 4)]) for name, s in self.scores(found).items()},
            details={"matches": sum(row.matches for row in found)},
            seconds={"all": round(time.perf_counter() - start, 1)},
            environment=describe_environment(),
        )

    def match(self, method: Method, name: str, pair: ViewPair) -> _Row:
        """Match a pair."""
        first, second = (self.cells(method, name, view) for view in pair[:2])
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


def _inputs(request: Request) -> dict[str, Any]:
    return {"data": view_pairs(str(request.data), request.root), "cache": request.cache}


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
        inputs=_inputs,
        run=run_geometric_correspondence,
        items="pairs",
    )
)
