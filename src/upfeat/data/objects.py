"""Images with masks of single objects, and images of one class each.

Sizes are ``(height, width)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, PathLike, lay_on_image, list_images, read_numbers
from upfeat.data.opening import read_picture
from upfeat.errors import UnknownNameError

UNCERTAIN = -1
"""Label of pixels that do not count."""


class ObjectFile(NamedTuple):
    """Where one image is, and the files of its masks: one, or one an annotator."""

    name: str
    image: Path
    masks: tuple[Path, ...]


class ObjectImage(NamedTuple):
    """One image (3, H, W) in [0, 1] and labels (H, W), int64.

    0 is background, 1, 2, ... are objects, -1 does not count.
    """

    image: Tensor
    objects: Tensor


@dataclass(frozen=True)
class ObjectData(FileSet[ObjectFile, ObjectImage]):
    """One split of a set with objects, such as ``"sbd/train"``.

    Attributes:
        decode: makes labels (H, W), int64, of the files of the masks.
    """

    name: str
    files: tuple[ObjectFile, ...]
    decode: Callable[[Sequence[Path]], Tensor]

    def read(self, file: ObjectFile) -> ObjectImage:
        """Read an image and its objects."""
        image = read_image(file.image)
        objects = self.decode(file.masks)
        return ObjectImage(image, lay_on_image(objects, file.masks[0], file.image, image.shape[1:]))

    def without(self, names: Sequence[str]) -> "ObjectData":
        """Return the set without the images of some names."""
        left_out = set(names)
        kept = tuple(file for file in self.files if file.name not in left_out)
        return ObjectData(self.name, kept, self.decode)


class ClassifiedFile(NamedTuple):
    """Where one image is, its class and, if there is one, the file of the object's mask."""

    name: str
    image: Path
    label: int
    mask: Path | None = None


class ClassifiedImage(NamedTuple):
    """One image (3, H, W), float32 in [0, 1], its class, and the object, bool (H, W), or None."""

    image: Tensor
    label: int
    mask: Tensor | None


@dataclass(frozen=True)
class ClassifiedImages(FileSet[ClassifiedFile, ClassifiedImage]):
    """One split of a classified set, such as ``"imagenet/val"``.

    Attributes:
        classes: names of the classes 0, 1, …
    """

    name: str
    classes: tuple[str, ...]
    files: tuple[ClassifiedFile, ...]

    def read(self, file: ClassifiedFile) -> ClassifiedImage:
        """Read an image, and the mask of its object if it has one."""
        image = read_image(file.image)
        if file.mask is None:
            return ClassifiedImage(image, file.label, None)
        mask = lay_on_image(read_mask([file.mask]), file.mask, file.image, image.shape[1:])
        return ClassifiedImage(image, file.label, mask.bool())

    def settings(self) -> str:
        """Return the classes and every image's class."""
        return f"{self.classes} {[file.label for file in self.files]}"


# -- files ---------------------------------------------------------------------------------------


def pair_masks(images: Path, masks: Path) -> tuple[ObjectFile, ...]:
    """Pair every mask with the image of its name, of any file type."""
    by_stem = {path.stem: path for path in list_images(images)}
    files = []
    for mask in list_images(masks):
        if mask.stem not in by_stem:
            raise FileNotFoundError(f"{mask} has no image {images / mask.stem}.jpg or .png")
        files.append(ObjectFile(mask.stem, by_stem[mask.stem], (mask,)))
    if not files:
        raise FileNotFoundError(f"no mask in {masks}")
    return tuple(files)


def read_channel(path: Path) -> Tensor:
    """Return the last colour (H, W), int64, of a mask; of grey values, these."""
    pixels = read_picture(
        path, lambda image: np.array(image.convert("RGB")), what="mask", name=f"the mask {path}"
    )
    return torch.from_numpy(pixels[..., 2].astype(np.int64))


def read_mask(paths: Sequence[Path]) -> Tensor:
    """Return the labels of a mask file that holds 0 (background) and 1 (the object) only."""
    mask = read_numbers(paths[0], "mask", "of 0 (background) and 1 (the object)")
    if mask.max() > 1:
        raise ValueError(
            f"{paths[0]} holds {int(mask.max())}; expected 0 (background) and 1 (the object)"
        )
    return mask


# -- sets by name --------------------------------------------------------------------------------


LoaderT = TypeVar("LoaderT", bound=Callable[..., ObjectData])
_SETS: dict[str, Callable[..., ObjectData]] = {}


def register_objects(name: str) -> Callable[[LoaderT], LoaderT]:
    """Make a loader, called with the folder and the split, known to :func:`load_objects`."""
    if name in _SETS:
        raise ValueError(f"a set of objects named {name!r} is registered already")

    def decorate(loader: LoaderT) -> LoaderT:
        _SETS[name] = loader
        return loader

    return decorate


def object_sets() -> list[str]:
    """Return the names of the sets with objects."""
    return sorted(_SETS)


def load_objects(name: str, root: PathLike, split: str) -> ObjectData:
    """List a split of a set with objects.

    Args:
        name: one of :func:`object_sets`.
        root: its folder.
        split: ``"train"`` or ``"val"``; a set without splits gives all that it has.
    """
    if name not in _SETS:
        raise UnknownNameError("set of objects", name, _SETS)
    return _SETS[name](root, split)
