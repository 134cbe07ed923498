"""Video object segmentation: DAVIS' scores, and masks handed from frame to frame by similarity.

Source of the scores: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation", CVPR 2016, and Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object
Segmentation", arXiv 1704.00675.

Source of the propagation: Jabri, Owens, Efros, "Space-Time Correspondence as a Contrastive Random
Walk", NeurIPS 2020, arXiv 2006.14613, in the form of DINO (Caron et al., ICCV 2021, arXiv
2104.14294), LiFT and LoftUp.

Legend: ``T`` frames, ``H W`` frame or output, ``C`` feature channels, ``K`` channels of the masks,
``N`` context frames, ``P`` positions of a block, ``h w`` grid of the features. Scores are fractions
in [0, 1], not percent.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import check_size, shape_text
from upfeat.evaluation.metrics.boundaries import boundary_similarity, counted_masks
from upfeat.evaluation.results import Metric
from upfeat.ops import unit_vectors
from upfeat.ops.runtime import STRIP_BYTES

# Positions on a side of a block. Small blocks waste less: one of side b computes (b + 2 radius)^2
# similarities a position.
_LARGEST_BLOCK = 16


def region_similarity(prediction: Tensor, target: Tensor, void: Tensor | None = None) -> Tensor:
    """Return J, intersection over union of masks (..., H, W); 1 where both are empty.

    Arguments and errors as :func:`upfeat.evaluation.metrics.boundary_iou`.
    """
    prediction, target = counted_masks(prediction, target, void)
    shared = (prediction & target).sum((-2, -1)).double()
    union = (prediction | target).sum((-2, -1)).double()
    return torch.where(union > 0, shared / union, 1.0)


def object_numbers(labels: Tensor, void: int = 255) -> list[int]:
    """Return the numbers of the objects in a label map of any shape, in ascending order.

    0 is the background. Numbers need not be consecutive: a number that does not occur is no object.
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
    """Return mean, recall and decay of the scores (T,) of one object, over at least one frame.

    The quarters share their end frames: their ends are four equal steps from the first to the last
    frame, rounded.

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


# -- propagation ---------------------------------------------------------------------------------


def propagate_labels(
    target: Tensor,
    context: Tensor,
    masks: Tensor,
    *,
    radius: int = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    max_bytes: int = STRIP_BYTES,
) -> Tensor:
    """Give a frame the masks of earlier frames, by similarity of features.

    Each position looks at the square of side ``2 radius + 1`` around itself in every context
    frame. Of all these positions together the ``top_k`` most similar ones (cosine ``s``), and
    others as similar as the last of them, get the weight ``exp(s / temperature)``, divided by the
    sum; their masks are mixed with it. Only the windows are computed, block by block: nothing
    of size ``(h w)^2`` exists.

    Args:
        target: (C, h, w) features of the frame; any length, they are normalised here.
        context: (N, C, h, w) features of the earlier frames.
        masks: (N, K, h, w) soft masks of the earlier frames.
        radius: in cells of the grid.
        top_k: how many positions count, over all context frames together.
        temperature: of the weights.
        max_bytes: bound of the temporaries; does not change the result.

    Returns:
        (K, h, w) soft masks; where those of the context sum to 1 over K, so do these.

    Raises:
        ValueError: shapes do not fit each other, or a number is out of range.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import propagate_labels
        >>> features = torch.eye(4).reshape(4, 2, 2)
        >>> masks = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None]
        >>> propagate_labels(features.flip(2), features[None], masks, top_k=1).tolist()
        [[[0.0, 1.0], [0.0, 0.0]]]
    """
    _check_propagation(target, context, masks, radius, top_k, temperature)
    height, width = target.shape[1:]
    # Channels last: (C, h, w) -> (h, w, C) and (N, C, h, w) -> (N, h, w, C)
    target = unit_vectors(target, 0).permute(1, 2, 0).contiguous()
    context = unit_vectors(context).permute(0, 2, 3, 1).contiguous()
    masks = masks.permute(0, 2, 3, 1)  # (N, K, h, w) -> (N, h, w, K)
    result = masks.new_empty(height, width, masks.shape[3])
    side = _block_side(len(context), radius, (height, width), max_bytes, target.element_size())
    for top in range(0, height, side):
        rows = slice(top, min(top + side, height))
        near_rows = slice(max(rows.start - radius, 0), min(rows.stop + radius, height))
        for left in range(0, width, side):
            cols = slice(left, min(left + side, width))
            near_cols = slice(max(cols.start - radius, 0), min(cols.stop + radius, width))
            # (a, 1, y, 1) + (1, b, 1, x) -> (a, b, y, x)
            hidden = (
                _beyond(rows, near_rows, radius, target)[:, None, :, None]
                + _beyond(cols, near_cols, radius, target)[None, :, None, :]
            )
            result[rows, cols] = _mix(
                target[rows, cols],
                context[:, near_rows, near_cols],
                masks[:, near_rows, near_cols],
                hidden,
                top_k,
                temperature,
            )
    return result.permute(2, 0, 1)  # (h, w, K) -> (K, h, w)


def _mix(
    target: Tensor,
    context: Tensor,
    masks: Tensor,
    hidden: Tensor,
    top_k: int,
    temperature: float,
) -> Tensor:
    """Mix the masks around one block.

    ``target`` (a, b, C) is the block, P = a b; ``context`` (N, y, x, C) and ``masks`` (N, y, x, K)
    are all that its positions may see, ``hidden`` (a, b, y, x) is -inf where one does not see it.
    """
    channels = target.shape[2]
    # (P, C) x (C, N y x) -> (P, N y x)
    similarity = target.reshape(-1, channels) @ context.reshape(-1, channels).T
    # (N, y, x, K) -> (N y x, K)
    masks = masks.reshape(-1, masks.shape[3])
    # (a, b, y, x) -> (P, 1, y x), added to a view (P, N, y x)
    similarity.view(len(similarity), len(context), -1).add_(
        hidden.flatten(2).flatten(0, 1)[:, None]
    )
    best = similarity.topk(min(top_k + 1, similarity.shape[1]), dim=1)
    kept = best.values[:, :top_k]
    # (P, k) x (P, k, K) -> (P, K)
    weights = (kept / temperature).softmax(1).to(masks.dtype)
    mixed = torch.einsum("pk,pkc->pc", weights, masks[best.indices[:, :top_k]])
    # Where the next one is as similar as the last: all that are take part.
    last = kept[:, -1:]
    tied = ((best.values[:, top_k:] == last) & last.isfinite()).any(1)
    if bool(tied.any()):
        every = similarity[tied]
        every = every.masked_fill(every < last[tied], -math.inf)
        mixed[tied] = (every / temperature).softmax(1).to(masks.dtype) @ masks
    return mixed.reshape(*target.shape[:2], -1)  # (P, K) -> (a, b, K)


def _beyond(here: slice, near: slice, radius: int, like: Tensor) -> Tensor:
    """Return -inf for the positions ``near`` beyond ``radius`` of each one ``here``, else 0."""
    own = torch.arange(here.start, here.stop, device=like.device)
    other = torch.arange(near.start, near.stop, device=like.device)
    distance = (own[:, None] - other).abs()
    return like.new_zeros(distance.shape).masked_fill_(distance > radius, -math.inf)


def _block_side(
    frames: int, radius: int, grid: tuple[int, int], max_bytes: int, element_size: int
) -> int:
    """Return the side of the largest block that the bytes allow, at least 1."""
    for side in range(_LARGEST_BLOCK, 1, -1):
        near = math.prod(min(side + 2 * radius, length) for length in grid)
        # the similarities and the mask of the window
        if side**2 * near * (frames + 2) * element_size <= max_bytes:
            return side
    return 1


def _check_propagation(
    target: Tensor, context: Tensor, masks: Tensor, radius: int, top_k: int, temperature: float
) -> None:
    fits = target.dim() == 3 and context.dim() == masks.dim() == 4 and len(context) > 0
    if (
        not fits
        or context.shape[1:] != target.shape
        or (masks.shape[0], *masks.shape[2:]) != (context.shape[0], *target.shape[1:])
    ):
        raise ValueError(
            "target must be (C, h, w), context (N, C, h, w) and masks (N, K, h, w) with N at least "
            f"1, got {shape_text(target)}, {shape_text(context)} and {shape_text(masks)}; resize "
            "the masks to the grid of the features"
        )
    if radius < 0 or top_k < 1 or not temperature > 0:
        raise ValueError(
            "radius must be at least 0, top_k at least 1 and temperature positive, got "
            f"{radius}, {top_k} and {temperature}"
        )


def masks_to_labels(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Turn soft masks on the grid into labels at the size of the network's input.

    Masks are resized bilinearly (align_corners false); then each channel is stretched to
    [0, 1] over the image, so that an object that is uncertain everywhere can still win; then the
    largest channel, the first of equal ones, is taken. A channel without any mask stays 0, and so
    does one that is the same everywhere.

    Args:
        masks: (K, h, w), not negative; channel 0 is the background.
        size: (H, W).

    Returns:
        (H, W) int64.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import masks_to_labels
        >>> weak = torch.tensor([[[0.9, 0.6]], [[0.1, 0.4]]])
        >>> masks_to_labels(weak, (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    return _stretched(masks, size).argmax(0)


def _stretched(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return (K, H, W), each channel between 0 and 1."""
    large = F.interpolate(masks[None], check_size(size, "size"), mode="bilinear")[0]
    above = large - large.amin((1, 2), keepdim=True)
    highest = above.amax((1, 2), keepdim=True)
    return above / highest.where(highest > 0, highest.new_ones(()))
