"""Where the data sets and weights of the tables come from, and what a small run changes.

Nothing is imported of the methods: upsamplers and recipes are looked up when a row is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from upfeat.errors import UnknownNameError
from upfeat.evaluation.results import FrozenRecord


class DataFacts(FrozenRecord):
    """A data set as a user must fetch it.

    Attributes:
        title: its own name.
        where: where it is to be had.
        gigabytes: what is fetched.
        folders: names of its folder below the one that holds several sets.
    """

    title: str
    where: str
    gigabytes: float
    folders: tuple[str, ...]


def _set(title: str, where: str, gigabytes: float, *folders: str) -> DataFacts:
    return DataFacts(title=title, where=where, gigabytes=gigabytes, folders=folders)


_COCO = "images.cocodataset.org and the COCO-Stuff label archives"
_ADE20K = "data.csail.mit.edu/places/ADEchallenge"
_VOC = "host.robots.ox.ac.uk/pascal/VOC/voc2012"
_CLICKS = "github.com/saic-vul/fbrs_interactive_segmentation, release v1.0"
_HERE = "a reduced set for small runs"

SETS: dict[str, DataFacts] = {
    "voc": _set("PASCAL VOC 2012", _VOC, 2, "voc", "VOCdevkit"),
    "ade20k": _set("ADE20K (150 classes)", _ADE20K, 1, "ade20k", "ADEChallengeData2016"),
    "ade20k_151": _set("ADE20K (151 classes)", _ADE20K, 1, "ade20k", "ADEChallengeData2016"),
    "cityscapes": _set(
        "Cityscapes", "cityscapes-dataset.com (registration)", 11, "cityscapes", "Cityscapes"
    ),
    "coco_stuff_27": _set("COCO-Stuff, 27 classes", _COCO, 20, "coco_stuff", "COCOStuff"),
    "coco_stuff_171": _set("COCO-Stuff, 171 classes", _COCO, 20, "coco_stuff", "COCOStuff"),
    "kitti360": _set("KITTI-360", "cvlibs.net (registration)", 60, "kitti360", "KITTI-360"),
    "imagenet": _set(
        "ImageNet-1k", "image-net.org (registration)", 150, "imagenet", "imagenet_sample"
    ),
    "sa1b": _set("SA-1B, a million images", "ai.meta.com (registration)", 1000, "sa1b", "more"),
    "davis2016": _set("DAVIS 2016", "davischallenge.org", 0.8, "davis2016", "davis"),
    "davis2017": _set("DAVIS 2017", "davischallenge.org", 0.8, "davis2017", "DAVIS"),
    "navi": _set("NAVI v1", "storage.googleapis.com/gresearch/navi-dataset", 28, "navi", "navi_v1"),
    "nyuv2": _set("NYU Depth v2", "cs.nyu.edu/~silberman", 3, "nyuv2", "nyu_depth_v2"),
    "nyuv2_13": _set("NYU Depth v2, 13 classes", "cs.nyu.edu/~silberman", 3, "nyuv2"),
    "grabcut": _set("GrabCut", _CLICKS, 0.01, "grabcut", "GrabCut"),
    "berkeley": _set("Berkeley", _CLICKS, 0.01, "berkeley", "Berkeley"),
    "davis_interactive": _set("DAVIS, single frames", _CLICKS, 0.05, "davis_interactive", "DAVIS"),
    "sbd": _set("SBD", "cs.berkeley.edu (semantic contours)", 1.4, "sbd", "benchmark_RELEASE"),
    "nuscenes": _set("nuScenes", "nuscenes.org (registration)", 300, "nuscenes", "nuScenes"),
    "nuscenes_sample": _set("one key frame of nuScenes", _HERE, 0.001, "nuscenes_sample"),
    "msrc": _set("MSRC v2", _HERE, 0.02, "msrc"),
    "camvid": _set("CamVid", _HERE, 0.03, "camvid"),
    "rgbd": _set("posed RGB-D frames", _HERE, 0.003, "rgbd"),
    "bsds500": _set("BSDS500", _HERE, 0.03, "bsds500"),
    "coco_objects": _set("objects of COCO", _HERE, 0.006, "coco_objects"),
    "photos": _set("photographs, any folder", "your own", 0.002, "photos"),
    "weights": _set("weight files", "the addresses of `upfeat list`", 0, "weights"),
}
"""What the tables need of each data set."""


class Roots:
    """Folders of data sets: given for each, or one that holds several under their usual names.

    Args:
        given: name of a set to its folder; ``data`` is the folder that holds several.
    """

    def __init__(self, given: Mapping[str, str | Path]) -> None:
        self.given = {name: Path(folder).expanduser() for name, folder in given.items()}

    def find(self, name: str) -> Path | None:
        """Return the folder of a set; None where there is none."""
        if name in self.given:
            return self.given[name] if self.given[name].is_dir() else None
        parent = self.given.get("data")
        folders = () if parent is None else (parent / each for each in SETS[name].folders)
        return next((folder for folder in folders if folder.is_dir()), None)

    def missing(self, name: str) -> str | None:
        """Say what is missing of a set and where to get it; None where its folder is there."""
        if self.find(name) is not None:
            return None
        facts = SETS[name]
        if name in self.given:
            return f"{facts.title}: no folder at {self.given[name]}"
        size = f", about {facts.gigabytes:g} GB" if facts.gigabytes else ""
        return f"{facts.title} ({facts.where}{size}): give it with --root {name}=DIR"


class SmallTask(FrozenRecord):
    """A protocol in a small run.

    Attributes:
        data: paper's set to the one that stands in for it.
        presets: of a stand-in to the preset that it needs, where it is not the column's own.
        changes: settings; sizes of a row are halved below them.
        options: of the protocol.
        backbones: for each preset, instead of the small one; empty for all others.
        trained_on: sets that the protocol itself trains on.
        cells: for each preset of ``efficiency``, its columns.
    """

    data: Mapping[str, str] = Field(default_factory=dict)
    presets: Mapping[str, str] = Field(default_factory=dict)
    changes: Mapping[str, Any] = Field(default_factory=dict)
    options: Mapping[str, Any] = Field(default_factory=dict)
    backbones: Mapping[str, str] = Field(default_factory=dict)
    trained_on: tuple[str, ...] = ()
    cells: Mapping[str, tuple[tuple[int, int, int], ...]] = Field(default_factory=dict)


# CLIP's form with random weights, so that only the machinery is seen.
TINY_CLIP = (
    "clip/ViT-B-16.openai(weights='random', vision={'layers': 2, 'width': 64}, "
    "text={'layers': 1, 'width': 32, 'heads': 2})"
)
_PROBE = {"limit": 4, "epochs": 1, "batch": 2, "crop_size": 96, "seeds": (0,)}

SMALL: dict[str, SmallTask] = {
    "seg-probe": SmallTask(
        data={
            "voc": "msrc",
            "ade20k": "nyuv2",
            "ade20k_151": "nyuv2",
            "cityscapes": "camvid",
            "coco_stuff_27": "nyuv2_13",
            "kitti360": "camvid",
        },
        changes=_PROBE,
    ),
    "depth-probe": SmallTask(
        data={"coco_stuff_27": "nyuv2", "navi": "rgbd"},
        changes=_PROBE | {"hidden": 16, "score_size": 96},
        presets={"coco_stuff_27": "nyu"},
    ),
    "normals-probe": SmallTask(
        data={"navi": "rgbd", "nyuv2": "rgbd"},
        changes=_PROBE | {"hidden": 16, "score_size": 96},
    ),
    "open-vocabulary": SmallTask(
        data={
            "voc": "msrc",
            "ade20k": "nyuv2_13",
            "cityscapes": "camvid",
            "coco_stuff_171": "nyuv2",
        },
        changes={
            "words": "names",
            "limit": 2,
            "crop_size": 96,
            "short_side": 112,
            "window": 112,
            "factor": 2,
        },
        options={"clip": TINY_CLIP},
        backbones={"maskclip": TINY_CLIP},
    ),
    "interactive": SmallTask(
        data={"berkeley": "grabcut", "davis_interactive": "grabcut"},
        changes={
            "limit": 2,
            "train_limit": 4,
            "epochs": 1,
            "draws": 2,
            "batch": 2,
            "drops": (1,),
            "crop_size": 96,
            "clicks": 2,
        },
        trained_on=("bsds500",),
    ),
    "cam": SmallTask(
        changes={"images": 2, "limit": 40, "choose": "all"},
        backbones={"jafar": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"},
    ),
    "vos": SmallTask(data={"davis2017": "davis2016"}, changes={"limit": 1, "input_size": (96, 96)}),
    "efficiency": SmallTask(
        changes={"warmup": 1, "repeats": 1, "memory": False, "threads": 1, "channels": 64},
        cells={
            "jafar_paper": tuple((112, 8, side) for side in (56, 112, 224, 448)),
            "naf": ((112, 7, 56), (112, 7, 112)),
            "loftup": ((224, 14, 224),),
        },
    ),
    "faithfulness": SmallTask(changes={"limit": 2, "transfer": False}),
    "restoration": SmallTask(changes={"limit": 2, "size": 64}),
    "bev": SmallTask(
        data={"nuscenes": "nuscenes_sample"},
        changes={"epochs": 2, "trunk": (8, 16, 32), "sparse_width": 8, "bevformer_count": 1},
    ),
}
"""What a small run changes: sets at hand, few images, small crops, one seed; all is chosen."""


# -- methods -------------------------------------------------------------------------------------


class PaperMethod(FrozenRecord):
    """A method as the tables run it.

    Attributes:
        spec: of :func:`upfeat.load_upsampler`: a name, perhaps with arguments.
        recipes: what is trained where no published weights fit the backbone, a stage after the
            other.
        small_recipes: the same for a small run.
        images: set that the recipes are trained on.
        joint: trained with the probe where the protocol can, else by a probe before it.
        small_spec: instead of ``spec`` in a small run.
    """

    spec: str
    recipes: tuple[str, ...] = ()
    small_recipes: tuple[str, ...] = ()
    images: str = ""
    joint: bool = False
    small_spec: str = ""

    @property
    def arch(self) -> str:
        """The upsampler's own name."""
        return self.spec.partition("(")[0]

    def used_spec(self, *, small: bool) -> str:
        """Return the spec of a run."""
        return self.small_spec if small and self.small_spec else self.spec


def _plain(spec: str, small: str = "") -> PaperMethod:
    return PaperMethod(spec=spec, small_spec=small)


def _joint(name: str) -> PaperMethod:
    return PaperMethod(spec=name, joint=True, small_recipes=(f"{name}_small",), images="imagenet")


def _trained(spec: str, recipe: str, small: str, small_spec: str = "") -> PaperMethod:
    return PaperMethod(
        spec=spec,
        small_spec=small_spec,
        recipes=(recipe,),
        small_recipes=(small,),
        images="imagenet",
    )


METHODS: dict[str, PaperMethod] = {
    "low-res": _plain("low-res"),
    "nearest": _plain("nearest"),
    "bilinear": _plain("bilinear"),
    "large-2": _plain("large:2"),
    "large-4": _plain("large:4", "large:2"),
    "large-8": _plain("large:8", "large:2"),
    "strided": _plain("strided:6", "strided:8"),
    "strided-1": _plain("strided:1", "strided:8"),
    "carafe": _joint("carafe"),
    "sapa": _joint("sapa"),
    "dysample": _joint("dysample"),
    "resfu": _joint("resfu"),
    "resize-conv": _joint("resize_conv"),
    "liif": _joint("liif"),
    "featup": _trained("featup_jbu", "featup_jbu_imagenet_50k", "featup_jbu_small"),
    "featup-implicit": _plain("featup_implicit", "featup_implicit(steps=2, views=4)"),
    "lift": _trained("lift", "lift_paper", "lift_small"),
    "lift-twice": _trained("lift(iterations=2)", "lift_paper", "lift_small"),
    "jafar": _trained("jafar", "jafar_paper", "jafar_small"),
    "loftup": PaperMethod(
        spec="loftup",
        recipes=("loftup_stage1_paper", "loftup_stage2_paper"),
        small_recipes=("loftup_stage1_small", "loftup_stage2_small"),
        images="sa1b",
    ),
    "anyup": _trained("anyup", "anyup_paper", "anyup_small"),
    # Grids of small runs are smaller than its windows of seven.
    "naf": _trained("naf", "naf_paper", "naf_small", "naf(kernel_size=5)"),
}
"""The methods of the papers' rows: how each gets its weights, at the papers' size and small."""


def paper_method(name: str) -> PaperMethod:
    """Return a method of the tables.

    Args:
        name: see :attr:`upfeat.evaluation.papers.PublishedRow.uses`.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in METHODS:
        raise UnknownNameError("method of the papers", name, METHODS)
    return METHODS[name]
