"""Ranks of methods over several tables, by the headline of each."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from upfeat.evaluation.tables.build import Table

__all__ = ["RankRow", "Ranking", "rank_methods"]


@dataclass(frozen=True)
class RankRow:
    """Ranks of one method.

    Attributes:
        name: of the row in the tables.
        ranks: in each table; None where it is missing.
        mean: over all tables; None if one lacks it, for a mean over others says nothing.
        place: 1 or 2 by that mean.
    """

    name: str
    ranks: tuple[float | None, ...]
    mean: float | None
    place: int | None = None


@dataclass(frozen=True)
class Ranking:
    """Ranks over several tables, by the headline of each.

    Attributes:
        tables: those with at least two rows that are ranked by quality.
        rows: methods that every table has first, by their mean rank; then the others.
    """

    tables: tuple[Table, ...]
    rows: tuple[RankRow, ...]

    @property
    def remark(self) -> str:
        """Which score ranks, and what a missing place means."""
        used = dict.fromkeys(
            f"{table.task} by {table.protocol.kind(table.headline).heading}"
            for table in self.tables
            if table.headline is not None
        )
        text = f"Rank in each table: {', '.join(used)}."
        if any(row.mean is None for row in self.rows):
            text += " A method that a table lacks has no mean rank."
        return text

    @property
    def headings(self) -> tuple[str, ...]:
        """A heading for each table, no longer than needed to tell them apart."""
        headings: list[str] = []
        for names in (("data",), ("data", "preset"), ("data", "preset", "backbone", "variant")):
            headings = [
                " · ".join(filter(None, (t.task, *(getattr(t, name) for name in names))))
                for t in self.tables
            ]
            if len(set(headings)) == len(headings):
                break
        return tuple(headings)


def rank_methods(tables: Iterable[Table]) -> Ranking:
    """Return the mean rank of each method that every table has; the others follow without one.

    Quick looks and tables of costs do not count.

    Args:
        tables: of :func:`upfeat.evaluation.tables.build_tables`.

    Example:
        >>> from upfeat.evaluation.tables.ranks import rank_methods
        >>> rank_methods([]).rows
        ()
    """
    counted = tuple(
        table
        for table in tables
        if not table.quick_look
        and table.headline is not None
        and not table.protocol.kind(table.headline).cost
        and sum(row.rank is not None for row in table.rows) > 1
    )
    ranks: dict[str, list[float | None]] = {}
    for index, table in enumerate(counted):
        labels = [row.label for row in table.rows]
        for row in table.rows:
            name = row.name if labels.count(row.label) > 1 else row.label
            if row.rank is not None:
                ranks.setdefault(name, [None] * len(counted))[index] = row.rank
    rows = []
    for name, own in ranks.items():
        known = [rank for rank in own if rank is not None]
        mean = sum(known) / len(known) if len(known) == len(own) else None
        rows.append(RankRow(name, tuple(own), mean))
    means = sorted({row.mean for row in rows if row.mean is not None})
    placed = means[: min(2, len(means) - 1)] if len(means) > 1 else []
    rows = [
        replace(row, place=placed.index(row.mean) + 1) if row.mean in placed else row
        for row in rows
    ]
    rows.sort(key=lambda row: (row.mean is None, row.mean or 0.0, row.name))
    return Ranking(counted, tuple(rows))
