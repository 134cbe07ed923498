"""DAVIS 2016 and 2017: videos with object masks.

Perazzi et al.: "A benchmark dataset and evaluation methodology for video object segmentation",
CVPR 2016 (one object a video); Pont-Tuset et al.: "The 2017 DAVIS challenge on video object
segmentation", arXiv 1704.00675 (several). Research use.
"""

from pathlib import Path, PurePosixPath
from typing import Literal

from upfeat.data.layouts import Layout, PathLike, list_images
from upfeat.data.video import VideoData, VideoSequence

__all__ = ["davis"]

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

    2016: every number but 0 in a mask is the one object. 2017: the numbers are objects, 255 is
    void and becomes background.

    Args:
        root: the folder that holds ``JPEGImages`` and ``Annotations``.
        year: which edition of the list and of the masks' meaning.
        split: which list; without a folder ``ImageSets`` all videos that are there are taken.

    Raises:
        FileNotFoundError: the list, a video, a frame or a mask is missing; shows the expected tree.
        ValueError: the year or split is unknown, or a list is malformed.
    """
    if year not in ADDRESSES:
        raise ValueError(f"DAVIS has the years 2016 and 2017, got {year!r}")
    if split not in ("train", "val"):
        raise ValueError(f"DAVIS {year} has the splits train and val here, got {split!r}")
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
    return folder / kind / "480p" if (folder / kind / "480p").is_dir() else folder / kind


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
