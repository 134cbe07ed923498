"""What the protocols' scores are called, which way is better, and how they are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from upfeat.evaluation.results import Score

__all__ = [
    "ScoreKind",
    "column_groups",
    "headline",
    "is_cost",
    "score_digits",
    "score_kind",
    "score_text",
]


@dataclass(frozen=True)
class ScoreKind:
    """How a score is read.

    Attributes:
        heading: of its column.
        higher_is_better: None where neither way is.
        unit: where it is not the result's.

    Example:
        >>> from upfeat.evaluation.scores import ScoreKind
        >>> ScoreKind("RMSE", higher_is_better=False, unit="m").arrow
        '↓'
    """

    heading: str
    higher_is_better: bool | None = None
    unit: str | None = None

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else nothing."""
        if self.higher_is_better is None:
            return ""
        return "↑" if self.higher_is_better else "↓"


# Names as the protocols write them. A prefix below may stand before any of them.
_UP: dict[str, str] = {
    "miou": "mIoU",
    "miou_labelled": "mIoU labelled",
    "iou": "IoU",
    "iou_1": "IoU@1",
    "accuracy": "accuracy",
    "d1": "δ1",
    "d2": "δ2",
    "d3": "δ3",
    "j": "J",
    "j_recall": "J recall",
    "f": "F",
    "f_recall": "F recall",
    "jf": "J&F",
    "average_increase": "average increase",
    "average_gain": "average gain",
    "coherency": "coherency",
    "adcc": "ADCC",
    "cosine": "cosine",
    "recall_11": "recall 11.25°",
    "recall_22": "recall 22.5°",
    "recall_30": "recall 30°",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
_DOWN: dict[str, str] = {
    "rmse": "RMSE",
    "rmse_log": "RMSE log",
    "abs_rel": "abs rel",
    "sq_rel": "sq rel",
    "log10": "log10",
    "silog": "SILog",
    "j_decay": "J decay",
    "f_decay": "F decay",
    "average_drop": "average drop",
    "complexity": "complexity",
    "mse": "MSE",
}
# Units of scores in results that have several; the others are in the result's unit.
_UNITS: dict[str, str] = {
    **dict.fromkeys(("d1", "d2", "d3", "cosine"), "percent"),
    **dict.fromkeys(("abs_rel", "rmse_log", "log10", "silog", "mse", "ssim"), ""),
    "psnr": "dB",
}
_COST: dict[str, tuple[str, str]] = {
    "seconds": ("time", "s"),
    "parameters": ("parameters", "million"),
    "ms_forward": ("forward time", "ms"),
    "mb_forward": ("forward memory", "MB"),
    "ms_backward": ("forward and backward time", "ms"),
    "mb_backward": ("forward and backward memory", "MB"),
    "gflop": ("operations", "GFLOP"),
}
_PREFIXES = {
    "band_": "border ",
    "si_": "scale-invariant ",
    "sa_": "scale-aware ",
    "low_res_": "low-res ",
    "transfer_": "low-res probe ",
    "own_": "own probe ",
    "agreement_": "larger-input ",
    "pooled_": "pooled-back ",
}
_SUFFIXES = {"_l0": " (L0)", "_l1": " (L1)", "_per_image": " (per image)", "_labelled": " labelled"}
# The score that ranks and is drawn; for other tasks the first with a direction.
_HEADLINES = {
    "seg-probe": ("miou_labelled", "miou"),
    "depth-probe": ("rmse", "d1"),
    "vos": ("jf",),
    "cam": ("adcc",),
    "faithfulness": ("agreement_cosine",),
}


def score_kind(name: str) -> ScoreKind:
    """Return how a score is read; one that is not known is shown under its own name, unranked.

    Args:
        name: as in :attr:`upfeat.evaluation.results.Result.scores`.

    Example:
        >>> from upfeat.evaluation.scores import score_kind
        >>> score_kind("band_miou").heading, score_kind("average_drop").higher_is_better
        ('border mIoU', False)
        >>> score_kind("colour").higher_is_better is None
        True
    """
    if name in _UP:
        return ScoreKind(_UP[name], True, _UNITS.get(name))
    if name in _DOWN:
        return ScoreKind(_DOWN[name], False, _UNITS.get(name))
    if name in _COST:
        heading, unit = _COST[name]
        return ScoreKind(heading, False, unit)
    for prefix, text in _PREFIXES.items():
        if name.startswith(prefix):
            kind = score_kind(name.removeprefix(prefix))
            return ScoreKind(text + kind.heading, kind.higher_is_better, kind.unit)
    for suffix, text in _SUFFIXES.items():
        if name.endswith(suffix):
            kind = score_kind(name.removesuffix(suffix))
            return ScoreKind(kind.heading + text, kind.higher_is_better, kind.unit)
    stem, size = _stem(name)
    if stem in _COST:
        heading, unit = _COST[stem]
        return ScoreKind(f"{heading} at {size}", False, unit)
    return ScoreKind(name.replace("_", " "))


def is_cost(name: str) -> bool:
    """Return whether a score says what a method costs, not how good it is.

    Example:
        >>> from upfeat.evaluation.scores import is_cost
        >>> is_cost("ms_forward"), is_cost("miou")
        (True, False)
    """
    return _stem(name)[0] in _COST


def _stem(name: str) -> tuple[str, str]:
    """Return a name without the number at its end, and the number: a score at several sizes."""
    stem, _, tail = name.rpartition("_")
    return (stem, tail) if stem and tail.isdecimal() else (name, "")


def column_groups(names: Sequence[str], most: int = 9) -> list[tuple[str, tuple[str, ...]]]:
    """Split more columns than fit a page into tables: scores at several sizes apart from others.

    Args:
        names: of the scores.
        most: so many stay together.

    Returns:
        Heading and names of each table; a single one has no heading.

    Example:
        >>> from upfeat.evaluation.scores import column_groups
        >>> column_groups(["parameters", "ms_forward_56", "ms_forward_112"], most=2)
        [('', ('parameters',)), ('forward time, ms', ('ms_forward_56', 'ms_forward_112'))]
    """
    if len(names) <= most:
        return [("", tuple(names))]
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, tail = _stem(name)
        heading = ""
        if tail and stem in _COST:
            kind = score_kind(stem)
            heading = f"{kind.heading}, {kind.unit}"
        groups.setdefault(heading, []).append(name)
    return [(heading, tuple(members)) for heading, members in groups.items()]


def headline(task: str, names: Sequence[str]) -> str | None:
    """Return the score that a table is ranked by, or None if no score has a direction.

    Args:
        task: the protocol.
        names: the scores that are there.

    Example:
        >>> from upfeat.evaluation.scores import headline
        >>> headline("cam", ["average_drop", "adcc"])
        'adcc'
    """
    wanted = [name for name in _HEADLINES.get(task, ()) if name in names]
    ranked = [name for name in names if score_kind(name).higher_is_better is not None]
    ranked.sort(key=is_cost)
    return next(iter(wanted + ranked), None)


def score_text(score: Score, *, digits: int | None = None) -> str:
    """Return mean and deviation.

    Args:
        score: over the seeds.
        digits: behind the point; None: two from 1 upwards, else as many as show three figures.

    Example:
        >>> from upfeat.evaluation.results import Score
        >>> from upfeat.evaluation.scores import score_text
        >>> score_text(Score.of([70.0, 72.0])), score_text(Score.of([0.01234]))
        ('71.00 ± 1.41', '0.0123')
    """
    if digits is None:
        digits = score_digits([score.mean])
    if score.deviation is None:
        return f"{score.mean:.{digits}f}"
    return f"{score.mean:.{digits}f} ± {score.deviation:.{digits}f}"


def score_digits(values: Sequence[float]) -> int:
    """Return how many digits behind the point a column of values needs.

    Example:
        >>> from upfeat.evaluation.scores import score_digits
        >>> score_digits([71.0, 80.1]), score_digits([0.7, 0.66]), score_digits([12345.0])
        (2, 3, 0)
    """
    largest = max((abs(value) for value in values if value == value), default=1.0)
    for limit, digits in ((1000, 0), (1, 2), (0.1, 3), (0.01, 4)):
        if largest >= limit:
            return digits
    return 2 if largest == 0 else 5
