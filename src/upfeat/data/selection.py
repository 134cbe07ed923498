"""Choosing images of a collection by their size, as papers do before they train."""

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from upfeat._files import write_bytes
from upfeat.data.layouts import read_npy
from upfeat.data.masks import PathLike
from upfeat.data.opening import read_picture
from upfeat.data.records import ImageRecord, Records, SelectedRecords

__all__ = ["hold_out", "random_subset", "shorter_sides", "with_min_side"]

logger = logging.getLogger(__name__)


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

    Raises:
        ValueError: the file is of another collection.

    Example:
        >>> from upfeat.data.records import FileRecords
        >>> from upfeat.data.selection import shorter_sides
        >>> shorter_sides(FileRecords(["no-such-file.jpg"], ["a"])).tolist()
        [-1]
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
        buffer = io.BytesIO()
        np.save(buffer, sides, allow_pickle=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    return sides


def _shorter_side(record: ImageRecord) -> int:
    try:
        source = record.image.path if record.image.size is None else record.image.read()
        return read_picture(source, lambda image: min(image.size))
    except (ValueError, OSError):  # reading the image will report it
        logger.debug("no size of %s", record.name)
        return -1


def random_subset(records: Records, count: int, seed: int) -> SelectedRecords:
    """Return some images, drawn without replacement, in the collection's order.

    Args:
        records: the images.
        count: how many; all of them if there are no more.
        seed: of the draw.

    Example:
        >>> from upfeat.data.records import FileRecords
        >>> from upfeat.data.selection import random_subset
        >>> letters = FileRecords(["a.jpg", "b.jpg", "c.jpg"], ["a", "b", "c"])
        >>> [record.name for record in random_subset(letters, 2, seed=0)]
        ['a', 'c']
    """
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(records))
    return SelectedRecords(records, np.sort(order[:count]).tolist())


def hold_out(records: Records, count: int, seed: int) -> tuple[SelectedRecords, SelectedRecords]:
    """Return the images without some, and those, drawn once; each in the collection's order.

    Args:
        records: the images.
        count: how many are held out.
        seed: of the draw.

    Example:
        >>> from upfeat.data.records import FileRecords
        >>> from upfeat.data.selection import hold_out
        >>> letters = FileRecords(["a.jpg", "b.jpg", "c.jpg"], ["a", "b", "c"])
        >>> [[record.name for record in part] for part in hold_out(letters, 1, seed=0)]
        [['a', 'b'], ['c']]
    """
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
    Unreadable images stay in: the data set reports them when it comes to them.

    Args:
        records: the images.
        min_side: in pixels.
        file: see :func:`shorter_sides`.
        threads: see there.
        on_record: see there.

    Raises:
        ValueError: no image is large enough.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import image_folder
        >>> from upfeat.data.selection import with_min_side
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for side in (50, 100):
        ...         Image.new("RGB", (side, 200)).save(pathlib.Path(folder, f"{side}.png"))
        ...     [record.name for record in with_min_side(image_folder(folder), 60)]
        ['100']
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
