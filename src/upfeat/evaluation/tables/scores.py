"""How a score is read: its heading, which way is better, its unit; and how it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from upfeat.evaluation.results import Score

__all__ = [
    "ScoreKind",
    "column_groups",
    "cost",
    "higher",
    "lower",
    "prefixed",
    "score_digits",
    "score_text",
    "unit_text",
]


@dataclass(frozen=True)
class ScoreKind:
    """How a score is read.

    Attributes:
        heading: of its column.
        higher_is_better: None where neither way is.
        unit: where it is not the result's.
        cost: it says what a method costs, not how good it is.
        group: heading of a table of its own for the columns that share it.

    Example:
        >>> from upfeat.evaluation.tables.scores import ScoreKind
        >>> ScoreKind("RMSE", higher_is_better=False, unit="m").arrow
        '↓'
    """

    heading: str
    higher_is_better: bool | None = None
    unit: str | None = None
    cost: bool = False
    group: str = ""

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else nothing."""
        if self.higher_is_better is None:
            return ""
        return "↑" if self.higher_is_better else "↓"

    def column(self, unit: str) -> str:
        """Return the heading with unit and arrow.

        Args:
            unit: of the result, for a score without one of its own.

        Example:
            >>> from upfeat.evaluation.tables.scores import higher
            >>> higher("mIoU").column("percent")
            'mIoU, % ↑'
        """
        text = unit_text(unit if self.unit is None else self.unit)
        return f"{self.heading}{f', {text}' if text else ''} {self.arrow}".strip()


def higher(heading: str, unit: str | None = None) -> ScoreKind:
    """Return a score of which more is better; the unit is the result's if none is given."""
    return ScoreKind(heading, True, unit)


def lower(heading: str, unit: str | None = None) -> ScoreKind:
    """Return a score of which less is better; the unit is the result's if none is given."""
    return ScoreKind(heading, False, unit)


def cost(heading: str, unit: str) -> ScoreKind:
    """Return what a method costs: ranked last, and never beside qualities."""
    return ScoreKind(heading, False, unit, cost=True)


def prefixed(scores: Mapping[str, ScoreKind], name: str, heading: str) -> dict[str, ScoreKind]:
    """Return scores with something before each name and heading.

    Args:
        scores: as a protocol declares them.
        name: before the names.
        heading: before the headings.

    Example:
        >>> from upfeat.evaluation.tables.scores import higher, prefixed
        >>> prefixed({"miou": higher("mIoU")}, "band_", "border ")["band_miou"].heading
        'border mIoU'
    """
    return {
        f"{name}{score}": replace(kind, heading=f"{heading}{kind.heading}")
        for score, kind in scores.items()
    }


def unit_text(unit: str) -> str:
    """Return a unit as it stands in a heading.

    Example:
        >>> from upfeat.evaluation.tables.scores import unit_text
        >>> unit_text("percent"), unit_text("fraction"), unit_text("m")
        ('%', '', 'm')
    """
    return {"percent": "%", "fraction": ""}.get(unit, unit)


def column_groups(
    kinds: Mapping[str, ScoreKind], most: int = 9
) -> list[tuple[str, tuple[str, ...]]]:
    """Split more columns than fit a page into tables: scores at several sizes apart from others.

    Args:
        kinds: the scores by their names.
        most: so many stay together.

    Returns:
        Heading and names of each table; a single one has no heading.

    Example:
        >>> from upfeat.evaluation.registry import get_protocol
        >>> from upfeat.evaluation.tables.scores import column_groups
        >>> names = ["parameters", "ms_forward_56", "ms_forward_112"]
        >>> column_groups({name: get_protocol("efficiency").kind(name) for name in names}, most=2)
        [('', ('parameters',)), ('forward time, ms', ('ms_forward_56', 'ms_forward_112'))]
    """
    if len(kinds) <= most:
        return [("", tuple(kinds))]
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind.group, []).append(name)
    return [(heading, tuple(members)) for heading, members in groups.items()]


def score_text(score: Score, *, digits: int | None = None) -> str:
    """Return mean and deviation.

    Args:
        score: over the seeds.
        digits: behind the point; None: two from 1 upwards, else as many as show three figures.

    Example:
        >>> from upfeat.evaluation.results import Score
        >>> from upfeat.evaluation.tables.scores import score_text
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
        >>> from upfeat.evaluation.tables.scores import score_digits
        >>> score_digits([71.0, 80.1]), score_digits([0.7, 0.66]), score_digits([12345.0])
        (2, 3, 0)
    """
    largest = max((abs(value) for value in values if value == value), default=1.0)
    for limit, digits in ((1000, 0), (1, 2), (0.1, 3), (0.01, 4)):
        if largest >= limit:
            return digits
    return 2 if largest == 0 else 5
