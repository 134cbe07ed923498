"""ImageNet-1k (ILSVRC2012) with classes: a folder a class, flat with a list, or a small sample.

Russakovsky et al.: "ImageNet large scale visual recognition challenge", IJCV 2015. Classes are
numbered 0 to 999 in the order of their synsets (n01440764 is 0), as classifiers are trained; the
numbers 1 to 1000 of the development kit have another order and are translated.
"""

import csv
import re
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from upfeat._compat import ensure_torchvision_operators
from upfeat.data.layouts import Layout, PathLike, check_named, check_split, list_images, read_mat
from upfeat.data.objects import ClassifiedFile, ClassifiedImages

# Lists of a flat folder, in the order in which they are looked for.
KIT_LIST = "ILSVRC2012_validation_ground_truth.txt"
LISTS = (
    KIT_LIST,
    f"data/{KIT_LIST}",
    f"ILSVRC2012_devkit_t12/data/{KIT_LIST}",
    "LOC_{split}_solution.csv",
    "{split}.txt",
)

_LAYOUT = Layout(
    "ImageNet",
    f"""
val/n01440764/*.JPEG    a folder a class; or
val/*.JPEG              flat, and one of these lists, or labels=LIST:
  ILSVRC2012_devkit_t12/data/{KIT_LIST}, with meta.mat beside it
  LOC_val_solution.csv  ImageId,PredictionString (synset first)
  val.txt               NAME and class number from 0, or NAME and synset
or a sample:
classes.csv             columns file,synset,index
images/FILE
""",
    "https://image-net.org (registration): ILSVRC2012, images and development kit",
)
_SYNSET = re.compile(r"n\d{8}")


class _Synsets(NamedTuple):
    names: tuple[str, ...]
    number: dict[str, int]


@cache
def _synsets() -> _Synsets:
    """Return names and numbers of the 1000 classes, which timm knows."""
    ensure_torchvision_operators()
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    numbers = {synset: number for number, synset in enumerate(info.label_names())}
    return _Synsets(tuple(info.label_descriptions()), numbers)


def imagenet(
    root: PathLike, split: Literal["train", "val"] = "val", labels: PathLike | None = None
) -> ClassifiedImages:
    """List images of ImageNet-1k with their classes 0 to 999.

    Args:
        root: the folder that holds the split's folder, or that folder, or a sample's with
            ``classes.csv``.
        split: ``"train"`` or ``"val"``; a sample has no splits.
        labels: list of a flat folder's classes; None looks for the usual names in ``root``. The
            development kit's takes SciPy.
    """
    check_split("ImageNet", split, ("train", "val"))
    folder = Path(root).expanduser()
    if (folder / "classes.csv").is_file():
        return ClassifiedImages("imagenet-sample", _synsets().names, _sample(folder))
    base = folder / split if (folder / split).is_dir() else folder
    if not base.is_dir():
        raise _LAYOUT.error(root, f"no folder {base}")
    synsets = sorted(
        path.name for path in base.iterdir() if path.is_dir() and _SYNSET.fullmatch(path.name)
    )
    if synsets:
        files = [
            ClassifiedFile(f"{synset}/{image.stem}", image, _class(synset, base))
            for synset in synsets
            for image in list_images(base / synset)
        ]
    else:
        images = list_images(base)
        numbers = _flat_classes(root, base, split, labels, images) if images else []
        files = [
            ClassifiedFile(image.stem, image, number)
            for image, number in zip(images, numbers, strict=True)
        ]
    if not files:
        raise _LAYOUT.error(root, f"no image in {base}")
    return ClassifiedImages(f"imagenet/{split}", _synsets().names, tuple(files))


def _class(text: str, where: Path) -> int:
    """Return the class that a synset or a number from 0 names."""
    number = _synsets().number.get(text, int(text) if text.isdecimal() else -1)
    if not 0 <= number < len(_synsets().names):
        raise ValueError(f"{where}: {text!r} is no class of ImageNet-1k (a synset, or 0 to 999)")
    return number


def _sample(folder: Path) -> tuple[ClassifiedFile, ...]:
    listing, files = folder / "classes.csv", []
    with listing.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            name, synset, index = (row.get(key) or "" for key in ("file", "synset", "index"))
            if not (name and synset and index):
                raise ValueError(f"{listing} must have the columns file, synset and index")
            number = _class(synset, listing)
            if _class(index, listing) != number:
                raise ValueError(f"{listing}: {name} is {synset}, class {number}, not {index}")
            image = folder / "images" / name
            with _LAYOUT.explained(folder):
                check_named("classes.csv", name, image)
            files.append(ClassifiedFile(image.stem, image, number))
    if not files:
        raise ValueError(f"{listing} names no image")
    return tuple(files)


def _flat_classes(
    root: PathLike, base: Path, split: str, labels: PathLike | None, images: list[Path]
) -> list[int]:
    """Return the class of each image of a flat folder."""
    if labels is None:
        places = [base.parent / name.format(split=split) for name in LISTS]
        places += [base / name.format(split=split) for name in LISTS]
        listing = next((path for path in places if path.is_file()), None)
        if listing is None:
            raise _LAYOUT.error(root, f"{base} is flat and there is no list of its classes")
    elif not (listing := Path(labels).expanduser()).is_file():
        raise FileNotFoundError(f"no list of classes at {listing}; check the path")
    if listing.name == KIT_LIST:
        return _kit_classes(listing, len(images))
    classes: dict[str, int] = {}
    for number, line in enumerate(listing.read_text(encoding="utf-8-sig").splitlines(), 1):
        parts = re.split(r"[,\s]+", line.strip())
        if parts == [""] or parts[:2] == ["ImageId", "PredictionString"]:
            continue
        if len(parts) < 2:
            raise ValueError(f"{listing}, line {number}: expected NAME and class, got {line!r}")
        classes[Path(parts[0]).name.partition(".")[0]] = _class(parts[1], listing)
    for image in images:
        if image.stem not in classes:
            raise ValueError(f"{listing} has no class for {image}")
    return [classes[image.stem] for image in images]


def _kit_classes(listing: Path, count: int) -> list[int]:
    """Return the classes of the development kit's list, one number of its own a line."""
    lines = listing.read_text().split()
    if len(lines) != count:
        raise ValueError(
            f"{listing} has {len(lines)} lines and there are {count} images; give all images, or a "
            "list with their names"
        )
    meta = listing.parent / "meta.mat"
    if not meta.is_file():
        raise FileNotFoundError(f"no file {meta}; it says which classes {listing} means")
    synsets = read_mat(
        meta,
        "list of synsets",
        lambda mat: mat["synsets"].reshape(-1),
        "is no meta.mat of the development kit",
    )
    kit = {str(row["ILSVRC2012_ID"].item()): str(row["WNID"].item()) for row in synsets}
    return [_class(kit.get(line, line if not line.isdecimal() else "?"), meta) for line in lines]
