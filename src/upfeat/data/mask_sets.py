"""The masks of one image, stored compactly and drawn when the image's geometry is known.

So they stay aligned with every resize, crop and flip, and a file of 150 masks of a large image
never lies in memory as 150 large arrays. Legend: ``M`` masks, ``(H, W)`` stored size, ``(h, w)``
size of the cut.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.opening import read_picture
from upfeat.data.rle import Counts, counts_to_text, draw_runs, rle_counts
from upfeat.data.sizes import Size
from upfeat.data.transforms import Geometry

__all__ = ["LabelMasks", "Masks", "RleMasks", "TurnedMasks", "read_labels"]

# What a document in another layout, or one that is nested or numbered beyond reason, raises.
_OTHER_LAYOUT = (
    *(KeyError, IndexError, TypeError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)


class Masks(ABC):
    """The masks of one image, stored compactly.

    Attributes:
        size: (H, W) of the stored masks; the aspect ratio is the image's, the size need not be.

    Example:
        >>> import numpy as np
        >>> from upfeat.data.mask_sets import LabelMasks
        >>> from upfeat.data.transforms import Geometry
        >>> masks = LabelMasks(np.array([[1, 2], [1, 3]]))
        >>> masks.cut(Geometry(resized=(4, 4), top=0, left=0, size=(4, 2))).shape
        torch.Size([1, 4, 2])
    """

    size: Size

    @abstractmethod
    def __len__(self) -> int:
        """Return the number M of stored masks."""

    @abstractmethod
    def sample(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return the masks at these rows and columns, (M', h, w) in order, empty ones left out."""

    def cut(self, geometry: Geometry) -> Tensor:
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
        """Return the number of masks."""
        return len(self.masks)

    def sample(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
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

    Example:
        >>> import numpy as np
        >>> from upfeat.data.mask_sets import RleMasks
        >>> RleMasks((2, 2), [np.array([1, 3])]).dense().int().tolist()
        [[[0, 1], [1, 1]]]
    """

    def __init__(
        self, size: Size, runs: Sequence[Counts], scores: Sequence[float] | None = None
    ) -> None:
        self.size = size
        self.runs = list(runs)
        self.scores = None if scores is None else list(scores)

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.runs)

    def sample(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
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
        """Read SA-1B's layout; the first or the largest ``limit`` masks of it.

        Raises:
            ValueError: another layout, or broken run lengths.
        """
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

    Example:
        >>> import numpy as np
        >>> from upfeat.data.mask_sets import LabelMasks
        >>> len(LabelMasks(np.array([[0, 1, 7]]), ignore=(0,)))
        2
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
        """Return the number of regions."""
        return len(np.setdiff1d(self.labels, self.ignore))

    def sample(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """See the base class."""
        labels = self.labels[rows[:, None], cols]
        numbers = np.setdiff1d(labels, self.ignore)
        # (h, w) == (M', 1, 1) -> (M', h, w)
        return np.asarray(labels == numbers[:, None, None])


def read_labels(content: bytes) -> npt.NDArray[Any]:
    """Return the stored integers (H, W) of a label image: palette indices stay indices.

    Raises:
        ValueError: not an image, or one with several channels.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from PIL import Image
        >>> from upfeat.data.mask_sets import read_labels
        >>> buffer = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 300]], np.uint16)).save(buffer, "png")
        >>> read_labels(buffer.getvalue()).tolist()
        [[0, 300]]
    """
    labels: npt.NDArray[Any] = read_picture(content, np.asarray, what="label image")
    if labels.ndim != 2:
        raise ValueError(
            f"a label image must have one channel, got {labels.shape}; convert colours to numbers"
        )
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
