"""Unpacking the published file of NYU Depth v2 into images, depth maps and labels.

``nyu_depth_v2_labeled.mat`` is HDF5 with the axes reversed. Legend: ``N`` images, ``H`` = 480,
``W`` = 640.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.label_tables import IGNORED, load_table
from upfeat.data.layouts import PathLike
from upfeat.data.nyuv2 import ADDRESS, UNITS_16_BIT
from upfeat.errors import MissingPackageError, check_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["unpack_nyuv2"]

# What the projection of depth onto the image covers, Eigen et al., NeurIPS 2014.
ROWS, COLS = slice(45, 471), slice(41, 601)
SPLIT_ADDRESS = "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"
MAKER = "unpack_nyuv2"
SPLIT_KEYS = {"train": "trainNdxs", "val": "testNdxs"}


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

    The 795 official training images become ``train``, the 654 test images ``val``. Files that are
    there already are kept, so an interrupted run goes on where it stopped.

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

    Example:
        >>> from upfeat.data import unpack_nyuv2
        >>> try:
        ...     unpack_nyuv2("nyu_depth_v2_labeled.mat", "splits.mat", "nyuv2")
        ... except FileNotFoundError as error:
        ...     print(str(error).split(";")[0])
        no file at nyu_depth_v2_labeled.mat
    """
    sources = {mat: ADDRESS, splits: SPLIT_ADDRESS}
    if mapping is not None:
        sources[mapping] = "the 40-class mapping of Gupta et al., CVPR 2013"
    for path, address in sources.items():
        try:
            check_file(Path(path).expanduser(), "MAT file")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no file at {path}; get it from {address}") from error
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError("h5py", "data", f"files such as {Path(mat).name}") from error
    parts = {name: _numbers(splits, key) for name, key in SPLIT_KEYS.items()}
    table = None if mapping is None else _class_of(mapping)
    try:
        stream = h5py.File(Path(mat).expanduser(), "r")
    except OSError as error:
        raise ValueError(f"{mat} is not HDF5, it may be broken: {error}") from error
    folder = Path(out).expanduser()
    about = {"source": "nyu_depth_v2_labeled.mat", "val": "official test split", "cropped": crop}
    text = (json.dumps(about, indent=1) + "\n").encode()
    files, recorded = OwnFiles(folder), _is(folder / "meta.json", text)
    if not recorded:
        files.check("meta.json", MAKER)
    with stream:
        if missing := {"images", "depths", "labels"} - set(stream):
            raise ValueError(f"{mat} has no {', '.join(sorted(missing))}; expected {ADDRESS}")
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


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _load(path: PathLike) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError("scipy", "data", "files *.mat") from error
    try:
        content: dict[str, Any] = loadmat(Path(path).expanduser())
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(f"{path} is no readable MAT file: {error}") from error
    return content


def _numbers(path: PathLike, key: str) -> npt.NDArray[np.int64]:
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
    from PIL import Image

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
            write_bytes(path, _png(Image.fromarray(np.ascontiguousarray(make()))))


def _millimetres(depth: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (np.nan_to_num(depth) * UNITS_16_BIT).round().clip(0, 65535).astype(np.uint16)


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
