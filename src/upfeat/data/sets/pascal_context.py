"""PASCAL Context: all pixels of PASCAL VOC 2010's photographs, the 59 most frequent classes.

Mottaghi et al.: "The role of context for object detection and semantic segmentation in the wild",
CVPR 2014. 4,998 training and 5,105 validation images; labels as PNGs in the layout of
MMSegmentation, whose tool converts the published ones.
"""

from pathlib import Path
from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base
from upfeat.data.segmentation import IGNORED, LabelledFile, SegmentationData, register_segmentation

__all__ = ["CONTEXT_CLASSES", "pascal_context"]

CONTEXT_CLASSES = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book"),
    *("bottle", "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth"),
    *("computer", "cow", "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food"),
    *("grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person"),
    *("plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign"),
    *("sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall"),
    *("water", "window", "wood"),
)
ADDRESS = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar (images),\n"
    "https://cs.stanford.edu/~roozbeh/pascal-context (labels, converted to PNGs)"
)

_TREE = """
VOCdevkit/VOC2010/JPEGImages/NAME.jpg
VOCdevkit/VOC2010/SegmentationClassContext/NAME.png        0 background, 1 to 59, 255 = ignored
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt    one NAME a line; also train.txt
"""


@register_segmentation("context_60")
@register_segmentation("context_59", classes=59)
def pascal_context(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[60, 59] = 60
) -> SegmentationData:
    """List a split of PASCAL Context.

    Args:
        root: the folder that holds ``VOCdevkit``; that or ``VOC2010`` itself is fine too.
        split: which list.
        classes: 60 with the background as class 0, or 59 with the background ignored.

    Raises:
        FileNotFoundError: the list or a file that it names is missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.
    """
    check_split("PASCAL Context", split, ("train", "val"))
    if classes not in (60, 59):
        raise ValueError(f"PASCAL Context has 60 or 59 classes, got {classes}")
    base = find_base(root, ("VOCdevkit/VOC2010", "VOC2010"), "ImageSets")
    listing = base / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not listing.is_file():
        raise _wrong(root, f"no file {listing}")
    files = []
    for name in listing.read_text().split():
        label = base / "SegmentationClassContext" / f"{name}.png"
        file = LabelledFile(name, base / "JPEGImages" / f"{name}.jpg", label)
        for path in (file.image, file.label):
            if not path.is_file():
                raise _wrong(root, f"{listing.name} names {name}, but there is no {path}")
        files.append(file)
    if not files:
        raise _wrong(root, f"{listing} is empty")
    if classes == 60:
        names = ("background", *CONTEXT_CLASSES)
        return SegmentationData(f"context_60/{split}", names, IGNORED, tuple(files))
    table = {0: IGNORED, IGNORED: IGNORED} | {number: number - 1 for number in range(1, 60)}
    return SegmentationData(f"context_59/{split}", CONTEXT_CLASSES, IGNORED, tuple(files), table)


def _wrong(root: PathLike, problem: str) -> FileNotFoundError:
    where = Path(root).expanduser()
    return FileNotFoundError(expected_tree("PASCAL Context", where, _TREE, problem, ADDRESS))
