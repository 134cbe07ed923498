"""Images of one class each, perhaps with a mask of the object. Sizes are ``(height, width)``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, lay_on_image
from upfeat.data.objects import read_mask

__all__ = ["ClassifiedFile", "ClassifiedImage", "ClassifiedImages"]


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
    """One split of a classified set: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"imagenet/val"``.
        classes: names of the classes 0, 1, …
        files: the images, in a fixed order.
    """

    name: str
    classes: tuple[str, ...]
    files: tuple[ClassifiedFile, ...]

    def read(self, file: ClassifiedFile) -> ClassifiedImage:
        """Read an image, and the mask of its object if it has one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one cannot be read, their sizes differ, or the mask has other numbers than
                0 (background) and 1 (the object).
        """
        image = read_image(file.image)
        if file.mask is None:
            return ClassifiedImage(image, file.label, None)
        mask = lay_on_image(read_mask([file.mask]), file.mask, file.image, image.shape[1:])
        return ClassifiedImage(image, file.label, mask.bool())

    def paths(self, file: ClassifiedFile) -> Sequence[Path]:
        """Return image and mask."""
        return (file.image,) if file.mask is None else (file.image, file.mask)

    def settings(self) -> str:
        """Return the classes and every image's class."""
        return f"{self.classes} {[file.label for file in self.files]}"
