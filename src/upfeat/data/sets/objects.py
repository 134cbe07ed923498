"""Sets for interactive segmentation: images with masks of single objects.

A reader takes the folder whose tree is shown above it, or the one that holds that, and the split. A
set without splits gives all that it has, whatever the split.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat.data.layouts import (
    Layout,
    PathLike,
    check_named,
    check_split,
    find_base,
    read_mat,
    read_names,
)
from upfeat.data.objects import (
    UNCERTAIN,
    ClassifiedFile,
    ClassifiedImages,
    ObjectData,
    ObjectFile,
    pair_masks,
    read_channel,
    read_mask,
    register_objects,
)
from upfeat.data.opening import read_picture

__all__ = ["berkeley", "coco_objects", "coco_single_objects", "davis_interactive", "grabcut", "sbd"]

# -- SBD -----------------------------------------------------------------------------------------

_SBD = Layout(
    "SBD",
    """
benchmark_RELEASE/dataset/img/ID.jpg
benchmark_RELEASE/dataset/inst/ID.mat    the objects of an image
benchmark_RELEASE/dataset/train.txt      one ID a line; also val.txt
""",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz",
)

SMALLEST_FILL = 0.08
"""An object covers at least this share of its bounding box, else its mask is taken to be wrong."""


@register_objects("sbd")
def sbd(root: PathLike, split: str = "train") -> ObjectData:
    """List a split of SBD: photographs of VOC 2011 with masks of all objects of the 20 classes.

    Hariharan et al.: "Semantic contours from inverse detectors", ICCV 2011. 8,498 training and
    2,857 validation images with 20,172 and 6,671 objects. The masks take SciPy.

    Args:
        root: the folder that holds ``benchmark_RELEASE``, or ``img`` itself.
        split: ``"train"`` or ``"val"``.
    """
    check_split("SBD", split, ("train", "val"))
    base = find_base(root, ("benchmark_RELEASE/dataset", "dataset"), "inst")
    files = []
    with _SBD.explained(root):
        for name in read_names(base / f"{split}.txt"):
            image, mask = base / "img" / f"{name}.jpg", base / "inst" / f"{name}.mat"
            check_named(f"{split}.txt", name, image, mask)
            files.append(ObjectFile(name, image, (mask,)))
    return ObjectData(f"sbd/{split}", tuple(files), _sbd_objects)


def _sbd_objects(paths: Sequence[Path]) -> Tensor:
    """Return the objects of a MAT file, without those that hardly fill their bounding box."""
    numbers = read_mat(
        paths[0],
        "mask",
        lambda mat: mat["GTinst"]["Segmentation"][0, 0].astype(np.int64),
        "holds no objects of SBD",
    )
    labels = torch.from_numpy(numbers)
    for number in labels.unique().tolist():
        mask = labels == number
        rows, cols = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = int(rows[-1] - rows[0] + 1) * int(cols[-1] - cols[0] + 1)
        if number and int(mask.sum()) < SMALLEST_FILL * box:
            labels[mask] = 0
    return labels


# -- GrabCut, Berkeley, DAVIS --------------------------------------------------------------------

_ADDRESS = "https://github.com/saic-vul/fbrs_interactive_segmentation/releases/download/v1.0/{}.zip"
_GRABCUT = Layout(
    "GrabCut",
    """
data_GT/NAME.jpg       images, or images/NAME.jpg
boundary_GT/NAME.png   0 background, 128 not counted, 255 object; or masks/NAME.png (or: 0
                       background, 1 object, 255 not counted)
""",
    _ADDRESS.format("GrabCut"),
)
_BERKELEY = Layout(
    "Berkeley",
    """
images/NAME.jpg
masks/NAME.png         0 background, 128 not counted, 255 object; a second object of an image
                       has a name, and a copy of the image, of its own
""",
    _ADDRESS.format("Berkeley"),
)
_DAVIS = Layout(
    "DAVIS",
    """
img/NAME.jpg
gt/NAME.png            every colour but black is the object
""",
    _ADDRESS.format("DAVIS"),
)


@register_objects("grabcut")
def grabcut(root: PathLike, split: str = "val") -> ObjectData:
    """List the 50 images of GrabCut (Rother, Kolmogorov, Blake: "GrabCut", SIGGRAPH 2004)."""
    base = find_base(root, ("GrabCut",), "boundary_GT")
    own = (base / "boundary_GT").is_dir()
    with _GRABCUT.explained(root):
        files = pair_masks(
            base / ("data_GT" if own else "images"), base / ("boundary_GT" if own else "masks")
        )
    return ObjectData("grabcut", files, _three_grades)


@register_objects("berkeley")
def berkeley(root: PathLike, split: str = "val") -> ObjectData:
    """List the 100 objects in Berkeley's 96 images; one item an object.

    McGuinness, O'Connor: "A comparative evaluation of interactive segmentation algorithms", Pattern
    Recognition 2010. Research use.
    """
    base = find_base(root, ("Berkeley",), "masks")
    with _BERKELEY.explained(root):
        files = pair_masks(base / "images", base / "masks")
    return ObjectData("berkeley", files, _three_grades)


@register_objects("davis_interactive")
def davis_interactive(root: PathLike, split: str = "val") -> ObjectData:
    """List the 345 frames of DAVIS 2016 that interactive segmentation is measured on.

    Jang, Kim: "Interactive image segmentation via backpropagating refinement scheme", CVPR 2019.
    The videos are :func:`upfeat.data.davis`.
    """
    base = find_base(root, ("DAVIS",), "gt")
    with _DAVIS.explained(root):
        files = pair_masks(base / "img", base / "gt")
    return ObjectData("davis_interactive", files, _any_colour)


def _three_grades(paths: Sequence[Path]) -> Tensor:
    """Return 1 on the object, -1 where it is uncertain: 0, 128, 255 or 0, 255, 1 in the file."""
    values = read_channel(paths[0])
    known = set(values.unique().tolist())
    if 1 in known:
        grades = {1: 1, 255: UNCERTAIN}
    else:
        grades = {128: UNCERTAIN} | {value: 1 for value in known if value > 128}
    if surplus := known - {0, *grades}:
        raise ValueError(
            f"{paths[0]} holds {', '.join(map(str, sorted(surplus)))}; expected 0 (background), "
            "128 (not counted) and 255 (object), or 0, 255 and 1"
        )
    labels = torch.zeros_like(values)
    for value, label in grades.items():
        labels[values == value] = label
    return labels


def _any_colour(paths: Sequence[Path]) -> Tensor:
    pixels = read_picture(
        paths[0], lambda image: np.array(image.convert("RGB")), what="mask", name=str(paths[0])
    )
    return torch.from_numpy(pixels.any(2).astype(np.int64))


# -- COCO objects --------------------------------------------------------------------------------

_COCO = Layout(
    "the COCO objects",
    """
classes.csv         two columns with the header name,class
images/NAME.jpg
masks/NAME.png      0 background, 1 the object
""",
    # The images and masks; the classes are in their names.
    "https://github.com/SamsungLabs/ritm_interactive_segmentation, file history: "
    "datasets/COCO_MVal",
)


def coco_objects(root: PathLike) -> ClassifiedImages:
    """List photographs of COCO val2017 with the class and mask of one object each.

    Lin et al.: "Microsoft COCO: common objects in context", ECCV 2014. The layout, two images for
    each of the 80 classes, is our own; other objects of the class may be in an image. Classes are
    in alphabetical order.
    """
    folder = Path(root).expanduser()
    listing = folder / "classes.csv"
    _COCO.check_files(root, listing)
    with listing.open(newline="", encoding="utf-8") as stream:
        rows = [(row.get("name") or "", row.get("class") or "") for row in csv.DictReader(stream)]
    if not rows or any(not name or not kind for name, kind in rows):
        raise ValueError(f"{listing} must have the columns name and class, filled in every line")
    classes = tuple(sorted({kind for _, kind in rows}))
    files = []
    with _COCO.explained(root):
        for name, kind in rows:
            image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png"
            check_named("classes.csv", name, image, mask)
            files.append(ClassifiedFile(name, image, classes.index(kind), mask))
    return ClassifiedImages("coco_objects", classes, tuple(files))


@register_objects("coco_objects")
def coco_single_objects(root: PathLike, split: str = "train") -> ObjectData:
    """List the images of :func:`coco_objects` for interactive segmentation."""
    files = coco_objects(root).files
    pairs = tuple(ObjectFile(f.name, f.image, (f.mask,)) for f in files if f.mask is not None)
    return ObjectData("coco_objects", pairs, read_mask)
