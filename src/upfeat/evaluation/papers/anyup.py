"""AnyUp's tables and figures (Wimmer et al., 2025, arXiv 2510.12764).

The public page prints no numbers. It says that segmentation follows JAFAR's protocol with the
schedule advanced once an epoch, with all baselines run anew, and that depth and normals follow
Probe3D.
"""

from upfeat.evaluation.papers.records import (
    DINOV2,
    PublishedColumn,
    PublishedFigure,
    PublishedTable,
    columns_of,
    unscored_rows,
)

__all__ = ["FIGURES", "TABLES"]

_METHODS = {
    "bilinear": "Bilinear",
    "featup": "FeatUp",
    "loftup": "LoftUp",
    "jafar": "JAFAR",
    "anyup": "AnyUp",
}


def _table(
    name: str, title: str, note: str, hours: float, *columns: PublishedColumn
) -> PublishedTable:
    return PublishedTable(
        id=f"anyup:{name}",
        title=title,
        paper="AnyUp",
        arxiv="2510.12764",
        source=title.lower(),
        note=f"No numbers are published on the public page. {note}",
        backbone=DINOV2,
        gpu_hours=hours,
        columns=columns,
        rows=unscored_rows(_METHODS, columns),
    )


_SEGMENTED = ("coco_stuff_27", "voc", "ade20k_151", "cityscapes")

TABLES = (
    _table(
        "table-segmentation",
        "Segmentation",
        "JAFAR's probe with the schedule advanced once an epoch.",
        150,
        *columns_of("seg-probe", _SEGMENTED, "miou accuracy", "anyup"),
    ),
    _table(
        "table-geometry",
        "Depth and surface normals",
        "Losses and scores of Probe3D on NYU v2; head and training data are our choice.",
        40,
        *columns_of("depth-probe", "nyuv2", "d1 rmse=m", "probe3d-nyu"),
        *columns_of("normals-probe", "nyuv2", "rmse=degrees recall_30", "probe3d"),
    ),
    _table(
        "table-faithfulness",
        "Preservation of the feature space",
        "The claim is the paper's, the protocol ours.",
        5,
        *columns_of("faithfulness", "msrc", "pooled_cosine agreement_cosine"),
    ),
)

FIGURES = (
    PublishedFigure(
        id="anyup:figure-features",
        title="Upsampled features of several methods",
        paper="AnyUp",
        arxiv="2510.12764",
        source="public page",
        kind="features",
        methods=("low-res", *_METHODS),
        backbone=DINOV2,
    ),
)
"""Figures that compare methods."""
