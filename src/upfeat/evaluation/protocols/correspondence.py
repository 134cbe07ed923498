"""Semantic correspondence: the key points of one image found in another by upsampled features.

Scores are PCK@alpha: a point counts if it is found within alpha times the size of the object. The
presets differ in how images are padded, features compared and errors counted:

* ``square`` (ViT-Up): square images of 448, maps of 448; whole pixels; ``pck_plus`` beside PCK.
* ``lift`` (LiFT and WRC): images of 224, maps of twice the backbone's grid; 100 pairs a category,
  drawn with replacement.
* ``probe3d``: images of 800; 200 pairs a category; the recall is ``pck_points_10``. Its maps for
  upsamplers, of twice the grid, are our choice.
* ``geo-aware`` (GeoAware-SC, zero-shot): ``square`` with a soft argmax in a window on maps of 60,
  and PCK of the points that have a visible twin, such as the left eye.

The row ``low-res`` compares on the backbone's own grid. Data: SPair-71k, PF-PASCAL, PF-WILLOW, a
folder of one's own (``keypoints``), and ``homographies``: any folder of photographs, each paired
with a warped copy of itself (:func:`upfeat.data.keypoints.write_homographies`).

Legend: ``C`` feature channels, ``K`` points ``(x, y)``, ``S`` side of the square image, ``G`` side
of its map, ``H W`` image.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import KeypointData, KeypointFile, keypoint_folder, pf_pascal, pf_willow, spair71k
from upfeat.data.folders import image_files
from upfeat.data.keypoints import KeypointPair, KeypointView, write_homographies
from upfeat.data.layouts import hash_files
from upfeat.data.own import FOLDER_SET, folder_keypoints
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import (
    KeypointMetric,
    SquareCanvas,
    percent_name,
    similarities,
    soft_argmax,
)
from upfeat.evaluation.probes.key_points import (
    lift_canvas,
    lift_image,
    lift_matches,
    recall_image,
    recall_matches,
    shown_points,
    square_image,
    square_matches,
)
from upfeat.evaluation.registry import (
    Option,
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, seed_scores
from upfeat.pipeline import Pipeline

__all__ = [
    "DATA_SETS",
    "PRESETS",
    "CorrespondenceConfig",
    "correspondence_preset",
    "run_correspondence",
]

TASK = "correspondence"
_TWINS = ("pck", "pck_image")  # scores that are also those of the points with a visible twin


class CorrespondenceConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        form: how images, points and errors are treated, see
            :mod:`upfeat.evaluation.probes.key_points`.
        input_size: S, to which the square image is resized.
        map_size: G; None for twice the backbone's grid.
        alphas: thresholds, as shares of the object's size.
        threshold: the object's size: longer side of its box in the target, of the target image, or
            the largest extent of the target's key points, which also stands in for a missing box.
        strict: correct is a distance below the threshold, not one equal to it.
        soft_window: positions by a soft argmax, see
            :func:`upfeat.evaluation.metrics.soft_argmax`; None for the best cell.
        geometry_aware: also score the points of which the target shows at least two of one group.
        pairs_per_category: so many are drawn; None for all.
        replacement: whether a pair may be drawn twice.
        pair_seed: of the draw.
    """

    preset: Literal["square", "lift", "probe3d", "geo-aware"] = "square"
    form: Literal["square", "lift", "recall"] = "square"
    input_size: PositiveInt = 448
    map_size: PositiveInt | None = 448
    alphas: tuple[PositiveFloat, ...] = Field(default=(0.1, 0.05, 0.01), min_length=1)
    threshold: Literal["box", "image", "kp_extent"] = "box"
    strict: bool = False
    soft_window: int | None = None
    geometry_aware: bool = False
    pairs_per_category: PositiveInt | None = None
    replacement: bool = False
    pair_seed: int = 0


def _homographies(root: Path, split: str, cache: Path) -> KeypointData:
    """Write the pairs of a folder of images once, and list them."""
    digest = hash_files(path for path, _ in image_files(root))
    folder = cache / f"homographies-{digest}"
    if not (folder / "pairs.csv").is_file():  # written last
        write_homographies(root, folder)
    return keypoint_folder(folder)


DATA_SETS: dict[str, Callable[[Path, Any, Path], KeypointData]] = {
    "spair71k": lambda root, split, cache: spair71k(root, split),
    "pf_pascal": lambda root, split, cache: pf_pascal(root, split),
    "pf_willow": lambda root, split, cache: pf_willow(root),
    "keypoints": lambda root, split, cache: keypoint_folder(root),
    FOLDER_SET: lambda root, split, cache: folder_keypoints(root),
    "homographies": _homographies,
}
PRESETS: dict[str, dict[str, Any]] = {
    "square": {},
    "lift": {
        "form": "lift",
        "input_size": 224,
        "map_size": None,
        "strict": True,
        "pairs_per_category": 100,
        "replacement": True,
    },
    "probe3d": {
        "form": "recall",
        "input_size": 800,
        "map_size": None,
        "alphas": (0.1,),
        "strict": True,
        "pairs_per_category": 200,
        "pair_seed": 20,
    },
    "geo-aware": {
        "input_size": 840,
        "map_size": 60,
        "strict": True,
        "soft_window": 5,
        "geometry_aware": True,
    },
}
_WITHOUT_BOXES = {
    "pf_pascal": {"threshold": "image", "alphas": (0.05, 0.1, 0.15)},
    "pf_willow": {"threshold": "kp_extent", "alphas": (0.05, 0.1, 0.15)},
}
correspondence_preset = Presets(CorrespondenceConfig, PRESETS, DATA_SETS, _WITHOUT_BOXES)


def run_correspondence(
    config: CorrespondenceConfig,
    data: KeypointData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Match the key points of all pairs with several upsamplers, see :attr:`Protocol.run`.

    The cache also keeps the matches so far, from which an interrupted run goes on. Scores are in
    percent, see :meth:`upfeat.evaluation.metrics.KeypointMetric.compute`; ``geo_pck``: of the
    points with a visible twin; ``view_0``, ``view_1``, ``view_2``: over the points of pairs with
    that difference of viewpoints.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    matching = _Matching(config, Path(out), on_progress or silent, data, backbone, Path(cache))
    return matching.run(methods)


class _Matches(NamedTuple):
    """A pair, matched: where points are found (K, 2), where they are, and the object's size."""

    predicted: Tensor
    true: Tensor
    size: float


@dataclass(eq=False)
class _Matching(ProtocolRun):
    """One backbone on one set."""

    task = TASK

    config: CorrespondenceConfig
    data: KeypointData
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        self.files = drawn_pairs(self.data, self.config)
        self.pipe = Pipeline(self.backbone, fit="exact", cache=self.cache / "features")
        digest = hashlib.blake2b(self.data.settings().encode(), digest_size=8)
        paths = {path for file in self.files for path in self.data.paths(file)}
        hashes = {path: hash_files([path]) for path in paths}
        for file in self.files:
            own = [hashes[path] for path in self.data.paths(file)]
            digest.update(f"{file.name} {own}\n".encode())
        split = {"pairs": len(self.files), "fingerprint": digest.hexdigest()}
        self.facts = {
            "splits": {self.data.name: split},
            "backbone": self.pipe.identity,
            "stored_features": "float16",
        }

    def settings(self, method: Method) -> dict[str, Any]:
        return super().settings(method) | {"output_size": [self.grid(method)] * 2}

    def grid(self, method: Method) -> int:
        """Return G."""
        side = self.config.input_size
        own = min(self.backbone.grid_size((side, side)))
        if isinstance(method, LowRes):
            return own
        return self.config.map_size or 2 * own

    def measure(self, pending: Pending) -> Measured:
        """Match all pairs and score them."""
        rows = self.rows(pending, self.cache / TASK, "matching", self.files, self.match)
        scores, categories = self.scores(rows)
        return seed_scores([scores]), {"categories": categories}

    @torch.no_grad()
    def match(self, method: Method, file: KeypointFile) -> list[Any]:
        """Return a pair's :class:`_Matches` as lists."""
        form = {"square": self.square, "lift": self.lift, "recall": self.recall}[self.config.form]
        found = form(method, file, self.data.read(file))
        return [found.predicted.tolist(), found.true.tolist(), found.size]

    # -- matches ---------------------------------------------------------------------------------

    def square(self, method: Method, file: KeypointFile, pair: KeypointPair) -> _Matches:
        """Match in squares around the images, in whole pixels of the target."""
        side, grid = self.config.input_size, self.grid(method)
        canvases = [SquareCanvas.centred(_size(image)) for image in pair[:2]]
        source, target = (
            self.pipe.encode(square_image(image, side), (side, side)) for image in pair[:2]
        )
        shown = shown_points(pair.source_points)
        cells = canvases[0].cells(pair.source_points[shown], grid)
        pipe = method.on(self.pipe)
        queries = pipe.at(source, (grid, grid), cells)
        strips = (tile[0] for _, tile in pipe.pieces(target, (grid, grid)))  # (C, R, G) each
        predicted = torch.full_like(pair.source_points, torch.nan)
        if self.config.soft_window is None:
            predicted[shown] = square_matches(queries, strips, canvases[1], grid)
        else:
            predicted[shown] = self.soft(queries, strips, canvases[1], grid)
        return _Matches(predicted, pair.target_points, self.object_size(file.target, pair.target))

    def soft(
        self, queries: Tensor, strips: Iterator[Tensor], canvas: SquareCanvas, grid: int
    ) -> Tensor:
        """Return positions (K, 2) by the soft argmax; a cell lies at half its stride, cut."""
        window = self.config.soft_window or 0
        rows = [similarities(queries, strip.flatten(1).T) for strip in strips]
        found = soft_argmax(torch.cat(rows, 1).reshape(-1, grid, grid), window).double().cpu()
        stride = self.config.input_size // grid
        places = (found * stride + stride // 2) / self.config.input_size * canvas.side
        return places - places.new_tensor([canvas.left, canvas.top])

    def lift(self, method: Method, file: KeypointFile, pair: KeypointPair) -> _Matches:
        """Match normalised features that are enlarged to a pixel each."""
        side = self.config.input_size
        canvases = [lift_canvas(_size(image), side) for image in pair[:2]]
        source, target = (self.map(method, lift_image(image, side)) for image in pair[:2])
        predicted = lift_matches(source, target, canvases[0].place(pair.source_points), side)
        true = canvases[1].place(pair.target_points)
        return _Matches(
            predicted, true, canvases[1].scale * self.object_size(file.target, pair.target)
        )

    def recall(self, method: Method, file: KeypointFile, pair: KeypointPair) -> _Matches:
        """Match shares of the square's sides; key points are cut to whole pixels of it."""
        side = self.config.input_size
        source, target = (self.map(method, recall_image(image, side)) for image in pair[:2])
        points, true = (
            (own * side / max(_size(image))).trunc()
            for own, image in zip(pair[2:], pair[:2], strict=True)
        )
        predicted = recall_matches(source, target, points, side)
        size = self.object_size(file.target, pair.target) / max(_size(pair.target))
        return _Matches(predicted, true / side, size)

    def map(self, method: Method, image: Tensor) -> Tensor:
        """Return the upsampled features (C, G, G) of a square image (3, S, S)."""
        encoded = self.pipe.encode(image, (image.shape[1], image.shape[2]))
        grid = self.grid(method)
        return method.on(self.pipe).upsample(encoded, (grid, grid))

    def object_size(self, view: KeypointView, image: Tensor) -> float:
        """Return the object's size in the target, in its pixels."""
        if self.config.threshold == "image":
            return float(max(_size(image)))
        if self.config.threshold == "box" and view.box is not None:
            x0, y0, x1, y1 = view.box
            return max(x1 - x0, y1 - y0)
        shown = self.data.points(view)
        shown = shown[shown_points(shown)]
        return float((shown.max(0).values - shown.min(0).values).max())

    # -- scores ----------------------------------------------------------------------------------

    def scores(self, rows: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return all scores, and PCK at the first alpha with the points of each category."""
        config, names = self.config, self.data.categories
        whole, twins, *views = (
            KeypointMetric(names, config.alphas, strict=config.strict) for _ in range(5)
        )
        for file in self.files:
            predicted, true = (
                torch.tensor(part, dtype=torch.float64) for part in rows[file.name][:2]
            )
            size = rows[file.name][2]
            whole.add(file.category, predicted, true, size)
            if config.geometry_aware:
                twins.add(file.category, predicted, true, size, _has_twin(file.groups, true))
            if file.view is not None:
                views[min(file.view, 2)].add(file.category, predicted, true, size)
        scores = whole.compute()
        first = percent_name(config.alphas[0])
        if config.geometry_aware:
            parts = twins.compute()
            for alpha in map(percent_name, config.alphas):
                scores |= {f"geo_{name}_{alpha}": parts[f"{name}_{alpha}"] for name in _TWINS}
        for number, metric in enumerate(views):
            if int(metric.pairs.sum()):
                scores[f"view_{number}"] = metric.compute()[f"pck_points_{first}"]
        each = whole.correct[:, 0] / whole.points
        details = {
            name: {"points": int(whole.points[number]), "pck": round(100 * float(each[number]), 2)}
            for number, name in enumerate(names)
            if int(whole.points[number])
        }
        return scores, details


def drawn_pairs(data: KeypointData, config: CorrespondenceConfig) -> tuple[KeypointFile, ...]:
    """Return the pairs that are scored: all, or so many of each category."""
    files = data.files
    if (count := config.pairs_per_category) is not None:
        draw = random.Random(config.pair_seed)  # one generator for all categories, in their order
        chosen: list[KeypointFile] = []
        for category in data.categories:
            own = [file for file in files if file.category == category]
            if config.replacement:
                chosen += draw.choices(own, k=count) if own else []
            else:
                chosen += draw.sample(own, min(count, len(own)))
        files = tuple(chosen)
    return KeypointData(data.name, data.categories, files).select(limit=config.limit).files


def _has_twin(groups: Sequence[Sequence[int]], targets: Tensor) -> Tensor:
    """Return the points (K,) of whose group the target shows at least two."""
    shown = shown_points(targets)
    found = torch.zeros_like(shown)
    for group in groups:
        members = torch.tensor(group)
        if int(shown[members].sum()) >= 2:
            found[members] = True
    return found


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _inputs(request: Request) -> dict[str, Any]:
    read = DATA_SETS[str(request.data)]
    data = read(request.root, request.options["split"], request.cache)
    return {"data": data, "cache": request.cache}


_HEADINGS = {
    "pck": "PCK",
    "pck_plus": "PCK+",
    "pck_image": "PCK per image",
    "pck_pairs": "PCK over pairs",
    "pck_points": "PCK over points",
    "geo_pck": "PCK of twins",
    "geo_pck_image": "PCK of twins per image",
}
_ALPHAS = (0.15, 0.1, 0.05, 0.01)

register_protocol(
    Protocol(
        name=TASK,
        title="Semantic correspondence",
        summary="Match key points between images by upsampled features (PCK).",
        scores={
            **{
                f"{name}_{percent_name(alpha)}": higher(f"{heading}@{alpha}")
                for name, heading in _HEADINGS.items()
                for alpha in _ALPHAS
            },
            **{f"view_{number}": higher(f"viewpoint difference {number}") for number in range(3)},
        },
        headline=("pck_10", "pck_5"),
        columns=(
            *(f"pck_{percent_name(alpha)}" for alpha in _ALPHAS),
            *(f"pck_plus_{percent_name(alpha)}" for alpha in _ALPHAS[1:]),
            *("pck_image_10", "pck_points_10", "geo_pck_10"),
        ),
        caption="PCK per point, mean over the categories",
        configure=correspondence_preset,
        presets=tuple(PRESETS),
        data=tuple(DATA_SETS),
        inputs=_inputs,
        run=run_correspondence,
        items="pairs",
        options=(Option("split", "Split of SPair-71k and PF-PASCAL: val, test.", default="test"),),
    )
)
