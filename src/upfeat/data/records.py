"""Where training images lie: folders, lists, ImageNet, SA-1B.

A collection is a sequence of :class:`ImageRecord`: the image's name and where its files are.
Nothing is opened before it is read. Collections hold packed bytes instead of Python objects, so a
million names cost little and stay shared between the processes of a loader. Tar shards are in
``tar_shards``.
"""

import logging
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from upfeat.data.folders import image_files
from upfeat.data.images import decode_image, read_image
from upfeat.data.layouts import PathLike, read_npy, write_npy
from upfeat.data.opening import read_picture, stored_orientation
from upfeat.errors import check_file

__all__ = [
    "FilePart",
    "FileRecords",
    "ImageRecord",
    "JoinedRecords",
    "Records",
    "SelectedRecords",
    "hold_out",
    "image_folder",
    "image_list",
    "imagenet_folder",
    "random_subset",
    "sa1b_folder",
    "shorter_sides",
    "with_min_side",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilePart:
    """A file, or ``size`` bytes of one from ``offset`` on: a member of a tar shard."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the bytes; raises ``ValueError`` if they are not there or not all there."""
        try:
            check_file(self.path, "file")
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                content = stream.read() if self.size is None else stream.read(self.size)
        except OSError as error:
            raise ValueError(f"cannot read {self}: {error}") from error
        if self.size is not None and len(content) != self.size:
            raise ValueError(f"{self} is cut off: {len(content)} of {self.size} bytes are there")
        return content

    def __str__(self) -> str:
        return str(self.path) if self.size is None else f"{self.path}@{self.offset}"


@dataclass(frozen=True)
class ImageRecord:
    """One image and the files beside it.

    Attributes:
        name: relative path without suffix, for messages and file names.
        image: the image file.
        parts: further files by suffix or role, such as ``"json"`` (masks) and ``"label"``.
    """

    name: str
    image: FilePart
    parts: Mapping[str, FilePart] = field(default_factory=dict)

    def read_image(self) -> Tensor:
        """Return the image (3, H, W) in [0, 1]; ``ValueError`` if it is broken."""
        if self.image.size is None:
            try:
                return read_image(self.image.path)
            except OSError as error:
                raise ValueError(f"cannot read {self.image}: {error}") from error
        return decode_image(self.image.read(), f"{self.image} ({self.name})")

    def orientation(self) -> int:
        """Return the EXIF orientation that the image file names, 1 to 8; the image is upright."""
        whole = self.image.size is None
        return stored_orientation(self.image.path if whole else self.image.read())


class Records(Sequence[ImageRecord]):
    """A collection of images; a subclass has ``__len__`` and ``_record(index)``."""

    def _record(self, index: int) -> ImageRecord:
        raise NotImplementedError(f"{type(self).__name__} must implement _record")

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "SelectedRecords": ...
    def __getitem__(self, index: int | slice) -> "ImageRecord | SelectedRecords":
        if isinstance(index, slice):
            return SelectedRecords(self, range(len(self))[index])
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"record {index} of {count}")
        return self._record(index % count)


class PackedStrings:
    """A list of strings as one run of bytes: no object each."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._bytes = b"".join(encoded)
        self._ends = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])


class FileRecords(Records):
    """Images that are files of their own."""

    def __init__(
        self,
        images: Iterable[PathLike],
        names: Iterable[str],
        parts: Mapping[str, Iterable[PathLike]] | None = None,
    ) -> None:
        self._images = PackedStrings(os.fspath(path) for path in images)
        self._names = PackedStrings(names)
        self._parts = {
            role: PackedStrings(os.fspath(path) for path in paths)
            for role, paths in (parts or {}).items()
        }
        for role, column in (("names", self._names), *self._parts.items()):
            if len(column) != len(self._images):
                raise ValueError(f"{len(self._images)} images, but {len(column)} {role}")

    def __len__(self) -> int:
        return len(self._images)

    def _record(self, index: int) -> ImageRecord:
        parts = {role: column[index] for role, column in self._parts.items()}
        return ImageRecord(
            self._names[index],
            FilePart(Path(self._images[index])),
            {role: FilePart(Path(path)) for role, path in parts.items() if path},
        )


class JoinedRecords(Records):
    """Several collections, one after the other."""

    def __init__(self, collections: Sequence[Records]) -> None:
        self._collections = list(collections)
        self._ends = list(accumulate(map(len, self._collections)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _record(self, index: int) -> ImageRecord:
        number = bisect_right(self._ends, index)
        return self._collections[number][index - (self._ends[number - 1] if number else 0)]


class SelectedRecords(Records):
    """Some images of a collection, in the order of ``indices``."""

    def __init__(self, collection: Records, indices: Iterable[int]) -> None:
        self._collection = collection
        self._indices = np.fromiter(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def _record(self, index: int) -> ImageRecord:
        return self._collection[int(self._indices[index])]


# -- layouts -------------------------------------------------------------------------------------


def image_folder(paths: PathLike | Iterable[PathLike]) -> FileRecords:
    """Return the images that :func:`upfeat.data.image_files` finds in folders, files and globs."""
    found = image_files(paths)
    return FileRecords((path for path, _ in found), (name.as_posix() for _, name in found))


def image_list(file: PathLike, root: PathLike | None = None) -> FileRecords:
    """Return the images that a text file names, one path a line, in its order.

    Empty lines and lines that begin with ``#`` are left out. After a tab a second path may follow:
    the image's label map, which becomes the part ``"label"``.

    Args:
        file: the list, UTF-8.
        root: folder that the paths are relative to; default the list's own.

    Raises:
        FileNotFoundError: no such list.
        ValueError: the list names nothing. Whether the images exist shows when they are read.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no list of images at {file}; check the path")
    base = file.parent if root is None else Path(root).expanduser()
    # Names in another encoding stay the bytes that they are.
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = (line.strip() for line in text.splitlines())
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    if not rows:
        raise ValueError(f"the list {file} names no image")
    labels = [base / row[1] if len(row) > 1 and row[1] else "" for row in rows]
    names = [Path(row[0]).with_suffix("").as_posix() for row in rows]
    return FileRecords([base / row[0] for row in rows], names, {"label": labels})


def imagenet_folder(root: PathLike, split: Literal["train", "val"] = "train") -> FileRecords:
    """Return the images of an ILSVRC2012 folder: ``split/n01440764/*.JPEG``, or ``split/*.JPEG``.

    Args:
        root: the folder that holds ``train`` and ``val``; a folder of synsets itself is fine too.
        split: which of them.
    """
    root = Path(root).expanduser()
    base = root / split if (root / split).is_dir() else root
    if not base.is_dir():
        raise FileNotFoundError(f"no folder at {base}; it should hold ImageNet's {split} images")
    with os.scandir(base) as entries:
        names = sorted(entry.name for entry in entries)
    synsets = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    if synsets:
        found = [f"{s}/{n}" for s in synsets for n in sorted(os.listdir(base / s))]
    else:
        found = names
    found = [name for name in found if name.lower().endswith((".jpeg", ".jpg", ".png"))]
    if not found:
        raise FileNotFoundError(
            f"{base} holds neither synset folders (n01440764/…) nor images; get ILSVRC2012 from "
            "https://image-net.org and unpack it there"
        )
    return FileRecords(
        (os.path.join(base, name) for name in found), (name.rpartition(".")[0] for name in found)
    )


def sa1b_folder(root: PathLike) -> FileRecords:
    """Return the images of unpacked SA-1B parts: ``**/sa_1.jpg`` with ``sa_1.json`` beside it.

    The masks become the part ``"json"``. Images without masks are left out.
    """
    root = Path(root).expanduser()
    stems: list[str] = []
    for parent, _, files in os.walk(root):
        names = set(files)
        stems.extend(
            os.path.join(parent, name[: -len(".jpg")])
            for name in files
            if name.endswith(".jpg") and name[: -len(".jpg")] + ".json" in names
        )
    if not stems:
        raise FileNotFoundError(
            f"no sa_*.jpg with sa_*.json beside it under {root}; get SA-1B from "
            "https://ai.meta.com/datasets/segment-anything-downloads and unpack some parts there"
        )
    stems.sort()
    return FileRecords(
        (stem + ".jpg" for stem in stems),
        (Path(stem).relative_to(root).as_posix() for stem in stems),
        {"json": (stem + ".json" for stem in stems)},
    )


# -- choosing images, as papers do before they train ---------------------------------------------


def shorter_sides(
    records: Records,
    *,
    file: PathLike | None = None,
    threads: int = 8,
    on_record: Callable[[ImageRecord], None] | None = None,
) -> npt.NDArray[np.int32]:
    """Return the shorter side in pixels of every image, (N,), from the headers; -1 if unreadable.

    Args:
        records: the images.
        file: a ``.npy`` file to read the sides from; it is written if it is not there. It must
            belong to a collection of the same length.
        threads: files opened at a time.
        on_record: called after each image, for a progress bar.
    """
    path = None if file is None else Path(file).expanduser()
    if path is not None and path.is_file():
        stored = read_npy(path)
        if stored.shape != (len(records),):
            raise ValueError(
                f"{path} holds the sides of {stored.size} images, the collection has "
                f"{len(records)}; delete it to read the headers again"
            )
        return np.asarray(stored, dtype=np.int32)
    sides = np.empty(len(records), np.int32)
    with ThreadPoolExecutor(threads) as pool:
        # In blocks: a million waiting tasks at once would be slow and large.
        for start in range(0, len(records), 1024):
            block = [records[i] for i in range(start, min(start + 1024, len(records)))]
            for number, side in enumerate(pool.map(_shorter_side, block)):
                sides[start + number] = side
                if on_record is not None:
                    on_record(block[number])
    if path is not None:
        write_npy(path, sides)
    return sides


def _shorter_side(record: ImageRecord) -> int:
    try:
        source = record.image.path if record.image.size is None else record.image.read()
        return read_picture(source, lambda image: min(image.size))
    except (ValueError, OSError):  # reading the image will report it
        logger.debug("no size of %s", record.name)
        return -1


def random_subset(records: Records, count: int, seed: int) -> SelectedRecords:
    """Return some images, drawn without replacement, in the collection's order."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(records))
    return SelectedRecords(records, np.sort(order[:count]).tolist())


def hold_out(records: Records, count: int, seed: int) -> tuple[SelectedRecords, SelectedRecords]:
    """Return the images without some, and those, drawn once; each in the collection's order."""
    # Of another seed than `random_subset`'s, whose choice would otherwise come first here.
    order = np.random.Generator(np.random.PCG64((seed, 1))).permutation(len(records))
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    return SelectedRecords(records, rest.tolist()), SelectedRecords(records, held.tolist())


def with_min_side(
    records: Records,
    min_side: int,
    *,
    file: PathLike | None = None,
    threads: int = 8,
    on_record: Callable[[ImageRecord], None] | None = None,
) -> SelectedRecords:
    """Return the images whose shorter side has at least ``min_side`` pixels.

    AnyUp trains on ImageNet images of 448 and more, LoftUp on SA-1B images of 1500 and more.
    Unreadable images stay in: the data set reports them when it comes to them. The other arguments
    are those of :func:`shorter_sides`.

    Raises:
        ValueError: no image is large enough.
    """
    sides = shorter_sides(records, file=file, threads=threads, on_record=on_record)
    kept = np.flatnonzero((sides < 0) | (sides >= min_side))
    if not len(kept):
        raise ValueError(
            f"none of {len(records)} images has a shorter side of {min_side} pixels, the largest "
            f"has {sides.max(initial=0)}; lower min_side or use larger images"
        )
    logger.info("%d of %d images have %d pixels or more", len(kept), len(records), min_side)
    return SelectedRecords(records, kept.tolist())
