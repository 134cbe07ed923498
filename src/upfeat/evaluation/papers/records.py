"""What is kept of a paper's tables and figures: its numbers, and what makes ours beside them.

A column names a protocol of the registry with preset, set and settings, a row names a method
(:data:`upfeat.evaluation.papers.methods.METHODS`) with what its training changes. Protocols are
named, not imported: a table may be listed before its protocol is there.
"""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from upfeat.evaluation.results import FrozenRecord

__all__ = [
    "FigureKind",
    "PublishedColumn",
    "PublishedFigure",
    "PublishedRow",
    "PublishedTable",
    "columns_of",
    "row",
]

FigureKind = Literal["features", "cam", "segmentation", "depth", "targets", "attention"]


class PublishedColumn(FrozenRecord):
    """One column of a paper's table.

    Attributes:
        task: our name of the protocol.
        data: our name of the set and other names of it; of the preset where a task has no data.
        score: our name of the score.
        unit: of the numbers.
        setting: what the paper says for this column only.
        preset: of our protocol.
        changes: settings of ours that differ from the preset's.
    """

    task: str
    data: tuple[str, ...]
    score: str
    unit: str = "percent"
    setting: dict[str, Any] = Field(default_factory=dict)
    preset: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)


class PublishedRow(FrozenRecord):
    """One row: a method, what holds for this row only, and a number or None for each column.

    Attributes:
        method: as printed.
        uses: name of it in :data:`upfeat.evaluation.papers.methods.METHODS`.
        key: short and unique in its table, for ``--rows``.
        setting: what the paper says for this row only.
        changes: settings of our protocol that differ for this row.
        training: changes of the recipe, ``path=value``; published weights are not taken then.
        recipes: trained instead of the method's own, one after the other.
        small_recipes: the same for a small run.
        values: a number for each column.
    """

    method: str
    uses: str
    key: str
    setting: dict[str, Any] = Field(default_factory=dict)
    changes: dict[str, Any] = Field(default_factory=dict)
    training: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    small_recipes: tuple[str, ...] = ()
    values: tuple[float | None, ...]


class PublishedTable(FrozenRecord):
    """A table of a paper.

    Attributes:
        id: ``PAPER:table-NUMBER``.
        title: what it compares.
        paper: short name.
        arxiv: number.
        source: which table of the paper.
        setting: what the paper says for all numbers.
        note: what else must be known.
        backbone: that we take; empty where the width of the features is enough.
        gpu_hours: our estimate for all rows on one A100, trainings included.
        columns: see :class:`PublishedColumn`.
        rows: see :class:`PublishedRow`.

    Raises:
        ValueError: a row with too few or too many numbers, or two rows of one key.
    """

    id: str
    title: str
    paper: str
    arxiv: str
    source: str
    setting: dict[str, Any] = Field(default_factory=dict)
    note: str = ""
    backbone: str = ""
    gpu_hours: float
    columns: tuple[PublishedColumn, ...]
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _rectangular(self) -> "PublishedTable":
        for each in self.rows:
            if len(each.values) != len(self.columns):
                raise ValueError(f"{self.id}: {each.method} has {len(each.values)} numbers")
        keys = [each.key for each in self.rows]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{self.id}: two rows of one key among {', '.join(keys)}")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """The protocols that it needs."""
        return tuple(dict.fromkeys(column.task for column in self.columns))


class PublishedFigure(FrozenRecord):
    """A figure of a paper that compares methods; its rows are pictures.

    Attributes:
        id: ``PAPER:figure-NUMBER``.
        title: what it shows.
        paper: short name.
        arxiv: number.
        source: which figure of the paper.
        kind: what is drawn.
        methods: rows, as :attr:`PublishedRow.uses`.
        backbone: that we take.
        data: set of its images; of ``features``, ``targets`` and ``attention`` photos do.
        note: what else must be known.
        gpu_hours: our estimate.
    """

    id: str
    title: str
    paper: str
    arxiv: str
    source: str
    kind: FigureKind
    methods: tuple[str, ...]
    backbone: str
    data: str = "photos"
    note: str = ""
    gpu_hours: float = 0.1


def columns_of(
    task: str, data: str | tuple[str, ...], scores: str, preset: str = "", **more: Any
) -> tuple[PublishedColumn, ...]:
    """Return neighbouring columns of one protocol.

    Args:
        task: the protocol.
        data: name of the set, or names.
        scores: names with spaces between.
        preset: of the protocol.
        **more: further fields of all columns.

    Example:
        >>> from upfeat.evaluation.papers.records import columns_of
        >>> [c.score for c in columns_of("vos", "davis2017", "j f jf", "loftup")]
        ['j', 'f', 'jf']
    """
    names = (data,) if isinstance(data, str) else data
    return tuple(
        PublishedColumn(task=task, data=names, score=score, preset=preset, **more)
        for score in scores.split()
    )


def row(uses: str, method: str, *values: float | None, **more: Any) -> PublishedRow:
    """Return a row; its key is the method's name here unless one is given.

    Args:
        uses: see :class:`PublishedRow`.
        method: as printed.
        *values: the numbers.
        **more: further fields.

    Example:
        >>> from upfeat.evaluation.papers.records import row
        >>> row("jafar", "JAFAR (released logs)", 84.4, key="jafar-logs").key
        'jafar-logs'
    """
    key = more.pop("key", None) or re.sub(r"[^\w.]+", "-", uses)
    return PublishedRow(uses=uses, method=method, key=key, values=values, **more)
