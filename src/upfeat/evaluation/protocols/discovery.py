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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import BoxData, coco20k, mask_folder, voc_boxes
from upfeat.data.boxes import BoxFile
from upfeat.data.sizes import Size, resize
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import CorLocMetric, Cut, normalized_cut
from upfeat.evaluation.metrics.discovery import MOST_CELLS
from upfeat.evaluation.registry import (
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
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
PRESETS: dict[str, dict[str, Any]] = {"tokencut": {}, "lift": {"side": 224}}
discovery_preset = Presets(DiscoveryConfig, PRESETS, DATA_SETS, {("lift", "coco20k"): {"tau": 0.3}})


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
    """Find an object in every image with several upsamplers, see :attr:`Protocol.run`.

    The cache also keeps the boxes so far, from which an interrupted run goes on. Scores are in
    percent.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    data = data.select(limit=config.limit)
    search = _Search(config, Path(out), on_progress or silent, data, backbone, Path(cache))
    return search.run(methods)


@dataclass(eq=False)
class _Search(ProtocolRun):
    """One backbone on one set."""

    task = TASK

    config: DiscoveryConfig
    data: BoxData
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        self.pipe = Pipeline(self.backbone, fit="exact", cache=self.cache / "features")
        self.facts = {
            "splits": described_splits(self.data),
            "backbone": self.pipe.identity,
            "most_cells": MOST_CELLS,
            "image_resize": "bicubic, antialiased",
            "stored_features": "float16",
        }

    def settings(self, method: Method) -> dict[str, Any]:
        own = {"factor": 1.0, "oversample": 1} if isinstance(method, LowRes) else {}
        return super().settings(method) | own

    def measure(self, pending: Pending) -> Measured:
        """Find the box of every image and score them."""
        metric, files = CorLocMetric(), [file for file in self.data.files if file.boxes]
        rows = self.rows(pending, self.cache / TASK, "cutting", files, self.find)
        for file in files:
            metric.add(*(torch.tensor(part) for part in rows[file.name]))
        boxes = {name: row[0] for name, row in rows.items()}
        return seed_scores([metric.compute()]), {"boxes": boxes}

    def find(self, method: Method, file: BoxFile) -> tuple[list[Any], list[Any]]:
        """Return the box that is found and those of the objects, in one geometry."""
        image, boxes = self.data.read(file)
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
    """
    height, width = cut.foreground.shape
    cell = torch.tensor([seen[1] / width, seen[0] / height], dtype=torch.float64)
    box = torch.tensor(cut.box(), dtype=torch.float64) * cell.repeat(2)
    limits = torch.tensor([own[1], own[0]], dtype=torch.float64)
    return torch.cat([box[:2], torch.minimum(box[2:], limits)])


def squashed_boxes(boxes: Tensor, size: Size, side: int) -> Tensor:
    """Return boxes (N, 4) of an image (H, W) as those of a square, cut to whole pixels."""
    height, width = size
    scale = torch.tensor([side, side], dtype=torch.float64) / torch.tensor([width, height])
    return (boxes.double() * scale.repeat(2)).long()


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
        inputs=lambda request: {
            "data": DATA_SETS[str(request.data)](request.root),
            "cache": request.cache,
        },
        run=run_discovery,
        items="images",
    )
)
