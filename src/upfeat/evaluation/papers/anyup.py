"""AnyUp's tables and figures (Wimmer et al., 2025, arXiv 2510.12764).

The public page prints no numbers. It says that segmentation follows JAFAR's protocol with the
schedule advanced once an epoch, with all baselines run anew, and that depth and normals follow
Probe3D.
"""

from typing import Any

from upfeat.evaluation.papers.records import (
    PublishedColumn,
    PublishedFigure,
    PublishedTable,
    columns_of,
    row,
)

__all__ = ["FIGURES", "TABLES"]

DINOV2 = "timm/vit_small_patch14_dinov2.lvd142m"
PAPER: dict[str, Any] = {"paper": "AnyUp", "arxiv": "2510.12764"}
METHODS = (
    ("bilinear", "Bilinear"),
    ("featup", "FeatUp"),
    ("loftup", "LoftUp"),
    ("jafar", "JAFAR"),
    ("anyup", "AnyUp"),
)


def _table(name: str, title: str, note: str, hours: float, *columns: PublishedColumn) -> Any:
    return PublishedTable(
        **PAPER,
        id=f"anyup:{name}",
        title=title,
        source=title.lower(),
        note=f"No numbers are published on the public page. {note}",
        backbone=DINOV2,
        gpu_hours=hours,
        columns=columns,
        rows=tuple(row(uses, method, *[None] * len(columns)) for uses, method in METHODS),
    )


TABLES = (
    _table(
        "table-segmentation",
        "Segmentation",
        "JAFAR's probe with the schedule advanced once an epoch.",
        150,
        *(
            column
            for data in ("coco_stuff_27", "voc", "ade20k_151", "cityscapes")
            for column in columns_of("seg-probe", data, "miou accuracy", "anyup")
        ),
    ),
    _table(
        "table-geometry",
        "Depth and surface normals",
        "Losses and scores of Probe3D on NYU v2; head and training data are our choice.",
        40,
        *columns_of("depth-probe", "nyuv2", "d1", "probe3d-nyu"),
        *columns_of("depth-probe", "nyuv2", "rmse", "probe3d-nyu", unit="m"),
        *columns_of("normals-probe", "nyuv2", "rmse", "probe3d", unit="degrees"),
        *columns_of("normals-probe", "nyuv2", "recall_30", "probe3d"),
    ),
    _table(
        "table-faithfulness",
        "Preservation of the feature space",
        "The claim is the paper's, the protocol ours.",
        5,
        *columns_of("faithfulness", "msrc", "pooled_cosine agreement_cosine"),
    ),
)

FIGURES: tuple[PublishedFigure, ...] = (
    PublishedFigure(
        **PAPER,
        id="anyup:figure-features",
        title="Upsampled features of several methods",
        source="public page",
        kind="features",
        methods=("low-res", "bilinear", "featup", "loftup", "jafar", "anyup"),
        backbone=DINOV2,
    ),
)
"""Figures that compare methods."""
