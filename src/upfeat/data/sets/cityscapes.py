"""Cityscapes: streets of 50 cities, 1024x2048, 19 or 27 classes.

Cordts et al.: "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. 2,975
training and 500 validation images with fine labels. The classes are derived from the files
``*_labelIds.png``, so nothing has to be generated first.
"""

from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base, pair_by_stem
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    class_table,
    register_segmentation,
)

__all__ = ["cityscapes"]

ADDRESS = (
    "https://www.cityscapes-dataset.com (registration): gtFine_trainvaltest.zip and "
    "leftImg8bit_trainvaltest.zip"
)

_TREE = """
leftImg8bit/val/CITY/CITY_SEQ_FRAME_leftImg8bit.png
gtFine/val/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png    label ids 0 to 33
leftImg8bit/train/, gtFine/train/  likewise
"""


@register_segmentation("cityscapes")
@register_segmentation("cityscapes_27", classes=27)
def cityscapes(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[19, 27] = 19
) -> SegmentationData:
    """List a split of Cityscapes with fine labels; 255 is what the chosen classes leave out.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"train"`` or ``"val"``; the labels of the test images are not public.
        classes: 19 (the benchmark's train ids), or 27 (label ids 7 to 33, as in unsupervised
            segmentation).

    Raises:
        FileNotFoundError: a folder or a partner of a file is missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.
    """
    check_split("Cityscapes", split, ("train", "val"))
    if classes not in (19, 27):
        raise ValueError(f"Cityscapes has 19 or 27 classes, got {classes}")
    base = find_base(root, ("cityscapes",), "leftImg8bit")
    images, labels = base / "leftImg8bit" / split, base / "gtFine" / split
    problem = "" if images.is_dir() else f"no folder {images}"
    cities = [] if problem else sorted(path.name for path in images.iterdir() if path.is_dir())
    files: list[LabelledFile] = []
    for city in cities:
        pairs, problem = pair_by_stem(
            images / city, labels / city, "_gtFine_labelIds", "_leftImg8bit"
        )
        if problem:
            break
        files.extend(LabelledFile(*three) for three in pairs)
    if not files and not problem:
        problem = f"no city in {images}"
    if problem:
        raise FileNotFoundError(expected_tree("Cityscapes", root, _TREE, problem, ADDRESS))
    names, table = class_table("cityscapes", "train_id" if classes == 19 else "index27")
    name = "cityscapes" if classes == 19 else "cityscapes_27"
    return SegmentationData(f"{name}/{split}", names, IGNORED, tuple(files), table)
