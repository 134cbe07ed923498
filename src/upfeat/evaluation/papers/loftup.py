"""LoftUp's tables and figures (Huang et al., 2025, arXiv 2504.14032).

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
PAPER: dict[str, Any] = {"paper": "LoftUp", "arxiv": "2504.14032"}
PROBE = {"backbone": DINOV2, "input_size": [224, 224], "output_size": [224, 224]}
COCO = ("coco_stuff_27", "coco27")
CITYSCAPES = ("cityscapes", "cityscapes19", "cityscapes27")
STAGE_1 = ("loftup_stage1_paper",)
SMALL_STAGE_1 = ("loftup_stage1_small",)


def probes(**more: Any) -> tuple[PublishedColumn, ...]:
    """MIoU of COCO-Stuff with 27 and of Cityscapes with 19 classes."""
    return tuple(
        column
        for data in (COCO, CITYSCAPES)
        for column in columns_of("seg-probe", data, "miou", "loftup", **more)
    )


def geometry(depth: str, normals: str) -> tuple[PublishedColumn, ...]:
    """Scores of depth and normals on NAVI."""
    head = {"head": "DPT, 7 convolutions"}
    units = {"rmse": "m"}
    return (
        *(
            PublishedColumn(
                task="depth-probe",
                data=("navi",),
                score=score,
                unit=units.get(score, "percent"),
                setting=head,
                preset="navi",
            )
            for score in depth.split()
        ),
        *(
            PublishedColumn(
                task="normals-probe",
                data=("navi",),
                score=score,
                unit="degrees" if score == "rmse" else "percent",
                setting=head,
                preset="loftup",
            )
            for score in normals.split()
        ),
    )


def square(key: str, side: int, output: bool = True) -> dict[str, Any]:
    """What a row has of its own whose crops have this side."""
    setting = {"input_size": [side, side]} | ({"output_size": [side, side]} if output else {})
    return {"key": f"{key}-{side}", "setting": setting, "changes": {"crop_size": side}}


def grid(key: str, side: int) -> dict[str, Any]:
    """The same for features on the backbone's own grid."""
    setting = {"input_size": [side, side], "output_size": [side // 14] * 2}
    return {"key": f"{key}-{side}", "setting": setting, "changes": {"crop_size": side}}


def sizes(key: str, side: int, output: int) -> dict[str, Any]:
    """The same for upsampled features of another size."""
    return {
        "key": f"{key}-{side}-{output}",
        "setting": {"input_size": [side, side], "output_size": [output, output]},
        "changes": {"crop_size": side, "target_size": output},
    }


def objective(name: str) -> dict[str, Any]:
    """Recipes of another architecture under LoftUp's two stages."""
    return {
        "recipes": (f"{name}_loftup_objective", f"{name}_loftup_objective_stage2"),
        "small_recipes": (f"{name}_loftup_objective_small",),
    }


def stage1(position: str, kernel: int, layers: int, images: str) -> dict[str, Any]:
    """What the first stage's training changes for a row of table B.3."""
    number = {"50k": 50_000, "200k": 200_000, "1M": None}[images]
    changed = (
        f'upsampler.config.position="{position}"',
        f"upsampler.config.conv_kernel={kernel}",
        f"upsampler.config.num_layers={layers}",
    )
    limited = () if number is None else (f"data.limit={number}",)
    return {
        "key": f"{position}-{kernel}x{kernel}-{layers}-{images}",
        "training": (*changed, *limited),
        "recipes": STAGE_1,
        "small_recipes": SMALL_STAGE_1,
    }


TABLE_2 = PublishedTable(
    **PAPER,
    id="loftup:table-2",
    title="Choices of the pseudo ground truth",
    source="table 2",
    setting=PROBE,
    backbone=DINOV2,
    gpu_hours=200,
    columns=probes(),
    rows=(
        row(
            "loftup",
            "LoftUp, target: depth map",
            56.02,
            44.82,
            key="depth",
            recipes=("loftup_depth_paper",),
            small_recipes=("loftup_depth_small",),
        ),
        row(
            "loftup",
            "LoftUp, target: per-image implicit (featup implicit)",
            59.08,
            46.05,
            key="implicit",
            recipes=("loftup_implicit_paper",),
            small_recipes=("loftup_implicit_small",),
        ),
        row(
            "loftup",
            "LoftUp, target: features of the 2x image (lift)",
            52.9,
            35.85,
            key="doubled",
            recipes=("loftup_doubled_paper",),
            small_recipes=("loftup_doubled_small",),
        ),
        row(
            "loftup",
            "LoftUp, target: mask-refined bicubic (stage 1)",
            59.87,
            50.43,
            key="mask-refined",
            recipes=STAGE_1,
            small_recipes=SMALL_STAGE_1,
        ),
        row(
            "loftup", "LoftUp, target: self-distilled (stage 2)", 61.11, 53.1, key="self-distilled"
        ),
    ),
)

TABLE_3 = PublishedTable(
    **PAPER,
    id="loftup:table-3",
    title="Segmentation, depth and surface normals",
    source="table 3",
    setting=PROBE,
    note="The depth recall is the scale-invariant one.",
    backbone=DINOV2,
    gpu_hours=120,
    columns=(
        *columns_of("seg-probe", COCO, "miou", "loftup", setting={"classes": 27}),
        *columns_of("seg-probe", CITYSCAPES, "miou", "loftup", setting={"classes": 19}),
        *geometry("rmse si_d1", "rmse recall_30"),
    ),
    rows=(
        row("low-res", "Low-res", 51.21, 36.54, 0.1071, 89.08, 32.29, 69.56),
        row("bilinear", "Bilinear", 56.15, 44.79, 0.1132, 87.68, 32.27, 70.03),
        row("lift", "LiFT", 53.35, 35.8, 0.1078, 88.71, 32.31, 69.78),
        row("featup", "FeatUp (JBU)", 56.3, 44.19, 0.1092, 88.57, 32.25, 69.83),
        row("loftup", "LoftUp", 61.11, 53.1, 0.0921, 91.35, 30.79, 72.76),
    ),
)

_PROXY = {
    "method": "ProxyCLIP",
    "backbone": "CLIP ViT-B/16",
    "proxy": "DINOv2-S/14",
    "input_size": [336, 336],
    "factor": 8,
}

TABLE_4 = PublishedTable(
    **PAPER,
    id="loftup:table-4",
    title="Video objects, open vocabulary, interactive segmentation",
    source="table 4",
    setting=PROBE,
    note="That COCO has 171 classes in the open-vocabulary column is our reading.",
    backbone=DINOV2,
    gpu_hours=150,
    columns=(
        *columns_of(
            "vos", ("davis2017", "davis"), "j f jf", "loftup", setting={"output_size": [112, 112]}
        ),
        *(
            column
            for data in (
                ("coco_stuff_171", "coco171"),
                CITYSCAPES,
                ("ade20k", "ade20k151", "ade20k150"),
            )
            for column in columns_of("open-vocabulary", data, "miou", "proxyclip", setting=_PROXY)
        ),
        *columns_of("interactive", "grabcut", "iou_1", "loftup"),
        *columns_of("interactive", "berkeley", "iou_1", "loftup"),
        *columns_of("interactive", ("davis_interactive", "davis"), "iou_1", "loftup"),
    ),
    rows=(
        row("low-res", "Low-res", 42.05, 31.27, 36.66, 25.7, 34.48, 19.5, 64.9, 55.77, 52.82),
        row("bilinear", "Bilinear", 42.62, 33.9, 38.26, 25.78, 34.56, 19.53, 65.04, 55.83, 54.26),
        row("lift", "LiFT", 47.68, 36.78, 42.23, 25.96, 35.39, 19.5, 29.66, 31.99, 41.14),
        row("featup", "FeatUp", 45.7, 42.9, 44.3, 26.61, 35.01, 19.99, 65.89, 56.67, 55.03),
        row("loftup", "LoftUp", 58.72, 61.79, 60.25, 27.82, 38.82, 21.29, 78.49, 65.24, 67.31),
    ),
)

TABLE_5 = PublishedTable(
    **PAPER,
    id="loftup:table-5",
    title="Architectures under LoftUp's training objective",
    source="table 5",
    setting=PROBE,
    note="The normal recall of LoftUp is printed as 72.61 here and as 72.76 in table 3.",
    backbone=DINOV2,
    gpu_hours=400,
    columns=(*probes(), *geometry("si_d1", "recall_30")),
    rows=(
        row("low-res", "Low-res", 51.21, 36.54, 89.08, 69.56),
        row(
            "resize-conv",
            "Resize-conv, LoftUp's objective",
            56.05,
            45.94,
            88.38,
            65.59,
            **objective("resize_conv"),
        ),
        row("liif", "LIIF, LoftUp's objective", 52.24, 40.36, 79.85, 46.06, **objective("liif")),
        row(
            "featup",
            "FeatUp-JBU, LoftUp's objective",
            57.9,
            44.83,
            89.38,
            68.83,
            **objective("featup_jbu"),
        ),
        row("loftup", "LoftUp, LoftUp's objective", 61.11, 53.1, 91.35, 72.61),
    ),
)

TABLE_6 = PublishedTable(
    **PAPER,
    id="loftup:table-6",
    title="Sizes of input and features",
    source="table 6",
    setting={"backbone": DINOV2},
    backbone=DINOV2,
    gpu_hours=250,
    columns=probes(),
    rows=(
        row("low-res", "Low-res", 51.21, 36.54, **grid("low-res", 224)),
        row("low-res", "2x larger input", 55.42, 50.29, **grid("low-res", 448)),
        row("low-res", "4x larger input", 56.79, 58.45, **grid("low-res", 896)),
        row("loftup", "LoftUp", 59.87, 48.2, **sizes("loftup", 224, 56)),
        row("loftup", "LoftUp", 60.75, 51.04, **sizes("loftup", 224, 112)),
        row("loftup", "LoftUp", 61.11, 53.1, **sizes("loftup", 224, 224)),
        row("loftup", "LoftUp", 60.61, 52.29, **sizes("loftup", 224, 448)),
        row("loftup", "LoftUp", 60.16, 51.57, **sizes("loftup", 448, 56)),
        row("loftup", "LoftUp", 61.5, 56.46, **sizes("loftup", 448, 112)),
        row("loftup", "LoftUp", 61.78, 58.55, **sizes("loftup", 448, 224)),
        row("loftup", "LoftUp", 62.26, 61.24, **sizes("loftup", 448, 448)),
    ),
)

TABLE_7 = PublishedTable(
    **PAPER,
    id="loftup:table-7",
    title="Quality, size and time",
    source="table 7",
    setting={"backbone": DINOV2, "input_size": [224, 224]},
    note=(
        "Printed in seconds an image, backbone and upsampler together; parameters include the "
        "backbone's 22.1 million."
    ),
    backbone=DINOV2,
    gpu_hours=900,
    columns=(
        *probes(),
        PublishedColumn(
            task="efficiency",
            data=("loftup",),
            score="parameters",
            unit="million",
            preset="loftup",
        ),
        PublishedColumn(
            task="efficiency",
            data=("loftup",),
            score="ms_forward_224",
            unit="ms",
            preset="loftup",
        ),
    ),
    rows=(
        row("bilinear", "Bilinear", 56.15, 44.79, 22.1, 60.4),
        row("resize-conv", "Resize-conv", 56.05, 45.94, 27.5, 92.2),
        row("liif", "LIIF", 52.24, 40.36, 24.0, 175.7),
        row("lift", "LiFT", 53.35, 35.8, 23.3, 77.3),
        row("featup", "FeatUp-JBU", 57.9, 44.83, 22.3, 121.3),
        row("featup-implicit", "FeatUp-implicit", 51.12, 44.81, 22.5, 54302.0),
        row("loftup", "LoftUp", 61.11, 53.1, 26.4, 89.3),
    ),
)

TABLE_B1 = PublishedTable(
    **PAPER,
    id="loftup:table-b.1",
    title="CLIP ViT-B/16",
    source="table B.1",
    setting={"backbone": "CLIP ViT-B/16"},
    backbone="clip/ViT-B-16.openai(image_norm='imagenet')",
    gpu_hours=120,
    columns=probes(),
    rows=(
        row("low-res", "Low-res", 40.3, 30.79, **square("low-res", 224, output=False)),
        row("bilinear", "Bilinear", 47.12, 39.84, **square("bilinear", 224, output=False)),
        row("featup", "FeatUp", 52.08, 33.5, **square("featup", 224, output=False)),
        row("loftup", "LoftUp", 52.58, 44.66, **square("loftup", 224, output=False)),
        row("low-res", "Low-res", 42.14, 37.36, **square("low-res", 448, output=False)),
        row("bilinear", "Bilinear", 48.32, 45.58, **square("bilinear", 448, output=False)),
        row("featup", "FeatUp", 52.55, 40.0, **square("featup", 448, output=False)),
        row("loftup", "LoftUp", 53.87, 50.14, **square("loftup", 448, output=False)),
    ),
)

TABLE_B2 = PublishedTable(
    **PAPER,
    id="loftup:table-b.2",
    title="RADIO",
    source="table B.2",
    setting={"backbone": "RADIO"},
    backbone="radio/radio_v2.5-b",
    gpu_hours=200,
    columns=probes(),
    rows=(
        row("low-res", "Low-res", 51.0, 34.42, **square("low-res", 224, output=False)),
        row("bilinear", "Bilinear", 56.77, 43.09, **square("bilinear", 224, output=False)),
        row("featup", "FeatUp", 56.59, 42.23, **square("featup", 224, output=False)),
        row("loftup", "LoftUp", 58.36, 46.98, **square("loftup", 224, output=False)),
        row("low-res", "Low-res", 58.94, 49.3, **square("low-res", 448, output=False)),
        row("bilinear", "Bilinear", 62.29, 57.42, **square("bilinear", 448, output=False)),
        row("featup", "FeatUp", 62.18, 56.58, **square("featup", 448, output=False)),
        row("loftup", "LoftUp", 63.55, 60.83, **square("loftup", 448, output=False)),
    ),
)

TABLE_B3 = PublishedTable(
    **PAPER,
    id="loftup:table-b.3",
    title="Ablations of the first stage: architecture and data",
    source="table B.3",
    setting=PROBE,
    backbone=DINOV2,
    gpu_hours=500,
    columns=probes(),
    rows=(
        row(
            "loftup",
            "LoftUp stage 1: none code, 1x1 convolution, 2 blocks, 50k images",
            56.46,
            43.13,
            **stage1("none", 1, 2, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: learnable code, 1x1 convolution, 2 blocks, 50k images",
            57.89,
            46.06,
            **stage1("learnable", 1, 2, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: learnable code, 3x3 convolution, 2 blocks, 50k images",
            58.4,
            47.35,
            **stage1("learnable", 3, 2, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 1x1 convolution, 2 blocks, 50k images",
            58.1,
            47.24,
            **stage1("sine", 1, 2, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 3x3 convolution, 2 blocks, 50k images",
            58.65,
            48.63,
            **stage1("sine", 3, 2, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 3x3 convolution, 1 blocks, 50k images",
            57.94,
            48.13,
            **stage1("sine", 3, 1, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 3x3 convolution, 3 blocks, 50k images",
            58.35,
            48.32,
            **stage1("sine", 3, 3, "50k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 3x3 convolution, 2 blocks, 200k images",
            59.4,
            49.84,
            **stage1("sine", 3, 2, "200k"),
        ),
        row(
            "loftup",
            "LoftUp stage 1: sine code, 3x3 convolution, 2 blocks, 1M images",
            59.87,
            50.43,
            **stage1("sine", 3, 2, "1M"),
        ),
    ),
)

TABLES = (
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    TABLE_7,
    TABLE_B1,
    TABLE_B2,
    TABLE_B3,
)

_METHODS = ("bilinear", "featup", "lift", "loftup")
_READING = "That this is what the figure shows is our reading; images and pixels are ours."


def _figure(
    number: int, kind: FigureKind, title: str, methods: tuple[str, ...], **more: Any
) -> Any:
    fields = {"note": _READING} | more
    return PublishedFigure(
        **PAPER,
        id=f"loftup:figure-{number}",
        source=f"figure {number}",
        kind=kind,
        title=title,
        methods=methods,
        backbone=DINOV2,
        **fields,
    )


FIGURES = (
    _figure(2, "features", "Upsampled features", ("low-res", *_METHODS)),
    _figure(5, "targets", "Pseudo ground truths", ("loftup",)),
    _figure(6, "features", "Features of several methods", ("low-res", *_METHODS)),
    _figure(7, "segmentation", "Segmentation by a linear probe", _METHODS, data="cityscapes"),
    _figure(8, "attention", "Attended regions", ("bilinear", "loftup"), note=""),
)
"""Figures that compare methods."""
