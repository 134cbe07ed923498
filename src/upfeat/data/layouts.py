"""What the loaders of data sets share: finding and pairing files, saying what a folder lacks.

A loader (one file a set) lists the files of a split; a :class:`FileSet` reads them on access.
Every error names the file and shows the folder tree that was expected. Sizes are
``(height, width)``.
"""

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data.folders import LeftOut
from upfeat.data.opening import read_picture, stored_orientation, turned
from upfeat.errors import check_file, import_optional, shape_text

__all__ = [
    "FileSet",
    "Layout",
    "PathLike",
    "check_named",
    "check_split",
    "content_problem",
    "find_base",
    "hash_files",
    "lay_on_image",
    "list_images",
    "pair_by_stem",
    "read_json",
    "read_mat",
    "read_names",
    "read_npy",
    "read_numbers",
    "spread",
    "write_npy",
]

PathLike = str | os.PathLike[str]
T = TypeVar("T")

# One channel of whole numbers; a palette's numbers count, its colours are for people.
_NUMBER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Layout:
    """The folder tree that a loader reads, for the messages about a folder that has another one.

    Attributes:
        name: of the set.
        tree: the files that belong there, one a line.
        address: where users get the set.

    Example:
        >>> from upfeat.data.layouts import Layout
        >>> layout = Layout("MSRC", "train/images/NAME.jpg", "https://example.org")
        >>> print(layout.error("data", "no folder train/images"))
        data is not a copy of MSRC as it is read here: no folder train/images. Expected:
          data/
            train/images/NAME.jpg
        Get it from https://example.org
    """

    name: str
    tree: str
    address: str = ""

    def error(self, root: PathLike, problem: str) -> FileNotFoundError:
        """Return the error to raise because of a problem with the folder ``root``."""
        lines = "\n".join(f"    {line}" for line in self.tree.strip().splitlines())
        source = f"\nGet it from {self.address}" if self.address else ""
        return FileNotFoundError(
            f"{root} is not a copy of {self.name} as it is read here: {problem}. Expected:\n"
            f"  {os.fspath(root).rstrip('/')}/\n{lines}{source}"
        )

    def check_files(self, root: PathLike, *paths: Path) -> None:
        """Raise the error for the first of some files that is not there."""
        for path in paths:
            if not path.is_file():
                raise self.error(root, f"no file {path}")

    @contextmanager
    def explained(self, root: PathLike) -> Iterator[None]:
        """Make every ``FileNotFoundError`` that is raised inside show the tree."""
        try:
            yield
        except FileNotFoundError as error:
            raise self.error(root, str(error)) from error


def check_split(name: str, split: str, known: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the set has the split."""
    if split not in known:
        names = f"{', '.join(known[:-1])} and {known[-1]}"
        raise ValueError(f"{name} has the splits {names}, got {split!r}")


def find_base(root: PathLike, below: Iterable[str], marker: str) -> Path:
    """Return the first of ``root`` and the folders ``below`` it that holds ``marker``.

    Archives unpack to folders of their own, and users name either. ``root`` itself comes back if
    none fits; the loader that reads on reports what it lacks.
    """
    base = Path(root).expanduser()
    for folder in (base, *(base / name for name in below)):
        if (folder / marker).exists():
            return folder
    return base


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name; hidden files are left out.

    Pictures of other kinds are left out with a warning, see :func:`upfeat.data.image_files`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    left = LeftOut()
    images = [path for name in names if left.takes(path := folder / name)]
    left.report(folder)
    return images


def pair_by_stem(
    images: Path, labels: Path, suffix: str = "", image_suffix: str = ""
) -> list[tuple[str, Path, Path]]:
    """Pair the images of a folder with the PNGs of another, by name.

    Args:
        images: folder of images.
        labels: folder of labels.
        suffix: what a label's name ends with before ``.png``.
        image_suffix: what an image's name ends with before its file type.

    Returns:
        ``(name, image, label)`` sorted by name.

    Raises:
        FileNotFoundError: a folder is missing, or an image or a label has no partner.
    """
    by_stem = {path.stem.removesuffix(image_suffix): path for path in list_images(images)}
    named = {path.name: path for path in list_images(labels)}
    if not by_stem:
        raise FileNotFoundError(f"no image in {images}")
    pairs, ending = [], f"{suffix}.png"
    for name, image in sorted(by_stem.items()):
        label = named.get(name + ending)
        if label is None:
            raise FileNotFoundError(f"{image} has no label {labels / (name + ending)}")
        pairs.append((name, image, label))
    for label_name, path in named.items():
        if label_name.endswith(ending) and label_name.removesuffix(ending) not in by_stem:
            raise FileNotFoundError(f"{path} has no image in {images}")
    return pairs


def read_names(listing: Path) -> list[str]:
    """Return the words of a text file, such as the names of a split's images."""
    if not listing.is_file():
        raise FileNotFoundError(f"no file {listing}")
    return listing.read_text().split()


def check_named(listing: str, name: str, *paths: Path) -> None:
    """Raise ``FileNotFoundError`` unless the files that a list names are there."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{listing} names {name}, but there is no {path}")


def read_numbers(path: PathLike, what: str, hint: str) -> Tensor:
    """Return the whole numbers (H, W), int64, that an image with one channel stores.

    Args:
        path: the file; of a palette PNG the indices are taken.
        what: what the file is, for messages.
        hint: what to do about a file with colours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or has colours.
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


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; raises ``ValueError`` that names a broken one."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no readable JSON file: {error}") from error


def content_problem(error: Exception) -> str:
    """Say for people why the content of a file could not be used, from the error of trying.

    Example:
        >>> from upfeat.data.layouts import content_problem
        >>> content_problem(KeyError("intrinsics")), content_problem(ValueError("size is 0"))
        ("'intrinsics' is missing", 'size is 0')
    """
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    if isinstance(error, IndexError):
        return "a list is too short"
    if isinstance(error, TypeError):
        return f"a value has the wrong type ({error})"
    return str(error)


def read_mat(path: PathLike, what: str, use: Callable[[dict[str, Any]], T], wrong: str) -> T:
    """Return what ``use`` makes of the variables of a MAT file older than version 7.3.

    Args:
        path: the file.
        what: its role, for messages.
        use: called with the variables by name.
        wrong: what a file is of which that fails, such as ``"is no readable MAT file"``.

    Raises:
        MissingPackageError: SciPy is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or ``use`` fails.
    """
    loadmat = import_optional("scipy.io", "scipy", "data", "files *.mat").loadmat
    check_file(path, what)
    try:
        return use(loadmat(path))
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(f"{path} {wrong}: {error}") from error


def read_npy(path: PathLike) -> npt.NDArray[Any]:
    """Return the numbers that a ``.npy`` file holds; pickled objects are refused."""
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


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array to a ``.npy`` file, whole or not at all; folders above it are made."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


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


def _paths(entry: object) -> Iterator[Path]:
    if isinstance(entry, Path):
        yield entry
    elif isinstance(entry, tuple):
        for part in entry:
            yield from _paths(part)


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
        """Read one item.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one cannot be read, sizes differ, or it holds what it must not.
        """

    def paths(self, file: FilesT) -> Sequence[Path]:
        """Return the files that make an item: every path that stands in its entry."""
        return tuple(_paths(file))

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
        """Return every n-th item; of those at most ``limit``, evenly spread."""
        chosen = spread(self.files, every, limit)
        data: Any = self
        changed: Self = replace(data, files=chosen)
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
