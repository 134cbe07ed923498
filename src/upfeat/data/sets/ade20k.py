"""ADE20K, scene parsing benchmark: photographs of scenes, 150 classes.

Zhou et al.: "Scene parsing through ADE20K dataset", CVPR 2017. 20,210 training and 2,000
validation images.
"""

from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base, pair_by_stem
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    load_table,
    register_segmentation,
)

__all__ = ["ade20k"]

ADDRESS = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

_TREE = """
ADEChallengeData2016/images/training/ADE_train_00000001.jpg
ADEChallengeData2016/annotations/training/ADE_train_00000001.png    0 = other, 1 to 150
ADEChallengeData2016/images/validation/, .../annotations/validation/  likewise
"""


@register_segmentation("ade20k")
@register_segmentation("ade20k_151", classes=151)
def ade20k(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[150, 151] = 150
) -> SegmentationData:
    """List a split of ADE20K's scene parsing benchmark.

    Two rules exist. With 150 classes the stored 0 ("other") is ignored and the rest moves down by
    one, as the benchmark has it. With 151 the stored numbers are the classes, and "other" is
    trained and scored like any other: what the released code of JAFAR and NAF does.

    Args:
        root: the folder that holds ``ADEChallengeData2016``, or that folder.
        split: ``"train"`` (training) or ``"val"`` (validation).
        classes: 150 or 151.

    Raises:
        FileNotFoundError: a folder or a partner of a file is missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.
    """
    check_split("ADE20K", split, ("train", "val"))
    if classes not in (150, 151):
        raise ValueError(f"ADE20K has 150 or 151 classes, got {classes}")
    base = find_base(root, ("ADEChallengeData2016",), "images")
    part = {"train": "training", "val": "validation"}[split]
    pairs, problem = pair_by_stem(base / "images" / part, base / "annotations" / part)
    if problem:
        raise FileNotFoundError(expected_tree("ADE20K", root, _TREE, problem, ADDRESS))
    files = tuple(LabelledFile(*three) for three in pairs)
    names = tuple(load_table("ade20k")["names"])
    if classes == 151:
        return SegmentationData(f"ade20k_151/{split}", ("other", *names), IGNORED, files)
    table = {0: IGNORED} | {number: number - 1 for number in range(1, 151)}
    return SegmentationData(f"ade20k/{split}", names, IGNORED, files, table)
