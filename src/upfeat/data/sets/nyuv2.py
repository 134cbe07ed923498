"""NYU Depth v2: indoor rooms with depth and labels, 39 or 13 classes.

Silberman, Hoiem, Kohli, Fergus: "Indoor segmentation and support inference from RGBD images",
ECCV 2012; 40 classes of Gupta et al., CVPR 2013, of which "otherprop" is ignored here, and 13 of
Couprie et al., ICLR 2013. Research use. The published file ``nyu_depth_v2_labeled.mat`` becomes
the layout that is read here by :func:`unpack_nyuv2`.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.depth import DepthData, DepthFile
from upfeat.data.layouts import PathLike, check_split, expected_tree, pair_by_stem
from upfeat.data.opening import read_picture
from upfeat.data.segmentation import (
    IGNORED,
    LabelledFile,
    SegmentationData,
    load_table,
    register_segmentation,
)
from upfeat.errors import MissingPackageError, check_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["nyuv2", "nyuv2_depth", "unpack_nyuv2"]


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


MAT_FILE = "nyu_depth_v2_labeled.mat"
ADDRESS = f"http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{MAT_FILE}"

# What one metre is in the two kinds of depth file.
UNITS_8_BIT = 25.5
UNITS_16_BIT = 1000.0

_TREE = f"""
train/images/NNNN.jpg (or .png)
train/labels/NNNN.png    classes 0 to 38, 255 = ignored
train/depth/NNNN.png     8 bit: metres = value / 25.5; 16 bit: millimetres; 0 = missing
val/images/, val/labels/, val/depth/  likewise
upfeat.data.unpack_nyuv2 writes it from {MAT_FILE}.
"""


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

    Raises:
        FileNotFoundError: a folder, all images or a label are missing; shows the expected tree.
        ValueError: the split or number of classes is unknown.
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
    """List the images with depth of a split of NYU Depth v2; up to 10 metres, 0 = missing.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: which of the two.

    Raises:
        FileNotFoundError: a folder, all images or a depth map are missing; shows the expected tree.
        ValueError: the split is unknown or the first depth map is broken.
    """
    files = tuple(DepthFile(*three) for three in _pairs(root, split, "depth"))
    return DepthData(f"nyuv2-depth/{split}", files, _units(files[0].depth))


def _pairs(root: PathLike, split: str, kind: str) -> list[tuple[str, Path, Path]]:
    check_split("NYU Depth v2", split, ("train", "val"))
    folder = Path(root).expanduser() / split
    pairs, problem = pair_by_stem(folder / "images", folder / kind)
    if problem:
        raise FileNotFoundError(expected_tree("NYU Depth v2", root, _TREE, problem, ADDRESS))
    return pairs


def _units(path: Path) -> float:
    mode = read_picture(path, lambda image: image.mode, what="depth map", name=f"depth map {path}")
    return UNITS_8_BIT if mode == "L" else UNITS_16_BIT
