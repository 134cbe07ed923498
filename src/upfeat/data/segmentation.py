"""Images with a label map: what the loaders of the labelled sets give, and those sets by name.

Where a set's files store numbers of their own, a table says which class each of them means.
Sizes are ``(height, width)``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, PathLike, lay_on_image, read_numbers
from upfeat.errors import UnknownNameError

IGNORED = 255
"""Label of pixels that are neither trained nor scored."""


class ClassTable(NamedTuple):
    """Names of the classes, and which stored number means which class (255: ignored)."""

    classes: tuple[str, ...]
    table: dict[int, int]


@cache
def load_table(name: str) -> Any:
    """Return a table of class numbers and names that comes with the package."""
    file = resources.files("upfeat.data") / "tables" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def class_table(name: str, key: str) -> ClassTable:
    """Return the classes of a table that lists labels one by one, with class numbers by ``key``.

    A class with several labels is called by the first of them. The label -1, which 8-bit files
    store as 255, is ignored either way.

    Example:
        >>> from upfeat.data.segmentation import class_table
        >>> classes, table = class_table("cityscapes", "train_id")
        >>> len(classes), classes[table[24]], table[0]
        (19, 'person', 255)
    """
    labels = load_table(name)["labels"]
    table = {label["id"]: label[key] for label in labels} | {IGNORED: IGNORED}
    names: dict[int, str] = {}
    for label in labels:
        names.setdefault(label[key], label["name"])
    names.pop(IGNORED)
    return ClassTable(tuple(names[number] for number in range(len(names))), table)


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
    """Return a label map (H, W), int64, from a PNG with one channel."""
    hint = "with class numbers; convert colours to class numbers first"
    return read_numbers(path, "label", hint)


def map_labels(label: Tensor, table: Mapping[int, int]) -> Tensor:
    """Return the classes, which are not negative, that the numbers of a label map mean.

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
    """One split of a labelled set, such as ``"camvid/val"``.

    Attributes:
        classes: names of the classes 0, 1, …
        ignore_index: the label without meaning.
        table: stored number to class or ``ignore_index``; None where the files store classes.
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    files: tuple[LabelledFile, ...]
    table: Mapping[int, int] | None = None

    def read(self, file: LabelledFile) -> LabelledImage:
        """Read an image with its label, turned if it is stored as the camera held the image."""
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

    def settings(self) -> str:
        """Return classes, ignored number and table."""
        table = "" if self.table is None else f" {sorted(self.table.items())}"
        return f"{self.classes} {self.ignore_index}{table}"


SegmentationLoader: TypeAlias = Callable[..., SegmentationData]
"""Lists a split of a labelled set."""
LoaderT = TypeVar("LoaderT", bound=SegmentationLoader)
_SETS: dict[str, SegmentationLoader] = {}


def register_segmentation(name: str, **options: Any) -> Callable[[LoaderT], LoaderT]:
    """Return a decorator that enters a loader among the labelled sets.

    Args:
        name: as ``upfeat eval --data`` and :func:`load_segmentation` spell it.
        **options: what the loader is called with, besides the folder and the split.
    """
    if name in _SETS:
        raise ValueError(f"a data set named {name!r} is registered already; choose another name")

    def decorate(loader: LoaderT) -> LoaderT:
        _SETS[name] = partial(loader, **options) if options else loader
        return loader

    return decorate


def segmentation_sets() -> dict[str, SegmentationLoader]:
    """Return the labelled sets by name; a loader is called with the folder and the split.

    All of them have the splits ``"train"`` and ``"val"``.
    """
    return dict(sorted(_SETS.items()))


def load_segmentation(name: str, root: PathLike, split: str = "train") -> SegmentationData:
    """List a split of a labelled set.

    Args:
        name: of :func:`segmentation_sets`.
        root: its folder.
        split: ``"train"`` or ``"val"``.

    Raises:
        UnknownNameError: no such set.
        FileNotFoundError: a list, a folder or a file is missing; shows the expected tree.
        ValueError: an unknown split or number of classes, or a malformed list.

    Example:
        >>> from upfeat.data import load_segmentation
        >>> try:
        ...     load_segmentation("cityscape", "data")
        ... except ValueError as error:
        ...     print(str(error).split("?")[0])
        unknown data set 'cityscape'; did you mean 'cityscapes' or 'cityscapes_27'
    """
    if name not in _SETS:
        raise UnknownNameError("data set", name, _SETS)
    return _SETS[name](root, split)
