"""A user's own images with surface normals: stored as pictures, or derived from depth maps.

The layouts are those of :mod:`upfeat.data.own`, with ``normals/`` or ``depth/`` instead of
``labels/``. The largest square in the middle of an image is taken.

Legend: ``H W`` image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.data.card import CARD, DataCard, read_card
from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import PathLike, lay_on_image
from upfeat.data.own import folder_depth, list_own_split
from upfeat.data.surfaces import SurfaceData, SurfaceImage, normals_from_depth
from upfeat.ops import unit_vectors

__all__ = ["OwnSurface", "OwnSurfaces", "folder_surfaces"]

_NORMALS = "colours: x, y, z from -1 to 1 stored as 0 to 255; black = missing"
LEAST_LENGTH = 0.5  # of a stored normal; shorter ones, such as mid grey, are missing


class OwnSurface(NamedTuple):
    """An image and the file of its normals or of its depth."""

    name: str
    image: Path
    target: Path


@dataclass(frozen=True)
class OwnSurfaces(SurfaceData[OwnSurface]):
    """One split of a user's own images with normals.

    Attributes:
        units_per_metre: of depth maps; None where normals are stored.
        focal: (fx, fy) in pixels, of depth maps.
        center: (x, y) of the principal point in pixels; None for the middle.
    """

    name: str
    files: tuple[OwnSurface, ...]
    units_per_metre: float | None = None
    focal: tuple[float, float] = (1.0, 1.0)
    center: tuple[float, float] | None = None

    @property
    def has_normals(self) -> bool:
        """True: they are stored, or derived from depth."""
        return True

    def read(self, file: OwnSurface) -> SurfaceImage:
        """Read the middle square of an image.

        Where normals are stored, ``depth`` is 1 where there is one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one cannot be read, or the sizes differ.
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
        return SurfaceImage(
            image[:, rows, columns], depth[rows, columns], normals[:, rows, columns]
        )

    def _stored(self, file: OwnSurface, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return normals (3, H, W) and where there are some (H, W)."""
        stored = 2 * read_image(file.target) - 1
        planes = [lay_on_image(plane, file.target, file.image, size) for plane in stored]
        normals = torch.stack(planes)
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

    Args:
        root: the folder, or its card.
        split: ``"train"`` or ``"val"``.

    Raises:
        FileNotFoundError: a folder, all images or a file are missing; shows the expected tree.
        ValueError: sizes differ, or nobody says the focal length.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data.own_surfaces import folder_surfaces
        >>> with tempfile.TemporaryDirectory() as place:
        ...     for part, colour in (("images", "red"), ("normals", (128, 128, 255))):
        ...         pathlib.Path(place, "train", part).mkdir(parents=True)
        ...         Image.new("RGB", (6, 4), colour).save(
        ...             pathlib.Path(place, "train", part, "a.png")
        ...         )
        ...     normals = folder_surfaces(place)[0].normals
        >>> normals.shape, [round(float(part), 1) for part in normals[:, 0, 0]]
        (torch.Size([3, 4, 4]), [0.0, 0.0, 1.0])
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
            f"normals are derived from the depth maps of {card.name}, which takes the focal length "
            f"in pixels; write focal: (and center: [x, y] where it is not the middle) in {CARD}, "
            "or lay out normals/"
        )
    focal = card.focal if isinstance(card.focal, tuple) else (card.focal, card.focal)
    files = tuple(OwnSurface(*file) for file in maps.files)
    return OwnSurfaces(maps.name, files, maps.units_per_metre, focal, card.center)
