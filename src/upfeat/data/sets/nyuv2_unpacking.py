"""Writing the layouts in which NYU Depth v2 is read, from the published files.

Files that are there already are kept, so an interrupted run goes on where it stopped.
"""

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.images import encode_png
from upfeat.data.layouts import PathLike, read_mat, write_npy
from upfeat.data.segmentation import IGNORED, load_table
from upfeat.data.sets.nyuv2 import ADDRESS, UNITS_16_BIT
from upfeat.errors import check_file, import_optional

# What the projection of depth onto the image covers, Eigen et al., NeurIPS 2014.
ROWS, COLS = slice(45, 471), slice(41, 601)
SPLIT_ADDRESS = "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"
MAKER = "unpack_nyuv2"
SPLIT_KEYS = {"train": "trainNdxs", "val": "testNdxs"}


@contextmanager
def _opened(mat: PathLike, needed: set[str]) -> Iterator[Any]:
    """Open ``nyu_depth_v2_labeled.mat``, which must hold some arrays."""
    h5py = import_optional("h5py", "h5py", "data", f"files such as {Path(mat).name}")
    try:
        stream = h5py.File(Path(mat).expanduser(), "r")
    except OSError as error:
        raise ValueError(f"{mat} is not HDF5, it may be broken: {error}") from error
    with stream:
        if missing := needed - set(stream):
            raise ValueError(f"{mat} has no {', '.join(sorted(missing))}; expected {ADDRESS}")
        yield stream


def unpack_nyuv2(
    mat: PathLike,
    splits: PathLike,
    out: PathLike,
    mapping: PathLike | None = None,
    *,
    crop: bool = True,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write the layout that :func:`upfeat.data.nyuv2` reads from the published files.

    The 795 official training images become ``train``, the 654 test images ``val``.

    Args:
        mat: ``nyu_depth_v2_labeled.mat``.
        splits: ``splits.mat`` with the official split.
        out: folder to write to.
        mapping: ``classMapping40.mat`` of Gupta et al., which says for each of the 894 raw labels
            one of 40 classes; None writes no labels (depth needs none).
        crop: keep rows 45 to 470 and columns 41 to 600 only, where there is depth.
        on_image: called with done and total after each image.

    Raises:
        FileNotFoundError: a file is missing; says where users get it.
        ValueError: a file is not what it should be.
        ForeignFileError: ``out`` holds another ``meta.json`` already.
        MissingPackageError: h5py or SciPy is not installed.
    """
    sources = {mat: ADDRESS, splits: SPLIT_ADDRESS}
    if mapping is not None:
        sources[mapping] = "the 40-class mapping of Gupta et al., CVPR 2013"
    for path, address in sources.items():
        try:
            check_file(Path(path).expanduser(), "MAT file")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no file at {path}; get it from {address}") from error
    parts = {name: _split_numbers(splits, key) for name, key in SPLIT_KEYS.items()}
    table = None if mapping is None else _class_of(mapping)
    folder = Path(out).expanduser()
    about = {"source": "nyu_depth_v2_labeled.mat", "val": "official test split", "cropped": crop}
    text = (json.dumps(about, indent=1) + "\n").encode()
    files, meta = OwnFiles(folder), folder / "meta.json"
    recorded = meta.is_file() and meta.read_bytes() == text
    if not recorded:
        files.check("meta.json", MAKER)
    with _opened(mat, {"images", "depths", "labels"}) as stream:
        count, done = len(stream["images"]), 0
        for name, numbers in parts.items():
            if numbers.min() < 1 or numbers.max() > count:
                raise ValueError(f"{splits} numbers images up to {numbers.max()} of {count}")
            for number in numbers.tolist():
                _write(stream, number, folder / name, table, crop)
                done += 1
                if on_image is not None:
                    on_image(done, sum(map(len, parts.values())))
    if not recorded:
        files.write("meta.json", text, MAKER)


def _load(path: PathLike) -> dict[str, Any]:
    place = Path(path).expanduser()
    return read_mat(place, "MAT file", dict, "is no readable MAT file")


def _split_numbers(path: PathLike, key: str) -> npt.NDArray[np.int64]:
    content = _load(path)
    if key not in content or not content[key].size:
        raise ValueError(f"{path} has no {key}; expected the file of {SPLIT_ADDRESS}")
    return np.asarray(content[key].reshape(-1), np.int64)


def _class_of(path: PathLike) -> npt.NDArray[np.uint8]:
    """Return the class of each raw label: 0 to 38, 255 for unlabelled and "otherprop"."""
    content = _load(path)
    if "mapClass" not in content:
        raise ValueError(f"{path} has no mapClass; expected one of 40 classes for each raw label")
    classes = content["mapClass"].reshape(-1).astype(np.int64)
    if classes.min() < 1 or classes.max() > 40:
        raise ValueError(f"{path} maps to {classes.min()} to {classes.max()}; expected 1 to 40")
    known = len(load_table("nyuv2")["names"])
    classes = np.where(classes <= known, classes - 1, IGNORED)
    return np.concatenate([[IGNORED], classes]).astype(np.uint8)


def _write(
    stream: Any, number: int, folder: Path, table: npt.NDArray[np.uint8] | None, crop: bool
) -> None:
    """Write image, depth and label of one 1-based number, unless they are there."""
    rows, cols = (ROWS, COLS) if crop else (slice(None), slice(None))
    maps: dict[str, Callable[[], npt.NDArray[Any]]] = {
        # (3, W, H) -> (H, W, 3)
        "images": lambda: stream["images"][number - 1].transpose(2, 1, 0)[rows, cols],
        # (W, H) -> (H, W)
        "depth": lambda: _millimetres(stream["depths"][number - 1].T[rows, cols]),
    }
    if table is not None:
        maps["labels"] = lambda: table[stream["labels"][number - 1].T[rows, cols]]
    for kind, make in maps.items():
        path = folder / kind / f"{number:04d}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, encode_png(make()))


def _millimetres(depth: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (np.nan_to_num(depth) * UNITS_16_BIT).round().clip(0, 65535).astype(np.uint16)


def unpack_nyuv2_normals(
    mat: PathLike,
    normals: PathLike,
    indices: PathLike,
    out: PathLike,
    *,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``test/`` as :func:`upfeat.data.nyuv2_surfaces` reads it: raw depth, images, normals.

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
    numbers, all_normals = _test_numbers(indices), _all_normals(normals)
    with _opened(mat, {"images", "rawDepths"}) as stream:
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
                path = Path(out).expanduser() / "test" / f"{number:04d}-{kind}.npy"
                if not path.is_file():
                    write_npy(path, array)
            if on_image is not None:
                on_image(done + 1, len(numbers))


def _test_numbers(path: PathLike) -> list[int]:
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
