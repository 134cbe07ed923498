"""Images with a label map: what the loaders of the labelled sets share.

A loader (one file a set) lists the files of a split; reading and its checks are here. Every error
names the file and shows the folder tree that was expected. Sizes are ``(height, width)``.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.errors import shape_text

__all__ = ["LabelledFile", "LabelledImage", "SegmentationData", "expected_tree", "read_label"]

PathLike = str | os.PathLike[str]

# One channel of whole numbers; a palette's numbers are the classes, its colours are for people.
_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


class LabelledFile(NamedTuple):
    """Where one image and its label map are; ``name`` is unique within the split."""

    name: str
    image: Path
    label: Path


class LabelledImage(NamedTuple):
    """One image (3, H, W), float32 in [0, 1], and its label map (H, W), int64."""

    image: Tensor
    label: Tensor


def expected_tree(name: str, root: PathLike, tree: str, problem: str) -> str:
    """Return the message for a folder that is not the data set it should be.

    Example:
        >>> from upfeat.data.segmentation import expected_tree
        >>> print(expected_tree("MSRC", "data", "train/images/NAME.jpg", "no folder train/images"))
        data is not a copy of MSRC as it is read here: no folder train/images. Expected:
          data/
            train/images/NAME.jpg
    """
    lines = "\n".join(f"    {line}" for line in tree.strip().splitlines())
    return (
        f"{root} is not a copy of {name} as it is read here: {problem}. Expected:\n"
        f"  {os.fspath(root).rstrip('/')}/\n{lines}"
    )


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
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no label file at {path}; every image of the split needs one")
    try:
        with Image.open(path) as opened:
            mode, pixels = opened.mode, np.array(opened)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"the label {path} cannot be read, it may be broken: {error}") from error
    if mode not in _LABEL_MODES:
        raise ValueError(
            f"the label {path} is {mode}, wanted one channel with class numbers; convert colours "
            "to class numbers first"
        )
    return torch.from_numpy(pixels.astype(np.int64))


@dataclass(frozen=True)
class SegmentationData:
    """One split of a labelled set: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"camvid/val"``.
        classes: names of the classes 0, 1, …
        ignore_index: the label without meaning.
        files: the images and labels, in a fixed order.

    Example:
        >>> from upfeat.data import SegmentationData
        >>> len(SegmentationData("empty", ("road", "sky"), 255, ()))
        0
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    files: tuple[LabelledFile, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.read(self.files[index])

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self.read(file) for file in self.files)

    def read(self, file: LabelledFile) -> LabelledImage:
        """Read an image with its label.

        Raises:
            FileNotFoundError: one of the two is missing.
            ValueError: one cannot be read, their sizes differ, or the label holds an unknown class.
        """
        image, label = read_image(file.image), read_label(file.label)
        if image.shape[1:] != label.shape:
            raise ValueError(
                f"{file.label} is {shape_text(label)}, its image {file.image} "
                f"{tuple(image.shape[1:])} (height, width); they must have one size"
            )
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

    def select(self, every: int = 1, limit: int | None = None) -> "SegmentationData":
        """Return every n-th image; of those at most ``limit``, evenly spread.

        Example:
            >>> from pathlib import Path
            >>> from upfeat.data.segmentation import LabelledFile, SegmentationData
            >>> files = tuple(LabelledFile(str(i), Path("a"), Path("b")) for i in range(9))
            >>> data = SegmentationData("set", ("road",), 255, files)
            >>> [file.name for file in data.select(every=2, limit=2).files]
            ['0', '4']
        """
        if every < 1 or (limit is not None and limit < 1):
            raise ValueError(f"every and limit must be positive, got {every} and {limit}")
        files = self.files[::every]
        if limit is not None and limit < len(files):
            files = tuple(files[i * len(files) // limit] for i in range(limit))
        return replace(self, files=files)

    def file_hash(self, file: LabelledFile) -> str:
        """Return 16 hexadecimal digits of the bytes of an image and its label."""
        digest = hashlib.blake2b(digest_size=8)
        for path in (file.image, file.label):
            content = path.read_bytes()
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of all names and bytes: the same data gives the same."""
        digest = hashlib.blake2b(f"{self.classes} {self.ignore_index}".encode(), digest_size=8)
        for file in self.files:
            digest.update(f"{file.name} {self.file_hash(file)}\n".encode())
        return digest.hexdigest()
