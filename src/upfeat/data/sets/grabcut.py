"""GrabCut, Berkeley and the DAVIS frames of interactive segmentation: images with one object each.

Rother, Kolmogorov, Blake: "GrabCut", SIGGRAPH 2004 (50 images); McGuinness, O'Connor: "A
comparative evaluation of interactive segmentation algorithms", Pattern Recognition 2010 (100
objects in 96 images); Jang, Kim: "Interactive image segmentation via backpropagating refinement
scheme", CVPR 2019 (345 frames of DAVIS 2016, not the videos of ``davis``). Research use.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat.data.layouts import PathLike, expected_tree, find_base
from upfeat.data.objects import (
    UNCERTAIN,
    ObjectData,
    pair_masks,
    read_channel,
    register_objects,
)
from upfeat.data.opening import read_picture

__all__ = ["berkeley", "davis_interactive", "grabcut"]

ADDRESS = "https://github.com/saic-vul/fbrs_interactive_segmentation/releases/download/v1.0/{}.zip"

_TREES = {
    "GrabCut": """
data_GT/NAME.jpg       images, or images/NAME.jpg
boundary_GT/NAME.png   0 background, 128 not counted, 255 object; or masks/NAME.png (or: 0
                       background, 1 object, 255 not counted)
""",
    "Berkeley": """
images/NAME.jpg
masks/NAME.png         0 background, 128 not counted, 255 object; a second object of an image
                       has a name, and a copy of the image, of its own
""",
    "DAVIS": """
img/NAME.jpg
gt/NAME.png            every colour but black is the object
""",
}


@register_objects("grabcut")
def grabcut(root: PathLike, split: str = "val") -> ObjectData:
    """List the images of GrabCut, which has no splits.

    Args:
        root: the folder that holds ``data_GT`` and ``boundary_GT``, or ``images`` and ``masks``.
        split: of no account.

    Raises:
        FileNotFoundError: a folder or an image is missing; shows the expected tree.
    """
    base = find_base(root, ("GrabCut",), "boundary_GT")
    folders = ("data_GT", "boundary_GT") if (base / "boundary_GT").is_dir() else ("images", "masks")
    return _listed("GrabCut", root, base, folders)


@register_objects("berkeley")
def berkeley(root: PathLike, split: str = "val") -> ObjectData:
    """List the objects of Berkeley, which has no splits; one item an object.

    Args:
        root: the folder that holds ``images`` and ``masks``.
        split: of no account.

    Raises:
        FileNotFoundError: a folder or an image is missing; shows the expected tree.
    """
    return _listed("Berkeley", root, find_base(root, ("Berkeley",), "masks"), ("images", "masks"))


@register_objects("davis_interactive")
def davis_interactive(root: PathLike, split: str = "val") -> ObjectData:
    """List the 345 frames of DAVIS that interactive segmentation is measured on.

    Args:
        root: the folder that holds ``img`` and ``gt``.
        split: of no account.

    Raises:
        FileNotFoundError: a folder or an image is missing; shows the expected tree.
    """
    return _listed("DAVIS", root, find_base(root, ("DAVIS",), "gt"), ("img", "gt"))


def _listed(name: str, root: PathLike, base: Path, folders: tuple[str, str]) -> ObjectData:
    try:
        files = pair_masks(base / folders[0], base / folders[1])
    except FileNotFoundError as error:
        message = expected_tree(name, root, _TREES[name], str(error), ADDRESS.format(name))
        raise FileNotFoundError(message) from error
    sets = {"GrabCut": "grabcut", "Berkeley": "berkeley", "DAVIS": "davis_interactive"}
    return ObjectData(sets[name], files, _any_colour if name == "DAVIS" else _three_grades)


def _three_grades(paths: Sequence[Path]) -> Tensor:
    """Return 1 on the object, -1 where it is uncertain: 0, 128, 255 or 0, 255, 1 in the file."""
    values = read_channel(paths[0])
    known = set(values.unique().tolist())
    if 1 in known:
        grades = {1: 1, 255: UNCERTAIN}
    else:
        grades = {128: UNCERTAIN} | {value: 1 for value in known if value > 128}
    if surplus := known - {0, *grades}:
        raise ValueError(
            f"{paths[0]} holds {', '.join(map(str, sorted(surplus)))}; expected 0 (background), "
            "128 (not counted) and 255 (object), or 0, 255 and 1"
        )
    labels = torch.zeros_like(values)
    for value, label in grades.items():
        labels[values == value] = label
    return labels


def _any_colour(paths: Sequence[Path]) -> Tensor:
    pixels = read_picture(
        paths[0], lambda image: np.array(image.convert("RGB")), what="mask", name=str(paths[0])
    )
    return torch.from_numpy(pixels.any(2).astype(np.int64))
