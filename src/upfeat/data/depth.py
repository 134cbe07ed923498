"""Images with a depth map: what the loaders of depth sets give, and depth of training images.

A training image's depth is one file beside it, of a sensor or a depth network. Sizes are
``(height, width)``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, lay_on_image, read_npy, read_numbers
from upfeat.data.records import ImageRecord
from upfeat.data.segmentation import PathLike

__all__ = ["DepthData", "DepthFile", "DepthImage", "DepthMapFolder"]


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
    """One split of a set with metric depth, such as ``"nyuv2-depth/val"``.

    Attributes:
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

    def settings(self) -> str:
        """Return the unit."""
        return f"{self.units_per_metre:g} a metre"


class DepthMapFolder:
    """Depth maps in a folder, found by the image's name; 0, infinity and NaN are missing depths.

    NYUv2 as in the package's loaders: ``DepthMapFolder("nyuv2/train/depth", units=25.5)``.

    Args:
        root: folder of the depth maps.
        pattern: name of an image's map below ``root``; ``{stem}`` and ``{name}`` stand for the last
            part and the whole of the image's name. ``.npy`` holds (H, W) numbers, everything else
            is an image with one channel of 8 or 16 bits.
        units: stored numbers per unit of depth, such as 1000 for millimetres.

    Raises:
        ValueError: ``units`` is not positive.
    """

    def __init__(self, root: PathLike, pattern: str = "{stem}.png", *, units: float = 1.0) -> None:
        if not units > 0:
            raise ValueError(f"units must be positive, got {units}")
        self.root = Path(root).expanduser()
        self.pattern = pattern
        self.units = units

    @property
    def name(self) -> str:
        """Kind and settings."""
        return f"depth-{self.pattern}" + ("" if self.units == 1 else f"-per{self.units:g}")

    def path(self, record: ImageRecord) -> Path:
        """Return where an image's depth map lies."""
        stem = record.name.rpartition("/")[2]
        return self.root / self.pattern.replace("{stem}", stem).replace("{name}", record.name)

    def __call__(self, record: ImageRecord) -> Tensor:
        """Return the depth (1, H, W) of an image, float32; 0 is missing.

        Raises:
            ValueError: there is no file, or it is no depth map.
        """
        path = self.path(record)
        try:
            if path.suffix == ".npy":
                stored = torch.from_numpy(read_npy(path).astype(np.float32))
            else:
                stored = read_numbers(path, "depth map", "store depth in one channel")
        except (OSError, ValueError) as error:
            raise ValueError(f"no depth of {record.name}: {error}") from error
        if stored.dim() != 2:
            raise ValueError(f"{path} is {tuple(stored.shape)}, expected (H, W)")
        depth = stored.float() / self.units
        return depth.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)[None]
