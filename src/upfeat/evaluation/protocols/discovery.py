"""Unsupervised object discovery: a box an image from upsampled features, without any training.

The features are cut in two (:func:`upfeat.evaluation.metrics.normalized_cut`); the box of the
object's side is right if it overlaps any object by an IoU of 0.5 (CorLoc). Presets:

* ``tokencut`` (arXiv 2202.11539): images at their own size, padded to whole cells.
* ``lift`` (arXiv 2403.14625; WRC): images squashed to 224; twice the backbone's grid.

The papers take the keys of a DINO backbone's last block; any features are cut here. The row
``low-res`` is cut on the backbone's own grid, every other on ``factor`` times it, at most 64 x 64
cells, each being the mean of ``oversample`` x ``oversample`` positions of the upsampled map: both
chosen, as no paper says how a dense map is cut.

Legend: ``C`` feature channels, ``h w`` grid of the cut, ``H W`` image.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import BoxData, coco20k, mask_folder, voc_boxes
from upfeat.data.sizes import Size, resize
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import CorLocMetric, Cut, normalized_cut
from upfeat.evaluation.metrics.discovery import MOST_CELLS
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    higher,
    known_entry,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.evaluation.unfinished import Unfinished
from upfeat.pipeline import Pipeline

__all__ = [
    "DATA_SETS",
    "PRESETS",
    "DiscoveryConfig",
    "discovery_preset",
    "pixel_box",
    "run_discovery",
    "squashed_boxes",
]

TASK = "discovery"


class DiscoveryConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        side: images are squashed to a square of it; None for their own size, padded at the right
            and bottom with the backbone's mean colour.
        tau: threshold of the cosine.
        weighted: edges above it weigh as much as the cosine.
        factor: the grid of the cut is the backbone's times this.
        oversample: positions of the upsampled map along each side of a cell.
    """

    preset: Literal["tokencut", "lift"] = "tokencut"
    side: PositiveInt | None = None
    tau: float = Field(default=0.2, gt=-1, lt=1)
    weighted: bool = False
    factor: PositiveFloat = 2.0
    oversample: PositiveInt = 2


DATA_SETS: dict[str, Callable[[Path], BoxData]] = {
    "voc2007": lambda root: voc_boxes(root, 2007),
    "voc2012": lambda root: voc_boxes(root, 2012),
    "coco20k": coco20k,
    "masks": mask_folder,
}
# What a preset changes for a set.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tokencut": {name: {} for name in DATA_SETS},
    "lift": {name: {"side": 224} for name in DATA_SETS},
}
PRESETS["lift"]["coco20k"]["tau"] = 0.3


def discovery_preset(preset: str, data: str, **changes: Any) -> DiscoveryConfig:
    """Return the settings of a protocol for a data set.

    Args:
        preset: see ``PRESETS``.
        data: see ``DATA_SETS``.
        **changes: fields of :class:`DiscoveryConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.discovery import discovery_preset
        >>> discovery_preset("lift", "coco20k").tau
        0.3
    """
    settings = known_entry("data set", data, known_entry("preset", preset, PRESETS))
    return DiscoveryConfig(**{"preset": preset, "data": data} | settings | changes)


def run_discovery(
    config: DiscoveryConfig,
    data: BoxData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Find an object in every image with several upsamplers; results that exist are read.

    Args:
        config: the protocol.
        data: the whole split; ``limit`` of the settings applies.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device.
        out: folder of the results, one JSON a method.
        cache: folder of low-resolution features and of the boxes so far, from which an interrupted
            run goes on.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods, in percent.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    search = _Search(config, data.select(limit=config.limit), backbone, Path(cache))
    report = on_progress or silent
    results = []
    for method in methods:
        settings = search.settings(method)
        path, known = stored_result(out, TASK, config.data, method.label, settings)
        if known is None:
            rows = Unfinished(Path(cache) / TASK, path.name, settings)
            known = search.run(method, settings, rows, report)
            known.save(path)
            rows.remove()
        results.append(known)
    return results


class _Search:
    """One backbone on one set; the methods come one after the other."""

    def __init__(
        self, config: DiscoveryConfig, data: BoxData, backbone: Backbone, cache: Path
    ) -> None:
        self.config, self.data, self.backbone = config, data, backbone
        self.pipe = Pipeline(backbone, fit="exact", cache=cache / "features")
        self.fingerprint = data.fingerprint()

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        own = {"factor": 1.0, "oversample": 1} if isinstance(method, LowRes) else {}
        return (
            self.config.model_dump(mode="json")
            | own
            | {
                "splits": {
                    self.data.name: {"images": len(self.data), "fingerprint": self.fingerprint}
                },
                "backbone": self.pipe.identity,
                "upsampler": method.identity,
                "most_cells": MOST_CELLS,
                "image_resize": "bicubic, antialiased",
                "stored_features": "float16",
            }
        )

    def run(
        self, method: Method, settings: dict[str, Any], rows: Unfinished, report: Progress
    ) -> Result:
        """Find the box of every image and score them."""
        start = time.perf_counter()
        metric = CorLocMetric()
        try:
            for number, file in enumerate(self.data.files):
                if not file.boxes:
                    continue
                if file.name not in rows.rows:
                    report(method.label, "cutting", number, len(self.data))
                    image, boxes = self.data.read(file)
                    rows.put(file.name, self.find(method, image, boxes))
                boxes_found, objects = (torch.tensor(part) for part in rows.rows[file.name])
                metric.add(boxes_found, objects)
        except BaseException:
            rows.save()
            raise
        scores = metric.compute()
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores={name: Score.of([round(100 * score, 4)]) for name, score in scores.items()},
            details={"boxes": {name: row[0] for name, row in rows.rows.items()}},
            seconds={"all": round(time.perf_counter() - start, 1)},
            environment=describe_environment(),
        )

    def find(self, method: Method, image: Tensor, boxes: Tensor) -> tuple[list[Any], list[Any]]:
        """Return the box that is found and those of the objects, in one geometry."""
        own: Size = (image.shape[1], image.shape[2])
        if self.config.side is not None:
            seen = (self.config.side, self.config.side)
            image, boxes = resize(image[None], seen)[0], squashed_boxes(boxes, own, seen[0])
            own = seen
        else:
            image = self.padded(image)
            seen = (image.shape[1], image.shape[2])
        encoded = self.pipe.encode(image, seen)
        grid = self.grid(method, (encoded.features.shape[2], encoded.features.shape[3]))
        features = encoded.features[0]
        if not isinstance(method, LowRes):
            finer = (self.config.oversample * grid[0], self.config.oversample * grid[1])
            features = method.on(self.pipe).upsample(encoded, finer)
        # (C, h', w') -> (C, h, w), the mean of each cell
        cells = F.adaptive_avg_pool2d(features.float(), grid)
        cut = normalized_cut(cells.cpu(), self.config.tau, weighted=self.config.weighted)
        return pixel_box(cut, seen, own).tolist(), boxes.tolist()

    def padded(self, image: Tensor) -> Tensor:
        """Continue an image (3, H, W) to whole cells with what becomes 0 when normalised."""
        multiple = self.backbone.size_multiple
        height, width = image.shape[1:]
        mean = image.new_tensor(self.backbone.image_mean)[:, None, None]
        return F.pad(image - mean, (0, -width % multiple, 0, -height % multiple)) + mean

    def grid(self, method: Method, own: Size) -> Size:
        """Return the grid of the cut; a longer side than 64 cells is reduced, with its aspect."""
        factor = 1.0 if isinstance(method, LowRes) else self.config.factor
        factor = min(factor, MOST_CELLS / max(own))
        height, width = (max(1, int(side * factor)) for side in own)
        return height, width


def pixel_box(cut: Cut, seen: Size, own: Size) -> Tensor:
    """Return the box of a cut in pixels, (4,) float64.

    Args:
        cut: of the map of the padded image.
        seen: (H, W) of the padded image.
        own: (H, W) of the image, to which the box's end is clipped.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import Cut
        >>> from upfeat.evaluation.protocols.discovery import pixel_box
        >>> side = torch.tensor([[False, True], [False, True]])
        >>> pixel_box(Cut(side.double(), side, side, (0, 1)), (32, 32), (30, 31)).tolist()
        [16.0, 0.0, 31.0, 30.0]
    """
    height, width = cut.foreground.shape
    cell = torch.tensor([seen[1] / width, seen[0] / height], dtype=torch.float64)
    box = torch.tensor(cut.box(), dtype=torch.float64) * cell.repeat(2)
    limits = torch.tensor([own[1], own[0]], dtype=torch.float64)
    return torch.cat([box[:2], torch.minimum(box[2:], limits)])


def squashed_boxes(boxes: Tensor, size: Size, side: int) -> Tensor:
    """Return boxes (N, 4) of an image (H, W) as those of a square, cut to whole pixels.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.protocols.discovery import squashed_boxes
        >>> squashed_boxes(torch.tensor([[10, 20, 90, 100]]), (120, 160), 96).tolist()
        [[6, 16, 54, 80]]
    """
    height, width = size
    scale = torch.tensor([side, side], dtype=torch.float64) / torch.tensor([width, height])
    return (boxes.double() * scale.repeat(2)).long()


def _inputs(request: Request) -> dict[str, Any]:
    return {"data": DATA_SETS[str(request.data)](request.root), "cache": request.cache}


register_protocol(
    Protocol(
        name=TASK,
        title="Object discovery",
        summary="Find one object per image by a normalised cut of upsampled features (CorLoc).",
        scores={"corloc": higher("CorLoc"), "best_iou": higher("mean IoU of the best object")},
        headline=("corloc",),
        configure=discovery_preset,
        presets=tuple(PRESETS),
        data=tuple(DATA_SETS),
        inputs=_inputs,
        run=run_discovery,
        items="images",
    )
)
