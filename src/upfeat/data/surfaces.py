"""Images with depth and surface normals: what the readers of such sets give, and a user's own.

Normals are unit vectors in the camera's frame: x right, y down, z forward. Where a set stores none
they are derived from its depth, as Probe3D does it (El Banani et al., 2024, arXiv 2404.08636);
these point away from the camera, with a positive z.

Legend: ``H W`` image. Sizes are ``(height, width)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.card import CARD, DataCard, read_card
from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import FileSet, NamedFiles, PathLike, lay_on_image
from upfeat.data.own import folder_depth, list_own_split
from upfeat.errors import shape_text
from upfeat.ops import unit_vectors

FAR = 1e6  # stands for missing depth where normals are derived
LEAST_RANGE = 0.01  # of relative depth: a flat object does not divide by zero


class SurfaceImage(NamedTuple):
    """One image (3, H, W) in [0, 1], its depth (H, W) in metres and its normals (3, H, W).

    Depth is 0 where it is missing; a pixel counts where depth is known. ``normals`` is None where
    the set has none.
    """

    image: Tensor
    depth: Tensor
    normals: Tensor | None

    def cut(self, rows: slice, columns: slice) -> "SurfaceImage":
        """Return a part of all three."""
        normals = None if self.normals is None else self.normals[:, rows, columns]
        return SurfaceImage(self.image[:, rows, columns], self.depth[rows, columns], normals)


FileT = TypeVar("FileT", bound=NamedFiles)


@dataclass(frozen=True)
class SurfaceData(FileSet[FileT, SurfaceImage]):
    """One split of a set with depth and normals, such as ``"navi/test"``."""

    name: str
    files: tuple[FileT, ...]

    @property
    def has_normals(self) -> bool:
        """Whether images come with normals, stored or derived from depth."""
        return True


def grid_points(depth: Tensor, camera: Tensor) -> Tensor:
    """Return the points (3, H, W) of a depth map: ``K^-1 (x + 0.5, y + 0.5, 1) depth``.

    Args:
        depth: (H, W), 0 where there is none.
        camera: (3, 3), K in pixels of this map.

    Example:
        >>> import torch
        >>> from upfeat.data.surfaces import grid_points
        >>> grid_points(torch.full((1, 1), 2.0), torch.eye(3)).flatten().tolist()
        [1.0, 1.0, 2.0]
    """
    height, width = depth.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=depth.dtype, device=depth.device) + 0.5,
        torch.arange(width, dtype=depth.dtype, device=depth.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)])  # (3, H, W)
    return torch.einsum("ij,jhw->ihw", camera.inverse(), pixels) * depth


def normals_from_depth(
    depth: Tensor, focal: float | tuple[float, float], center: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Return the normals (3, H, W) of a depth map, from each pixel's four neighbours.

    The sum of the cross products of neighbouring differences, normalised. Probe3D gives the camera
    no principal point (``center`` is the corner), which shears the surface; that is its definition.

    Args:
        depth: (H, W), 0 where it is missing.
        focal: focal length in pixels; along x and y if they differ.
        center: (x, y) of the principal point in pixels, measured from the image's corner.

    Returns:
        Unit vectors; 0 where depth is missing and along the image's border.

    Raises:
        ValueError: ``depth`` has another shape, or a focal length is not positive.

    Example:
        >>> import torch
        >>> from upfeat.data.surfaces import normals_from_depth
        >>> wall = normals_from_depth(torch.full((3, 3), 2.0), 50.0)
        >>> wall[:, 1, 1].tolist()
        [0.0, 0.0, 1.0]
    """
    fx, fy = focal if isinstance(focal, tuple) else (focal, focal)
    if depth.dim() != 2:
        raise ValueError(f"depth must be (H, W), got {shape_text(depth)}")
    if not (fx > 0 and fy > 0):
        raise ValueError(f"focal lengths must be positive, got {fx} and {fy}")
    height, width = depth.shape
    z = torch.where(depth > 0, depth, FAR)
    x = torch.arange(width, device=z.device, dtype=z.dtype) + (0.5 - center[0])
    y = torch.arange(height, device=z.device, dtype=z.dtype) + (0.5 - center[1])
    points = torch.stack([x * z / fx, y[:, None] * z / fy, z])  # (3, H, W)
    middle = points[:, 1:-1, 1:-1]
    around = [  # left, top, right, bottom
        points[:, 1:-1, :-2] - middle,
        points[:, :-2, 1:-1] - middle,
        points[:, 1:-1, 2:] - middle,
        points[:, 2:, 1:-1] - middle,
    ]
    normal = torch.zeros_like(middle)
    for one, following in zip(around, around[1:] + around[:1], strict=True):
        normal += torch.linalg.cross(one, following, dim=0) / 4
    return F.pad(unit_vectors(normal, dim=0), (1, 1, 1, 1)) * (depth > 0)


def square_around(depth: Tensor) -> tuple[slice, slice]:
    """Return rows and columns of the square crop around known depth, as Probe3D cuts it.

    The side is the longer one of the bounding box, whose last row and column are left out. The
    shorter side is padded by half before and half behind; where that leaves the image, all of it
    before.

    Args:
        depth: (H, W), 0 where it is missing.

    Raises:
        ValueError: fewer than two rows or columns have depth.

    Example:
        >>> import torch
        >>> from upfeat.data.surfaces import square_around
        >>> depth = torch.zeros(8, 8)
        >>> depth[3:5, 1:7] = 1
        >>> square_around(depth)
        (slice(1, 6, None), slice(1, 6, None))
    """
    known = depth > 0
    starts, lengths = [], []
    for axis in (1, 0):  # rows, then columns
        places = known.any(axis).nonzero()[:, 0]
        if not len(places) or places[0] == places[-1]:
            raise ValueError("fewer than two rows or columns of the depth map have depth")
        starts.append(int(places[0]))
        lengths.append(int(places[-1]) - starts[-1])
    side = max(lengths)
    for axis, size in enumerate(depth.shape):
        padding = side - lengths[axis]
        start = starts[axis] - padding // 2
        if start < 0 or start + side > size:
            start = max(0, starts[axis] - padding)
        starts[axis] = start
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def rotation_matrix(quaternion: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the rotation (3, 3) of a quaternion (x, y, z, w) of any length."""
    x, y, z, w = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def relative_depth(depth: Tensor) -> Tensor:
    """Return depth stretched to [0.01, 1] over an image; missing depth stays 0.

    Example:
        >>> import torch
        >>> from upfeat.data.surfaces import relative_depth
        >>> relative_depth(torch.tensor([[0.0, 2.0, 4.0]]))
        tensor([[0.0000, 0.0100, 1.0000]])
    """
    known = depth > 0
    if not bool(known.any()):
        return depth
    low, high = float(depth[known].min()), float(depth[known].max())
    stretched = (depth - low) / max(LEAST_RANGE, high - low) * 0.99 + 0.01
    return torch.where(known, stretched, 0.0)


# -- a user's own --------------------------------------------------------------------------------
# The layouts are those of upfeat.data.own, with normals/ or depth/ instead of labels/. The largest
# square in the middle of an image is taken.

_NORMALS = "colours: x, y, z from -1 to 1 stored as 0 to 255; black = missing"
LEAST_LENGTH = 0.5  # of a stored normal; shorter ones, such as mid grey, are missing


class OwnSurface(NamedTuple):
    """An image and the file of its normals or of its depth."""

    name: str
    image: Path
    target: Path


@dataclass(frozen=True)
class OwnSurfaces(SurfaceData[OwnSurface]):
    """One split of a user's own images with normals, stored or from depth with this camera."""

    name: str
    files: tuple[OwnSurface, ...]
    units_per_metre: float | None = None  # of depth maps; None where normals are stored
    focal: tuple[float, float] = (1.0, 1.0)  # (fx, fy) in pixels
    center: tuple[float, float] | None = None  # (x, y) in pixels; None for the middle

    def read(self, file: OwnSurface) -> SurfaceImage:
        """Read the middle square of an image.

        Where normals are stored, ``depth`` is 1 where there is one.
        """
        image = read_image(file.image)
        size = (image.shape[1], image.shape[2])
        if self.units_per_metre is None:
            normals, depth = self._stored(file, size)
        else:
            maps = DepthData(self.name, (DepthFile(*file),), self.units_per_metre)
            depth = maps[0].depth
            center = self.center or (size[1] / 2, size[0] / 2)
            normals = normals_from_depth(depth, self.focal, center)
        side = min(size)
        rows, columns = (slice((whole - side) // 2, (whole + side) // 2) for whole in size)
        return SurfaceImage(image, depth, normals).cut(rows, columns)

    def _stored(self, file: OwnSurface, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return normals (3, H, W) and where there are some (H, W)."""
        stored = 2 * read_image(file.target) - 1
        normals = torch.stack([lay_on_image(p, file.target, file.image, size) for p in stored])
        known = (normals.norm(dim=0) > LEAST_LENGTH) & (normals > -1).any(0)
        return unit_vectors(normals, dim=0) * known, known.to(normals)

    def settings(self) -> str:
        """Return unit and camera."""
        return repr((self.units_per_metre, self.focal, self.center))


def folder_surfaces(root: PathLike, split: str = "train") -> OwnSurfaces:
    """List a split of a user's own images with normals, or with depth maps and a focal length.

    Normals are pictures in ``normals/``; in which frame they are does not matter, as angles do not
    depend on it. Without that folder they are derived from ``depth/``; the card then says
    ``focal:`` in pixels of the depth maps.
    """
    card, base = read_card(root)
    if not _holds(card, base, "normals") and _holds(card, base, "depth"):
        return _from_depth(root, split, card)
    card, _, pairs = list_own_split(root, split, "normals", _NORMALS)
    for _, image, target in pairs:
        size, own = image_size(target), image_size(image)
        if size not in (own, own[::-1]):
            raise ValueError(f"{target} is {size}, its image {image} {own} (height, width)")
    return OwnSurfaces(f"{card.name}/{split}", tuple(OwnSurface(*three) for three in pairs))


def _holds(card: DataCard, base: Path, kind: str) -> bool:
    """Whether a folder of this name is in one of the places where splits lie."""
    places = (base, base / (card.train or "train"), base / (card.val or "val"))
    return any((place / kind).is_dir() for place in places)


def _from_depth(root: PathLike, split: str, card: DataCard) -> OwnSurfaces:
    maps = folder_depth(root, split)
    if card.focal is None:
        raise ValueError(
            f"normals are derived from the depth maps of {card.name}, which needs the focal length "
            f"in pixels; write focal: (and center: [x, y] where it is not the middle) in {CARD}, "
            "or lay out normals/"
        )
    focal = card.focal if isinstance(card.focal, tuple) else (card.focal, card.focal)
    files = tuple(OwnSurface(*file) for file in maps.files)
    return OwnSurfaces(maps.name, files, maps.units_per_metre, focal, card.center)
