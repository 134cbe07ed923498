"""COCO-Stuff 164k: photographs with things and stuff, 27 coarse or 171 fine classes; COCO-Object.

Caesar, Uijlings, Ferrari: "COCO-Stuff: thing and stuff classes in context", CVPR 2018; the 27
groups and the curated lists of Ji, Henriques, Vedaldi: "Invariant information clustering", ICCV
2019.
"""

import logging
from pathlib import Path
from typing import Literal

from upfeat.data.layouts import Layout, PathLike, check_split, find_base, list_images
from upfeat.data.segmentation import (
    IGNORED,
    ClassTable,
    LabelledFile,
    SegmentationData,
    load_table,
    register_segmentation,
)

logger = logging.getLogger(__name__)

CURATED_LIST = "Coco164kFull_Stuff_Coarse.txt"
TRAIN_IDS = "_labelTrainIds"
THINGS = 80  # the first of the 171 classes
# Number of images by split and whether only those of the curated list count.
SIZES = {
    ("train", True): 97_702,
    ("val", True): 4_172,
    ("train", False): 118_287,
    ("val", False): 5_000,
}

_LAYOUT = Layout(
    "COCO-Stuff 164k",
    f"""
images/val2017/000000000009.jpg         (or dataset/images/…)
annotations/val2017/000000000009.png    category ids minus 1, 255 = unlabelled (or dataset/…);
                                        …{TRAIN_IDS}.png with the 171 classes is read, too
curated/val2017/{CURATED_LIST}    one image a line
and the same with train2017
""",
    "http://images.cocodataset.org/zips/train2017.zip and .../val2017.zip (images),\n"
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip (labels),\n"
    "https://www.robots.ox.ac.uk/~xuji/datasets/COCOStuff164kCurated.tar.gz (lists: move its "
    "folder COCO/COCOStuff164k/curated here)",
)


@register_segmentation("coco_object", classes=81)
@register_segmentation("coco_stuff_171", classes=171)
@register_segmentation("coco_stuff_27")
def coco_stuff(
    root: PathLike,
    split: Literal["train", "val"] = "train",
    classes: Literal[27, 81, 171] = 27,
    curated: bool | None = None,
) -> SegmentationData:
    """List a split of COCO-Stuff 164k; label 255 is ignored.

    A number of images other than the published one is logged as a warning.

    Args:
        root: the folder that holds ``images`` and ``annotations``, or ``dataset`` with both.
        split: ``"train"`` or ``"val"``.
        classes: 27 groups, 171 classes, or 81 for COCO-Object: the 80 things, all else is
            background and nothing is ignored.
        curated: only the images of the curated list; None for what the protocols do: yes for 27
            classes, else no.
    """
    check_split("COCO-Stuff", split, ("train", "val"))
    if classes not in (27, 81, 171):
        raise ValueError(f"COCO-Stuff has 27, 81 or 171 classes, got {classes}")
    curated = classes == 27 if curated is None else curated
    below, part = ("dataset", "COCOStuff", "COCOStuff/dataset"), f"{split}2017"
    base = find_base(root, below, "annotations")
    with _LAYOUT.explained(root):
        names = _curated(base, part) if curated else None
        files, suffix = _files(base / "images" / part, base / "annotations" / part, names)
    if len(files) != SIZES[split, curated]:
        logger.warning(
            f"{root} holds {len(files)} images of the {'curated ' if curated else ''}{split} "
            f"split of COCO-Stuff, published numbers are for {SIZES[split, curated]}"
        )
    names_of, table = _table(classes, suffix)
    listed = "" if curated == (classes == 27) else "-curated" if curated else "-all"
    name = f"coco_object{listed}" if classes == 81 else f"coco_stuff_{classes}{listed}"
    return SegmentationData(f"{name}/{split}", names_of, IGNORED, tuple(files), table)


def _curated(base: Path, part: str) -> list[str]:
    """Return the images of the curated list, which lies beside or above the images."""
    for folder in (base, base.parent):
        path = folder / "curated" / part / CURATED_LIST
        if path.is_file():
            return path.read_text().split()
    raise FileNotFoundError(f"no file {base / 'curated' / part / CURATED_LIST}")


def _files(images: Path, labels: Path, names: list[str] | None) -> tuple[list[LabelledFile], str]:
    """Pair images and labels; also return what the labels' names end with."""
    # One listing each instead of two questions an image: there are 118,287 of them.
    found = {path.stem: path for path in list_images(images)}
    stored = {path.stem for path in list_images(labels)}
    names = list(found) if names is None else names
    if not names:
        raise FileNotFoundError(f"no image in {images}")
    suffix = TRAIN_IDS if names[0] not in stored and names[0] + TRAIN_IDS in stored else ""
    files = []
    for name in names:
        label = labels / f"{name}{suffix}.png"
        if name not in found:
            raise FileNotFoundError(f"the list names {name}, but there is no {images / name}.jpg")
        if label.stem not in stored:
            raise FileNotFoundError(f"{found[name]} has no label {label}")
        files.append(LabelledFile(name, found[name], label))
    return files, suffix


def _table(classes: int, suffix: str) -> ClassTable:
    """Return names of the classes and what the stored numbers of the labels mean."""
    stuff = load_table("coco_stuff")
    to_171: list[int] = stuff["to_171"]
    fine = tuple(n for n, k in zip(stuff["names"], to_171, strict=True) if k != IGNORED)
    names = {27: tuple(stuff["names_27"]), 81: ("background", *fine[:THINGS]), 171: fine}[classes]
    target: list[int] = stuff["to_27"] if classes == 27 else to_171
    unlabelled = IGNORED
    if classes == 81:
        target = [kind + 1 if kind < THINGS else 0 for kind in to_171]
        unlabelled = 0
    stored = to_171 if suffix else range(len(to_171))
    table = dict(zip(stored, target, strict=True)) | {IGNORED: unlabelled}
    return ClassTable(names, table)
