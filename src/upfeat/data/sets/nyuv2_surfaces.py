"""NYU Depth v2 with surface normals, in the form of Probe3D (arXiv 2404.08636).

Training frames are those of the GeoNet release (Qi et al., CVPR 2018), whose normals are smoothed
fits; the 654 test images have raw depth and the normals of Ladicky et al., 2014, from the files of
the FAIR self-supervision benchmark (Goyal et al., 2019). Research use.

Legend: ``H W`` image, 480x640.
"""

import gzip
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.layouts import PathLike, check_split, expected_tree, read_npy
from upfeat.data.sets.nyuv2 import ADDRESS, nyuv2_depth
from upfeat.data.surfaces import SurfaceData, SurfaceImage
from upfeat.errors import MissingPackageError, check_file

__all__ = [
    "NyuFrame",
    "NyuSurfaces",
    "geonet_sample",
    "nyuv2_surfaces",
    "unpack_nyuv2_normals",
    "without_normals",
]

MAX_DEPTH = 10.0  # metres; more counts as missing
SIZE = (480, 640)
MARGIN = 80  # columns that are cut off on both sides
BROKEN = (21181, 6919)  # places in the sorted list of the GeoNet release
VAL_EVERY = 20
MEANS = (122.175, 116.169, 103.508)  # the stored images lack twice this
KINDS = ("image", "depth", "normals")

_TREE = """
geonet/NAME.mat                  the training frames of the GeoNet release: img, depth, norm
test/NNNN-{image,depth,normals}.npy
upfeat.data.unpack_nyuv2_normals writes test/ from nyu_depth_v2_labeled.mat and the files of the
FAIR self-supervision benchmark.
Or for depth alone train/ and val/ as upfeat.data.nyuv2_depth reads them.
"""


class NyuFrame(NamedTuple):
    """One frame: a MAT file, three arrays, or an image with its depth map."""

    name: str
    parts: tuple[Path, ...]


@dataclass(frozen=True)
class NyuSurfaces(SurfaceData[NyuFrame]):
    """One split; images are squares of the full height, 480 or less.

    Attributes:
        plain: where images and depth maps come from if there are no normals.
    """

    name: str
    files: tuple[NyuFrame, ...]
    plain: DepthData | None = None

    @property
    def has_normals(self) -> bool:
        """Whether this is the form with normals."""
        return self.plain is None

    def read(self, file: NyuFrame) -> SurfaceImage:
        """Read a frame.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one is broken.
        """
        if self.plain is not None:
            image, depth = self.plain.read(DepthFile(file.name, *file.parts))
            height, width = depth.shape
            left = max(0, (width - height) // 2)
            columns = slice(left, left + height)
            near = torch.where(depth > MAX_DEPTH, 0.0, depth)
            return SurfaceImage(image[..., columns], near[:, columns], None)
        if len(file.parts) == 1:
            content = _load_mat(file.parts[0])
            return geonet_sample(*(content[name] for name in ("img", "depth", "norm")))
        return _sample(*(read_npy(path) for path in file.parts))

    def paths(self, file: NyuFrame) -> Sequence[Path]:
        """Return the files of a frame."""
        return file.parts

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

    Example:
        >>> import numpy as np
        >>> from upfeat.data.sets.nyuv2_surfaces import geonet_sample
        >>> frame = [np.ones(shape, np.float32) for shape in ((2, 170, 3), (2, 170), (2, 170, 3))]
        >>> geonet_sample(*frame).image.shape
        torch.Size([3, 2, 10])
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


def _load_mat(path: Path) -> dict[str, Any]:
    """Read a MAT file with img, depth and norm."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError("scipy", "data", "files *.mat") from error
    check_file(path, "frame of the GeoNet release")
    try:
        content: dict[str, Any] = loadmat(path)
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(f"{path} is no readable MAT file: {error}") from error
    if missing := {"img", "depth", "norm"} - set(content):
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; expected a GeoNet frame")
    return content


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

    Raises:
        FileNotFoundError: the files are missing; shows the expected tree.
        ValueError: the split is unknown.
    """
    check_split("NYU Depth v2 with normals", split, ("trainval", "train", "val", "test"))
    base = Path(root).expanduser()
    if (base / "train" / "images").is_dir():
        return without_normals(nyuv2_depth(root, "train" if split.startswith("train") else "val"))
    found = _test(base) if split == "test" else _geonet(base, split)
    if not found:
        part = "test/*-image.npy" if split == "test" else "geonet/*.mat"
        message = expected_tree("NYU Depth v2 with normals", root, _TREE, f"no {part}", ADDRESS)
        raise FileNotFoundError(message)
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
    stems = [name.removesuffix("-image.npy") for name in names]
    return [
        NyuFrame(stem, tuple(base / "test" / f"{stem}-{kind}.npy" for kind in KINDS))
        for stem in stems
    ]


def unpack_nyuv2_normals(
    mat: PathLike,
    normals: PathLike,
    indices: PathLike,
    out: PathLike,
    *,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``test/`` as :func:`nyuv2_surfaces` reads it: raw depth, images and normals.

    Files that are there are kept, so an interrupted run goes on where it stopped.

    Args:
        mat: ``nyu_depth_v2_labeled.mat``.
        normals: ``all_normals.pklz`` of the FAIR self-supervision benchmark, a pickled dictionary;
            only arrays are accepted in it.
        indices: ``test_SN40.json`` of it: a list of records whose ``img`` starts with the image's
            number.
        out: the folder that gets ``test``.
        on_image: called with done and total after each image.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be.
        MissingPackageError: h5py is not installed.
    """
    for path, what in ((mat, "MAT file"), (normals, "file of normals"), (indices, "test list")):
        check_file(Path(path).expanduser(), what)
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError("h5py", "data", f"files such as {Path(mat).name}") from error
    numbers, all_normals = _numbers(indices), _all_normals(normals)
    try:
        stream = h5py.File(Path(mat).expanduser(), "r")
    except OSError as error:
        raise ValueError(f"{mat} is not HDF5, it may be broken: {error}") from error
    with stream:
        if missing := {"images", "rawDepths"} - set(stream):
            raise ValueError(f"{mat} has no {', '.join(sorted(missing))}; expected {ADDRESS}")
        count = len(stream["images"])
        if max(numbers) > count or len(all_normals) != count:
            raise ValueError(
                f"{mat} holds {count} images, {indices} numbers up to {max(numbers)}, {normals} "
                f"holds {len(all_normals)} maps; they do not belong together"
            )
        for done, number in enumerate(numbers):
            parts = {
                # (3, W, H) -> (H, W, 3) and (W, H) -> (H, W)
                "image": stream["images"][number - 1].transpose(2, 1, 0),
                "depth": stream["rawDepths"][number - 1].T,
                "normals": all_normals[number - 1],
            }
            for kind, array in parts.items():
                _write_npy(Path(out).expanduser() / "test" / f"{number:04d}-{kind}.npy", array)
            if on_image is not None:
                on_image(done + 1, len(numbers))


def _write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        write_bytes(path, buffer.getvalue())


def _numbers(path: PathLike) -> list[int]:
    """Return the 1-based numbers of the test images."""
    try:
        records = json.loads(Path(path).expanduser().read_text())
        numbers = [int(record["img"].split("_")[0]) for record in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of records with img: {error}") from error
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{path} names no images")
    return numbers


class _Arrays(pickle.Unpickler):
    """Unpickles containers and arrays of numbers, and nothing that could run."""

    ALLOWED = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the list; refuse all others."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _all_normals(path: PathLike) -> npt.NDArray[Any]:
    """Return all maps (N, H, W, 3)."""
    try:
        with gzip.open(Path(path).expanduser(), "rb") as stream:
            content = _Arrays(stream, encoding="latin1").load()
        found = np.asarray(content["all_normals"])
    # Broken pickles raise whatever they stumble over.
    except Exception as error:
        raise ValueError(f"{path} is no pickled dictionary with all_normals: {error}") from error
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype.kind != "f":
        raise ValueError(f"{path} holds {found.dtype} {found.shape}, expected (N, H, W, 3) floats")
    return found
