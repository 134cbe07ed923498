"""Images with a depth map: what the loaders of depth sets give. Sizes are ``(height, width)``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, lay_on_image, read_numbers

__all__ = ["DepthData", "DepthFile", "DepthImage"]


class DepthFile(NamedTuple):
    """Where one image and its depth map are; ``name`` is unique within the split."""

    name: str
    image: Path
    depth: Path


class DepthImage(NamedTuple):
    """One image (3, H, W) in [0, 1] and its depth (H, W) in metres, 0 = missing; both float32."""

    image: Tensor
    depth: Tensor


@dataclass(frozen=True)
class DepthData(FileSet[DepthFile, DepthImage]):
    """One split of a set with metric depth: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"nyuv2-depth/val"``.
        files: the images and depth maps, in a fixed order.
        units_per_metre: a stored number divided by this is the depth in metres; 0 stands for a
            missing measurement.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data.depth import DepthData, DepthFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image, depth = (pathlib.Path(folder, name) for name in ("a.jpg", "a.png"))
        ...     Image.new("RGB", (2, 1)).save(image)
        ...     Image.new("I;16", (2, 1), 2500).save(depth)
        ...     DepthData("room", (DepthFile("a", image, depth),), 1000.0)[0].depth.tolist()
        [[2.5, 2.5]]
    """

    name: str
    files: tuple[DepthFile, ...]
    units_per_metre: float = 1000.0

    def read(self, file: DepthFile) -> DepthImage:
        """Read an image with its depth.

        Raises:
            FileNotFoundError: one of the two is missing.
            ValueError: one cannot be read, their sizes differ, or no depth is known at all.
        """
        image = read_image(file.image)
        stored = read_numbers(file.depth, "depth map", "with 8 or 16 bit of distance")
        stored = lay_on_image(stored, file.depth, file.image, image.shape[1:])
        if stored.min() < 0 or stored.max() == 0:
            raise ValueError(
                f"{file.depth} holds {int(stored.min())} to {int(stored.max())}; expected "
                "distances above 0, and 0 where there is none"
            )
        return DepthImage(image, stored.float() / self.units_per_metre)

    def paths(self, file: DepthFile) -> Sequence[Path]:
        """Return image and depth map."""
        return (file.image, file.depth)

    def settings(self) -> str:
        """Return the unit."""
        return f"{self.units_per_metre:g} a metre"
