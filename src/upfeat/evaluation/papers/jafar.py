"""JAFAR's tables and figures (Couairon et al., 2025, arXiv 2506.11136).

Numbers are as printed, ``setting`` is what the paper says; the note names what is our reading.
"""

from typing import Any

from upfeat.evaluation.papers.records import (
    FigureKind,
    PublishedColumn,
    PublishedFigure,
    PublishedTable,
    columns_of,
    row,
)

__all__ = ["FIGURES", "TABLES"]

DINOV2 = "timm/vit_small_patch14_dinov2.lvd142m"
PAPER: dict[str, Any] = {"paper": "JAFAR", "arxiv": "2506.11136"}
PROBE = {"backbone": DINOV2, "input_size": [448, 448], "output_size": [448, 448], "batch": 4}
COCO = ("coco_stuff_27", "coco27")
VOC = ("voc", "voc2012", "voc21")
ADE20K = ("ade20k", "ade20k151", "ade20k150")
CITYSCAPES = ("cityscapes", "cityscapes19", "cityscapes27")
DISTILLED = ("jafar_paper", "jafar_distilled")
SMALL_DISTILLED = ("jafar_small", "jafar_distilled_small")


def probes(
    *sets: tuple[str, ...], scores: str = "miou accuracy", **more: Any
) -> tuple[PublishedColumn, ...]:
    """Columns of the linear segmentation probe, set by set."""
    found: tuple[PublishedColumn, ...] = ()
    for data in sets:
        found += columns_of("seg-probe", data, scores, "jafar", **more)
    return found


def square(key: str, side: int) -> dict[str, Any]:
    """What a row has of its own whose crops and upsampled features have one size."""
    return {
        "key": f"{key}-{side}",
        "setting": {"input_size": [side, side], "output_size": [side, side]},
        "changes": {"crop_size": side},
    }


def at_sizes(*sets: tuple[str, ...]) -> tuple[PublishedColumn, ...]:
    """MIoU of each set with crops of 224 pixels, then of 448."""
    found: tuple[PublishedColumn, ...] = ()
    for side in (224, 448):
        setting = {"output_size": [side, side]}
        found += probes(*sets, scores="miou", setting=setting, changes={"crop_size": side})
    return found


TABLE_1 = PublishedTable(
    **PAPER,
    id="jafar:table-1",
    title="Linear probes: segmentation and depth",
    source="table 1",
    setting=PROBE,
    note="The released probes and logs show batch 2, 19 Cityscapes and 151 ADE20K classes.",
    backbone=DINOV2,
    gpu_hours=260,
    columns=(
        *probes(COCO, setting={"classes": 27, "epochs": 5}),
        *probes(VOC, setting={"classes": 21, "epochs": 20}),
        *probes(ADE20K, setting={"classes": 150, "epochs": 20}),
        *probes(CITYSCAPES, setting={"classes": 27, "epochs": 20}),
        *(
            PublishedColumn(
                task="depth-probe",
                data=("coco_stuff_27", "coco", "coco27"),
                score=score,
                unit=unit,
                setting={"epochs": 5, "teacher": "Depth-Anything-V2-Small"},
                preset="jafar",
            )
            for score, unit in (("d1", "percent"), ("rmse", "teacher's"))
        ),
    ),
    rows=(
        row(
            "nearest", "Nearest", 56.17, 76.97, 76.41, 93.8, 37.27, 71.91, 54.05, 90.36, 58.08, 0.7
        ),
        row(
            "bilinear",
            "Bilinear",
            59.03,
            79.07,
            80.7,
            95.17,
            39.23,
            73.69,
            59.37,
            92.47,
            59.92,
            0.66,
        ),
        row(
            "large-8",
            "Large image (x8)",
            None,
            None,
            56.94,
            88.6,
            26.42,
            66.39,
            47.72,
            92.49,
            None,
            None,
        ),
        row(
            "strided", "Strided", 55.93, 77.4, 75.88, 93.94, 36.15, 72.08, 59.26, 92.57, 56.98, 0.7
        ),
        row("carafe", "CARAFE", 59.73, 79.65, 80.26, 95.14, 38.3, 73.42, 56.05, 91.83, 61.42, 0.64),
        row("sapa", "SAPA", 57.77, 78.28, 77.02, 94.07, 35.87, 71.85, 50.12, 90.02, 60.34, 0.67),
        row(
            "dysample",
            "DySample",
            59.5,
            79.42,
            81.62,
            95.48,
            38.99,
            73.62,
            59.71,
            92.69,
            61.25,
            0.64,
        ),
        row("resfu", "ReSFU", 60.08, 79.84, 80.3, 95.05, 38.91, 73.93, 55.53, 91.62, 66.14, 0.56),
        row(
            "featup",
            "FeatUp (JBU)",
            60.1,
            79.95,
            81.08,
            95.32,
            38.82,
            73.74,
            56.06,
            91.86,
            61.69,
            0.64,
        ),
        row("lift", "LiFT", 58.18, 78.95, 78.06, 94.62, 38.73, 73.69, 58.75, 92.6, 57.04, 0.7),
        row("jafar", "JAFAR", 60.78, 80.47, 84.44, 96.28, 40.49, 74.92, 61.47, 93.42, 62.18, 0.62),
        row(
            "jafar",
            "JAFAR (released logs)",
            None,
            None,
            84.446,
            96.252,
            40.289,
            74.43,
            61.273,
            93.355,
            None,
            None,
            key="jafar-logs",
            setting={"batch": 2},
        ),
    ),
)

TABLE_2 = PublishedTable(
    **PAPER,
    id="jafar:table-2",
    title="Class activation maps",
    source="table 2",
    setting={"classifier": "ViT-B/16", "images": 2000, "map_size": [224, 224]},
    note=(
        "ADCC is the harmonic mean of the data set's means. Which weights task-dependent methods "
        "have is not said; ours are those of a segmentation probe on VOC."
    ),
    backbone="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    gpu_hours=30,
    columns=columns_of(
        "cam",
        ("imagenet", "imagenetsample"),
        "average_drop average_increase average_gain coherency complexity adcc",
        "jafar",
    ),
    rows=(
        row("bilinear", "Bilinear", 19.0, 18.5, 3.4, 88.8, 59.9, 61.7),
        row("large-8", "Large image (x8)", 48.8, 12.8, 2.5, 67.9, 38.0, 59.5),
        row("strided", "Strided", 19.8, 15.1, 3.5, 85.9, 54.2, 65.3),
        row("carafe", "CARAFE", 49.9, 4.8, 1.0, 66.9, 34.9, 59.7),
        row("sapa", "SAPA", 8.5, 32.7, 4.1, 96.5, 69.6, 55.4),
        row("dysample", "DySample", 17.8, 20.0, 3.8, 90.2, 60.7, 61.6),
        row("resfu", "ReSFU", 14.5, 24.0, 3.7, 92.1, 64.2, 59.4),
        row("featup", "FeatUp", 15.3, 24.0, 4.3, 91.6, 58.2, 64.3),
        row("lift", "LiFT", 66.9, 8.7, 2.3, 65.2, 9.4, 53.0),
        row("jafar", "JAFAR", 17.4, 30.9, 6.5, 91.4, 44.1, 73.3),
    ),
)

TABLE_3 = PublishedTable(
    **PAPER,
    id="jafar:table-3",
    title="Open-vocabulary segmentation without training (MaskCLIP)",
    source="table 3",
    setting={"backbone": "CLIP ViT-B/16", "training": "none, MaskCLIP-style"},
    note=(
        "JAFAR's published CLIP weights belong to a classifier and have no text space: the row is "
        "trained with the recipe jafar_maskclip_paper."
    ),
    backbone="clip/ViT-B-16.openai(image_norm='imagenet')",
    gpu_hours=20,
    columns=tuple(
        column
        for data in (VOC, ADE20K, CITYSCAPES)
        for column in columns_of("open-vocabulary", data, "miou accuracy", "maskclip")
    ),
    rows=(
        row("nearest", "Nearest", 24.13, 30.8, 9.33, 24.65, 19.66, 50.27),
        row("bilinear", "Bilinear", 27.87, 35.27, 11.03, 27.78, 21.56, 53.21),
        row("large-2", "Large image (x2)", 23.24, 32.16, 8.08, 24.94, 21.91, 52.22),
        row("featup", "FeatUp", 32.27, 39.78, 13.03, 33.28, 24.76, 60.11),
        row(
            "jafar",
            "JAFAR",
            35.7,
            44.93,
            13.61,
            33.28,
            25.26,
            61.73,
            recipes=("jafar_maskclip_paper",),
        ),
    ),
)

TABLE_4 = PublishedTable(
    **PAPER,
    id="jafar:table-4",
    title="Vehicle segmentation in bird's-eye view",
    source="table 4",
    setting={"backbone": "DINOv2", "batch": 1, "epochs": 100},
    note="IoU of vehicles on the validation split; the upsampler is trained with the rest.",
    backbone=DINOV2,
    gpu_hours=1500,
    columns=tuple(
        column
        for preset in ("simplebev", "pointbev", "bevformer")
        for column in columns_of("bev", "nuscenes", "iou", preset, setting={"preset": preset})
    ),
    rows=(
        row("low-res", "Low-res (input 496x224, no upsampler)", 31.75, 34.89, 33.72),
        row("bilinear", "Bilinear", 33.67, 36.01, 34.18),
        row("featup", "FeatUp", 33.95, 35.38, 34.01),
        row("jafar", "JAFAR", 36.59, 37.2, 36.54),
    ),
)

TABLE_5 = PublishedTable(
    **PAPER,
    id="jafar:table-5",
    title="Ablations of JAFAR: keys and heads",
    source="table 5",
    setting=PROBE,
    note="The order of the rows that vary the heads is our reading.",
    backbone=DINOV2,
    gpu_hours=260,
    columns=probes(VOC, ADE20K, CITYSCAPES),
    rows=(
        row(
            "jafar",
            "JAFAR, keys: linear projection of features",
            80.02,
            94.87,
            37.87,
            73.22,
            52.45,
            90.8,
            key="keys-linear",
            training=('upsampler.config.keys="linear"',),
        ),
        row(
            "jafar",
            "JAFAR, keys: concatenation",
            83.13,
            95.94,
            40.06,
            74.56,
            58.7,
            92.65,
            key="keys-concat",
            training=('upsampler.config.keys="concat"',),
        ),
        row(
            "jafar",
            "JAFAR, keys: SFT modulation",
            84.44,
            96.28,
            40.49,
            74.92,
            61.47,
            93.42,
            key="keys-sft",
        ),
        row(
            "jafar",
            "JAFAR, heads 1",
            84.13,
            96.21,
            40.15,
            74.79,
            60.94,
            93.32,
            key="heads-1",
            training=("upsampler.config.num_heads=1",),
        ),
        row(
            "jafar",
            "JAFAR, heads 2",
            84.27,
            96.27,
            40.42,
            74.95,
            61.19,
            93.42,
            key="heads-2",
            training=("upsampler.config.num_heads=2",),
        ),
        row(
            "jafar",
            "JAFAR, heads 4",
            84.44,
            96.28,
            40.49,
            74.92,
            61.47,
            93.42,
            key="heads-4",
            training=("upsampler.config.num_heads=4",),
        ),
        row(
            "jafar",
            "JAFAR, heads 8",
            83.82,
            96.13,
            40.07,
            74.2,
            60.56,
            93.33,
            key="heads-8",
            training=("upsampler.config.num_heads=8",),
        ),
    ),
)

TABLE_6 = PublishedTable(
    **PAPER,
    id="jafar:table-6",
    title="JAFAR on other backbones",
    source="table 6",
    setting=PROBE,
    note=(
        "We do not have the content of this table. These rows are our reading: the probe of "
        "table 1 with another backbone that has published weights."
    ),
    backbone="timm/vit_base_patch14_dinov2.lvd142m",
    gpu_hours=60,
    columns=probes(VOC),
    rows=(
        row("bilinear", "Bilinear", None, None),
        row("jafar", "JAFAR", None, None),
    ),
)

TABLE_7 = PublishedTable(
    **PAPER,
    id="jafar:table-7",
    title="Beside FeatUp's own checkpoint",
    source="table 7 (official FeatUp checkpoint)",
    setting={"backbone": DINOV2},
    note="Differs from table 1 even for bilinear; the paper does not say why.",
    backbone=DINOV2,
    gpu_hours=50,
    columns=at_sizes(ADE20K, CITYSCAPES, VOC),
    rows=(
        row("bilinear", "Bilinear", 24.5, 38.18, 64.1, 28.19, 49.35, 70.64),
        row("featup", "FeatUp", 29.26, 42.84, 71.9, 32.87, 53.17, 77.57),
        row("jafar", "JAFAR", 30.04, 48.52, 75.36, 32.29, 56.45, 79.06),
    ),
)

TABLE_8 = PublishedTable(
    **PAPER,
    id="jafar:table-8",
    title="Beside LiFT's own checkpoint",
    source="table 8 (official LiFT checkpoint)",
    setting={"backbone": "DINO ViT-S/16"},
    note="Differs from table 1 even for bilinear; the paper does not say why.",
    backbone="timm/vit_small_patch16_224.dino(facet='keys', head_fastest=True, positions='offset')",
    gpu_hours=60,
    columns=at_sizes(ADE20K, CITYSCAPES, VOC),
    rows=(
        row("bilinear", "Bilinear", 15.89, 32.52, 32.15, 16.44, 36.56, 33.13),
        row("lift", "LiFT", 16.97, 36.31, 35.3, 16.98, 40.01, 35.07),
        row("lift-twice", "LiFT applied twice", 15.62, 37.68, 31.25, 14.96, 39.97, 29.43),
        row("jafar", "JAFAR", 21.08, 39.93, 47.36, 21.44, 43.93, 48.18),
    ),
)

TABLE_9 = PublishedTable(
    **PAPER,
    id="jafar:table-9",
    title="JAFAR in LoftUp's code, with and without distillation",
    source="table 9 (LoftUp's code)",
    setting={"backbone": DINOV2},
    note="That the resolution is of input and output is our reading.",
    backbone=DINOV2,
    gpu_hours=120,
    columns=tuple(
        column
        for data in (CITYSCAPES, COCO)
        for column in columns_of("seg-probe", data, "miou accuracy", "loftup")
    ),
    rows=(
        row("loftup", "LoftUp", 15.3, 75.5, 25.33, 54.06, **square("loftup", 56)),
        row("jafar", "JAFAR", 19.09, 79.34, 28.79, 57.86, **square("jafar", 56)),
        row(
            "jafar",
            "JAFAR + distillation",
            18.35,
            79.05,
            28.6,
            57.49,
            recipes=DISTILLED,
            small_recipes=SMALL_DISTILLED,
            **square("jafar-distilled", 56),
        ),
        row("loftup", "LoftUp", 32.02, 86.28, 48.89, 73.09, **square("loftup", 112)),
        row("jafar", "JAFAR", 34.56, 87.19, 50.67, 74.56, **square("jafar", 112)),
        row(
            "jafar",
            "JAFAR + distillation",
            33.63,
            87.47,
            50.76,
            74.6,
            recipes=DISTILLED,
            small_recipes=SMALL_DISTILLED,
            **square("jafar-distilled", 112),
        ),
        row("loftup", "LoftUp", 50.83, 91.55, 59.79, 80.04, **square("loftup", 224)),
        row("jafar", "JAFAR", 51.45, 91.25, 59.76, 79.93, **square("jafar", 224)),
        row(
            "jafar",
            "JAFAR + distillation",
            51.84,
            91.53,
            59.9,
            80.04,
            recipes=DISTILLED,
            small_recipes=SMALL_DISTILLED,
            **square("jafar-distilled", 224),
        ),
        row("loftup", "LoftUp", 62.49, 93.69, 62.25, 81.43, **square("loftup", 448)),
        row("jafar", "JAFAR", 61.49, 93.46, 62.02, 81.3, **square("jafar", 448)),
        row(
            "jafar",
            "JAFAR + distillation",
            62.3,
            93.76,
            62.36,
            81.45,
            recipes=DISTILLED,
            small_recipes=SMALL_DISTILLED,
            **square("jafar-distilled", 448),
        ),
    ),
)

_SIDES = (56, 112, 224, 448)
_COST: dict[str, Any] = {
    "task": "efficiency",
    "data": ("jafar_paper", "jafar_released"),
    "preset": "jafar_paper",
}
# Each of the two tables measures what it prints alone.
_TIME: dict[str, Any] = _COST | {
    "changes": {"passes": ("forward",), "memory": False, "operations": False}
}
_MEMORY: dict[str, Any] = _COST | {"changes": {"memory": True, "operations": False}}

TABLE_10 = PublishedTable(
    **PAPER,
    id="jafar:table-10",
    title="Inference time",
    source="table 10",
    setting={"device": "A100", "batch": 1, "input_size": [448, 448]},
    note="Which output sizes the columns are is our reading.",
    backbone=DINOV2,
    gpu_hours=0.5,
    columns=(
        PublishedColumn(score="parameters", unit="million", **_TIME),
        *(PublishedColumn(score=f"ms_forward_{side}", unit="ms", **_TIME) for side in _SIDES),
    ),
    rows=(
        row("featup", "FeatUp", 0.2, 5.7, 8.0, 14.9, 64.9),
        row("jafar", "JAFAR", 0.7, 4.0, 5.7, 16.6, 94.0),
        row("lift", "LiFT", 1.2, 0.9, 0.9, 1.0, 1.5),
        row("loftup", "LoftUp", 4.3, 3.8, 8.9, 24.5, 145.1),
        row("large-8", "Large image (x8)", None, 6.2, 34.7, 348.0, 5558.0),
        row("strided-1", "Strided (stride 1)", None, 11.4, 136.0, 2482.0, 48090.0),
    ),
)

TABLE_11 = PublishedTable(
    **PAPER,
    id="jafar:table-11",
    title="Peak memory",
    source="table 11",
    setting={"device": "A100", "batch": 1},
    note="The unit is our reading.",
    gpu_hours=0.5,
    columns=(
        PublishedColumn(score="parameters", unit="million", **_MEMORY),
        *(
            PublishedColumn(score=f"mb_{which}_{side}", unit="GB", **_MEMORY)
            for which in ("forward", "backward")
            for side in _SIDES
        ),
    ),
    rows=(
        row("bilinear", "Bilinear", 0.0, 0.4, 0.5, 0.5, 0.8, None, None, None, None),
        row("featup", "FeatUp", 0.2, 0.6, 0.8, 1.6, 4.8, 0.7, 0.9, 2.1, 7.4),
        row("jafar", "JAFAR", 0.7, 0.6, 0.6, 1.1, 7.7, 0.7, 1.1, 3.5, 26.0),
        row("loftup", "LoftUp", 4.3, 0.6, 0.7, 1.8, 12.3, 0.7, 1.3, 4.6, 26.5),
    ),
)

TABLES = (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    TABLE_7,
    TABLE_8,
    TABLE_9,
    TABLE_10,
    TABLE_11,
)

_METHODS = ("bilinear", "featup", "lift", "jafar")
_READING = "That this is what the figure shows is our reading; images and pixels are ours."


def _figure(
    number: int, kind: FigureKind, title: str, methods: tuple[str, ...], **more: Any
) -> Any:
    fields = {"backbone": DINOV2, "note": _READING} | more
    return PublishedFigure(
        **PAPER,
        id=f"jafar:figure-{number}",
        source=f"figure {number}",
        kind=kind,
        title=title,
        methods=methods,
        **fields,
    )


FIGURES = (
    _figure(3, "features", "PCA of upsampled features", ("low-res", *_METHODS)),
    _figure(
        4, "cam", "Class activation maps", _METHODS, data="imagenet", backbone=TABLE_2.backbone
    ),
    _figure(5, "segmentation", "Segmentation by a linear probe", _METHODS, data="voc"),
    _figure(6, "depth", "Depth by a linear probe", _METHODS, data="nyuv2"),
    _figure(7, "features", "More upsampled features", ("low-res", *_METHODS)),
    _figure(8, "attention", "Where output pixels take from", ("bilinear", "jafar")),
)
"""Figures that compare methods."""
