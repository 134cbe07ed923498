"""Masks of "everything" by Segment Anything, through transformers.

* Papers: Kirillov et al., "Segment Anything", arXiv 2304.02643 (section 5 and appendix B: a grid of
  points, filters by predicted IoU and stability, non-maximum suppression); Ravi et al., "SAM 2:
  Segment Anything in Images and Videos", arXiv 2408.00714.
* Weights: Apache-2.0, a folder given by the user. Everything around the networks is here: nothing
  depends on transformers' processors or torchvision's operators.

Legend: ``P`` points, ``S`` side of the network's square input, ``s`` side of its masks.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.layouts import PathLike
from upfeat.data.mask_sets import Counts, RleMasks, mask_runs
from upfeat.data.networks import NetworkFolder
from upfeat.data.records import ImageRecord
from upfeat.data.sizes import Size, resolve_size
from upfeat.ops.images import normalize, resize_antialiased

logger = logging.getLogger(__name__)

# Both SAM and SAM 2 normalise with ImageNet's numbers.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

# transformers' model types, with the class of the image network and whether the image is padded to
# the square input (SAM) or stretched to it (SAM 2). Video weights hold the image network too.
MODELS = {
    "sam": ("SamModel", True),
    "sam2": ("Sam2Model", False),
    "sam2_video": ("Sam2Model", False),
}

ADDRESS = "https://huggingface.co/facebook/sam-vit-base or .../facebook/sam2.1-hiera-tiny"
MASKS_AT_ONCE = 8  # full-size masks in memory; 8 x 1500 x 2250 floats are 108 MB


def point_grid(side: int) -> Tensor:
    """Return ``side * side`` points (P, 2) as x, y in (0, 1), in the centres of equal cells."""
    centers = (torch.arange(side) + 0.5) / side
    return torch.cartesian_prod(centers, centers).flip(1)


def box_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Return the indices of the boxes that survive, best first.

    A box is dropped when its intersection over union with a better one that survived is above the
    threshold.

    Args:
        boxes: (M, 4) as left, top, right, bottom; the latter two exclusive.
        scores: (M,).
        threshold: of the intersection over union.

    Example:
        >>> import torch
        >>> from upfeat.data.sam_masks import box_suppression
        >>> boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
        >>> box_suppression(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.7)
        [1, 2]
    """
    boxes = boxes.double()
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        overlap = shared / (area[best] + area[order] - shared).clamp(min=1e-9)
        order = order[overlap <= threshold]
    return kept


@dataclass(eq=False)
class SamMaskSource:
    """Automatic masks of SAM or SAM 2: a grid of points, filtered, without near copies.

    It is slow (seconds an image on a GPU, minutes on a CPU): put it into a ``CachedMaskSource`` and
    fill that before training. Masks come best first.

    Args:
        weights: folder with ``config.json`` and ``model.safetensors``; nothing is downloaded.
        points_per_side: of the grid.
        points_per_batch: points that the network sees at a time.
        iou_threshold: least predicted quality of a mask.
        stability_threshold: least ratio of the areas at a raised and a lowered cutoff.
        stability_offset: how far the cutoff (0) is raised and lowered.
        suppression_threshold: largest overlap of two masks' boxes.
        min_area: smallest mask, in pixels.
        max_masks: kept of an image.
        device: where the network runs.
        dtype: of its weights, or its name.

    Raises:
        MissingPackageError: transformers is not installed.
        WeightsNotFoundError: the folder holds no weights.
        CheckpointError: they are of another kind, or do not fit.
    """

    weights: PathLike
    _: KW_ONLY
    points_per_side: int = 32
    points_per_batch: int = 64
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    stability_offset: float = 1.0
    suppression_threshold: float = 0.7
    min_area: int = 0
    max_masks: int = 150
    device: torch.device | str = "cpu"
    dtype: torch.dtype | str = torch.float32

    def __post_init__(self) -> None:
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype must be a type of torch such as 'float16', got {self.dtype!r}")
        if min(self.points_per_side, self.points_per_batch, self.max_masks) < 1:
            raise ValueError("points_per_side, points_per_batch and max_masks must be positive")
        self._folder = NetworkFolder(Path(self.weights), "SAM weights", MODELS, ADDRESS)
        self.weights, self.kind = self._folder.folder, self._folder.kind
        self._device, self._dtype = torch.device(self.device), dtype
        self._model: Any = None

    @cached_property
    def name(self) -> str:
        """Kind, hash of the weights and settings; the files are read once for it."""
        files = hashlib.sha256("".join(self._folder.hashes()).encode())
        settings = (
            *(self.points_per_side, self.iou_threshold, self.stability_threshold),
            *(self.stability_offset, self.suppression_threshold, self.min_area),
            self.max_masks,
        )
        numbers = "-".join(f"{number:g}" for number in settings)
        return f"{self.kind}-{files.hexdigest()[:12]}-{numbers}"

    def has(self, record: ImageRecord) -> bool:
        """Every image can be segmented."""
        return True

    @torch.no_grad()
    def __call__(self, record: ImageRecord, image: Tensor, generator: torch.Generator) -> RleMasks:
        """Segment the image (3, H, W) in [0, 1]; record and generator are not used."""
        model = self._load()
        size = (image.shape[1], image.shape[2])
        side = int(model.config.prompt_encoder_config.image_size)
        inner = self._inner_size(size, side)
        embeddings = model.get_image_embeddings(self._input(image, inner, side))
        runs: list[Counts] = []
        boxes: list[Tensor] = []
        scores: list[float] = []
        # (P, 2) in (0, 1) -> x, y in pixels of the network's input
        points = point_grid(self.points_per_side) * torch.tensor([inner[1], inner[0]])
        for batch in points.split(self.points_per_batch):
            for logits, score in self._propose(model, embeddings, batch, inner, side, size):
                if self._stability(logits) < self.stability_threshold:
                    continue
                mask = logits > 0
                if int(mask.sum()) > self.min_area:
                    runs.append(mask_runs(mask.cpu().numpy()))
                    boxes.append(_box(mask))
                    scores.append(score)
        if not runs:
            logger.info("SAM found no mask in %s", record.name)
            return RleMasks(size, [], [])
        kept = box_suppression(
            torch.stack(boxes), torch.tensor(scores), self.suppression_threshold
        )[: self.max_masks]
        return RleMasks(size, [runs[i] for i in kept], [scores[i] for i in kept])

    def _inner_size(self, size: Size, side: int) -> Size:
        """Return the part of the square input that the image covers."""
        return resolve_size(side / max(size), size) if MODELS[self.kind][1] else (side, side)

    def _input(self, image: Tensor, inner: Size, side: int) -> Tensor:
        """Resize, normalise and pad: (3, H, W) -> (1, 3, S, S)."""
        image = image[None].to(self._device, torch.float32)
        image = resize_antialiased(image, inner)
        image = normalize(image, IMAGE_MEAN, IMAGE_STD)
        image = F.pad(image, (0, side - inner[1], 0, side - inner[0]))
        return image.to(self._dtype)

    def _propose(
        self, model: Any, embeddings: Any, points: Tensor, inner: Size, side: int, size: Size
    ) -> Iterator[tuple[Tensor, float]]:
        """Yield logits (H, W) and predicted IoU of the masks of some points (P, 2)."""
        # (P, 2) -> (1, P, 1, 2): P prompts of one point each
        prompts = points[None, :, None].to(self._device, self._dtype)
        output = model(
            image_embeddings=embeddings,
            input_points=prompts,
            input_labels=torch.ones(prompts.shape[:3], dtype=torch.int64, device=self._device),
            multimask_output=True,
        )
        # (1, P, 3, s, s) -> (3P, s, s); (1, P, 3) -> (3P,)
        masks = output.pred_masks[0].flatten(0, 1).float()
        quality = output.iou_scores[0].flatten().float()
        good = quality > self.iou_threshold
        for chunk, scores in zip(
            masks[good].split(MASKS_AT_ONCE), quality[good].split(MASKS_AT_ONCE), strict=True
        ):
            # (3P', s, s) -> (3P', S, S), without the padding -> (3P', H, W)
            full = F.interpolate(chunk[:, None], (side, side), mode="bilinear")
            full = F.interpolate(full[..., : inner[0], : inner[1]], size, mode="bilinear")
            yield from zip(full[:, 0], scores.tolist(), strict=True)

    def _stability(self, logits: Tensor) -> float:
        """Return the ratio of the areas above a raised and above a lowered cutoff."""
        inside = int((logits > self.stability_offset).sum())
        around = int((logits > -self.stability_offset).sum())
        return inside / around if around else 0.0

    def _load(self) -> Any:
        """Return the network, loaded at the first call."""
        if self._model is None:
            network = MODELS[self.kind][0]
            self._model = self._folder.load(network, "SAM masks", self._device, self._dtype)
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network out: a worker process loads its own."""
        return {**self.__dict__, "_model": None}


def _box(mask: Tensor) -> Tensor:
    """Return left, top, right, bottom of a mask (H, W) that is not empty."""
    box = []
    for along in (mask.any(0), mask.any(1)):
        inside = np.flatnonzero(along.cpu().numpy())
        box.append((int(inside[0]), int(inside[-1]) + 1))
    (left, right), (top, bottom) = box
    return torch.tensor([left, top, right, bottom])
