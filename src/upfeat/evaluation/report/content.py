"""What a report shows, as plain data, and how results and pictures become that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from upfeat.evaluation.registry import column_groups
from upfeat.evaluation.tables import Ranking, Row, Table, rank_methods
from upfeat.evaluation.tables.grid import Grid, GridRow, class_grid, score_grid
from upfeat.evaluation.tables.markdown import table_command
from upfeat.evaluation.tables.panels import Panel, panel_colors, png_bytes, shared_scale
from upfeat.evaluation.tables.plots import Point
from upfeat.ops.colors import UNKNOWN, class_palette

if TYPE_CHECKING:
    from upfeat.evaluation.results import Result


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
        first: heading of the labels.
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
    first: str = "upsampler"


@dataclass(frozen=True)
class TableGroup:
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
    """What colours mean: classes with their colours, or the two ends of one scale.

    What has no class or no value is the last of ``classes``.
    """

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
    sections: tuple[TableGroup, ...] = ()
    scenes: tuple[Scene, ...] = ()


# -- from results --------------------------------------------------------------------------------

_LEGEND = (
    "Mean ± sample deviation over the seeds. In each column the best number is bold and marked "
    "“best”, the second best is underlined and marked “2nd”. ↑: higher is better; ↓: lower is "
    "better. Time is that of all stages together, not of the upsampler alone."
)
_KINDS = {
    "image": "image",
    "features": "features, one PCA basis for all",
    "target": "classes",
    "prediction": "classes",
    "depth": "depth",
    "cam": "class activation map",
}
_ORDER = ("image", "features", "target", "prediction", "depth", "cam")
_FIRST = ("image", "target", "low-res", "low_res", "nearest", "bilinear")


def report_content(title: str, tables: Sequence[Table], scenes: Sequence[Scene]) -> Report:
    """Return the content of the page."""
    ranking = rank_methods(tables)
    sections = tuple(
        TableGroup(heading, tuple(view for table in members for view in _table_views(table)))
        for heading, members in groupby(tables, key=lambda table: table.protocol.title)
    )
    return Report(
        title=title,
        facts=tuple(_facts([row.result for table in tables for row in table.rows])),
        legend=_LEGEND if tables else "",
        ranking=_ranking_view(ranking) if len(ranking.tables) > 1 else None,
        sections=sections,
        scenes=tuple(scenes),
    )


def _facts(results: Sequence["Result"]) -> list[str]:
    """Return how much was measured, when, with which versions, where."""
    if not results:
        return []
    methods = {result.label for result in results}
    facts = [_count(len(results), "result"), _count(len(methods), "method")]
    dates = sorted({str(r.environment["date"])[:10] for r in results if "date" in r.environment})
    if dates:
        facts.append(f"measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}")
    for name in ("upfeat", "torch", "processor"):
        values = sorted({str(r.environment[name]) for r in results if name in r.environment})
        if values:
            facts.append((f"{name} " if name != "processor" else "") + ", ".join(values))
    return facts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table_views(table: Table) -> list[TableView]:
    """Return one view, or several where a table has too many columns for a page."""
    views = []
    parts = (table.data, table.preset, table.variant)
    title = " · ".join(part for part in parts if part) or table.protocol.title
    for heading, names in column_groups(table.kinds):
        view = _table_view(table, names)
        views.append(replace(view, title=f"{title} · {heading}" if heading else title))
    kind = table.protocol.kind(table.headline) if table.headline is not None else None
    unit = table.unit(table.headline or "")
    # what lies behind a row stands once, below the last view
    for i, view in enumerate(views[:-1]):
        views[i] = replace(view, rows=tuple(replace(row, settings={}) for row in view.rows))
    views[-1] = replace(
        views[-1],
        settings=table.settings,
        command=table_command(table),
        points=tuple(_points(table)),
        cost="time of all stages, s",
        quality=f"{kind.heading}, {unit}".removesuffix(", ") if kind else "",
        higher_is_better=kind is None or kind.higher_is_better is not False,
    )
    classes = class_grid(table)
    return views if classes is None else [*views, _class_view(title, classes)]


def _class_view(title: str, grid: Grid) -> TableView:
    """Return the IoU of each class, a column a method."""
    columns = tuple(Column(head.strip("`")) for head in grid.head[1:])
    rows = tuple(RowView(row.label, row.note, _cells(row)) for row in grid.rows)
    return TableView(f"{title} · IoU of each class, %", columns, rows, first=grid.head[0])


def _table_view(table: Table, names: Sequence[str]) -> TableView:
    timed = any(row.seconds is not None for row in table.rows)
    kinds = {name: table.protocol.kind(name) for name in names}
    columns = [Column(kind.heading, table.unit(name), kind.arrow) for name, kind in kinds.items()]
    quick = "A quick look at some images only: no number here is to be quoted."
    remarks = (quick if table.quick_look else "", table.units, *table.notes)
    shown = score_grid(table, names).rows
    return TableView(
        title=table.title,
        subtitle=table.backbone,
        remark=" ".join(filter(None, remarks)),
        columns=(*columns, *([Column("time", "s")] if timed else [])),
        rows=tuple(
            RowView(row.label, row.note, _cells(cells), _behind(row, table))
            for row, cells in zip(table.rows, shown, strict=True)
        ),
        published=tuple(_published(table, names, timed)),
    )


def _cells(row: GridRow) -> tuple[Cell, ...]:
    """Return the cells of a row with the deviation apart; those without a number are empty."""
    cells = []
    for cell in row.cells:
        text, sign, spread = cell.text.partition(" ± ")
        shown = "" if cell.mean is None else text
        cells.append(Cell(shown, f"± {spread}" if sign else "", cell.mean, cell.place or None))
    return tuple(cells)


def _behind(row: Row, table: Table) -> dict[str, Any]:
    """Return all that made a row's numbers and is not the table's."""
    result = row.result
    own = {name: value for name, value in result.settings.items() if name not in table.settings}
    return own | {
        "unit": result.unit,
        "per seed": {name: score.per_seed for name, score in result.scores.items()},
        "seconds": result.seconds,
        "details": result.details,
        "environment": result.environment,
    }


def _published(table: Table, names: Sequence[str], timed: bool) -> list[Published]:
    blocks = []
    for block in table.published:
        rows = []
        for label, found in block.rows:
            cells = [
                Cell(f"{found[name]:g}", value=found[name]) if name in found else Cell("")
                for name in names
            ]
            if any(cell.text for cell in cells):
                rows.append(RowView(label, "", (*cells, *([Cell("")] if timed else []))))
        reference = f"arXiv {block.arxiv}"
        if rows:
            blocks.append(Published(block.source, reference, table.remark(block), tuple(rows)))
    return blocks


def _points(table: Table) -> list[Point]:
    """Return cost and quality of each method that has both."""
    points = []
    for row in table.rows:
        score = row.result.scores.get(table.headline or "")
        if score is not None and row.rank is not None and row.seconds:
            points.append(Point(row.name, row.seconds, score.mean, score.deviation))
    return points


def _ranking_view(ranking: Ranking) -> TableView:
    columns = [Column("mean rank", arrow="↓")]
    columns += map(Column, ranking.headings)
    rows = []
    for row in ranking.rows:
        cells = [Cell("")]
        if row.mean is not None:
            cells = [Cell(f"{row.mean:.2f}", value=row.mean, place=row.place)]
        cells += [Cell("") if r is None else Cell(f"{r:g}", value=r) for r in row.ranks]
        rows.append(RowView(row.name, "", tuple(cells)))
    return TableView("Mean rank", tuple(columns), tuple(rows), remark=ranking.remark)


# -- pictures ------------------------------------------------------------------------------------


def panel_scenes(panels: Sequence[Panel]) -> list[Scene]:
    """Return a scene for each image of each task and set, its pictures sharing colours by kind."""

    def image(panel: Panel) -> tuple[str, ...]:
        return (panel.task, panel.data, panel.image, panel.backbone)

    scenes = []
    for (task, data, name, backbone), members in groupby(sorted(panels, key=image), key=image):
        own = sorted(members, key=_panel_order)
        size = _scene_size(own)
        photos = [panel for panel in own if panel.kind == "image"]
        groups = []
        for title in dict.fromkeys(_KINDS[kind] for kind in _ORDER if kind != "image"):
            same = [panel for panel in own if _KINDS[panel.kind] == title]
            if same:
                groups.append(_panel_group(title, photos, same))
        if photos and not groups:
            groups.append(_panel_group("image", [], photos))
        place = (data, name, backbone.rsplit("/", 1)[-1])
        title = " · ".join(part for part in (task, *place) if part)
        scenes.append(Scene(title, size, tuple(groups)))
    return scenes


def _panel_order(panel: Panel) -> tuple[int, int, str]:
    """Image, target and the plainest methods first."""
    first = _FIRST.index(panel.label) if panel.label in _FIRST else len(_FIRST)
    return (_ORDER.index(panel.kind), first, panel.label)


def _scene_size(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return (height, width) of the largest picture."""
    sizes = [(panel.values.shape[-2], panel.values.shape[-1]) for panel in panels]
    return max(sizes, key=lambda size: size[0] * size[1])


def _panel_group(title: str, photos: Sequence[Panel], panels: Sequence[Panel]) -> PictureGroup:
    """Draw panels of one kind with one palette or one scale, behind the photo."""
    classes = next((panel.classes for panel in panels if panel.classes), ())
    palette = next((panel.palette for panel in panels if panel.palette), ())
    palette = palette or class_palette(len(classes))
    measured = [panel for panel in panels if panel.kind in ("depth", "cam")]
    low, high = shared_scale(measured)
    pictures = []
    present: set[int] = set()
    unknown: list[tuple[str, tuple[int, int, int]]] = []
    for panel in (*photos, *panels):
        if panel.kind in ("prediction", "target"):
            found = set(panel.values.unique().tolist())
            present |= found - {panel.ignore_index}
            if panel.ignore_index in found:
                unknown = [("ignored", UNKNOWN)]
        elif panel.kind in ("depth", "cam") and bool(panel.values.isnan().any()):
            unknown = [("no value", UNKNOWN)]
        png, size = png_bytes(panel_colors(panel, (low, high), palette))
        blocks = panel.kind != "image" and max(size) < 128
        pictures.append(Picture(panel.label, png, size, panel.note, blocks))
    unit = next((f" {panel.unit}" for panel in measured if panel.unit), "")
    legend = Legend((*((classes[i], palette[i]) for i in sorted(present)), *unknown))
    if measured:
        legend = replace(legend, low=f"{low:.3g}{unit}", high=f"{high:.3g}{unit}")
    return PictureGroup(title, tuple(pictures), legend, left=min(1, len(pictures) - 1))
