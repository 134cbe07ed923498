"""What is kept of a paper's tables and figures: its numbers, and what makes ours beside them.

A column names a protocol of the registry with preset, set and settings, a row names a method
(:data:`upfeat.evaluation.papers.sources.METHODS`) with what its training changes. Protocols are
named, not imported: a table may be listed before its protocol is there.
"""

import re
from collections.abc import Mapping, Sequence
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
    "numbered_figure",
    "numbered_table",
    "row",
    "unscored_rows",
]

DINOV2 = "timm/vit_small_patch14_dinov2.lvd142m"
COCO = "coco_stuff_27 coco27"
VOC = "voc voc2012 voc21"
ADE20K = "ade20k ade20k151 ade20k150"
CITYSCAPES = "cityscapes cityscapes19 cityscapes27"
_OUR_READING = "That this is what the figure shows is our reading; images and pixels are ours."

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
        uses: name of it in :data:`upfeat.evaluation.papers.sources.METHODS`.
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
    task: str, data: str | Sequence[str], scores: str, preset: str = "", **more: Any
) -> tuple[PublishedColumn, ...]:
    """Return neighbouring columns of one protocol, set by set.

    Args:
        task: the protocol.
        data: a set, or several; the set's name and its other names with spaces between.
        scores: names with spaces between, each with ``=UNIT`` behind it where it is no percentage.
        preset: of the protocol.
        **more: further fields of all columns.

    Example:
        >>> from upfeat.evaluation.papers.records import columns_of
        >>> columns = columns_of("depth-probe", ["nyuv2", "navi"], "d1 rmse=m")
        >>> [(column.data[0], column.score, column.unit) for column in columns][:3]
        [('nyuv2', 'd1', 'percent'), ('nyuv2', 'rmse', 'm'), ('navi', 'd1', 'percent')]
    """
    found = []
    for names in (data,) if isinstance(data, str) else data:
        for text in scores.split():
            score, _, unit = text.partition("=")
            fields = {"unit": unit or "percent", "preset": preset} | more
            found.append(
                PublishedColumn(task=task, data=tuple(names.split()), score=score, **fields)
            )
    return tuple(found)


def row(uses: str, method: str, values: str, **more: Any) -> PublishedRow:
    """Return a row; its key is the method's name here unless one is given.

    Args:
        uses: see :class:`PublishedRow`.
        method: as printed.
        values: the numbers with spaces between, ``-`` for none.
        **more: further fields.

    Example:
        >>> from upfeat.evaluation.papers.records import row
        >>> row("jafar", "JAFAR (released logs)", "84.4 -", key="jafar-logs").values
        (84.4, None)
    """
    key = more.pop("key", None) or re.sub(r"[^\w.]+", "-", uses)
    numbers = tuple(None if text == "-" else float(text) for text in values.split())
    return PublishedRow(uses=uses, method=method, key=key, values=numbers, **more)


def unscored_rows(
    methods: Mapping[str, str], columns: Sequence[PublishedColumn]
) -> tuple[PublishedRow, ...]:
    """Return rows without numbers of methods, :attr:`PublishedRow.uses` to the printed name."""
    return tuple(row(uses, method, "- " * len(columns)) for uses, method in methods.items())


def square(key: str, side: int, output: int | None = None) -> dict[str, Any]:
    """Return what a row has of its own whose crops, and output unless given, have this side."""
    size = [output or side] * 2
    return {
        "key": f"{key}-{side}",
        "setting": {"input_size": [side, side], "output_size": size},
        "changes": {"crop_size": side},
    }


def numbered_table(
    paper: str, arxiv: str, number: str, title: str, **fields: Any
) -> PublishedTable:
    """Return a table of a paper that numbers its tables; DINOv2 ViT-S/14 is the usual backbone.

    ``number`` is the table's, ``fields`` are further ones of :class:`PublishedTable`.
    """
    named = {
        "id": f"{paper.lower()}:table-{number.lower()}",
        "source": f"table {number}",
        "backbone": DINOV2,
    }
    return PublishedTable(paper=paper, arxiv=arxiv, title=title, **(named | fields))


def numbered_figure(
    paper: str,
    arxiv: str,
    number: int,
    kind: FigureKind,
    title: str,
    methods: tuple[str, ...],
    **fields: Any,
) -> PublishedFigure:
    """Return a figure of a paper; that it shows this is our reading unless a note says otherwise.

    ``number`` is the figure's, ``fields`` are further ones of :class:`PublishedFigure`.
    """
    named = {
        "id": f"{paper.lower()}:figure-{number}",
        "source": f"figure {number}",
        "kind": kind,
        "title": title,
        "methods": methods,
        "backbone": DINOV2,
        "note": _OUR_READING,
    }
    return PublishedFigure(paper=paper, arxiv=arxiv, **(named | fields))
