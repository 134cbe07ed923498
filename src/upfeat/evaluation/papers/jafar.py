"""JAFAR's tables and figures (Couairon et al., 2025, arXiv 2506.11136).

Numbers are as printed, ``setting`` is what the paper says; the note names what is our reading.
"""

from functools import partial

from upfeat.evaluation.papers.records import (
    ADE20K,
    CITYSCAPES,
    COCO,
    DINOV2,
    VOC,
    PublishedColumn,
    PublishedRow,
    columns_of,
    numbered_figure,
    numbered_table,
    row,
    square,
)

__all__ = ["FIGURES", "TABLES"]

_table = partial(numbered_table, "JAFAR", "2506.11136")
_figure = partial(numbered_figure, "JAFAR", "2506.11136")
_PROBE = {"backbone": DINOV2, "input_size": [448, 448], "output_size": [448, 448], "batch": 4}
_SIDES = (56, 112, 224, 448)


def _probes(data: str, **setting: int) -> tuple[PublishedColumn, ...]:
    return columns_of("seg-probe", data, "miou accuracy", "jafar", setting=setting)


TABLE_1 = _table(
    "1",
    "Linear probes: segmentation and depth",
    setting=_PROBE,
    note="The released probes and logs show batch 2, 19 Cityscapes and 151 ADE20K classes.",
    gpu_hours=260,
    columns=(
        *_probes(COCO, classes=27, epochs=5),
        *_probes(VOC, classes=21, epochs=20),
        *_probes(ADE20K, classes=150, epochs=20),
        *_probes(CITYSCAPES, classes=27, epochs=20),
        *columns_of(
            "depth-probe",
            "coco_stuff_27 coco coco27",
            "d1 rmse=teacher's",
            "jafar",
            setting={"epochs": 5, "teacher": "Depth-Anything-V2-Small"},
        ),
    ),
    rows=(
        row("nearest", "Nearest", "56.17 76.97 76.41 93.8 37.27 71.91 54.05 90.36 58.08 0.7"),
        row("bilinear", "Bilinear", "59.03 79.07 80.7 95.17 39.23 73.69 59.37 92.47 59.92 0.66"),
        row("large-8", "Large image (x8)", "- - 56.94 88.6 26.42 66.39 47.72 92.49 - -"),
        row("strided", "Strided", "55.93 77.4 75.88 93.94 36.15 72.08 59.26 92.57 56.98 0.7"),
        row("carafe", "CARAFE", "59.73 79.65 80.26 95.14 38.3 73.42 56.05 91.83 61.42 0.64"),
        row("sapa", "SAPA", "57.77 78.28 77.02 94.07 35.87 71.85 50.12 90.02 60.34 0.67"),
        row("dysample", "DySample", "59.5 79.42 81.62 95.48 38.99 73.62 59.71 92.69 61.25 0.64"),
        row("resfu", "ReSFU", "60.08 79.84 80.3 95.05 38.91 73.93 55.53 91.62 66.14 0.56"),
        row("featup", "FeatUp (JBU)", "60.1 79.95 81.08 95.32 38.82 73.74 56.06 91.86 61.69 0.64"),
        row("lift", "LiFT", "58.18 78.95 78.06 94.62 38.73 73.69 58.75 92.6 57.04 0.7"),
        row("jafar", "JAFAR", "60.78 80.47 84.44 96.28 40.49 74.92 61.47 93.42 62.18 0.62"),
        row(
            "jafar",
            "JAFAR (released logs)",
            "- - 84.446 96.252 40.289 74.43 61.273 93.355 - -",
            key="jafar-logs",
            setting={"batch": 2},
        ),
    ),
)

TABLE_2 = _table(
    "2",
    "Class activation maps",
    setting={"classifier": "ViT-B/16", "images": 2000, "map_size": [224, 224]},
    note=(
        "ADCC is the harmonic mean of the data set's means. Which weights task-dependent methods "
        "have is not said; ours are those of a segmentation probe on VOC."
    ),
    backbone="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    gpu_hours=30,
    columns=columns_of(
        "cam",
        "imagenet imagenetsample",
        "average_drop average_increase average_gain coherency complexity adcc",
        "jafar",
    ),
    rows=(
        row("bilinear", "Bilinear", "19.0 18.5 3.4 88.8 59.9 61.7"),
        row("large-8", "Large image (x8)", "48.8 12.8 2.5 67.9 38.0 59.5"),
        row("strided", "Strided", "19.8 15.1 3.5 85.9 54.2 65.3"),
        row("carafe", "CARAFE", "49.9 4.8 1.0 66.9 34.9 59.7"),
        row("sapa", "SAPA", "8.5 32.7 4.1 96.5 69.6 55.4"),
        row("dysample", "DySample", "17.8 20.0 3.8 90.2 60.7 61.6"),
        row("resfu", "ReSFU", "14.5 24.0 3.7 92.1 64.2 59.4"),
        row("featup", "FeatUp", "15.3 24.0 4.3 91.6 58.2 64.3"),
        row("lift", "LiFT", "66.9 8.7 2.3 65.2 9.4 53.0"),
        row("jafar", "JAFAR", "17.4 30.9 6.5 91.4 44.1 73.3"),
    ),
)

TABLE_3 = _table(
    "3",
    "Open-vocabulary segmentation without training (MaskCLIP)",
    setting={"backbone": "CLIP ViT-B/16", "training": "none, MaskCLIP-style"},
    note=(
        "JAFAR's published CLIP weights belong to a classifier and have no text space: the row is "
        "trained with the recipe jafar_maskclip_paper."
    ),
    backbone="clip/ViT-B-16.openai(image_norm='imagenet')",
    gpu_hours=20,
    columns=columns_of("open-vocabulary", (VOC, ADE20K, CITYSCAPES), "miou accuracy", "maskclip"),
    rows=(
        row("nearest", "Nearest", "24.13 30.8 9.33 24.65 19.66 50.27"),
        row("bilinear", "Bilinear", "27.87 35.27 11.03 27.78 21.56 53.21"),
        row("large-2", "Large image (x2)", "23.24 32.16 8.08 24.94 21.91 52.22"),
        row("featup", "FeatUp", "32.27 39.78 13.03 33.28 24.76 60.11"),
        row(
            "jafar",
            "JAFAR",
            "35.7 44.93 13.61 33.28 25.26 61.73",
            recipes=("jafar_maskclip_paper",),
        ),
    ),
)

TABLE_4 = _table(
    "4",
    "Vehicle segmentation in bird's-eye view",
    setting={"backbone": "DINOv2", "batch": 1, "epochs": 100},
    note="IoU of vehicles on the validation split; the upsampler is trained with the rest.",
    gpu_hours=1500,
    columns=tuple(
        column
        for preset in ("simplebev", "pointbev", "bevformer")
        for column in columns_of("bev", "nuscenes", "iou", preset, setting={"preset": preset})
    ),
    rows=(
        row("low-res", "Low-res (input 496x224, no upsampler)", "31.75 34.89 33.72"),
        row("bilinear", "Bilinear", "33.67 36.01 34.18"),
        row("featup", "FeatUp", "33.95 35.38 34.01"),
        row("jafar", "JAFAR", "36.59 37.2 36.54"),
    ),
)


def _changed(key: str, name: str, values: str, change: str = "") -> PublishedRow:
    """Return an ablation: JAFAR with one change of its configuration."""
    training = (f"upsampler.config.{change}",) if change else ()
    return row("jafar", f"JAFAR, {name}", values, key=key, training=training)


_FULL = "84.44 96.28 40.49 74.92 61.47 93.42"

TABLE_5 = _table(
    "5",
    "Ablations of JAFAR: keys and heads",
    setting=_PROBE,
    note="The order of the rows that vary the heads is our reading.",
    gpu_hours=260,
    columns=columns_of("seg-probe", (VOC, ADE20K, CITYSCAPES), "miou accuracy", "jafar"),
    rows=(
        _changed(
            "keys-linear",
            "keys: linear projection of features",
            "80.02 94.87 37.87 73.22 52.45 90.8",
            'keys="linear"',
        ),
        _changed(
            "keys-concat",
            "keys: concatenation",
            "83.13 95.94 40.06 74.56 58.7 92.65",
            'keys="concat"',
        ),
        _changed("keys-sft", "keys: SFT modulation", _FULL),
        _changed("heads-1", "heads 1", "84.13 96.21 40.15 74.79 60.94 93.32", "num_heads=1"),
        _changed("heads-2", "heads 2", "84.27 96.27 40.42 74.95 61.19 93.42", "num_heads=2"),
        _changed("heads-4", "heads 4", _FULL, "num_heads=4"),
        _changed("heads-8", "heads 8", "83.82 96.13 40.07 74.2 60.56 93.33", "num_heads=8"),
    ),
)

TABLE_6 = _table(
    "6",
    "JAFAR on other backbones",
    setting=_PROBE,
    note=(
        "We do not have the content of this table. These rows are our reading: the probe of "
        "table 1 with another backbone that has published weights."
    ),
    backbone="timm/vit_base_patch14_dinov2.lvd142m",
    gpu_hours=60,
    columns=_probes(VOC),
    rows=(row("bilinear", "Bilinear", "- -"), row("jafar", "JAFAR", "- -")),
)

# MIoU of each set with crops of 224 pixels, then of 448.
_AT_SIZES = tuple(
    column
    for side in (224, 448)
    for column in columns_of(
        "seg-probe",
        (ADE20K, CITYSCAPES, VOC),
        "miou",
        "jafar",
        setting={"output_size": [side, side]},
        changes={"crop_size": side},
    )
)

TABLE_7 = _table(
    "7",
    "Beside FeatUp's own checkpoint",
    source="table 7 (official FeatUp checkpoint)",
    setting={"backbone": DINOV2},
    note="Differs from table 1 even for bilinear; the paper does not say why.",
    gpu_hours=50,
    columns=_AT_SIZES,
    rows=(
        row("bilinear", "Bilinear", "24.5 38.18 64.1 28.19 49.35 70.64"),
        row("featup", "FeatUp", "29.26 42.84 71.9 32.87 53.17 77.57"),
        row("jafar", "JAFAR", "30.04 48.52 75.36 32.29 56.45 79.06"),
    ),
)

TABLE_8 = _table(
    "8",
    "Beside LiFT's own checkpoint",
    source="table 8 (official LiFT checkpoint)",
    setting={"backbone": "DINO ViT-S/16"},
    note="Differs from table 1 even for bilinear; the paper does not say why.",
    backbone="timm/vit_small_patch16_224.dino(facet='keys', head_fastest=True, positions='offset')",
    gpu_hours=60,
    columns=_AT_SIZES,
    rows=(
        row("bilinear", "Bilinear", "15.89 32.52 32.15 16.44 36.56 33.13"),
        row("lift", "LiFT", "16.97 36.31 35.3 16.98 40.01 35.07"),
        row("lift-twice", "LiFT applied twice", "15.62 37.68 31.25 14.96 39.97 29.43"),
        row("jafar", "JAFAR", "21.08 39.93 47.36 21.44 43.93 48.18"),
    ),
)

_loftup = partial(row, "loftup", "LoftUp")
_jafar = partial(row, "jafar", "JAFAR")
_distilled = partial(
    row,
    "jafar",
    "JAFAR + distillation",
    recipes=("jafar_paper", "jafar_distilled"),
    small_recipes=("jafar_small", "jafar_distilled_small"),
)

TABLE_9 = _table(
    "9",
    "JAFAR in LoftUp's code, with and without distillation",
    source="table 9 (LoftUp's code)",
    setting={"backbone": DINOV2},
    note="That the resolution is of input and output is our reading.",
    gpu_hours=120,
    columns=columns_of("seg-probe", (CITYSCAPES, COCO), "miou accuracy", "loftup"),
    rows=(
        _loftup("15.3 75.5 25.33 54.06", **square("loftup", 56)),
        _jafar("19.09 79.34 28.79 57.86", **square("jafar", 56)),
        _distilled("18.35 79.05 28.6 57.49", **square("jafar-distilled", 56)),
        _loftup("32.02 86.28 48.89 73.09", **square("loftup", 112)),
        _jafar("34.56 87.19 50.67 74.56", **square("jafar", 112)),
        _distilled("33.63 87.47 50.76 74.6", **square("jafar-distilled", 112)),
        _loftup("50.83 91.55 59.79 80.04", **square("loftup", 224)),
        _jafar("51.45 91.25 59.76 79.93", **square("jafar", 224)),
        _distilled("51.84 91.53 59.9 80.04", **square("jafar-distilled", 224)),
        _loftup("62.49 93.69 62.25 81.43", **square("loftup", 448)),
        _jafar("61.49 93.46 62.02 81.3", **square("jafar", 448)),
        _distilled("62.3 93.76 62.36 81.45", **square("jafar-distilled", 448)),
    ),
)

# Each of the two tables measures what it prints alone.
_cost = partial(columns_of, "efficiency", "jafar_paper jafar_released", preset="jafar_paper")
_TIME = {"passes": ("forward",), "memory": False, "operations": False}
_MEMORY = {"memory": True, "operations": False}

TABLE_10 = _table(
    "10",
    "Inference time",
    setting={"device": "A100", "batch": 1, "input_size": [448, 448]},
    note="Which output sizes the columns are is our reading.",
    gpu_hours=0.5,
    columns=_cost(
        " ".join(["parameters=million", *(f"ms_forward_{side}=ms" for side in _SIDES)]),
        changes=_TIME,
    ),
    rows=(
        row("featup", "FeatUp", "0.2 5.7 8.0 14.9 64.9"),
        row("jafar", "JAFAR", "0.7 4.0 5.7 16.6 94.0"),
        row("lift", "LiFT", "1.2 0.9 0.9 1.0 1.5"),
        row("loftup", "LoftUp", "4.3 3.8 8.9 24.5 145.1"),
        row("large-8", "Large image (x8)", "- 6.2 34.7 348.0 5558.0"),
        row("strided-1", "Strided (stride 1)", "- 11.4 136.0 2482.0 48090.0"),
    ),
)

TABLE_11 = _table(
    "11",
    "Peak memory",
    setting={"device": "A100", "batch": 1, "input_size": [448, 448], "channels": 384},
    note="The unit is our reading, and so are input size and channels.",
    backbone="",
    gpu_hours=0.5,
    columns=(
        *_cost("parameters=million", changes=_MEMORY),
        *_cost(" ".join(f"mb_forward_{side}=GB" for side in _SIDES), changes=_MEMORY),
        *_cost(" ".join(f"mb_backward_{side}=GB" for side in _SIDES), changes=_MEMORY),
    ),
    rows=(
        row("bilinear", "Bilinear", "0.0 0.4 0.5 0.5 0.8 - - - -"),
        row("featup", "FeatUp", "0.2 0.6 0.8 1.6 4.8 0.7 0.9 2.1 7.4"),
        row("jafar", "JAFAR", "0.7 0.6 0.6 1.1 7.7 0.7 1.1 3.5 26.0"),
        row("loftup", "LoftUp", "4.3 0.6 0.7 1.8 12.3 0.7 1.3 4.6 26.5"),
    ),
)

TABLES = (
    *(TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6),
    *(TABLE_7, TABLE_8, TABLE_9, TABLE_10, TABLE_11),
)

_METHODS = ("bilinear", "featup", "lift", "jafar")

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
