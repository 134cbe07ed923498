"""MSRC v2: photographs of objects and stuff, 23 classes, about 320x213.

Shotton, Winn, Rother, Criminisi: "TextonBoost", ECCV 2006; cleaned-up segmentations by Malisiewicz
and Efros, BMVC 2007. The layout with one class map an image is our own.
"""

from pathlib import Path
from typing import Literal

from upfeat.data.folders import IMAGE_SUFFIXES
from upfeat.data.segmentation import LabelledFile, PathLike, SegmentationData, expected_tree

__all__ = ["MSRC_CLASSES", "msrc"]

MSRC_CLASSES = (
    "building",
    "grass",
    "tree",
    "cow",
    "horse",
    "sheep",
    "sky",
    "mountain",
    "aeroplane",
    "water",
    "face",
    "car",
    "bicycle",
    "flower",
    "sign",
    "bird",
    "book",
    "chair",
    "road",
    "cat",
    "dog",
    "body",
    "boat",
)
IGNORED = 255

_TREE = """
train/images/NAME.jpg
train/labels/NAME.png    classes 0 to 22, 255 = ignored
val/images/, val/labels/  likewise
"""


def msrc(root: PathLike, split: Literal["train", "val"] = "train") -> SegmentationData:
    """List a split of MSRC v2 by file name; 23 classes, label 255 is ignored.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.

    Raises:
        FileNotFoundError: a folder, all images or a label are missing; shows the expected tree.
        ValueError: the split is unknown.

    Example:
        >>> from upfeat.data import msrc
        >>> try:
        ...     msrc("nowhere", "val")
        ... except FileNotFoundError as error:
        ...     print(str(error).splitlines()[0])
        nowhere is not a copy of MSRC as it is read here: no folder val/images. Expected:
    """
    if split not in ("train", "val"):
        raise ValueError(f"MSRC has the splits train and val, got {split!r}")
    folder = Path(root).expanduser()
    for part in ("images", "labels"):
        if not (folder / split / part).is_dir():
            problem = f"no folder {split}/{part}"
            raise FileNotFoundError(expected_tree("MSRC", root, _TREE, problem))
    images = sorted(
        path
        for path in (folder / split / "images").iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not images:
        problem = f"no image in {split}/images"
        raise FileNotFoundError(expected_tree("MSRC", root, _TREE, problem))
    files = []
    for image in images:
        label = folder / split / "labels" / f"{image.stem}.png"
        if not label.is_file():
            problem = f"{split}/images/{image.name} has no {split}/labels/{label.name}"
            raise FileNotFoundError(expected_tree("MSRC", root, _TREE, problem))
        files.append(LabelledFile(image.stem, image, label))
    return SegmentationData(f"msrc/{split}", MSRC_CLASSES, IGNORED, tuple(files))
