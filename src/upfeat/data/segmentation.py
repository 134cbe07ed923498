"""Images with a label map: what the loaders of the labelled sets give.

Where a set's files store numbers of their own, a table says which class each of them means.
Sizes are ``(height, width)``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, PathLike, lay_on_image, read_numbers

__all__ = ["LabelledFile", "LabelledImage", "SegmentationData", "map_labels", "read_label"]


class LabelledFile(NamedTuple):
    """Where one image and its label map are; ``name`` is unique within the split."""

    name: str
    image: Path
    label: Path


class LabelledImage(NamedTuple):
    """One image (3, H, W), float32 in [0, 1], and its label map (H, W), int64."""

    image: Tensor
    label: Tensor


def read_label(path: PathLike) -> Tensor:
    """Return a label map (H, W), int64, from a PNG with one channel.

    Args:
        path: the file; of a palette PNG the indices are taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or has colours instead of class numbers.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data.segmentation import read_label
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.png")
        ...     Image.new("L", (3, 2), 7).save(path)
        ...     read_label(path).tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    hint = "with class numbers; convert colours to class numbers first"
    return read_numbers(path, "label", hint)


def map_labels(label: Tensor, table: Mapping[int, int]) -> Tensor:
    """Return the classes that the stored numbers of a label map mean.

    Args:
        label: whole numbers of any shape.
        table: stored number to class; classes are not negative.

    Raises:
        ValueError: a number is not in the table.

    Example:
        >>> import torch
        >>> from upfeat.data.segmentation import map_labels
        >>> map_labels(torch.tensor([[7, 0], [8, 7]]), {0: 255, 7: 0, 8: 1}).tolist()
        [[0, 255], [1, 0]]
    """
    low, high = min(table), max(table)
    classes = torch.full((high - low + 1,), -1, dtype=torch.int64)
    classes[torch.tensor(list(table)) - low] = torch.tensor(list(table.values()))
    mapped = classes.to(label.device)[(label - low).clamp(0, high - low)]
    unknown = (mapped < 0) | (label < low) | (label > high)
    if unknown.any():
        raise ValueError(f"the number {int(label[unknown].min())} in the label stands for no class")
    return mapped


@dataclass(frozen=True)
class SegmentationData(FileSet[LabelledFile, LabelledImage]):
    """One split of a labelled set: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"camvid/val"``.
        classes: names of the classes 0, 1, …
        ignore_index: the label without meaning.
        files: the images and labels, in a fixed order.
        table: stored number to class or ``ignore_index``; None where the files store classes.
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    files: tuple[LabelledFile, ...]
    table: Mapping[int, int] | None = None

    def read(self, file: LabelledFile) -> LabelledImage:
        """Read an image with its label, turned if it is stored as the camera held the image.

        Raises:
            FileNotFoundError: one of the two is missing.
            ValueError: one cannot be read, their sizes differ, or the label holds an unknown class.
        """
        image, label = read_image(file.image), read_label(file.label)
        label = lay_on_image(label, file.label, file.image, image.shape[1:])
        if self.table is not None:
            try:
                label = map_labels(label, self.table)
            except ValueError as error:
                raise ValueError(f"{file.label}: {error} of {self.name}") from error
        unknown = [
            value
            for value in label.unique().tolist()
            if value != self.ignore_index and not 0 <= value < len(self.classes)
        ]
        if unknown:
            raise ValueError(
                f"{file.label} holds class {unknown[0]}; {self.name} has classes 0 to "
                f"{len(self.classes) - 1} and {self.ignore_index} for ignored pixels"
            )
        return LabelledImage(image, label)

    def paths(self, file: LabelledFile) -> Sequence[Path]:
        """Return image and label."""
        return (file.image, file.label)

    def settings(self) -> str:
        """Return classes, ignored number and table."""
        table = "" if self.table is None else f" {sorted(self.table.items())}"
        return f"{self.classes} {self.ignore_index}{table}"
