"""PASCAL VOC 2012: photographs, background and 20 kinds of objects.

Everingham et al.: "The PASCAL visual object classes (VOC) challenge", IJCV 2010. 1,464 training
and 1,449 validation images with labels (without the additional ones of SBD).
"""

from pathlib import Path
from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base
from upfeat.data.segmentation import IGNORED, LabelledFile, SegmentationData, register_segmentation

__all__ = ["VOC_CLASSES", "voc"]

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
ADDRESS = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"

_TREE = """
VOCdevkit/VOC2012/JPEGImages/NAME.jpg
VOCdevkit/VOC2012/SegmentationClass/NAME.png        0 background, 1 to 20, 255 = ignored
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt    one NAME a line; also train.txt, trainval.txt
"""


@register_segmentation("voc")
@register_segmentation("voc_20", classes=20)
def voc(
    root: PathLike,
    split: Literal["train", "val", "trainval"] = "train",
    classes: Literal[21, 20] = 21,
) -> SegmentationData:
    """List a split of PASCAL VOC 2012; label 255, the border of objects, is ignored.

    Args:
        root: the folder that holds ``VOCdevkit``; that or ``VOC2012`` itself is fine too.
        split: which list.
        classes: 21 with the background as class 0, or 20 with the background ignored.

    Raises:
        FileNotFoundError: the list or a file that it names is missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.
    """
    check_split("PASCAL VOC 2012", split, ("train", "val", "trainval"))
    if classes not in (21, 20):
        raise ValueError(f"PASCAL VOC has 21 or 20 classes, got {classes}")
    base = find_base(root, ("VOCdevkit/VOC2012", "VOC2012"), "ImageSets")
    listing = base / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise _wrong(root, f"no file {listing}")
    files = []
    for name in listing.read_text().split():
        file = LabelledFile(
            name, base / "JPEGImages" / f"{name}.jpg", base / "SegmentationClass" / f"{name}.png"
        )
        for path in (file.image, file.label):
            if not path.is_file():
                raise _wrong(root, f"{listing.name} names {name}, but there is no {path}")
        files.append(file)
    if not files:
        raise _wrong(root, f"{listing} is empty")
    if classes == 21:
        return SegmentationData(f"voc/{split}", VOC_CLASSES, IGNORED, tuple(files))
    table = {0: IGNORED, IGNORED: IGNORED} | {number: number - 1 for number in range(1, 21)}
    return SegmentationData(f"voc_20/{split}", VOC_CLASSES[1:], IGNORED, tuple(files), table)


def _wrong(root: PathLike, problem: str) -> FileNotFoundError:
    where = Path(root).expanduser()
    return FileNotFoundError(expected_tree("PASCAL VOC 2012", where, _TREE, problem, ADDRESS))
