"""Tar shards in the webdataset layout, read at random.

Members that share the path up to the first dot of the file name belong together:
``000012.jpg``, ``000012.json``. SA-1B's own tar files have this layout. A shard is listed once
(its headers only); afterwards each member is read by its place in the file. So the order of the
images is free of the shards, of the number of processes and of what was read before, which a
stream's is not; that is why we do not use the webdataset library.
"""

import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from upfeat._files import write_bytes
from upfeat.data.folders import IMAGE_SUFFIXES, LeftOut, match_glob
from upfeat.data.layouts import PathLike
from upfeat.data.records import (
    FilePart,
    ImageRecord,
    PackedStrings,
    Records,
    image_folder,
    image_list,
    imagenet_folder,
    sa1b_folder,
)
from upfeat.errors import check_file

__all__ = ["TarRecords", "find_images", "find_shards"]

logger = logging.getLogger(__name__)

# Where several members of a sample are images, the first of these is the image: labels are PNG.
_FIRST = ("jpg", "jpeg", "webp", "png", "bmp", "tif", "tiff", "ppm")
IMAGE_EXTENSIONS = (*_FIRST, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - set(_FIRST)))


class Member(NamedTuple):
    """Place of a file in a shard."""

    name: str
    offset: int
    size: int


class TarRecords(Records):
    """The images of tar shards, in the order of the shards and of their members.

    A sample without an image is left out; where it has a picture of a kind that is not read, such
    as ``.heic``, a warning says so. A shard that ends early gives the samples before the break,
    with a warning.

    Args:
        shards: uncompressed tar files.
        index_dir: folder for the lists of members, so that the next start need not read the
            headers; None for no lists.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is compressed or no tar file, or none holds an image.
    """

    def __init__(self, shards: Sequence[PathLike], index_dir: PathLike | None = None) -> None:
        self.shards = [Path(shard).expanduser() for shard in shards]
        names: list[str] = []
        extensions: dict[str, int] = {}
        owners: list[int] = []  # shard of each sample
        firsts: list[int] = [0]  # first row of each sample; the image's row comes first
        rows: list[tuple[int, int, int]] = []  # (extension, offset, size)
        for number, shard in enumerate(self.shards):
            members = _listed(shard, None if index_dir is None else Path(index_dir).expanduser())
            left = LeftOut()
            for key, parts in _samples(members):
                image = next((e for e in IMAGE_EXTENSIONS if e in parts), None)
                if image is None:
                    for extension in parts:
                        left.takes(Path(f"{key}.{extension}"))
                    continue
                for extension in (image, *(e for e in parts if e != image)):
                    code = extensions.setdefault(extension, len(extensions))
                    rows.append((code, parts[extension].offset, parts[extension].size))
                names.append(key)
                owners.append(number)
                firsts.append(len(rows))
            left.report(shard)
        if not names:
            raise ValueError(
                f"no image in {len(self.shards)} tar shard(s); members should be called KEY.jpg"
            )
        self._names = PackedStrings(names)
        self._extensions = list(extensions)
        self._owners = np.array(owners, np.int32)
        self._firsts = np.array(firsts, np.int64)
        self._rows = np.array(rows, np.int64)

    def __len__(self) -> int:
        return len(self._owners)

    def _record(self, index: int) -> ImageRecord:
        shard = self.shards[self._owners[index]]
        rows = self._rows[self._firsts[index] : self._firsts[index + 1]].tolist()
        image, *others = (
            (self._extensions[code], FilePart(shard, offset, size)) for code, offset, size in rows
        )
        return ImageRecord(self._names[index], image[1], dict(others))


def _samples(members: Iterable[Member]) -> Iterable[tuple[str, dict[str, Member]]]:
    """Group members by key, as they come; a key that comes back later is a new sample."""
    current: str | None = None
    parts: dict[str, Member] = {}
    for member in members:
        path = PurePosixPath(member.name)
        stem, dot, extension = path.name.partition(".")
        if not stem or not dot:
            continue
        key = (path.parent / stem).as_posix()
        if key != current:
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension.lower()] = member
    if current is not None:
        yield current, parts


def _listed(shard: Path, index_dir: Path | None) -> list[Member]:
    """Return the members of a shard from its list, if that is there and fits, or its headers."""
    check_file(shard, "tar shard")
    if index_dir is None:
        return _scan(shard)
    stamp = [str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns]
    parent = re.sub(r"\W+", "-", str(shard.resolve().parent)).strip("-")
    file = index_dir / f"{parent}-{shard.name}.json"
    try:
        content = json.loads(file.read_bytes())
        if content["shard"] == stamp:
            return [Member(*row) for row in content["members"]]
    except FileNotFoundError:
        logger.debug("listing %s", shard)
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s is no list of a shard's members; it is kept as it is", file)
        return _scan(shard)
    members = _scan(shard)
    index_dir.mkdir(parents=True, exist_ok=True)
    write_bytes(file, json.dumps({"shard": stamp, "members": members}).encode())
    return members


def _scan(shard: Path) -> list[Member]:
    members: list[Member] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            try:
                for info in tar:
                    if info.isreg():
                        members.append(Member(info.name, info.offset_data, info.size))
                    # The list that tarfile keeps for itself would grow without end.
                    tar.members = []  # type: ignore[attr-defined]
            # Parsers of broken headers raise whatever they stumble over.
            except Exception as error:  # noqa: BLE001
                logger.warning("%s ends early (%s): %d members kept", shard, error, len(members))
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ValueError(
            f"{shard} is no uncompressed tar file ({error}); unpack it with gunzip or zstd first: "
            "members of a compressed one cannot be read at random"
        ) from error
    return members


def find_shards(pattern: PathLike) -> list[Path]:
    """Expand a tar file, a folder of them, a glob or ``shard-{000..015}.tar`` to sorted paths.

    Example:
        >>> from upfeat.data.tar_shards import find_shards
        >>> [path.name for path in find_shards("shard-{08..10}.tar")]
        ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    """
    text = os.fspath(Path(pattern).expanduser())
    if span := re.search(r"\{(\d+)\.\.(\d+)\}", text):
        low, high = span.groups()
        head, tail = text[: span.start()], text[span.end() :]
        names = (f"{head}{n:0{len(low)}d}{tail}" for n in range(int(low), int(high) + 1))
        return [
            path for name in names for path in (find_shards(name) if "{" in name else [Path(name)])
        ]
    path = Path(text)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    else:
        found = [path] if path.is_file() else _matched(text)
    if not found:
        raise FileNotFoundError(f"no tar shard at {path}; check the path")
    return found


def _matched(text: str) -> list[Path]:
    return match_glob(text) if glob.has_magic(text) else []


def find_images(source: PathLike, *, index_dir: PathLike | None = None) -> Records:
    """Return the images at a place, whatever their layout.

    In this order: a text file is a list (:func:`upfeat.data.records.image_list`); a ``.tar`` file
    or pattern, or a folder with such files in it, is a set of shards; a folder with ``train`` and
    synsets in it, or synsets alone, is ImageNet's training split; one with ``sa_*.jpg`` and
    ``sa_*.json`` is SA-1B; everything else is a folder of images, searched recursively.

    Args:
        source: path, glob or pattern.
        index_dir: see :class:`TarRecords`.
    """
    path = Path(source).expanduser()
    if path.suffix == ".tar" or (path.is_dir() and next(path.glob("*.tar"), None)):
        return TarRecords(find_shards(path), index_dir)
    if path.suffix in (".txt", ".tsv", ".lst") and path.is_file():
        return image_list(path)
    if _folder_layout(path) == "imagenet":
        return imagenet_folder(path)
    if _folder_layout(path) == "sa1b":
        return sa1b_folder(path)
    return image_folder(path)


def _folder_layout(path: Path) -> str | None:
    if not path.is_dir():
        return None
    for base in (path / "train", path):
        if base.is_dir():
            with os.scandir(base) as entries:
                if any(re.fullmatch(r"n\d{8}", entry.name) for entry in entries):
                    return "imagenet"
    first = next(path.glob("sa_*.jpg"), None) or next(path.glob("sa_*/sa_*.jpg"), None)
    return "sa1b" if first is not None and first.with_suffix(".json").is_file() else None
