"""The numbers of the papers, to stand beside ours, each with the settings in which it differs.

They are as printed by the authors and kept in files by paper, with what ``upfeat reproduce`` runs
for each row and column; where a setting is our reading of the paper the record's note says so. They
are for orientation: none was measured here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from upfeat.errors import UnknownNameError
from upfeat.evaluation.papers import jafar, loftup, public_pages
from upfeat.evaluation.papers.records import (
    PublishedColumn,
    PublishedFigure,
    PublishedRow,
    PublishedTable,
)
from upfeat.evaluation.results import FrozenRecord

__all__ = [
    "PublishedBlock",
    "PublishedColumn",
    "PublishedFigure",
    "PublishedRow",
    "PublishedTable",
    "differences",
    "find_published",
    "published_figures",
    "published_for",
    "published_tables",
    "setting_text",
]


class PublishedBlock(FrozenRecord):
    """The part of a published table that fits one of ours.

    Attributes:
        source: paper and table.
        arxiv: number of the paper.
        setting: of all these numbers.
        note: of the table.
        units: of each score.
        rows: method, with the settings of its own in words, to score to value.
    """

    source: str
    arxiv: str
    setting: dict[str, Any]
    note: str
    units: dict[str, str]
    rows: tuple[tuple[str, dict[str, float]], ...]


_PAPERS = (jafar, loftup, public_pages)


def published_tables() -> tuple[PublishedTable, ...]:
    """Return every table that is kept.

    Example:
        >>> from upfeat.evaluation.papers import published_tables
        >>> first = published_tables()[0]
        >>> first.paper, first.source, first.rows[1].method, first.rows[1].values[0]
        ('JAFAR', 'table 1', 'Bilinear', 59.03)
    """
    return tuple(table for paper in _PAPERS for table in paper.TABLES)


def published_figures() -> tuple[PublishedFigure, ...]:
    """Return every figure that compares methods."""
    return tuple(figure for paper in _PAPERS for figure in paper.FIGURES)


def find_published(names: Collection[str]) -> list[PublishedTable | PublishedFigure]:
    """Return tables and figures by name: ``jafar:table-1``, or ``jafar`` for all of a paper.

    No names stand for everything.

    Raises:
        UnknownNameError: no such paper, table or figure; the message lists close ones.

    Example:
        >>> from upfeat.evaluation.papers import find_published
        >>> [each.id for each in find_published(["jafar:table-1", "anyup"])][:2]
        ['jafar:table-1', 'anyup:table-segmentation']
    """
    items: list[PublishedTable | PublishedFigure] = [*published_tables(), *published_figures()]
    known = {each.id: each for each in items}
    papers = {id.partition(":")[0] for id in known}
    found: dict[str, PublishedTable | PublishedFigure] = {}
    for name in names or sorted(papers):
        wanted = [id for id in known if name in (id, id.partition(":")[0])]
        if not wanted:
            raise UnknownNameError("table or figure", name, [*papers, *known])
        found |= {id: known[id] for id in wanted}
    return list(found.values())


def published_for(task: str, data: str, scores: Collection[str]) -> list[PublishedBlock]:
    """Return what the papers print for a task and a set, in the scores that we have, too.

    Columns of one paper's table with different settings become blocks of their own.

    Args:
        task: our name of the protocol, such as ``cam``.
        data: our name of the set, or of the preset where there is none; case, punctuation and
            a split behind ``/`` do not count.
        scores: names of ours.

    Example:
        >>> from upfeat.evaluation.papers import published_for
        >>> (block,) = published_for("cam", "imagenet_sample", ["adcc", "coherency"])
        >>> block.source, block.rows[-1]
        ('JAFAR, table 2', ('JAFAR', {'coherency': 91.4, 'adcc': 73.3}))
    """
    blocks = []
    for table in published_tables():
        settings: list[dict[str, Any]] = []
        groups: list[dict[int, PublishedColumn]] = []
        for index, column in enumerate(table.columns):
            named = _plain(data) in {_plain(name) for name in column.data}
            if column.task != task or column.score not in scores or not named:
                continue
            if column.setting not in settings:
                settings.append(column.setting)
                groups.append({})
            groups[settings.index(column.setting)][index] = column
        for setting, columns in zip(settings, groups, strict=True):
            if rows := _rows(table, columns):
                blocks.append(
                    PublishedBlock(
                        source=f"{table.paper}, {table.source}",
                        arxiv=table.arxiv,
                        setting=table.setting | setting,
                        note=table.note,
                        units={column.score: column.unit for column in columns.values()},
                        rows=tuple(rows),
                    )
                )
    return blocks


def _rows(
    table: PublishedTable, columns: Mapping[int, PublishedColumn]
) -> list[tuple[str, dict[str, float]]]:
    """Return the rows that have a number in these columns."""
    rows = []
    for row in table.rows:
        found = {
            column.score: value
            for index, column in columns.items()
            if (value := row.values[index]) is not None
        }
        own = setting_text(row.setting)
        if found:
            rows.append((f"{row.method} ({own})" if own else row.method, found))
    return rows


def differences(published: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Say in which settings a :class:`PublishedBlock` and a result of ours differ.

    Example:
        >>> from upfeat.evaluation.papers import differences
        >>> differences({"batch": 4, "input_size": [448, 448]}, {"input_size": [224, 224]})
        ['batch 4 (here: not stated)', 'input size 448×448 (here: 224×224)']
    """
    found = []
    for name, value in published.items():
        own = ours.get(name)
        if own is None:
            own = _own_size(name, ours)
        if isinstance(own, Mapping):
            own = own.get("name")
        theirs = setting_text(value, name)
        here = "not stated" if own is None else setting_text(own, name)
        if here != theirs:
            found.append(f"{_words(name)} {theirs} (here: {here})")
    return found


def _own_size(name: str, ours: Mapping[str, Any]) -> list[int] | None:
    """Return the input's or the output's size of a protocol on squares.

    It names one side, the crop's, and where it does not name the target's this holds for both.
    """
    if name == "input_size" and ours.get("cells"):  # (input, grid, output) of each measurement
        return [max(cell[0] for cell in ours["cells"])] * 2
    sides = {"input_size": ["crop_size"], "output_size": ["target_size", "crop_size"]}.get(name, ())
    known = [ours[side] for side in sides if isinstance(ours.get(side), int)]
    return [known[0]] * 2 if known else None


def setting_text(value: Any, name: str = "") -> str:
    """Return a setting's value for people; the name of a size ends with ``size``.

    Example:
        >>> from upfeat.evaluation.papers import setting_text
        >>> (
        ...     setting_text([448, 448], "input_size"),
        ...     setting_text([0, 1], "seeds"),
        ...     setting_text(None),
        ... )
        ('448×448', '0, 1', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        parts = [f"({setting_text(p)})" if isinstance(p, list) else setting_text(p) for p in value]
        return ("×" if name.endswith("size") else ", ").join(parts)
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {setting_text(part, key)}" for key, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(name: str) -> str:
    """Return a set's name without case and punctuation, and without its split."""
    return "".join(letter for letter in name.partition("/")[0].lower() if letter.isalnum())
