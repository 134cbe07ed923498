"""KITTI-360: suburban streets from a car, 376x1408, 19 classes of Cityscapes.

Liao, Xie, Geiger: "KITTI-360", TPAMI 2022. There is no official split of the labelled frames for
probes. NAF shuffles all of them with seed 42 and takes the first 80 % for training, from a listing
in the file system's order; here the listing is sorted first, so its split cannot be met exactly.
Neighbouring frames lie in both parts.
"""

import random
from pathlib import Path
from typing import Literal

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base, list_images
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    class_table,
    register_segmentation,
)

__all__ = ["kitti360"]

ADDRESS = "https://www.cvlibs.net/datasets/kitti-360 (registration): perspective images, semantics"
SEED, TRAIN_SHARE = 42, 0.8

_TREE = """
data_2d_raw/DRIVE/image_00/data_rect/0000000000.png
data_2d_semantics/train/DRIVE/image_00/semantic/0000000000.png    label ids 0 to 44
"""


@register_segmentation("kitti360")
def kitti360(
    root: PathLike, split: Literal["train", "val"] = "train", listing: PathLike | None = None
) -> SegmentationData:
    """List a part of the labelled frames of KITTI-360's left camera; 19 classes, 255 is ignored.

    The names of the files that come back, ``DRIVE/FRAME``, are the split that was used: store them
    with a result, one a line, and give that file as ``listing`` to repeat it.

    Args:
        root: the folder that holds ``data_2d_raw`` and ``data_2d_semantics``.
        split: the first 80 % of the shuffled frames, or the rest.
        listing: a text file with one ``DRIVE/FRAME`` a line, taken instead, in its order.

    Raises:
        FileNotFoundError: a folder, an image or a label is missing; shows the expected tree.
        ValueError: the split is unknown.
    """
    check_split("KITTI-360", split, ("train", "val"))
    base = find_base(root, ("KITTI-360",), "data_2d_semantics")
    labels = base / "data_2d_semantics" / "train"
    try:
        names = _labelled(labels) if listing is None else _listed(Path(listing).expanduser())
        files = [_file(base, labels, name) for name in names]
    except FileNotFoundError as error:
        message = expected_tree("KITTI-360", root, _TREE, str(error), ADDRESS)
        raise FileNotFoundError(message) from error
    if listing is None:
        random.Random(SEED).shuffle(files)
        cut = int(TRAIN_SHARE * len(files))
        files = files[:cut] if split == "train" else files[cut:]
    classes, table = class_table("kitti360", "train_id")
    return SegmentationData(f"kitti360/{split}", classes, IGNORED, tuple(files), table)


def _labelled(labels: Path) -> list[str]:
    """Return DRIVE/FRAME of every label, sorted."""
    if not labels.is_dir():
        raise FileNotFoundError(f"no folder {labels}")
    folders = sorted(labels.glob("*/image_00/semantic"))
    names = [
        f"{folder.parts[-3]}/{path.stem}" for folder in folders for path in list_images(folder)
    ]
    if not names:
        raise FileNotFoundError(f"no label in {labels}/DRIVE/image_00/semantic")
    return names


def _listed(path: Path) -> list[str]:
    names = path.read_text(encoding="utf-8").split()
    if malformed := [name for name in names if name.count("/") != 1]:
        raise ValueError(f"{path}: expected DRIVE/FRAME, got {malformed[0]}")
    if not names:
        raise ValueError(f"{path} names no frame")
    return names


def _file(base: Path, labels: Path, name: str) -> LabelledFile:
    drive, frame = name.split("/")
    image = base / "data_2d_raw" / drive / "image_00" / "data_rect" / f"{frame}.png"
    label = labels / drive / "image_00" / "semantic" / f"{frame}.png"
    for path in (image, label):
        if not path.is_file():
            raise FileNotFoundError(f"{name} has no {path}")
    return LabelledFile(name, image, label)
