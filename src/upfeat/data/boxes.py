"""Images with the boxes of their objects, and the sets of unsupervised object discovery.

A box is ``x0, y0, x1, y1`` in pixels, the last two just behind the object. Sizes are
``(height, width)``.
"""

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import (
    FileSet,
    Layout,
    PathLike,
    check_split,
    content_problem,
    find_base,
    lay_on_image,
    pair_by_stem,
    read_json,
    read_numbers,
)

Box = tuple[int, int, int, int]
IGNORED = 255

_VOC_TREE = """
ImageSets/Main/trainval.txt   names of images, one a line
JPEGImages/NAME.jpg
Annotations/NAME.xml
"""
_COCO = Layout(
    "COCO20k",
    """
coco_20k_filenames.txt               train2014/NAME.jpg, one a line
images/train2014/NAME.jpg            (or train2014/NAME.jpg)
annotations/instances_train2014.json
""",
    "https://cocodataset.org (train2014 images and annotations); the list of file names is "
    "datasets/coco_20k_filenames.txt of https://github.com/valeoai/LOST",
)
_MASKS = Layout(
    "images with masks",
    """
images/NAME.jpg
masks/NAME.png    0 background, every other number but 255 an object
""",
)


class BoxFile(NamedTuple):
    """Where one image is, and the boxes of its objects; ``name`` is unique within the set."""

    name: str
    image: Path
    boxes: tuple[Box, ...]


class BoxImage(NamedTuple):
    """One image (3, H, W), float32 in [0, 1], and the boxes (N, 4), int64, of its objects."""

    image: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class BoxData(FileSet[BoxFile, BoxImage]):
    """One split of a set with boxes, such as ``"voc2007/trainval"``; images are read on access."""

    name: str
    files: tuple[BoxFile, ...]

    def read(self, file: BoxFile) -> BoxImage:
        """Read an image."""
        boxes = torch.tensor(file.boxes, dtype=torch.int64).reshape(-1, 4)
        return BoxImage(read_image(file.image), boxes)

    def settings(self) -> str:
        """Return all boxes."""
        return str([file.boxes for file in self.files])


def voc_boxes(root: PathLike, year: Literal[2007, 2012] = 2007) -> BoxData:
    """List the images of VOC's detection split ``trainval``; difficult objects are kept.

    VOC counts pixels from 1: the first two numbers of a box are lowered by 1.

    Args:
        root: the folder with ``ImageSets``, or one above it.
        year: 5,011 images of 2007, 11,540 of 2012.
    """
    check_split("VOC detection", str(year), ("2007", "2012"))
    places = (f"VOC{year}", f"VOCdevkit/VOC{year}", f"VOCtrainval/VOCdevkit/VOC{year}")
    base = find_base(root, places, "ImageSets/Main/trainval.txt")
    listing = base / "ImageSets" / "Main" / "trainval.txt"
    layout = Layout(f"VOC {year}", _VOC_TREE, "http://host.robots.ox.ac.uk/pascal/VOC")
    layout.check_files(root, listing)
    files = []
    for name in listing.read_text().split():
        image, path = base / "JPEGImages" / f"{name}.jpg", base / "Annotations" / f"{name}.xml"
        layout.check_files(root, image, path)
        files.append(BoxFile(name, image, _xml_boxes(path)))
    return BoxData(f"voc{year}/trainval", tuple(files))


def _xml_boxes(path: Path) -> tuple[Box, ...]:
    try:
        boxes = []
        for item in ElementTree.parse(path).getroot().iter("object"):
            found = {part: item.findtext(f"bndbox/{part}") for part in _CORNERS}
            x0, y0, x1, y1 = (int(float(found[part] or "")) for part in _CORNERS)
            boxes.append((x0 - 1, y0 - 1, x1, y1))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is no annotation of VOC: {error}") from error
    return tuple(boxes)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def coco20k(root: PathLike) -> BoxData:
    """List the 19,817 images of COCO train2014 that make COCO20k; crowds are left out."""
    base = Path(root).expanduser()
    listing = base / "coco_20k_filenames.txt"
    annotations = base / "annotations" / "instances_train2014.json"
    _COCO.check_files(root, listing, annotations)
    content: dict[str, Any] = read_json(annotations)
    boxes: dict[int, list[Box]] = defaultdict(list)
    try:
        numbers = {item["file_name"]: item["id"] for item in content["images"]}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                x, y, width, height = item["bbox"]
                corners = (round(x), round(y), round(x + width), round(y + height))
                boxes[item["image_id"]].append(corners)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotations} holds no annotations of COCO: {content_problem(error)}"
        ) from error
    folder = find_base(base, ("images",), "train2014") / "train2014"
    files = []
    for line in listing.read_text().split():
        name = Path(line).name
        if not (folder / name).is_file() or name not in numbers:
            raise _COCO.error(root, f"no file {folder / name}")
        files.append(BoxFile(Path(name).stem, folder / name, tuple(boxes[numbers[name]])))
    return BoxData("coco20k/train2014", tuple(files))


def mask_folder(root: PathLike) -> BoxData:
    """List a folder of images with object masks, whose boxes count."""
    folder = Path(root).expanduser()
    with _MASKS.explained(root):
        pairs = pair_by_stem(folder / "images", folder / "masks")
    files = []
    for name, image, path in pairs:
        mask = read_numbers(path, "mask", "with object numbers")
        mask = lay_on_image(mask, path, image, image_size(image))
        files.append(BoxFile(name, image, mask_boxes(mask)))
    return BoxData(f"{folder.name}/all", tuple(files))


def mask_boxes(mask: Tensor) -> tuple[Box, ...]:
    """Return the boxes of the objects of a mask (H, W), by their numbers; 0 and 255 are none.

    Example:
        >>> import torch
        >>> from upfeat.data.boxes import mask_boxes
        >>> mask_boxes(torch.tensor([[0, 2, 2], [0, 0, 2], [1, 0, 255]]))
        ((0, 2, 1, 3), (1, 0, 3, 2))
    """
    boxes = []
    for number in mask.unique().tolist():
        if number not in (0, IGNORED):
            rows, cols = (mask == number).nonzero(as_tuple=True)
            first, last = (int(cols.min()), int(rows.min())), (int(cols.max()), int(rows.max()))
            boxes.append((*first, last[0] + 1, last[1] + 1))
    return tuple(boxes)
