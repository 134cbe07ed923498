"""NYU Depth v2: indoor rooms with depth and labels, 39 or 13 classes.

Silberman, Hoiem, Kohli, Fergus: "Indoor segmentation and support inference from RGBD images",
ECCV 2012; 40 classes of Gupta et al., CVPR 2013, of which "otherprop" is ignored here, and 13 of
Couprie et al., ICLR 2013. Research use. The published file ``nyu_depth_v2_labeled.mat`` becomes
the layout that is read here by :func:`upfeat.data.nyuv2_mat.unpack_nyuv2`.
"""

from pathlib import Path
from typing import Literal

from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.label_tables import load_table
from upfeat.data.layouts import PathLike, check_split, expected_tree, pair_by_stem
from upfeat.data.opening import read_picture
from upfeat.data.segmentation import LabelledFile, SegmentationData

__all__ = ["nyuv2", "nyuv2_depth"]

IGNORED = 255
MAT_FILE = "nyu_depth_v2_labeled.mat"
ADDRESS = f"http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{MAT_FILE}"

# What one metre is in the two kinds of depth file.
UNITS_8_BIT = 25.5
UNITS_16_BIT = 1000.0

_TREE = f"""
train/images/NNNN.jpg (or .png)
train/labels/NNNN.png    classes 0 to 38, 255 = ignored
train/depth/NNNN.png     8 bit: metres = value / 25.5; 16 bit: millimetres; 0 = missing
val/images/, val/labels/, val/depth/  likewise
upfeat.data.unpack_nyuv2 writes it from {MAT_FILE}.
"""


def nyuv2(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[39, 13] = 39
) -> SegmentationData:
    """List the labelled images of a split of NYU Depth v2; label 255 is ignored.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.
        classes: 39, or 13 groups of them.

    Raises:
        FileNotFoundError: a folder, all images or a label are missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.

    Example:
        >>> from upfeat.data import nyuv2
        >>> try:
        ...     nyuv2("nowhere", "val")
        ... except FileNotFoundError as error:
        ...     print(str(error).splitlines()[-1])
        Get it from http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat
    """
    if classes not in (39, 13):
        raise ValueError(f"NYU Depth v2 has 39 or 13 classes here, got {classes}")
    files = tuple(LabelledFile(*three) for three in _pairs(root, split, "labels"))
    table = load_table("nyuv2")
    if classes == 39:
        return SegmentationData(f"nyuv2/{split}", tuple(table["names"]), IGNORED, files)
    to_13 = dict(enumerate(table["to_13"])) | {IGNORED: IGNORED}
    return SegmentationData(f"nyuv2_13/{split}", tuple(table["names_13"]), IGNORED, files, to_13)


def nyuv2_depth(root: PathLike, split: Literal["train", "val"] = "train") -> DepthData:
    """List the images with depth of a split of NYU Depth v2; up to 10 metres, 0 = missing.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.

    Raises:
        FileNotFoundError: a folder, all images or a depth map are missing; shows the expected tree.
        ValueError: the split is unknown or the first depth map is broken.

    Example:
        >>> from upfeat.data import nyuv2_depth
        >>> try:
        ...     nyuv2_depth("nowhere", "val")
        ... except FileNotFoundError as error:
        ...     print("no folder nowhere/val/images" in str(error))
        True
    """
    files = tuple(DepthFile(*three) for three in _pairs(root, split, "depth"))
    return DepthData(f"nyuv2-depth/{split}", files, _units(files[0].depth))


def _pairs(root: PathLike, split: str, kind: str) -> list[tuple[str, Path, Path]]:
    check_split("NYU Depth v2", split, ("train", "val"))
    folder = Path(root).expanduser() / split
    pairs, problem = pair_by_stem(folder / "images", folder / kind)
    if problem:
        raise FileNotFoundError(expected_tree("NYU Depth v2", root, _TREE, problem, ADDRESS))
    return pairs


def _units(path: Path) -> float:
    mode = read_picture(path, lambda image: image.mode, what="depth map", name=f"depth map {path}")
    return UNITS_8_BIT if mode == "L" else UNITS_16_BIT
