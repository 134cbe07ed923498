"""What the loaders of data sets share: finding and pairing files, saying what a folder lacks.

A loader (one file a set) lists the files of a split; a :class:`FileSet` reads them on access.
Every error names the file and shows the folder tree that was expected. Sizes are
``(height, width)``.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.folders import LeftOut
from upfeat.data.opening import read_picture, stored_orientation, turned
from upfeat.errors import check_file, shape_text

__all__ = [
    "FileSet",
    "PathLike",
    "check_split",
    "expected_tree",
    "find_base",
    "hash_files",
    "lay_on_image",
    "list_images",
    "pair_by_stem",
    "read_npy",
    "read_numbers",
    "spread",
]

PathLike = str | os.PathLike[str]
T = TypeVar("T")

# One channel of whole numbers; a palette's numbers count, its colours are for people.
_NUMBER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def expected_tree(name: str, root: PathLike, tree: str, problem: str, address: str = "") -> str:
    """Return the message for a folder that is not the data set it should be.

    Args:
        name: of the set.
        root: the folder.
        tree: the files that belong there, one a line.
        problem: what is wrong.
        address: where users get the set.

    Example:
        >>> from upfeat.data.layouts import expected_tree
        >>> tree, problem = "train/images/NAME.jpg", "no folder train/images"
        >>> print(expected_tree("MSRC", "data", tree, problem, "https://example.org"))
        data is not a copy of MSRC as it is read here: no folder train/images. Expected:
          data/
            train/images/NAME.jpg
        Get it from https://example.org
    """
    lines = "\n".join(f"    {line}" for line in tree.strip().splitlines())
    source = f"\nGet it from {address}" if address else ""
    return (
        f"{root} is not a copy of {name} as it is read here: {problem}. Expected:\n"
        f"  {os.fspath(root).rstrip('/')}/\n{lines}{source}"
    )


def check_split(name: str, split: str, known: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the set has the split."""
    if split not in known:
        names = f"{', '.join(known[:-1])} and {known[-1]}"
        raise ValueError(f"{name} has the splits {names}, got {split!r}")


def find_base(root: PathLike, below: Iterable[str], marker: str) -> Path:
    """Return the first of ``root`` and the folders ``below`` it that holds ``marker``.

    Archives unpack to folders of their own, and users name either. ``root`` itself comes back if
    none fits; the loader that reads on reports what it lacks.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.data.layouts import find_base
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pathlib.Path(folder, "VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
        ...     find_base(folder, ["VOC2012", "VOCdevkit/VOC2012"], "JPEGImages").name
        'VOC2012'
    """
    base = Path(root).expanduser()
    for folder in (base, *(base / name for name in below)):
        if (folder / marker).exists():
            return folder
    return base


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name; hidden files are left out.

    Pictures of other kinds are left out with a warning, see :func:`upfeat.data.image_files`.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.data.layouts import list_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.JPG", ".c.png", "notes.txt"):
        ...         pathlib.Path(folder, name).touch()
        ...     [path.name for path in list_images(pathlib.Path(folder))]
        ['a.JPG', 'b.png']
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    left = LeftOut()
    images = [path for name in names if left.takes(path := folder / name)]
    left.report(folder)
    return images


def pair_by_stem(
    images: Path, labels: Path, suffix: str = "", image_suffix: str = ""
) -> tuple[list[tuple[str, Path, Path]], str]:
    """Pair the images of a folder with the PNGs of another, by name.

    Args:
        images: folder of images.
        labels: folder of labels.
        suffix: what a label's name ends with before ``.png``.
        image_suffix: what an image's name ends with before its file type.

    Returns:
        ``(name, image, label)`` sorted by name, and the problem: empty, or what has no partner.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.data.layouts import pair_by_stem
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images, labels = pathlib.Path(folder, "images"), pathlib.Path(folder, "labels")
        ...     for path in (images / "a.jpg", labels / "a.png"):
        ...         path.parent.mkdir()
        ...         path.touch()
        ...     pairs, problem = pair_by_stem(images, labels)
        ...     [name for name, _, _ in pairs], problem
        (['a'], '')
    """
    for folder in (images, labels):
        if not folder.is_dir():
            return [], f"no folder {folder}"
    by_stem = {path.stem.removesuffix(image_suffix): path for path in list_images(images)}
    named = {path.name: path for path in list_images(labels)}
    if not by_stem:
        return [], f"no image in {images}"
    pairs = []
    for name, image in sorted(by_stem.items()):
        label = named.get(f"{name}{suffix}.png")
        if label is None:
            return [], f"{image} has no label {labels / f'{name}{suffix}.png'}"
        pairs.append((name, image, label))
    ending = f"{suffix}.png"
    for label_name, path in named.items():
        if label_name.endswith(ending) and label_name.removesuffix(ending) not in by_stem:
            return [], f"{path} has no image in {images}"
    return pairs, ""


def read_numbers(path: PathLike, what: str, hint: str) -> Tensor:
    """Return the whole numbers (H, W), int64, that an image with one channel stores.

    Args:
        path: the file; of a palette PNG the indices are taken.
        what: what the file is, for messages.
        hint: what to do about a file with colours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or has colours.

    Example:
        >>> from upfeat.data.layouts import read_numbers
        >>> try:
        ...     read_numbers("nowhere.png", "depth map", "")
        ... except FileNotFoundError as error:
        ...     print(error)
        no depth map file at nowhere.png; every image of the split needs one
    """
    try:
        mode, pixels = read_picture(
            path, lambda image: (image.mode, np.array(image)), what=what, name=f"the {what} {path}"
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no {what} file at {path}; every image of the split needs one"
        ) from error
    if mode not in _NUMBER_MODES:
        raise ValueError(f"the {what} {path} is {mode}, expected one channel {hint}")
    return torch.from_numpy(pixels.astype(np.int64))


def read_npy(path: PathLike) -> npt.NDArray[Any]:
    """Return the numbers that a ``.npy`` file holds; pickled objects are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or holds something else than real numbers.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from upfeat.data.layouts import read_npy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.npy")
        ...     np.save(path, np.arange(3))
        ...     read_npy(path).tolist()
        [0, 1, 2]
    """
    check_file(path, "NumPy file")
    try:
        with open(path, "rb") as stream:
            content = np.lib.format.read_array(stream, allow_pickle=False)
    # Parsers of broken headers raise whatever they stumble over.
    except Exception as error:
        raise ValueError(f"{path} is no readable NumPy file (.npy): {error}") from error
    if content.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {content.dtype}, expected numbers")
    return np.asarray(content)


def lay_on_image(label: Tensor, path: PathLike, image: PathLike, size: Sequence[int]) -> Tensor:
    """Return a label map (H, W) in the geometry in which its image is read: upright.

    Cameras store a photo as the sensor saw it, with an EXIF orientation; some tools draw labels on
    that. A label whose height and width are the image's swapped is turned with the image. Where
    the image is square, or upside down or mirrored only, the sizes do not show it: such labels are
    taken to be upright.

    Args:
        label: (H, W).
        path: its file, for messages.
        image: the image's file.
        size: (H, W) of the image as it is read.

    Raises:
        ValueError: the sizes differ otherwise.
    """
    height, width = size
    if label.shape == (width, height) and height != width:
        number = stored_orientation(image)
        label = turned(label, number) if number >= 5 else label
    if label.shape != (height, width):
        raise ValueError(
            f"{path} is {shape_text(label)}, its image {image} {(height, width)} (height, width); "
            "they must have one size"
        )
    return label


def spread(items: tuple[T, ...], every: int = 1, limit: int | None = None) -> tuple[T, ...]:
    """Return every n-th item; of those at most ``limit``, evenly spread.

    Example:
        >>> from upfeat.data.layouts import spread
        >>> spread(tuple(range(9)), every=2, limit=2)
        (0, 4)
    """
    if every < 1 or (limit is not None and limit < 1):
        raise ValueError(f"every and limit must be positive, got {every} and {limit}")
    items = items[::every]
    if limit is not None and limit < len(items):
        items = tuple(items[i * len(items) // limit] for i in range(limit))
    return items


def hash_files(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits of the bytes of some files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        check_file(path, "file of the data set")
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


class NamedFiles(Protocol):
    """The files of one item; the name is unique within the split."""

    @property
    def name(self) -> str:
        """The item's name."""
        ...


FilesT = TypeVar("FilesT", bound=NamedFiles)
ItemT = TypeVar("ItemT")


class FileSet(ABC, Generic[FilesT, ItemT]):
    """One split of a data set: names of files, read when asked for.

    Subclasses are frozen dataclasses with at least these attributes.

    Attributes:
        name: of the set and split, such as ``"camvid/val"``.
        files: the items' files, in a fixed order.
    """

    name: str
    files: tuple[FilesT, ...]

    @abstractmethod
    def read(self, file: FilesT) -> ItemT:
        """Read one item."""

    @abstractmethod
    def paths(self, file: FilesT) -> Sequence[Path]:
        """Return the files that make an item."""

    def settings(self) -> str:
        """Return what, apart from the files, decides what is read; part of the fingerprint."""
        return ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ItemT:
        return self.read(self.files[index])

    def __iter__(self) -> Iterator[ItemT]:
        return (self.read(file) for file in self.files)

    def select(self, every: int = 1, limit: int | None = None) -> Self:
        """Return every n-th item; of those at most ``limit``, evenly spread.

        Example:
            >>> from pathlib import Path
            >>> from upfeat.data.segmentation import LabelledFile, SegmentationData
            >>> files = tuple(LabelledFile(str(i), Path("a"), Path("b")) for i in range(9))
            >>> data = SegmentationData("set", ("road",), 255, files)
            >>> [file.name for file in data.select(every=2, limit=2).files]
            ['0', '4']
        """
        chosen = spread(self.files, every, limit)
        dataclass: Any = self
        changed: Self = replace(dataclass, files=chosen)
        return changed

    def file_hash(self, file: FilesT) -> str:
        """Return 16 hexadecimal digits of the bytes of an item's files."""
        return hash_files(self.paths(file))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of all names and bytes: the same data gives the same."""
        digest = hashlib.blake2b(self.settings().encode(), digest_size=8)
        for file in self.files:
            digest.update(f"{file.name} {self.file_hash(file)}\n".encode())
        return digest.hexdigest()
