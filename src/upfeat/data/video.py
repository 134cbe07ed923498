"""Videos with object masks, and DAVIS. Sizes are ``(height, width)``."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from torch import Tensor

from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import (
    Layout,
    PathLike,
    check_split,
    hash_files,
    lay_on_image,
    list_images,
    read_numbers,
    spread,
)

VOID = 255


class VideoSequence(NamedTuple):
    """The frames of one video in order, and for each its mask file or None."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True)
class VideoData:
    """One split of a video set: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"davis2017/val"``.
        sequences: the videos, in a fixed order.
        one_object: every number in a mask but 0 belongs to the one object of the video, as in
            DAVIS 2016; else the numbers are objects and 255 is void, which counts as background.
    """

    name: str
    sequences: tuple[VideoSequence, ...]
    one_object: bool = False

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> VideoSequence:
        return self.sequences[index]

    def __iter__(self) -> Iterator[VideoSequence]:
        return iter(self.sequences)

    def read_frame(self, sequence: VideoSequence, index: int) -> Tensor:
        """Return a frame (3, H, W), float32 in [0, 1]."""
        return read_image(sequence.frames[index])

    def read_mask(self, sequence: VideoSequence, index: int) -> Tensor:
        """Return the mask of a frame (H, W), int64: 0 background, other numbers objects."""
        path, frame = sequence.masks[index], sequence.frames[index]
        if path is None:
            raise ValueError(f"{self.name} has no mask for {frame}; only some frames are annotated")
        hint = "with object numbers; colours must become object numbers first"
        mask = lay_on_image(read_numbers(path, "mask", hint), path, frame, image_size(frame))
        mask = (mask != 0).long() if self.one_object else mask.masked_fill(mask == VOID, 0)
        if index == 0 and not mask.any():
            raise ValueError(
                f"{path} marks no object in the first frame; with several objects {VOID} is void "
                "(masks that say 255 for the one object are DAVIS 2016's: year=2016)"
            )
        return mask

    def object_count(self, sequence: VideoSequence) -> int:
        """Return how many different objects the first mask marks."""
        return int((self.read_mask(sequence, 0).unique() != 0).sum())

    def select(self, limit: int | None = None) -> "VideoData":
        """Return at most ``limit`` videos, evenly spread."""
        return replace(self, sequences=spread(self.sequences, 1, limit))

    def sequence_hash(self, sequence: VideoSequence) -> str:
        """Return 16 hexadecimal digits of the bytes of all frames and masks of a video."""
        masks = (path for path in sequence.masks if path is not None)
        return hash_files((*sequence.frames, *masks))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of all names and bytes: the same data gives the same."""
        digest = hashlib.blake2b(f"one_object={self.one_object}".encode(), digest_size=8)
        for sequence in self.sequences:
            names = [path.name for path in sequence.frames]
            digest.update(f"{sequence.name} {names} {self.sequence_hash(sequence)}\n".encode())
        return digest.hexdigest()


# -- DAVIS ---------------------------------------------------------------------------------------

ADDRESSES = {
    2016: "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip",
    2017: "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
}

_TREE = """
JPEGImages/480p/SEQUENCE/00000.jpg    frames (or JPEGImages/SEQUENCE/)
Annotations/480p/SEQUENCE/00000.png   masks (or Annotations/SEQUENCE/)
ImageSets/2017/val.txt                one sequence a line (2016: ImageSets/480p/val.txt, one line
                                      a frame: IMAGE MASK); without ImageSets every folder counts
"""


def davis(
    root: PathLike, year: Literal[2016, 2017] = 2017, split: Literal["train", "val"] = "val"
) -> VideoData:
    """List the videos of DAVIS at 480 rows.

    Perazzi et al.: "A benchmark dataset and evaluation methodology for video object segmentation",
    CVPR 2016 (one object a video); Pont-Tuset et al.: "The 2017 DAVIS challenge on video object
    segmentation", arXiv 1704.00675 (several). Research use.

    2016: every number but 0 in a mask is the one object. 2017: the numbers are objects, 255 is
    void and becomes background.

    Args:
        root: the folder that holds ``JPEGImages`` and ``Annotations``.
        year: which edition of the list and of the masks' meaning.
        split: which list; without a folder ``ImageSets`` all videos that are there are taken.
    """
    if year not in ADDRESSES:
        raise ValueError(f"DAVIS has the years 2016 and 2017, got {year!r}")
    check_split(f"DAVIS {year}", split, ("train", "val"))
    folder = Path(root).expanduser()
    with Layout(f"DAVIS {year}", _TREE, ADDRESSES[year]).explained(root):
        frames, masks = (_level(folder, kind) for kind in ("JPEGImages", "Annotations"))
        if (folder / "ImageSets").is_dir():
            names = _listed(folder, year, split)
        else:
            names = sorted(path.name for path in frames.iterdir() if path.is_dir())
        sequences = tuple(_sequence(frames / name, masks / name) for name in names)
        if not sequences:
            raise FileNotFoundError("no video")
    part = split if (folder / "ImageSets").is_dir() else "all"
    return VideoData(f"davis{year}/{part}", sequences, one_object=year == 2016)


def _level(folder: Path, kind: str) -> Path:
    if not (folder / kind).is_dir():
        raise FileNotFoundError(f"no folder {kind}")
    rows = folder / kind / "480p"
    return rows if rows.is_dir() else folder / kind


def _listed(folder: Path, year: int, split: str) -> list[str]:
    """Return the names of the videos of a list, in its order."""
    # DAVIS 2016 came with a list of frames; the later archive lists its videos in ImageSets/2016.
    places = {2016: ("480p", "2016"), 2017: ("2017",)}[year]
    paths = [folder / "ImageSets" / place / f"{split}.txt" for place in places]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no file {paths[0].relative_to(folder)}")
    names: dict[str, None] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split()
        if len(parts) > 2:
            raise ValueError(f"{path}, line {number}: expected a video, or IMAGE MASK: {line}")
        if parts:
            place = PurePosixPath(parts[0])
            names[place.parent.name if len(parts) == 2 else place.name] = None
    return list(names)


def _sequence(frames: Path, masks: Path) -> VideoSequence:
    images = list_images(frames)
    if not images:
        raise FileNotFoundError(f"no frame in {frames}")
    labels = [masks / f"{image.stem}.png" for image in images]
    for image, label in zip(images, labels, strict=True):
        if not label.is_file():
            raise FileNotFoundError(f"{image} has no mask {label}")
    return VideoSequence(frames.name, tuple(images), tuple(labels))
