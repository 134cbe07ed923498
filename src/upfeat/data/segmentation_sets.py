"""The labelled sets by name, as commands and protocols ask for them."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from upfeat.data.ade20k import ade20k
from upfeat.data.camvid import camvid
from upfeat.data.cityscapes import cityscapes
from upfeat.data.coco_stuff import coco_stuff
from upfeat.data.kitti360 import kitti360
from upfeat.data.layouts import PathLike
from upfeat.data.msrc import msrc
from upfeat.data.nyuv2 import nyuv2
from upfeat.data.segmentation import SegmentationData
from upfeat.data.voc import voc
from upfeat.errors import UnknownNameError

__all__ = ["SegmentationLoader", "load_segmentation", "segmentation_sets"]

SegmentationLoader: TypeAlias = Callable[..., SegmentationData]


def segmentation_sets() -> dict[str, SegmentationLoader]:
    """Return the labelled sets by name; a loader is called with the folder and the split.

    All of them have the splits ``"train"`` and ``"val"``.
    """
    return {
        "ade20k": ade20k,
        "ade20k_151": partial(ade20k, classes=151),
        "camvid": camvid,
        "cityscapes": cityscapes,
        "cityscapes_27": partial(cityscapes, classes=27),
        "coco_stuff_171": partial(coco_stuff, classes=171),
        "coco_stuff_27": coco_stuff,
        "kitti360": kitti360,
        "msrc": msrc,
        "nyuv2": nyuv2,
        "nyuv2_13": partial(nyuv2, classes=13),
        "voc": voc,
        "voc_20": partial(voc, classes=20),
    }


def load_segmentation(name: str, root: PathLike, split: str = "train") -> SegmentationData:
    """List a split of a labelled set.

    Args:
        name: of :func:`segmentation_sets`.
        root: its folder.
        split: ``"train"`` or ``"val"``.

    Raises:
        UnknownNameError: no such set.
        FileNotFoundError: the folder is not the set; shows the expected tree.

    Example:
        >>> from upfeat.data import load_segmentation
        >>> try:
        ...     load_segmentation("cityscape", "data")
        ... except ValueError as error:
        ...     print(str(error).split("?")[0])
        unknown data set 'cityscape'; did you mean 'cityscapes' or 'cityscapes_27'
    """
    known = segmentation_sets()
    if name not in known:
        raise UnknownNameError("data set", name, known)
    return known[name](root, split)
