"""A user's own data, read by its layout: images with label PNGs or depth PNGs, and videos.

A folder holds ``train/`` and ``val/`` with ``images/`` and ``labels/`` each, or ``images/train``,
``images/val`` and ``labels/…`` likewise, or ``images/`` and ``labels/`` alone: then every fifth
image by name is for validation. Depth maps lie in ``depth/`` instead of ``labels/``. An
``upfeat-data.yaml`` names what differs, see :mod:`upfeat.data.card`. Everything is checked when the
split is listed, every label included, so that a broken file ends a run before it begins.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from upfeat.data.card import DataCard, checked_names, read_card
from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.images import image_size
from upfeat.data.keypoints import KeypointData, keypoint_folder
from upfeat.data.layouts import (
    Layout,
    PathLike,
    check_named,
    check_split,
    lay_on_image,
    list_images,
    pair_by_stem,
)
from upfeat.data.opening import read_picture
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    read_label,
    register_segmentation,
)
from upfeat.data.video import VideoData, VideoSequence

FOLDER_SET = "folder"
"""What ``upfeat eval --data`` calls a set of the user's own."""

VAL_EVERY = 5  # of a folder without splits, every fifth image is for validation
UNITS_16_BIT = 1000.0
SHOWN = 5  # of several broken files, so many are named

_TREE = """
train/images/NAME.jpg    or .png and others
train/{kind}/NAME.png    {what}
val/images/, val/{kind}/ likewise
(or images/ and {kind}/ alone: every fifth image is for validation)
upfeat-data.yaml         optional: names, splits, ignored label, units
"""
_LABELS = "one channel: class numbers 0, 1, …; 255 = ignored"
_DEPTHS = "one channel of 8 or 16 bit, 0 = missing"
_VIDEOS = Layout(
    "your own videos",
    """
images/VIDEO/00000.jpg   frames, by name in order
labels/VIDEO/00000.png   object numbers, 0 = background
(or JPEGImages/ and Annotations/; or train/ and val/ with these inside)
""",
)


def set_name(root: PathLike) -> str:
    """Return what a user's own set is called: by its card, else by its folder."""
    return str(read_card(root)[0].name)


class OwnSplit(NamedTuple):
    """The pairs of a split, and the set that it is of."""

    card: DataCard
    base: Path
    pairs: list[tuple[str, Path, Path]]


def list_own_split(root: PathLike, split: str, kind: str, what: str) -> OwnSplit:
    """Find the images of a split and the file of each in the folder ``kind``.

    Args:
        root: folder or card.
        split: ``"train"`` or ``"val"``.
        kind: name of the folder beside ``images``.
        what: its files hold, for the message.
    """
    card, base = read_card(root)
    name = str(card.name)
    check_split(name, split, ("train", "val"))
    with _layout(kind, what).explained(root):
        return OwnSplit(card, base, _pairs(card, base, split, kind))


def _layout(kind: str, what: str) -> Layout:
    return Layout("your own data", _TREE.format(kind=kind, what=what))


def _pairs(card: DataCard, base: Path, split: str, kind: str) -> list[tuple[str, Path, Path]]:
    said = {"train": card.train, "val": card.val}
    if any(said.values()):
        place = said[split]
        if place is None:
            raise FileNotFoundError(f"the card names no split {split}")
        return _pairs_at(base / place, kind)
    if (base / "train").is_dir() or (base / "val").is_dir():
        return pair_by_stem(base / split / "images", base / split / kind)
    if (base / "images" / "train").is_dir() or (base / "images" / "val").is_dir():
        return pair_by_stem(base / "images" / split, base / kind / split)
    pairs = pair_by_stem(base / "images", base / kind)
    if len(pairs) < VAL_EVERY:
        raise FileNotFoundError(
            f"{base / 'images'} holds {len(pairs)} images, too few to hold some back for "
            f"validation (at least {VAL_EVERY}); make the folders train and val"
        )
    held = split == "val"
    return [p for i, p in enumerate(pairs) if (i % VAL_EVERY == VAL_EVERY - 1) == held]


def _pairs_at(place: Path, kind: str) -> list[tuple[str, Path, Path]]:
    """Return the pairs of a place that a card names."""
    if place.suffix == ".txt":
        return _pairs_listed(place, kind)
    if (place / "images").is_dir() or "images" not in place.parts:
        return pair_by_stem(place / "images", place / kind)
    return pair_by_stem(place, _sibling(place, kind))


def _sibling(place: Path, kind: str) -> Path:
    """Return the path with its last part ``images`` exchanged."""
    parts = list(place.parts)
    at = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:at], kind, *parts[at + 1 :])


def _pairs_listed(file: Path, kind: str) -> list[tuple[str, Path, Path]]:
    """Return the pairs of a list of images, one path a line, relative to the list."""
    if not file.is_file():
        raise FileNotFoundError(f"no list of images at {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    images = [file.parent / line for line in lines if line and not line.startswith("#")]
    if not images:
        raise ValueError(f"the list {file} names no image")
    if len(set(images)) < len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise ValueError(f"the list {file} names {twice} twice; name each image once")
    pairs = []
    for image in images:
        if "images" not in image.parts:
            raise ValueError(f"{file}: {image} lies in no folder images with {kind} beside it")
        label = _sibling(image, kind).with_suffix(".png")
        check_named(str(file), str(image), image, label)
        pairs.append((image.with_suffix("").relative_to(file.parent).as_posix(), image, label))
    return pairs


def _raise_problems(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - SHOWN
        text = "; ".join(problems[:SHOWN])
        raise ValueError(f"{text}; and {more} more files" if more > 0 else text)


# -- segmentation --------------------------------------------------------------------------------


@register_segmentation(FOLDER_SET)
def folder(root: PathLike, split: str = "train") -> SegmentationData:
    r"""List a split of a user's own labelled images, after reading every label once.

    The classes are those of the card, of ``classes.txt`` (a name a line), of ``meta.json``
    (``{"classes": […], "ignore_index": 255}``), or else 0 to the largest number in any label.

    Raises:
        FileNotFoundError: a folder, all images or a label are missing; shows the expected tree.
        ValueError: a label has another size than its image, an unknown class or colours, or the
            classes are named wrongly; one sentence that names the file.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data.own import folder
        >>> with tempfile.TemporaryDirectory() as place:
        ...     for part, kind in (("images", "RGB"), ("labels", "L")):
        ...         pathlib.Path(place, "train", part).mkdir(parents=True)
        ...         Image.new(kind, (6, 4), 0).save(pathlib.Path(place, "train", part, "a.png"))
        ...     _ = pathlib.Path(place, "classes.txt").write_text("road\ncar\n")
        ...     folder(place).classes
        ('road', 'car')
    """
    card, base, pairs = list_own_split(root, split, "labels", _LABELS)
    files = tuple(LabelledFile(*three) for three in pairs)
    classes, ignored, source = _named_classes(card, base)
    largest = _check_labels(files, classes, ignored, source)
    if classes is None:
        for other in ("train", "val"):
            if other != split:
                pairs = list_own_split(root, other, "labels", _LABELS).pairs
                rest = [LabelledFile(*three) for three in pairs]
                largest = max(largest, _check_labels(rest, None, ignored, source))
        if largest < 1:
            raise ValueError(
                f"the labels of {card.name} hold no class but 0 (and {ignored}, which is ignored); "
                "number the classes 0, 1, … or name another ignored label in upfeat-data.yaml"
            )
        classes = tuple(f"class {number}" for number in range(largest + 1))
    return SegmentationData(f"{card.name}/{split}", classes, ignored, files)


def _named_classes(card: DataCard, base: Path) -> tuple[tuple[str, ...] | None, int, str]:
    """Return the classes, None where nothing names them; the ignored label; and who says so."""
    ignored = IGNORED if card.ignore is None else card.ignore
    if card.names is not None:
        return card.names, ignored, "the card"
    if (file := base / "classes.txt").is_file():
        lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        return checked_names(lines, str(file)), ignored, file.name
    if (file := base / "meta.json").is_file():
        try:
            content = json.loads(file.read_bytes())
            names = content["classes"]
            number = content.get("ignore_index", ignored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{file} must be JSON with {{"classes": ["road", …]}}, and "ignore_index" if it '
                "is not 255"
            ) from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{file}: classes must be a list of names, got {names!r}")
        if not isinstance(number, int):
            raise ValueError(f"{file}: ignore_index must be a whole number, got {number!r}")
        ignored = number if card.ignore is None else card.ignore
        return checked_names(names, str(file)), ignored, file.name
    return None, ignored, "the labels"


def _check_labels(
    files: Sequence[LabelledFile], classes: Sequence[str] | None, ignored: int, source: str
) -> int:
    """Read every label; return the largest class."""
    problems, largest = [], -1
    for file in files:
        try:
            size = image_size(file.image)
            label = lay_on_image(read_label(file.label), file.label, file.image, size)
        except ValueError as error:
            problems.append(str(error))
            continue
        found = [number for number in label.unique().tolist() if number != ignored]
        if classes is not None and found and (found[0] < 0 or found[-1] >= len(classes)):
            unknown = found[0] if found[0] < 0 else found[-1]
            problems.append(
                f"{file.label} holds class {unknown}; {source} names classes 0 to "
                f"{len(classes) - 1}, and {ignored} is ignored"
            )
        largest = max([largest, *found])
    _raise_problems(problems)
    return largest


# -- depth ---------------------------------------------------------------------------------------


def folder_depth(root: PathLike, split: str = "train") -> DepthData:
    """List a split of a user's own images with depth maps, PNGs in a folder ``depth``; 0 = missing.

    Args:
        root: the folder, or its card; its ``units`` are the stored numbers a metre, by default
            1000 in 16 bit.
        split: ``"train"`` or ``"val"``.
    """
    card, _, pairs = list_own_split(root, split, "depth", _DEPTHS)
    problems = []
    for _, image, depth in pairs:
        size, mode = read_picture(depth, lambda p: ((p.height, p.width), p.mode), what="depth map")
        own = image_size(image)
        if size not in (own, own[::-1]):
            problems.append(f"{depth} is {size}, its image {image} {own} (height, width)")
        elif card.units is None and mode in ("L", "P", "1"):
            problems.append(
                f"{depth} has 8 bit; say how many stored numbers a metre is: units: in "
                "upfeat-data.yaml"
            )
    _raise_problems(problems)
    files = tuple(DepthFile(*three) for three in pairs)
    return DepthData(f"{card.name}/{split}", files, card.units or UNITS_16_BIT)


# -- video ---------------------------------------------------------------------------------------


def folder_video(root: PathLike, split: str = "val") -> VideoData:
    """List a user's own videos with object masks: ``images/VIDEO/…`` and ``labels/VIDEO/…png``.

    Args:
        root: the folder, or its card.
        split: taken where there are folders of that name, or the card names it.
    """
    card, base = read_card(root)
    said = {"train": card.train, "val": card.val}
    with _VIDEOS.explained(root):
        check_split(str(card.name), split, ("train", "val"))
        divided = any(said.values()) or any((base / name).is_dir() for name in said)
        place = base / (said[split] or split) if divided else base
        frames, masks = _video_folders(place)
        names = sorted(path.name for path in frames.iterdir() if path.is_dir())
        sequences = tuple(_video(frames / name, masks / name) for name in names)
        if not sequences:
            raise FileNotFoundError(f"no folder of a video in {frames}")
    part = split if divided else "all"
    return VideoData(f"{card.name}/{part}", sequences, one_object=card.one_object)


def _video_folders(place: Path) -> tuple[Path, Path]:
    names = ("images", "labels"), ("JPEGImages", "Annotations")
    pairs = [(place / images, place / labels) for images, labels in names]
    frames, masks = next((pair for pair in pairs if pair[0].is_dir()), pairs[0])
    for folder in (place, frames, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
    return frames, masks


def _video(frames: Path, masks: Path) -> VideoSequence:
    pairs = pair_by_stem(frames, masks)
    problems = [
        f"{mask} is {size}, its frame {frame} {own} (height, width)"
        for _, frame, mask in pairs
        if (size := image_size(mask)) != (own := image_size(frame))
    ]
    _raise_problems(problems)
    _, images, labels = zip(*pairs, strict=True)
    return VideoSequence(frames.name, images, labels)


# -- key points ----------------------------------------------------------------------------------


def folder_keypoints(root: PathLike) -> KeypointData:
    """List a user's own pairs with key points, see :func:`upfeat.data.keypoint_folder`."""
    card, base = read_card(root)
    return replace(keypoint_folder(base), name=f"{card.name}/all")


# -- sizes ---------------------------------------------------------------------------------------

_STEP, _LONGER = 112, (448, 560)  # sides that patches of 14 and of 16 divide
_LOOKED_AT = 64


def own_input_size(root: PathLike) -> tuple[int, int]:
    """Return an input size (height, width) of about the images' shape, for a probe of them.

    Both sides are multiples of 112 and the longer is 448 or 560; the shape is the median of at most
    64 images, landscape (a probe exchanges the sides for portraits).
    """
    images = _any_images(root)
    images = images[:: -(-len(images) // _LOOKED_AT)]
    shapes = sorted(max(size) / min(size) for size in map(image_size, images))
    wanted = shapes[len(shapes) // 2]
    choices = [(s, longer) for longer in _LONGER for s in range(_STEP, longer + 1, _STEP)]

    def distortion(size: tuple[int, int]) -> float:
        shape = size[1] / size[0]
        return max(shape / wanted, wanted / shape)

    return min(choices, key=distortion)


def _any_images(root: PathLike) -> list[Path]:
    """Return the training images, whatever belongs to them."""
    card, base = read_card(root)
    if card.train is not None:
        place = base / card.train
        if place.suffix == ".txt":
            lines = place.read_text(encoding="utf-8-sig").split("\n") if place.is_file() else []
            return [path for line in lines if (path := place.parent / line.strip()).is_file()]
        places = [place / "images", place]
    else:
        places = [base / "train" / "images", base / "images" / "train", base / "images"]
    found = next((list_images(place) for place in places if place.is_dir()), [])
    if not found:
        raise _layout("labels", _LABELS).error(root, f"no {places[0]}")
    return found
