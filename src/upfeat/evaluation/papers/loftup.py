"""LoftUp's tables and figures (Huang et al., 2025, arXiv 2504.14032).

Numbers are as printed, ``setting`` is what the paper says; the note names what is our reading.
"""

from functools import partial
from typing import Any

from upfeat.evaluation.papers.records import (
    ADE20K,
    CITYSCAPES,
    COCO,
    DINOV2,
    PublishedColumn,
    PublishedRow,
    PublishedTable,
    columns_of,
    numbered_figure,
    numbered_table,
    row,
    square,
)

__all__ = ["FIGURES", "TABLES"]

_table = partial(numbered_table, "LoftUp", "2504.14032")
_figure = partial(numbered_figure, "LoftUp", "2504.14032")
_PROBE = {"backbone": DINOV2, "input_size": [224, 224], "output_size": [224, 224]}
# MIoU of COCO-Stuff with 27 and of Cityscapes with 19 classes.
_PROBES = columns_of("seg-probe", (COCO, CITYSCAPES), "miou", "loftup")


def _geometry(depth: str, normals: str) -> tuple[PublishedColumn, ...]:
    """Return scores of depth and normals on NAVI."""
    head = {"head": "DPT, 7 convolutions"}
    return (
        *columns_of("depth-probe", "navi", depth, "navi", setting=head),
        *columns_of("normals-probe", "navi", normals, "loftup", setting=head),
    )


def _target(key: str, recipe: str, name: str, values: str) -> PublishedRow:
    """Return a row of table 2: LoftUp trained with another pseudo ground truth."""
    recipes = {"recipes": (f"{recipe}_paper",), "small_recipes": (f"{recipe}_small",)}
    return row("loftup", f"LoftUp, target: {name}", values, key=key, **(recipes if recipe else {}))


TABLE_2 = _table(
    "2",
    "Choices of the pseudo ground truth",
    setting=_PROBE,
    gpu_hours=200,
    columns=_PROBES,
    rows=(
        _target("depth", "loftup_depth", "depth map", "56.02 44.82"),
        _target(
            "implicit",
            "loftup_implicit",
            "per-image implicit (featup implicit)",
            "59.08 46.05",
        ),
        _target("doubled", "loftup_doubled", "features of the 2x image (lift)", "52.9 35.85"),
        _target("mask-refined", "loftup_stage1", "mask-refined bicubic (stage 1)", "59.87 50.43"),
        _target("self-distilled", "", "self-distilled (stage 2)", "61.11 53.1"),
    ),
)

TABLE_3 = _table(
    "3",
    "Segmentation, depth and surface normals",
    setting=_PROBE,
    note="The depth recall is the scale-invariant one.",
    gpu_hours=120,
    columns=(
        *columns_of("seg-probe", COCO, "miou", "loftup", setting={"classes": 27}),
        *columns_of("seg-probe", CITYSCAPES, "miou", "loftup", setting={"classes": 19}),
        *_geometry("rmse=m si_d1", "rmse=degrees recall_30"),
    ),
    rows=(
        row("low-res", "Low-res", "51.21 36.54 0.1071 89.08 32.29 69.56"),
        row("bilinear", "Bilinear", "56.15 44.79 0.1132 87.68 32.27 70.03"),
        row("lift", "LiFT", "53.35 35.8 0.1078 88.71 32.31 69.78"),
        row("featup", "FeatUp (JBU)", "56.3 44.19 0.1092 88.57 32.25 69.83"),
        row("loftup", "LoftUp", "61.11 53.1 0.0921 91.35 30.79 72.76"),
    ),
)

_PROXY = {
    "method": "ProxyCLIP",
    "backbone": "CLIP ViT-B/16",
    "proxy": "DINOv2-S/14",
    "input_size": [336, 336],
    "factor": 8,
}

TABLE_4 = _table(
    "4",
    "Video objects, open vocabulary, interactive segmentation",
    setting=_PROBE,
    note="That COCO has 171 classes in the open-vocabulary column is our reading.",
    gpu_hours=150,
    columns=(
        *columns_of(
            "vos", "davis2017 davis", "j f jf", "loftup", setting={"output_size": [112] * 2}
        ),
        *columns_of(
            "open-vocabulary",
            ("coco_stuff_171 coco171", CITYSCAPES, ADE20K),
            "miou",
            "proxyclip",
            setting=_PROXY,
        ),
        *columns_of(
            "interactive", ("grabcut", "berkeley", "davis_interactive davis"), "iou_1", "loftup"
        ),
    ),
    rows=(
        row("low-res", "Low-res", "42.05 31.27 36.66 25.7 34.48 19.5 64.9 55.77 52.82"),
        row("bilinear", "Bilinear", "42.62 33.9 38.26 25.78 34.56 19.53 65.04 55.83 54.26"),
        row("lift", "LiFT", "47.68 36.78 42.23 25.96 35.39 19.5 29.66 31.99 41.14"),
        row("featup", "FeatUp", "45.7 42.9 44.3 26.61 35.01 19.99 65.89 56.67 55.03"),
        row("loftup", "LoftUp", "58.72 61.79 60.25 27.82 38.82 21.29 78.49 65.24 67.31"),
    ),
)


def _objective(uses: str, recipe: str, method: str, values: str) -> PublishedRow:
    """Return a row of table 5: another architecture trained in LoftUp's two stages."""
    return row(
        uses,
        f"{method}, LoftUp's objective",
        values,
        recipes=(f"{recipe}_loftup_objective", f"{recipe}_loftup_objective_stage2"),
        small_recipes=(f"{recipe}_loftup_objective_small",),
    )


TABLE_5 = _table(
    "5",
    "Architectures under LoftUp's training objective",
    setting=_PROBE,
    note="The normal recall of LoftUp is printed as 72.61 here and as 72.76 in table 3.",
    gpu_hours=400,
    columns=(*_PROBES, *_geometry("si_d1", "recall_30")),
    rows=(
        row("low-res", "Low-res", "51.21 36.54 89.08 69.56"),
        _objective("resize-conv", "resize_conv", "Resize-conv", "56.05 45.94 88.38 65.59"),
        _objective("liif", "liif", "LIIF", "52.24 40.36 79.85 46.06"),
        _objective("featup", "featup_jbu", "FeatUp-JBU", "57.9 44.83 89.38 68.83"),
        row("loftup", "LoftUp, LoftUp's objective", "61.11 53.1 91.35 72.61"),
    ),
)


def _grid(side: int) -> dict[str, Any]:
    """Return what a row of features on the backbone's own grid has of its own."""
    return square("low-res", side, side // 14)


def _output(side: int, output: int) -> dict[str, Any]:
    """Return what a row of upsampled features of another size than the crops has of its own."""
    sizes = square("loftup", side, output)
    changes = sizes["changes"] | {"target_size": output}
    return sizes | {"key": f"{sizes['key']}-{output}", "changes": changes}


_loftup = partial(row, "loftup", "LoftUp")

TABLE_6 = _table(
    "6",
    "Sizes of input and features",
    setting={"backbone": DINOV2},
    gpu_hours=250,
    columns=_PROBES,
    rows=(
        row("low-res", "Low-res", "51.21 36.54", **_grid(224)),
        row("low-res", "2x larger input", "55.42 50.29", **_grid(448)),
        row("low-res", "4x larger input", "56.79 58.45", **_grid(896)),
        _loftup("59.87 48.2", **_output(224, 56)),
        _loftup("60.75 51.04", **_output(224, 112)),
        _loftup("61.11 53.1", **_output(224, 224)),
        _loftup("60.61 52.29", **_output(224, 448)),
        _loftup("60.16 51.57", **_output(448, 56)),
        _loftup("61.5 56.46", **_output(448, 112)),
        _loftup("61.78 58.55", **_output(448, 224)),
        _loftup("62.26 61.24", **_output(448, 448)),
    ),
)

TABLE_7 = _table(
    "7",
    "Quality, size and time",
    setting={"backbone": DINOV2, "input_size": [224, 224]},
    note=(
        "Printed in seconds an image, backbone and upsampler together; parameters include the "
        "backbone's 22.1 million."
    ),
    gpu_hours=900,
    columns=(
        *_PROBES,
        *columns_of("efficiency", "loftup", "parameters=million ms_forward_224=ms", "loftup"),
    ),
    rows=(
        row("bilinear", "Bilinear", "56.15 44.79 22.1 60.4"),
        row("resize-conv", "Resize-conv", "56.05 45.94 27.5 92.2"),
        row("liif", "LIIF", "52.24 40.36 24.0 175.7"),
        row("lift", "LiFT", "53.35 35.8 23.3 77.3"),
        row("featup", "FeatUp-JBU", "57.9 44.83 22.3 121.3"),
        row("featup-implicit", "FeatUp-implicit", "51.12 44.81 22.5 54302.0"),
        row("loftup", "LoftUp", "61.11 53.1 26.4 89.3"),
    ),
)


def _other_backbone(
    number: str, name: str, backbone: str, gpu_hours: int, values: dict[int, str]
) -> PublishedTable:
    """Return table B.1 or B.2: two sizes of crops, whose output size is not said.

    ``values`` has, for each size, low-res, bilinear, FeatUp and LoftUp, separated by slashes.
    """
    methods, rows = ("Low-res", "Bilinear", "FeatUp", "LoftUp"), []
    for side, texts in values.items():
        for method, text in zip(methods, texts.split("/"), strict=True):
            sizes = square(method.lower(), side) | {"setting": {"input_size": [side, side]}}
            rows.append(row(method.lower(), method, text, **sizes))
    return _table(
        number,
        name,
        setting={"backbone": name},
        backbone=backbone,
        gpu_hours=gpu_hours,
        columns=_PROBES,
        rows=tuple(rows),
    )


TABLE_B1 = _other_backbone(
    "B.1",
    "CLIP ViT-B/16",
    "clip/ViT-B-16.openai(image_norm='imagenet')",
    120,
    {
        224: "40.3 30.79/47.12 39.84/52.08 33.5/52.58 44.66",
        448: "42.14 37.36/48.32 45.58/52.55 40.0/53.87 50.14",
    },
)
TABLE_B2 = _other_backbone(
    "B.2",
    "RADIO",
    "radio/radio_v2.5-b",
    200,
    {
        224: "51.0 34.42/56.77 43.09/56.59 42.23/58.36 46.98",
        448: "58.94 49.3/62.29 57.42/62.18 56.58/63.55 60.83",
    },
)


def _stage1(position: str, kernel: int, layers: int, images: str, values: str) -> PublishedRow:
    """Return a row of table B.3: the first stage with another architecture or less data."""
    limit = {"50k": ("data.limit=50000",), "200k": ("data.limit=200000",), "1M": ()}[images]
    size = f"{kernel}x{kernel}"
    return row(
        "loftup",
        f"LoftUp stage 1: {position} code, {size} convolution, {layers} blocks, {images} images",
        values,
        key=f"{position}-{size}-{layers}-{images}",
        training=(
            f'upsampler.config.position="{position}"',
            f"upsampler.config.conv_kernel={kernel}",
            f"upsampler.config.num_layers={layers}",
            *limit,
        ),
        recipes=("loftup_stage1_paper",),
        small_recipes=("loftup_stage1_small",),
    )


TABLE_B3 = _table(
    "B.3",
    "Ablations of the first stage: architecture and data",
    setting=_PROBE,
    gpu_hours=500,
    columns=_PROBES,
    rows=(
        _stage1("none", 1, 2, "50k", "56.46 43.13"),
        _stage1("learnable", 1, 2, "50k", "57.89 46.06"),
        _stage1("learnable", 3, 2, "50k", "58.4 47.35"),
        _stage1("sine", 1, 2, "50k", "58.1 47.24"),
        _stage1("sine", 3, 2, "50k", "58.65 48.63"),
        _stage1("sine", 3, 1, "50k", "57.94 48.13"),
        _stage1("sine", 3, 3, "50k", "58.35 48.32"),
        _stage1("sine", 3, 2, "200k", "59.4 49.84"),
        _stage1("sine", 3, 2, "1M", "59.87 50.43"),
    ),
)

TABLES = (
    *(TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7),
    *(TABLE_B1, TABLE_B2, TABLE_B3),
)

_METHODS = ("bilinear", "featup", "lift", "loftup")

FIGURES = (
    _figure(2, "features", "Upsampled features", ("low-res", *_METHODS)),
    _figure(5, "targets", "Pseudo ground truths", ("loftup",)),
    _figure(6, "features", "Features of several methods", ("low-res", *_METHODS)),
    _figure(7, "segmentation", "Segmentation by a linear probe", _METHODS, data="cityscapes"),
    _figure(8, "attention", "Attended regions", ("bilinear", "loftup"), note=""),
)
"""Figures that compare methods."""
