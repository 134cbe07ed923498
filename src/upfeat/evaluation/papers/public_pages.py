"""NAF's tables (arXiv 2511.18452) and AnyUp's (Wimmer et al., 2025, arXiv 2510.12764).

Their public pages print hardly a score. NAF's prints measured costs and ranks among four methods,
which stand in the notes. AnyUp's says that segmentation follows JAFAR's protocol with the schedule
advanced once an epoch, with all baselines run anew, and that depth and normals follow Probe3D.
"""

from functools import partial
from typing import Any

from upfeat.evaluation.papers.records import (
    DINOV2,
    PublishedColumn,
    PublishedFigure,
    PublishedRow,
    PublishedTable,
    columns_of,
    row,
    unscored_rows,
)

__all__ = ["FIGURES", "TABLES"]

_NAF: dict[str, Any] = {"paper": "NAF", "arxiv": "2511.18452"}
_ANYUP: dict[str, Any] = {"paper": "AnyUp", "arxiv": "2510.12764"}
_table = partial(PublishedTable, **_NAF)
_FOUR = {"featup": "FeatUp", "jafar": "JAFAR", "anyup": "AnyUp", "naf": "NAF"}
_SIDES = (56, 112, 224, 448, 896)
_COSTS = ("ms_forward=ms", "mb_forward=MB", "ms_backward=ms", "mb_backward=MB", "gflop=GFLOP")


def _ranked(
    name: str, title: str, ranks: str, hours: float, *columns: PublishedColumn
) -> PublishedTable:
    return _table(
        id=f"naf:{name}",
        title=title,
        source=f"{title.lower()} (ranks only)",
        note=f"Only ranks are published: {ranks}.",
        backbone=DINOV2,
        gpu_hours=hours,
        columns=columns,
        rows=unscored_rows(_FOUR, columns),
    )


def _measured(uses: str, channels: int, parameters: str, *costs: str) -> PublishedRow:
    """Return a row of one width: each cost at all output sizes."""
    return row(
        uses,
        _FOUR[uses],
        " ".join((parameters, *costs)),
        key=f"{uses}-{channels}",
        setting={"channels": channels},
        changes={"channels": channels},
    )


def _measured_at_448(uses: str, channels: int, values: str) -> PublishedRow:
    """Return a row of one width: the parameters, then each cost at 448 pixels only."""
    parameters, *costs = values.split()
    return _measured(uses, channels, parameters, *(f"- - - {cost} -" for cost in costs))


_MEASURED = _table(
    id="naf:table-efficiency",
    title="Time, memory and operations",
    source="published measurements",
    setting={"device": "A100 40 GB", "batch": 1},
    note=(
        "Backward: forward and backward together. Means of 10 runs after 5; 5 to 40 % between "
        "runs. Memory above zero, with weights and inputs."
    ),
    gpu_hours=0.5,
    columns=(
        *columns_of("efficiency", "naf", "parameters=million", "naf"),
        *(
            column
            for score, unit in (cost.split("=") for cost in _COSTS)
            for side in _SIDES
            for column in columns_of("efficiency", "naf", f"{score}_{side}={unit}", "naf")
        ),
    ),
    rows=(
        _measured(
            *("featup", 384, "0.17354"),
            "8.87 10.21 18.66 57.11 -",
            "52.4 180.4 677.5 2673.8 -",
            "14.88 22.54 45.86 171.86 -",
            "74.1 284.6 1099.7 4929.1 -",
            "0.98 4.88 20.5 82.97 -",
        ),
        _measured(
            *("anyup", 384, "0.87808"),
            "11.24 18.28 51.71 181.96 744.27",
            "316.0 400.5 1552.5 6162.6 24594.0",
            "38.56 50.12 133.39 502.51 -",
            "719.8 1347.7 4812.1 18675.3 -",
            "7.74 23.01 84.11 328.5 -",
        ),
        _measured(
            *("jafar", 384, "0.62848"),
            "57.25 58.66 64.86 108.14 582.7",
            "604.3 604.3 1439.9 5410.9 21285.8",
            "106.85 124.42 220.74 489.51 -",
            "5923.1 6525.8 8943.2 18613.1 -",
            "6.05 23.22 91.87 366.47 -",
        ),
        _measured(
            *("naf", 384, "0.662528"),
            "39.51 40.17 42.51 56.24 267.94",
            "605.0 605.0 605.0 1786.5 7101.5",
            "88.29 102.53 112.66 163.08 -",
            "3670.4 3684.3 4028.8 6016.5 -",
            "4.14 16.57 66.28 265.12 1060.49",
        ),
        _measured_at_448("featup", 128, "0.0417 44.06 2558.7 117.69 3292.9 12.96"),
        _measured_at_448("anyup", 128, "0.87808 179.09 6161.8 492.87 18375.4 246.65"),
        _measured_at_448("jafar", 128, "0.562688 103.97 5408.4 472.8 18415.3 285.8"),
        _measured_at_448("naf", 128, "0.662528 50.8 1197.8 132.4 5139.8 265.12"),
        _measured_at_448("featup", 768, "0.61706 91.21 2848.2 236.79 6611.2 319.01"),
        _measured_at_448("anyup", 768, "0.87808 190.72 6163.7 495.35 19123.0 451.27"),
        _measured_at_448("jafar", 768, "0.727168 130.61 5412.9 490.33 18909.7 487.47"),
        _measured_at_448("naf", 768, "0.662528 88.83 2669.7 201.99 7487.6 265.12"),
        _measured_at_448("featup", 1024, "1.07658 115.1 2965.6 288.54 9704.0 563.72"),
        _measured_at_448("anyup", 1024, "0.87808 197.64 6164.9 541.67 19421.9 533.12"),
        _measured_at_448("jafar", 1024, "0.79296 140.85 5414.6 491.76 19107.5 568.14"),
        _measured_at_448("naf", 1024, "0.662528 104.49 3258.4 222.74 8468.4 265.12"),
    ),
)

_RESTORATION = _table(
    id="naf:table-restoration",
    title="Restoration of noisy images",
    source="notes in the released file",
    setting={"noise": "gaussian", "deviation": 0.5, "steps": 4000},
    note="PSNR printed for NAF with kernel 15 and width 256.",
    gpu_hours=5,
    columns=columns_of(
        "restoration", "imagenet", "psnr=dB", "gaussian", changes={"deviation": 0.5}
    ),
    rows=(
        row(
            *("naf", "NAF", "24.09"),
            recipes=("naf_restoration_paper",),
            small_recipes=("naf_restoration_small",),
            training=(
                "objective.deviation=[0.5, 0.5]",
                "upsampler.config.kernel_size=15",
                "steps=4000",
            ),
        ),
    ),
)

_SEGMENTED = ("voc", "ade20k_151", "cityscapes", "coco_stuff_27", "kitti360")


# -- AnyUp -----------------------------------------------------------------------------------------

_FIVE = {
    "bilinear": "Bilinear",
    "featup": "FeatUp",
    "loftup": "LoftUp",
    "jafar": "JAFAR",
    "anyup": "AnyUp",
}
_ANYUP_SEGMENTED = ("coco_stuff_27", "voc", "ade20k_151", "cityscapes")


def _unscored(
    name: str, title: str, note: str, hours: float, *columns: PublishedColumn
) -> PublishedTable:
    return PublishedTable(
        id=f"anyup:{name}",
        title=title,
        **_ANYUP,
        source=title.lower(),
        note=f"No numbers are published on the public page. {note}",
        backbone=DINOV2,
        gpu_hours=hours,
        columns=columns,
        rows=unscored_rows(_FIVE, columns),
    )


TABLES = (
    _MEASURED,
    _ranked(
        "table-segmentation",
        "Segmentation",
        "NAF 1, JAFAR 2, AnyUp 3, FeatUp 4",
        200,
        *columns_of("seg-probe", _SEGMENTED, "miou accuracy", "naf"),
    ),
    _ranked(
        "table-depth",
        "Depth",
        "NAF 1, AnyUp 2, JAFAR 3, FeatUp 4",
        20,
        *columns_of("depth-probe", "nyuv2", "d1 rmse=m", "nyu"),
    ),
    _ranked(
        "table-open-vocabulary",
        "Open vocabulary",
        "NAF 1, JAFAR 2, FeatUp 3, AnyUp 4",
        10,
        *columns_of("open-vocabulary", "voc", "miou", "proxyclip"),
    ),
    _ranked(
        "table-video",
        "Video object segmentation",
        "JAFAR 1, NAF 2, AnyUp 3, FeatUp 4",
        5,
        *columns_of("vos", "davis2017", "j f jf", "naf"),
    ),
    _RESTORATION,
    _unscored(
        "table-segmentation",
        "Segmentation",
        "JAFAR's probe with the schedule advanced once an epoch.",
        150,
        *columns_of("seg-probe", _ANYUP_SEGMENTED, "miou accuracy", "anyup"),
    ),
    _unscored(
        "table-geometry",
        "Depth and surface normals",
        "Losses and scores of Probe3D on NYU v2; linear head and training data are our choice.",
        40,
        *columns_of("depth-probe", "nyuv2", "d1 rmse=m", "probe3d-nyu", changes={"head": "linear"}),
        *columns_of(
            "normals-probe",
            "nyuv2",
            "rmse=degrees recall_30",
            "probe3d",
            changes={"head": "linear"},
        ),
    ),
    _unscored(
        "table-faithfulness",
        "Preservation of the feature space",
        "The claim is the paper's, the protocol ours.",
        5,
        *columns_of("faithfulness", "msrc", "pooled_cosine agreement_cosine"),
    ),
)

_figure = partial(PublishedFigure, source="public page", kind="features", backbone=DINOV2)

FIGURES = (
    _figure(
        **_NAF,
        id="naf:figure-features",
        title="Upsampled features of four methods",
        methods=("low-res", "featup", "jafar", "anyup", "naf"),
    ),
    _figure(
        **_ANYUP,
        id="anyup:figure-features",
        title="Upsampled features of several methods",
        methods=("low-res", *_FIVE),
    ),
)
"""Figures that compare methods."""
