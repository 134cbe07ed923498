"""Scores of video object segmentation, as DAVIS defines them.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation", CVPR 2016, and Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object
Segmentation", arXiv 1704.00675.

Legend: ``T`` frames, ``H W`` frame. Scores are fractions in [0, 1], not percent.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.metrics.boundaries import boundary_similarity, counted_masks
from upfeat.evaluation.results import Metric

__all__ = [
    "FrameStatistics",
    "VideoMetric",
    "frame_statistics",
    "object_numbers",
    "region_similarity",
]


def region_similarity(prediction: Tensor, target: Tensor, void: Tensor | None = None) -> Tensor:
    """Return J, intersection over union of masks; 1 where both are empty.

    Args:
        prediction: (..., H, W) masks, zero or not.
        target: masks of the same shape.
        void: pixels that do not count, of a shape that broadcasts.

    Returns:
        (...) float64.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import region_similarity
        >>> float(region_similarity(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 0]])))
        0.5
    """
    prediction, target = counted_masks(prediction, target, void)
    shared = (prediction & target).sum((-2, -1)).double()
    union = (prediction | target).sum((-2, -1)).double()
    return torch.where(union > 0, shared / union, 1.0)


def object_numbers(labels: Tensor, void: int = 255) -> list[int]:
    """Return the numbers of the objects in a label map of any shape, in ascending order.

    0 is the background. Numbers need not be consecutive: a number that does not occur is no object.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import object_numbers
        >>> object_numbers(torch.tensor([[0, 3, 255], [1, 1, 0]]))
        [1, 3]
    """
    found: list[int] = labels.unique().tolist()
    return [number for number in found if number not in (0, void)]


class FrameStatistics(NamedTuple):
    """A score over the frames of a sequence.

    Attributes:
        mean: over the frames.
        recall: share of the frames above 0.5.
        decay: mean of the first quarter minus mean of the last.
    """

    mean: float
    recall: float
    decay: float


def frame_statistics(scores: Tensor) -> FrameStatistics:
    """Return mean, recall and decay of the scores of one object.

    The quarters share their end frames: their ends are four equal steps from the first to the last
    frame, rounded.

    Args:
        scores: (T,), at least one.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import frame_statistics
        >>> frame_statistics(torch.tensor([1.0, 1.0, 0.5, 0.5]).double())
        FrameStatistics(mean=0.75, recall=0.5, decay=0.5)
    """
    if scores.dim() != 1 or not len(scores):
        raise ValueError(f"scores must be (T,) with at least one frame, got {shape_text(scores)}")
    last = len(scores) - 1
    ends = [round(1 + last * quarter / 4 + 1e-10) - 1 for quarter in range(5)]
    first = scores[ends[0] : ends[1] + 1].mean()
    final = scores[ends[3] : ends[4] + 1].mean()
    return FrameStatistics(
        float(scores.mean()), float((scores > 0.5).double().mean()), float(first - final)
    )


class VideoMetric(Metric):
    """DAVIS scores of a whole data set: means over all objects of all sequences.

    Args:
        void: label of pixels without meaning, which count as background.

    Attributes:
        objects: J and F of each object so far, by name of the sequence and number of the object.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import VideoMetric
        >>> truth = torch.zeros(4, 8, 8, dtype=torch.uint8)
        >>> truth[:, 2:6, 2:6] = 1
        >>> metric = VideoMetric()
        >>> metric.add("still", truth, truth)
        >>> metric.compute()["jf"]
        1.0
    """

    def __init__(self, void: int = 255) -> None:
        self.void = void
        self.objects: dict[tuple[str, int], tuple[FrameStatistics, FrameStatistics]] = {}

    def add(self, sequence: str, prediction: Tensor, target: Tensor) -> None:
        """Add a whole sequence; its first and its last frame are not scored.

        Args:
            sequence: its name.
            prediction: (T, H, W) object numbers, 0 for the background.
            target: the same, true; the numbers in the first frame are the objects that count, and
                need not be consecutive. An object that is not predicted counts as an empty mask.

        Raises:
            ValueError: shapes differ, fewer than 3 frames, no object in the first frame, a
                predicted object that the first frame does not have, or a sequence that was added
                before.
        """
        if prediction.shape != target.shape or target.dim() != 3 or len(target) < 3:
            raise ValueError(
                f"{sequence}: prediction and target must be (T, H, W) with at least 3 frames, got "
                f"{shape_text(prediction)} and {shape_text(target)}"
            )
        if any(name == sequence for name, _ in self.objects):
            raise ValueError(f"the sequence {sequence} was added before")
        numbers = object_numbers(target[0], self.void)
        surplus = set(object_numbers(prediction, self.void)) - set(numbers)
        if not numbers or surplus:
            more = f"; the prediction holds {', '.join(map(str, sorted(surplus)))}"
            raise ValueError(
                f"{sequence}: the first frame has the objects {numbers}{more if surplus else ''}; "
                "the objects are those of the first frame, at least one"
            )
        for number in numbers:
            # One frame after the other: the maps of a whole sequence would take much more room.
            pairs = [
                (predicted == number, true == number)
                for predicted, true in zip(prediction[1:-1], target[1:-1], strict=True)
            ]
            regions = torch.stack([region_similarity(*pair) for pair in pairs])
            boundaries = torch.stack([boundary_similarity(*pair) for pair in pairs])
            statistics = (frame_statistics(regions), frame_statistics(boundaries))
            self.objects[sequence, number] = statistics

    def reset(self) -> None:
        """Forget all objects."""
        self.objects = {}

    def sync(self) -> None:
        """Exchange the objects of all processes of ``torch.distributed``; each then has all."""
        if dist.is_available() and dist.is_initialized():
            gathered: list[dict[tuple[str, int], tuple[FrameStatistics, FrameStatistics]]]
            gathered = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, self.objects)
            self.objects = {key: value for part in gathered for key, value in part.items()}

    def compute(self) -> dict[str, float]:
        """Return the means over all objects; NaN without any.

        ``j``, ``j_recall``, ``j_decay``, the same of ``f``, and ``jf``, the mean of ``j`` and
        ``f``.
        """
        # Sorted, so that the order in which sequences came changes not even the last digit.
        rows = [self.objects[key] for key in sorted(self.objects)]
        scores = {
            f"{letter}{suffix}": math.fsum(row[part][field] for row in rows) / len(rows)
            if rows
            else math.nan
            for part, letter in enumerate("jf")
            for field, suffix in enumerate(("", "_recall", "_decay"))
        }
        return {"jf": (scores["j"] + scores["f"]) / 2} | scores
