"""The masks of one image, stored compactly and drawn when the image's geometry is known.

So they stay aligned with every resize, crop and flip, and a file of 150 masks of a large image
never lies in memory as 150 large arrays. Legend: ``M`` masks, ``(H, W)`` stored size, ``(h, w)``
size of the cut.

Run-length codes are those of COCO and SA-1B. A mask (H, W) is read column by column, from top to
bottom; the counts are the lengths of its runs, beginning with a run of zeros (which may be empty).
They come as a plain list ("uncompressed") or as a string ("compressed"): from the third count on
the difference to the count two places before is stored; each number is cut into groups of 5 bits,
lowest first, with a sixth bit that says whether another group follows; 48 is added to make a
printable character. The number is signed: the highest bit of its last group is the sign.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.opening import read_picture
from upfeat.data.sizes import Size
from upfeat.data.transforms import CropGeometry

__all__ = [
    "LabelMasks",
    "Masks",
    "RleMasks",
    "TurnedMasks",
    "counts_to_text",
    "mask_runs",
    "mask_to_rle",
    "read_labels",
    "rle_counts",
    "rle_to_mask",
    "text_to_counts",
]


Counts = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

_OFFSET = 48  # the character of the value 0
_MORE = 0x20
_SIGN = 0x10


def text_to_counts(text: str | bytes) -> Counts:
    """Return the run lengths that a compressed string holds.

    Raises:
        ValueError: a character outside of the code, or the string ends within a number.

    Example:
        >>> from upfeat.data.mask_sets import text_to_counts
        >>> text_to_counts("03R3").tolist()
        [0, 3, 98]
    """
    raw = text.encode("latin-1", "replace") if isinstance(text, str) else text
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - _OFFSET
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() >= 2 * _MORE:
        raise ValueError("the run lengths hold a character that the COCO code does not have")
    ends = np.flatnonzero((codes & _MORE) == 0)
    if not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("the run lengths end within a number; the string is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("the run lengths hold a number of more than 50 bits")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & (_MORE - 1)) << (5 * place), starts)
    values -= np.where(codes[ends] & _SIGN, np.int64(1) << (5 * lengths), 0)
    # From the fourth number on each is the difference to the one two places before.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def counts_to_text(counts: Sequence[int] | Counts) -> str:
    """Return the compressed string of run lengths, the inverse of :func:`text_to_counts`."""
    values = np.asarray(counts, dtype=np.int64)
    differences = values.copy()
    differences[3:] -= values[1:-2]
    characters = []
    for number in differences.tolist():
        while True:
            group = number & (_MORE - 1)
            number >>= 5
            # What is left must be nothing but copies of the sign bit.
            more = number != (-1 if group & _SIGN else 0)
            characters.append(chr(_OFFSET + group + (_MORE if more else 0)))
            if not more:
                break
    return "".join(characters)


def mask_to_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Return ``{"size": [H, W], "counts": text}`` of a mask (H, W); nonzero is inside.

    Example:
        >>> import numpy as np
        >>> from upfeat.data.mask_sets import mask_to_rle, rle_to_mask
        >>> mask = np.eye(3, dtype=bool)
        >>> bool((rle_to_mask(mask_to_rle(mask)) == mask).all())
        True
    """
    runs = mask_runs(mask)
    return {"size": [int(side) for side in mask.shape], "counts": counts_to_text(runs)}


def mask_runs(mask: npt.NDArray[Any]) -> Counts:
    """Return the run lengths of a mask (H, W); nonzero is inside."""
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got {mask.shape}")
    flat = (mask != 0).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], changes, [flat.size]]))


def rle_counts(segmentation: Mapping[str, Any]) -> tuple[tuple[int, int], Counts]:
    """Return size (H, W) and run lengths of a segmentation with either kind of counts.

    Raises:
        ValueError: a polygon or something else, or runs that do not fill the mask.
    """
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            "a segmentation must hold 'size' and 'counts' (run lengths), got "
            f"{type(segmentation).__name__}; polygons must be drawn to masks first"
        )
    height, width = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        runs = text_to_counts(counts)
    else:
        runs = np.asarray(counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"run lengths of a mask {(height, width)} must be positive and add up to "
            f"{height * width}, got a sum of {int(runs.sum())}"
        )
    return (height, width), runs


def rle_to_mask(segmentation: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of a segmentation, see :func:`rle_counts`."""
    (height, width), runs = rle_counts(segmentation)
    return draw_runs(height, width, runs)


def draw_runs(height: int, width: int, runs: Counts) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of checked run lengths."""
    inside = np.arange(runs.size) % 2 == 1
    # (W * H,) column by column -> (W, H) -> (H, W)
    return np.repeat(inside, runs).reshape(width, height).T


# What a document in another layout, or one that is nested or numbered beyond reason, raises.
_OTHER_LAYOUT = (
    *(KeyError, IndexError, TypeError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)


class Masks(ABC):
    """The masks of one image, stored compactly.

    Attributes:
        size: (H, W) of the stored masks; the aspect ratio is the image's, the size need not be.
    """

    size: Size

    @abstractmethod
    def __len__(self) -> int:
        """Return the number M of stored masks."""

    @abstractmethod
    def sample(self, rows: Indices, cols: Indices) -> npt.NDArray[np.bool_]:
        """Return the masks at these rows and columns, (M', h, w) in order, empty ones left out."""

    def cut(self, geometry: CropGeometry) -> Tensor:
        """Return the masks under an image's geometry, bool (M', h, w), empty ones left out."""
        return torch.from_numpy(self.sample(*geometry.grid(self.size)))

    def dense(self) -> Tensor:
        """Return all masks that are not empty at the stored size, bool (M', H, W)."""
        rows, cols = (np.arange(side) for side in self.size)
        return torch.from_numpy(self.sample(rows, cols))


class TurnedMasks(Masks):
    """Masks that lie on a photo as the camera stored it, seen as the photo is read: upright.

    Args:
        masks: in stored geometry.
        orientation: the photo's EXIF orientation, 5 to 8: those that swap height and width.

    Example:
        >>> import numpy as np
        >>> from upfeat.data.mask_sets import LabelMasks, TurnedMasks
        >>> masks = LabelMasks(np.array([[1, 1, 2]]))
        >>> TurnedMasks(masks, 6).dense().int().tolist()
        [[[1], [1], [0]], [[0], [0], [1]]]
    """

    def __init__(self, masks: Masks, orientation: int) -> None:
        if orientation not in (5, 6, 7, 8):
            raise ValueError(f"orientation must be 5 to 8, got {orientation}")
        self.masks = masks
        self.size = (masks.size[1], masks.size[0])
        self.orientation = orientation

    def __len__(self) -> int:
        return len(self.masks)

    def sample(self, rows: Indices, cols: Indices) -> npt.NDArray[np.bool_]:
        """See the base class."""
        height, width = self.size
        if self.orientation in (7, 8):
            rows = height - 1 - rows
        if self.orientation in (6, 7):
            cols = width - 1 - cols
        # (M', w, h) -> (M', h, w)
        return self.masks.sample(cols, rows).transpose(0, 2, 1)


class RleMasks(Masks):
    """Run lengths, one mask each; masks may overlap and keep their order.

    Args:
        size: (H, W) of all masks.
        runs: run lengths of each mask, column by column, see ``rle``.
        scores: a number for each mask, kept with them.
    """

    def __init__(
        self, size: Size, runs: Sequence[Counts], scores: Sequence[float] | None = None
    ) -> None:
        self.size = size
        self.runs = list(runs)
        self.scores = None if scores is None else list(scores)

    def __len__(self) -> int:
        return len(self.runs)

    def sample(self, rows: Indices, cols: Indices) -> npt.NDArray[np.bool_]:
        """See the base class; one mask at a time is drawn at its full size."""
        drawn = []
        for runs in self.runs:
            mask = draw_runs(*self.size, runs)[rows[:, None], cols]
            if mask.any():
                drawn.append(mask)
        return np.stack(drawn) if drawn else np.zeros((0, len(rows), len(cols)), bool)

    def to_json(self) -> bytes:
        """Return the masks in SA-1B's layout."""
        scores: Sequence[float | None] = self.scores or [None] * len(self.runs)
        annotations = [
            {
                "id": number,
                "segmentation": {"size": list(self.size), "counts": counts_to_text(runs)},
                "area": int(runs[1::2].sum()),
                **({} if score is None else {"predicted_iou": score}),
            }
            for number, (runs, score) in enumerate(zip(self.runs, scores, strict=True))
        ]
        image = {"height": self.size[0], "width": self.size[1]}
        return json.dumps({"image": image, "annotations": annotations}).encode()

    @classmethod
    def from_json(cls, content: bytes, limit: int | None = None, keep: str = "first") -> "RleMasks":
        """Read SA-1B's layout; the first or the largest ``limit`` masks of it."""
        try:
            document = json.loads(content)
            annotations = document["annotations"]
            if keep == "largest" and limit is not None and len(annotations) > limit:
                areas = np.array([annotation["area"] for annotation in annotations])
                chosen = np.sort(np.argsort(-areas, kind="stable")[:limit])
                annotations = [annotations[number] for number in chosen]
            coded = [rle_counts(a["segmentation"]) for a in annotations[:limit]]
            image = document.get("image", {})
            size = coded[0][0] if coded else (int(image["height"]), int(image["width"]))
            scores = [a.get("predicted_iou") for a in annotations[:limit]]
        except (UnicodeDecodeError, json.JSONDecodeError, *_OTHER_LAYOUT) as error:
            raise ValueError(
                f"not a mask file in SA-1B's layout: {type(error).__name__} {error}; expected "
                '{"image": {"height", "width"}, "annotations": [{"segmentation": {"size", '
                '"counts"}}, ...]}'
            ) from error
        if any(other != size for other, _ in coded):
            raise ValueError("the masks of a file must all have one size")
        return cls(size, [runs for _, runs in coded], None if None in scores else scores)


class LabelMasks(Masks):
    """A map of region numbers: disjoint masks, in the order of their numbers.

    Args:
        labels: integers (H, W).
        ignore: numbers that are no region.
    """

    def __init__(self, labels: npt.NDArray[Any], ignore: Collection[int] = ()) -> None:
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers (H, W), got {labels.dtype} {tuple(labels.shape)}"
            )
        self.labels = labels
        self.size = (labels.shape[0], labels.shape[1])
        self.ignore = tuple(ignore)

    def __len__(self) -> int:
        return len(np.setdiff1d(self.labels, self.ignore))

    def sample(self, rows: Indices, cols: Indices) -> npt.NDArray[np.bool_]:
        """See the base class."""
        labels = self.labels[rows[:, None], cols]
        numbers = np.setdiff1d(labels, self.ignore)
        # (h, w) == (M', 1, 1) -> (M', h, w)
        return np.asarray(labels == numbers[:, None, None])


def read_labels(content: bytes) -> npt.NDArray[Any]:
    """Return the stored integers (H, W) of a label image: palette indices stay indices."""
    labels: npt.NDArray[Any] = read_picture(content, np.asarray, what="label image")
    if labels.ndim != 2:
        raise ValueError(
            f"a label image must have one channel, got {labels.shape}; convert colours to numbers"
        )
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
