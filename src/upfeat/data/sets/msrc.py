"""MSRC v2: photographs of objects and stuff, 23 classes, about 320x213.

Shotton, Winn, Rother, Criminisi: "TextonBoost", ECCV 2006; cleaned-up segmentations by Malisiewicz
and Efros, BMVC 2007. The layout with one class map an image is our own.
"""

from pathlib import Path
from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, pair_by_stem
from upfeat.data.segmentation import LabelledFile, SegmentationData, register_segmentation

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
# The images and region maps; one class map an image is made of them.
ADDRESS = "https://github.com/TonyZZX/MultiGraph_MultiLabel_Learning, folder MSRC_v2"


@register_segmentation("msrc")
def msrc(root: PathLike, split: Literal["train", "val"] = "train") -> SegmentationData:
    """List a split of MSRC v2 by file name; 23 classes, label 255 is ignored.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.

    Raises:
        FileNotFoundError: a folder, all images or a label are missing; shows the expected tree.
        ValueError: the split is unknown.
    """
    check_split("MSRC", split, ("train", "val"))
    folder = Path(root).expanduser() / split
    pairs, problem = pair_by_stem(folder / "images", folder / "labels")
    if problem:
        raise FileNotFoundError(expected_tree("MSRC", root, _TREE, problem, ADDRESS))
    files = tuple(LabelledFile(*three) for three in pairs)
    return SegmentationData(f"msrc/{split}", MSRC_CLASSES, IGNORED, files)
