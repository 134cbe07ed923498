"""SBD: photographs of PASCAL VOC 2011 with masks of all objects of the 20 classes.

Hariharan et al.: "Semantic contours from inverse detectors", ICCV 2011. 8,498 training and 2,857
validation images with 20,172 and 6,671 objects.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base
from upfeat.data.objects import ObjectData, ObjectFile, register_objects
from upfeat.errors import MissingPackageError, check_file

__all__ = ["sbd"]

ADDRESS = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz"
)

_TREE = """
benchmark_RELEASE/dataset/img/ID.jpg
benchmark_RELEASE/dataset/inst/ID.mat    the objects of an image
benchmark_RELEASE/dataset/train.txt      one ID a line; also val.txt
"""

SMALLEST_FILL = 0.08
"""An object covers at least this share of its bounding box, else its mask is taken to be wrong."""


@register_objects("sbd")
def sbd(root: PathLike, split: str = "train") -> ObjectData:
    """List a split of SBD.

    Args:
        root: the folder that holds ``benchmark_RELEASE``, or ``img`` itself.
        split: ``"train"`` or ``"val"``.

    Raises:
        FileNotFoundError: a list or a file that it names is missing; shows the expected tree.
        ValueError: the split is unknown.
    """
    check_split("SBD", split, ("train", "val"))
    base = find_base(root, ("benchmark_RELEASE/dataset", "dataset"), "inst")
    listing = base / f"{split}.txt"
    try:
        if not listing.is_file():
            raise FileNotFoundError(f"no file {listing}")
        files = []
        for name in listing.read_text().split():
            image, mask = base / "img" / f"{name}.jpg", base / "inst" / f"{name}.mat"
            for path in (image, mask):
                if not path.is_file():
                    raise FileNotFoundError(f"{split}.txt names {name}, but there is no {path}")
            files.append(ObjectFile(name, image, (mask,)))
    except FileNotFoundError as error:
        message = expected_tree("SBD", root, _TREE, str(error), ADDRESS)
        raise FileNotFoundError(message) from error
    return ObjectData(f"sbd/{split}", tuple(files), _objects)


def _objects(paths: Sequence[Path]) -> Tensor:
    """Return the objects of a MAT file, without those that hardly fill their bounding box."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError("scipy", "data", "files *.mat") from error
    check_file(paths[0], "mask")
    try:
        numbers = loadmat(paths[0])["GTinst"]["Segmentation"][0, 0].astype(np.int64)
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(f"{paths[0]} holds no objects of SBD: {error}") from error
    labels = torch.from_numpy(numbers)
    for number in labels.unique().tolist():
        mask = labels == number
        rows, cols = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = int(rows[-1] - rows[0] + 1) * int(cols[-1] - cols[0] + 1)
        if number and int(mask.sum()) < SMALLEST_FILL * box:
            labels[mask] = 0
    return labels
