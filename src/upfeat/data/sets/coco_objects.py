"""Photographs of COCO val2017 with one object each that has a class and a mask.

Lin et al.: "Microsoft COCO: common objects in context", ECCV 2014. The layout, two images for each
of the 80 classes, is our own; other objects of the class may be in an image.
"""

import csv
from pathlib import Path

from upfeat.data.classified import ClassifiedFile, ClassifiedImages
from upfeat.data.layouts import PathLike, expected_tree
from upfeat.data.objects import ObjectData, ObjectFile, read_mask, register_objects

__all__ = ["coco_objects", "coco_single_objects"]

# The images and masks; the classes are in their names.
ADDRESS = (
    "https://github.com/SamsungLabs/ritm_interactive_segmentation, file history: datasets/COCO_MVal"
)

_TREE = """
classes.csv         two columns with the header name,class
images/NAME.jpg
masks/NAME.png      0 background, 1 the object
"""


def coco_objects(root: PathLike) -> ClassifiedImages:
    """List images with the class and mask of one object; classes in alphabetical order.

    Args:
        root: the folder with ``classes.csv``.

    Raises:
        FileNotFoundError: the list or a file that it names is missing; shows the expected tree.
        ValueError: the list is malformed.
    """
    folder = Path(root).expanduser()
    listing = folder / "classes.csv"
    if not listing.is_file():
        raise _wrong(root, f"no file {listing}")
    with listing.open(newline="", encoding="utf-8") as stream:
        rows = [(row.get("name") or "", row.get("class") or "") for row in csv.DictReader(stream)]
    if not rows or any(not name or not kind for name, kind in rows):
        raise ValueError(f"{listing} must have the columns name and class, filled in every line")
    classes = tuple(sorted({kind for _, kind in rows}))
    files = []
    for name, kind in rows:
        image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png"
        for path in (image, mask):
            if not path.is_file():
                raise _wrong(root, f"classes.csv names {name}, but there is no {path}")
        files.append(ClassifiedFile(name, image, classes.index(kind), mask))
    return ClassifiedImages("coco_objects", classes, tuple(files))


@register_objects("coco_objects")
def coco_single_objects(root: PathLike, split: str = "train") -> ObjectData:
    """List the same images with one object each for interactive segmentation; without splits.

    Args:
        root: the folder with ``classes.csv``.
        split: of no account.

    Raises:
        FileNotFoundError: as :func:`coco_objects`.
    """
    files = coco_objects(root).files
    pairs = tuple(ObjectFile(f.name, f.image, (f.mask,)) for f in files if f.mask is not None)
    return ObjectData("coco_objects", pairs, read_mask)


def _wrong(root: PathLike, problem: str) -> FileNotFoundError:
    return FileNotFoundError(expected_tree("the COCO objects", root, _TREE, problem, ADDRESS))
