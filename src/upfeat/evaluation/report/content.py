"""What a report shows, as plain data: no protocol, method or file is known here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Cell",
    "Column",
    "Legend",
    "Picture",
    "PictureGroup",
    "Point",
    "Published",
    "Report",
    "RowView",
    "Scene",
    "Section",
    "TableView",
]


@dataclass(frozen=True)
class Column:
    """A column of numbers: heading, unit and ``↑``, ``↓`` or nothing."""

    heading: str
    unit: str = ""
    arrow: str = ""


@dataclass(frozen=True)
class Cell:
    """A number as text.

    Attributes:
        text: the number; empty where there is none.
        spread: what follows smaller, such as ``± 0.4``.
        value: what the column is sorted by.
        place: 1 for the best of the column, 2 for the second best.
    """

    text: str
    spread: str = ""
    value: float | None = None
    place: int | None = None


@dataclass(frozen=True)
class RowView:
    """A row: label, a note behind it, a cell for each column, and all that made it."""

    label: str
    note: str
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """Numbers by others below a table: source, its number, what differs, rows without places."""

    source: str
    reference: str
    remark: str
    rows: tuple[RowView, ...]


@dataclass(frozen=True)
class Point:
    """A method in a plot of cost against quality; ``spread`` is a deviation or None."""

    label: str
    cost: float
    quality: float
    spread: float | None = None


@dataclass(frozen=True)
class TableView:
    """A table with what belongs to it.

    Attributes:
        title: heading.
        subtitle: a line below it.
        remark: a line above the table.
        columns: of numbers, behind that of the labels.
        rows: in the order that is shown first.
        published: numbers by others.
        settings: what holds for all rows.
        command: how to make it again.
        points: of the plot; fewer than two draw none.
        cost: axis title.
        quality: axis title.
        higher_is_better: of the quality.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[RowView, ...]
    subtitle: str = ""
    remark: str = ""
    published: tuple[Published, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    points: tuple[Point, ...] = ()
    cost: str = ""
    quality: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Section:
    """Tables under one heading."""

    title: str
    tables: tuple[TableView, ...]
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a scene.

    Attributes:
        label: what it is called.
        png: the file.
        size: (height, width) of the file.
        note: small text behind the label.
        blocks: enlarge without smoothing.
    """

    label: str
    png: bytes
    size: tuple[int, int]
    note: str = ""
    blocks: bool = False


@dataclass(frozen=True)
class Legend:
    """What colours mean: classes with their colours, or the two ends of one scale."""

    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    low: str = ""
    high: str = ""


@dataclass(frozen=True, eq=False)
class PictureGroup:
    """Pictures of one kind that share colours; two or more get a slider.

    Attributes:
        title: such as ``features``.
        pictures: in order.
        legend: of all.
        left: index of the picture that the slider shows first on the left.
        right: the same on the right.
    """

    title: str
    pictures: tuple[Picture, ...]
    legend: Legend = Legend()
    left: int = 0
    right: int = -1


@dataclass(frozen=True, eq=False)
class Scene:
    """All pictures of one image: size (height, width) and groups."""

    title: str
    size: tuple[int, int]
    groups: tuple[PictureGroup, ...]
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """A page.

    Attributes:
        title: of the page.
        facts: short texts below the title.
        legend: how to read the tables.
        ranking: ranks over all tables, or None.
        sections: tables.
        scenes: pictures.
    """

    title: str
    facts: tuple[str, ...] = ()
    legend: str = ""
    ranking: TableView | None = None
    sections: tuple[Section, ...] = ()
    scenes: tuple[Scene, ...] = ()
