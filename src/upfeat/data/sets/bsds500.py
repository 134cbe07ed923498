"""BSDS500: photographs that several people divided into regions.

Arbelaez, Maire, Fowlkes, Malik: "Contour detection and hierarchical image segmentation", TPAMI
2011. For training on these regions see :class:`upfeat.data.LabelMaskSource`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import (
    FileSet,
    Layout,
    PathLike,
    check_split,
    find_base,
    lay_on_image,
    list_images,
    read_mat,
    read_numbers,
)
from upfeat.data.objects import ObjectData, ObjectFile, register_objects

_LAYOUT = Layout(
    "BSDS500",
    """
BSDS500/data/images/train/ID.jpg
BSDS500/data/groundTruth/train/ID.mat    all annotators; or instead
segmentations/train/ID_0.png, ID_1.png   one file an annotator, regions numbered from 1
and the same with val and test
""",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/grouping/resources.html, or "
    "https://github.com/BIDS/BSDS500",
)


class RegionFile(NamedTuple):
    """Where one image is, and its regions: one PNG an annotator, or one MAT file for all."""

    name: str
    image: Path
    regions: tuple[Path, ...]


class RegionImage(NamedTuple):
    """One image (3, H, W) in [0, 1] and a map of region numbers (H, W), int64, an annotator."""

    image: Tensor
    regions: tuple[Tensor, ...]


@dataclass(frozen=True)
class RegionData(FileSet[RegionFile, RegionImage]):
    """One split of a set with regions by several annotators, such as ``"bsds500/val"``."""

    name: str
    files: tuple[RegionFile, ...]

    def read(self, file: RegionFile) -> RegionImage:
        """Read an image with the regions of all annotators."""
        image = read_image(file.image)
        regions: list[Tensor] = []
        for path in file.regions:
            maps = _read_regions(path)
            regions += [lay_on_image(one, path, file.image, image.shape[1:]) for one in maps]
        return RegionImage(image, tuple(regions))


def bsds500(root: PathLike, split: Literal["train", "val", "test"] = "train") -> RegionData:
    """List a split of BSDS500.

    Args:
        root: the folder that holds ``BSDS500``, or ``images`` itself.
        split: which folder.
    """
    check_split("BSDS500", split, ("train", "val", "test"))
    base = find_base(root, ("BSDS500/data", "data"), "images")
    with _LAYOUT.explained(root):
        files = _files(base, split)
    return RegionData(f"bsds500/{split}", files)


# A region is taken for an object if it covers such a share of the image (chosen).
OBJECT_SHARES = (0.01, 0.4)


@register_objects("bsds500")
def bsds500_objects(root: PathLike, split: Literal["train", "val", "test"] = "train") -> ObjectData:
    """List a split of BSDS500 with regions as objects.

    Of each image the regions of the annotator who drew the fewest count, those of 1 to 40 % of the
    image; the rest is background.
    """
    data = bsds500(root, split)
    files = tuple(ObjectFile(file.name, file.image, file.regions) for file in data.files)
    return ObjectData(data.name, files, _coarsest_objects)


def _coarsest_objects(paths: Sequence[Path]) -> Tensor:
    maps = [one for path in paths for one in _read_regions(path)]
    regions = min(maps, key=lambda one: len(one.unique()))
    labels = torch.zeros_like(regions)
    least, most = (share * regions.numel() for share in OBJECT_SHARES)
    numbers, areas = regions.unique(return_counts=True)
    for label, number in enumerate(numbers[(areas >= least) & (areas <= most)], 1):
        labels[regions == number] = label
    return labels


def _files(base: Path, split: str) -> tuple[RegionFile, ...]:
    folder = base / "images" / split
    images = list_images(folder)
    separate, joint = base / "segmentations" / split, base / "groundTruth" / split
    if not separate.is_dir() and not joint.is_dir():
        raise FileNotFoundError(f"no folder {joint}")
    files = []
    for image in images:
        if separate.is_dir():
            found = list(separate.glob(f"{image.stem}_*.png"))
            regions = sorted(found, key=lambda path: (len(path.name), path.name))
        else:
            regions = [path for path in (joint / f"{image.stem}.mat",) if path.is_file()]
        if not regions:
            raise FileNotFoundError(f"{image} has no regions")
        files.append(RegionFile(image.stem, image, tuple(regions)))
    if not files:
        raise FileNotFoundError(f"no image in {folder}")
    return tuple(files)


def _read_regions(path: Path) -> list[Tensor]:
    """Return the region maps of a file: of one annotator (PNG) or of all (MAT)."""
    if path.suffix != ".mat":
        return [read_numbers(path, "region map", "with region numbers")]
    maps = read_mat(
        path,
        "ground truth",
        lambda mat: [cell["Segmentation"][0, 0] for cell in mat["groundTruth"].reshape(-1)],
        "is no ground truth of BSDS500",
    )
    return [torch.from_numpy(one.astype(np.int64)) for one in maps]
