"""Depth maps of training images: one file beside each image, of a sensor or a depth network."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat.data.layouts import read_npy, read_numbers
from upfeat.data.records import Record
from upfeat.data.segmentation import PathLike

__all__ = ["DepthMapFolder"]


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

    Example:
        >>> from upfeat.data.depth_maps import DepthMapFolder
        >>> DepthMapFolder("depth", "{stem}.npy").name
        'depth-{stem}.npy'
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

    def path(self, record: Record) -> Path:
        """Return where an image's depth map lies."""
        stem = record.name.rpartition("/")[2]
        return self.root / self.pattern.replace("{stem}", stem).replace("{name}", record.name)

    def __call__(self, record: Record) -> Tensor:
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
