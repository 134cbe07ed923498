"""NYU Depth v2: indoor rooms, 480x640, with labels of 39 or 13 classes, depth, surface normals.

Silberman, Hoiem, Kohli, Fergus: "Indoor segmentation and support inference from RGBD images",
ECCV 2012; 40 classes of Gupta et al., CVPR 2013, of which "otherprop" is ignored here, and 13 of
Couprie et al., ICLR 2013. With normals it has the form of Probe3D (arXiv 2404.08636): training
frames are those of the GeoNet release (Qi et al., CVPR 2018), whose normals are smoothed fits; the
654 test images have raw depth and the normals of Ladicky et al., 2014. Research use.
``nyuv2_unpacking`` writes the layouts that are read here from the published files.

Legend: ``H W`` image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.layouts import Layout, PathLike, check_split, pair_by_stem, read_mat, read_npy
from upfeat.data.opening import read_picture
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    load_table,
    register_segmentation,
)
from upfeat.data.surfaces import SurfaceData, SurfaceImage

MAT_FILE = "nyu_depth_v2_labeled.mat"
ADDRESS = f"http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{MAT_FILE}"

# What one metre is in the two kinds of depth file.
UNITS_8_BIT = 25.5
UNITS_16_BIT = 1000.0

_LAYOUT = Layout(
    "NYU Depth v2",
    f"""
train/images/NNNN.jpg (or .png)
train/labels/NNNN.png    classes 0 to 38, 255 = ignored
train/depth/NNNN.png     8 bit: metres = value / 25.5; 16 bit: millimetres; 0 = missing
val/images/, val/labels/, val/depth/  likewise
upfeat.data.unpack_nyuv2 writes it from {MAT_FILE}.
""",
    ADDRESS,
)


@register_segmentation("nyuv2")
@register_segmentation("nyuv2_13", classes=13)
def nyuv2(
    root: PathLike, split: Literal["train", "val"] = "train", classes: Literal[39, 13] = 39
) -> SegmentationData:
    """List the labelled images of a split of NYU Depth v2; label 255 is ignored.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.
        classes: 39, or 13 groups of them.
    """
    if classes not in (39, 13):
        raise ValueError(f"NYU Depth v2 has 39 or 13 classes here, got {classes}")
    files = tuple(LabelledFile(*three) for three in _pairs(root, split, "labels"))
    table = load_table("nyuv2")
    if classes == 39:
        return SegmentationData(f"nyuv2/{split}", tuple(table["names"]), IGNORED, files)
    to_13 = dict(enumerate(table["to_13"])) | {IGNORED: IGNORED}
    return SegmentationData(f"nyuv2_13/{split}", tuple(table["names_13"]), IGNORED, files, to_13)


def nyuv2_depth(root: PathLike, split: Literal["train", "val"] = "train") -> DepthData:
    """List the images with depth of a split of NYU Depth v2; up to 10 metres, 0 = missing."""
    files = tuple(DepthFile(*three) for three in _pairs(root, split, "depth"))
    first = files[0].depth
    mode = read_picture(first, lambda p: p.mode, what="depth map", name=f"depth map {first}")
    units = UNITS_8_BIT if mode == "L" else UNITS_16_BIT
    return DepthData(f"nyuv2-depth/{split}", files, units)


def _pairs(root: PathLike, split: str, kind: str) -> list[tuple[str, Path, Path]]:
    check_split("NYU Depth v2", split, ("train", "val"))
    folder = Path(root).expanduser() / split
    with _LAYOUT.explained(root):
        return pair_by_stem(folder / "images", folder / kind)


# -- with normals ---------------------------------------------------------------------------------

MAX_DEPTH = 10.0  # metres; more counts as missing
SIZE = (480, 640)
MARGIN = 80  # columns that are cut off on both sides
BROKEN = (21181, 6919)  # places in the sorted list of the GeoNet release
VAL_EVERY = 20
MEANS = (122.175, 116.169, 103.508)  # the stored images lack twice this
KINDS = ("image", "depth", "normals")

_SURFACES = Layout(
    "NYU Depth v2 with normals",
    """
geonet/NAME.mat                  the training frames of the GeoNet release: img, depth, norm
test/NNNN-{image,depth,normals}.npy
upfeat.data.unpack_nyuv2_normals writes test/ from nyu_depth_v2_labeled.mat and the files of the
FAIR self-supervision benchmark.
Or for depth alone train/ and val/ as upfeat.data.nyuv2_depth reads them.
""",
    ADDRESS,
)


class NyuFrame(NamedTuple):
    """One frame: a MAT file, three arrays, or an image with its depth map."""

    name: str
    parts: tuple[Path, ...]


@dataclass(frozen=True)
class NyuSurfaces(SurfaceData[NyuFrame]):
    """One split; images are squares of the full height, 480 or less."""

    name: str
    files: tuple[NyuFrame, ...]
    plain: DepthData | None = None  # where images and depth come from if there are no normals

    @property
    def has_normals(self) -> bool:
        """Whether this is the form with normals."""
        return self.plain is None

    def read(self, file: NyuFrame) -> SurfaceImage:
        """Read a frame."""
        if self.plain is not None:
            image, depth = self.plain.read(DepthFile(file.name, *file.parts))
            height, width = depth.shape
            left = max(0, (width - height) // 2)
            near = torch.where(depth > MAX_DEPTH, 0.0, depth)
            return SurfaceImage(image, near, None).cut(slice(None), slice(left, left + height))
        if len(file.parts) == 1:
            return geonet_sample(*_load_mat(file.parts[0]))
        return _sample(*(read_npy(path) for path in file.parts))

    def settings(self) -> str:
        """Return the unit of depth maps."""
        return "" if self.plain is None else self.plain.settings()


def geonet_sample(
    image: npt.NDArray[Any], depth: npt.NDArray[Any], normals: npt.NDArray[Any]
) -> SurfaceImage:
    """Return a training frame of the GeoNet release as Probe3D uses it.

    Twice the colour means are added in the file's precision and cut to 8 bit (modulo 256); depth
    above 10 m counts as missing; 80 columns are cut off on both sides.

    Args:
        image: (H, W, 3) as stored, twice the means below the colours.
        depth: (H, W) in metres.
        normals: (H, W, 3) in the camera's frame.
    """
    offset = np.asarray([2 * mean for mean in MEANS], image.dtype)
    # Through int64, because the cast of a negative float to 8 bit is not defined.
    colours = (image + offset).astype(np.int64).astype(np.uint8)
    return _sample(colours, depth, normals)


def _sample(
    image: npt.NDArray[Any], depth: npt.NDArray[Any], normals: npt.NDArray[Any]
) -> SurfaceImage:
    """Cut arrays (H, W, 3), (H, W) and (H, W, 3) to tensors of the middle columns."""
    rows, columns = slice(0, SIZE[0]), slice(MARGIN, min(SIZE[1], depth.shape[1]) - MARGIN)
    colours = _tensor(image[rows, columns]).movedim(-1, 0) / 255  # (3, H, W)
    metres = _tensor(np.nan_to_num(depth[rows, columns]))
    metres = torch.where((metres > MAX_DEPTH) | (metres < 0), 0.0, metres)
    return SurfaceImage(colours, metres, _tensor(normals[rows, columns]).movedim(-1, 0))


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _load_mat(path: Path) -> list[npt.NDArray[Any]]:
    """Return img, depth and norm of a MAT file."""
    content: dict[str, Any] = read_mat(
        path, "frame of the GeoNet release", dict, "is no readable MAT file"
    )
    names = ("img", "depth", "norm")
    if missing := set(names) - set(content):
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; expected a GeoNet frame")
    return [content[name] for name in names]


def nyuv2_surfaces(
    root: PathLike, split: Literal["trainval", "train", "val", "test"] = "trainval"
) -> NyuSurfaces:
    """List a split of NYU Depth v2 with normals; or with depth alone, from ``nyuv2_depth``'s files.

    ``trainval`` are all training frames but two broken ones, ``val`` every twentieth of them,
    ``train`` the rest, ``test`` the 654 official test images. In a folder with depth alone,
    ``trainval`` and ``train`` are its ``train``, ``test`` and ``val`` its ``val``.

    Args:
        root: the folder that holds ``geonet`` and ``test``, or ``train`` and ``val``.
        split: which of the four.
    """
    check_split("NYU Depth v2 with normals", split, ("trainval", "train", "val", "test"))
    base = Path(root).expanduser()
    if (base / "train" / "images").is_dir():
        return without_normals(nyuv2_depth(root, "train" if split.startswith("train") else "val"))
    found = _test(base) if split == "test" else _geonet(base, split)
    if not found:
        part = "test/*-image.npy" if split == "test" else "geonet/*.mat"
        raise _SURFACES.error(root, f"no {part}")
    return NyuSurfaces(f"nyuv2/{split}", tuple(found))


def without_normals(data: DepthData) -> NyuSurfaces:
    """Return a set of depth maps in the form of this one: squares, depth up to 10 m, no normals."""
    frames = tuple(NyuFrame(file.name, (file.image, file.depth)) for file in data.files)
    return NyuSurfaces(data.name, frames, data)


def _geonet(base: Path, split: str) -> list[NyuFrame]:
    paths = sorted((base / "geonet").glob("*.mat"))
    for place in BROKEN:
        if place < len(paths):
            del paths[place]
    frames = [NyuFrame(path.stem, (path,)) for path in paths]
    if split == "trainval":
        return frames
    return [frame for i, frame in enumerate(frames) if (i % VAL_EVERY == 0) == (split == "val")]


def _test(base: Path) -> list[NyuFrame]:
    names = sorted(path.name for path in (base / "test").glob("*-image.npy"))
    return [
        NyuFrame(stem, tuple(base / "test" / f"{stem}-{kind}.npy" for kind in KINDS))
        for stem in (name.removesuffix("-image.npy") for name in names)
    ]
