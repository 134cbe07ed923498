"""A table as cells of text, and how it is written: Markdown, CSV, LaTeX."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upfeat.evaluation.registry import column_groups, score_digits, score_text
from upfeat.evaluation.results import Score
from upfeat.evaluation.tables import Row, Table

__all__ = [
    "Grid",
    "GridCell",
    "GridRow",
    "class_grid",
    "csv_text",
    "latex_table",
    "latex_text",
    "markdown_grid",
    "markdown_table",
    "score_grid",
    "score_grids",
    "table_files",
]

CLASS_SCORES = "iou_per_class"
"""Of a result's details: the IoU of each class in percent, None where it never occurs."""


@dataclass(frozen=True)
class GridCell:
    """A number as text, as numbers (mean, deviation), and its place: 1 best, 2 second best."""

    text: str
    mean: float | None = None
    deviation: float | None = None
    place: int = 0


@dataclass(frozen=True)
class GridRow:
    """A row: label, a note behind it, and the cells."""

    label: str
    cells: tuple[GridCell, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """Label and note."""
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: of it.
        head: of the first column and of each other.
        rows: of numbers.
        code: the labels are names of methods.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[GridRow, ...]
    code: bool = True


EMPTY = GridCell("-")


def score_grids(table: Table) -> list[Grid]:
    """Return the scores of a table, in several grids where there are many columns."""
    grids = []
    for heading, names in column_groups(table.kinds):
        title = ", ".join(filter(None, (table.title, heading)))
        grids.append(score_grid(table, names, title))
    return grids


def score_grid(table: Table, names: Sequence[str], title: str = "") -> Grid:
    """Return some scores (``names``) of a table, a row a method, and the time of all stages."""
    timed = any(row.seconds is not None for row in table.rows)
    digits = {
        name: score_digits(
            [row.result.scores[name].mean for row in table.rows if name in row.result.scores]
        )
        for name in names
    }
    rows = []
    for row in table.rows:
        cells = [_score_cell(row, name, digits[name]) for name in names]
        if timed:
            seconds = row.seconds
            cells.append(EMPTY if seconds is None else GridCell(f"{seconds:.0f}", seconds))
        rows.append(GridRow(row.label, tuple(cells), row.note))
    head = ("upsampler", *map(table.heading, names), *(["time, s"] if timed else []))
    return Grid(title, head, tuple(rows))


def _score_cell(row: Row, name: str, digits: int) -> GridCell:
    score: Score | None = row.result.scores.get(name)
    if score is None or score.mean != score.mean:  # not a number: nothing was counted
        return EMPTY
    text = score_text(score, digits=digits)
    return GridCell(text, score.mean, score.deviation, row.places.get(name, 0))


def class_grid(table: Table) -> Grid | None:
    """Return the IoU of each class, a row a class and a column a method; None without them.

    Example:
        >>> from upfeat.evaluation.results import Result
        >>> from upfeat.evaluation.tables import build_tables
        >>> from upfeat.evaluation.tables.grid import class_grid, markdown_grid
        >>> def result(label: str, iou: float) -> Result:
        ...     details = {"iou_per_class": {"road": iou, "car": None}}
        ...     settings = {"data": "street", "upsampler": {"name": label}}
        ...     task = "seg-probe"
        ...     return Result(task=task, label=label, settings=settings, scores={}, details=details)
        >>> print(markdown_grid(class_grid(build_tables([result("a", 80), result("b", 90)])[0])))
        | class | `a` | `b` |
        | --- | --- | --- |
        | road | 80.00 | **90.00** |
        | car | - | - |
        <BLANKLINE>
    """
    scored = [row for row in table.rows if row.result.details.get(CLASS_SCORES)]
    if not scored:
        return None
    ious: list[Mapping[str, float | None]] = [row.result.details[CLASS_SCORES] for row in scored]
    rows = []
    for name in dict.fromkeys(name for own in ious for name in own):
        values = [own.get(name) for own in ious]
        known = sorted({value for value in values if value is not None}, reverse=True)
        tied = sum(value == known[0] for value in values) > 1 if known else False
        marked = known[: 1 if tied or len(known) < 3 else 2] if len(known) > 1 else []
        cells = [
            EMPTY
            if value is None
            else GridCell(
                f"{value:.2f}", value, place=marked.index(value) + 1 if value in marked else 0
            )
            for value in values
        ]
        rows.append(GridRow(name, tuple(cells)))
    head = ("class", *(f"`{row.name}`" for row in scored))
    return Grid(f"{table.title}, IoU of each class in %", head, tuple(rows), code=False)


# -- formats -------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def markdown_grid(grid: Grid) -> str:
    """Return a grid in Markdown: the best bold, the second best in italics."""
    marks = {1: "**", 2: "*"}
    rows = []
    for row in grid.rows:
        label = f"`{row.label}`" if grid.code else row.label
        cells = [f"{(mark := marks.get(cell.place, ''))}{cell.text}{mark}" for cell in row.cells]
        rows.append([f"{label} ({row.note})" if row.note else label, *cells])
    return markdown_table(grid.head, rows)


def csv_text(grid: Grid) -> str:
    """Return a grid as comma-separated values: full numbers, deviations in columns of their own.

    Example:
        >>> from upfeat.evaluation.tables.grid import Grid, GridCell, GridRow, csv_text
        >>> row = GridRow("jafar", (GridCell("71.0", 71.04, 0.5),))
        >>> grid = Grid("", ("upsampler", "mIoU, %"), (row,))
        >>> print(csv_text(grid), end="")
        upsampler,"mIoU, %","mIoU, % deviation"
        jafar,71.04,0.5
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    spread = [
        any(row.cells[i].deviation is not None for row in grid.rows)
        for i in range(len(grid.head) - 1)
    ]
    heads = [_plain(grid.head[0])]
    for text, wide in zip(grid.head[1:], spread, strict=True):
        heads += [_plain(text), f"{_plain(text)} deviation"] if wide else [_plain(text)]
    writer.writerow(heads)
    for row in grid.rows:
        line: list[object] = [row.name]
        for cell, wide in zip(row.cells, spread, strict=True):
            line += [_number(cell.mean), _number(cell.deviation)] if wide else [_number(cell.mean)]
        writer.writerow(line)
    return stream.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _plain(heading: str) -> str:
    """Return a heading without arrow and marks."""
    return heading.replace("`", "").removesuffix(" ↑").removesuffix(" ↓")


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "δ": r"$\delta$",
    "²": r"$^2$",
    "`": "",
}


def latex_text(text: str) -> str:
    """Return a text with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def latex_table(grid: Grid, label: str = "") -> str:
    r"""Return a grid as a LaTeX ``table`` for the package booktabs: best bold, second underlined.

    Args:
        grid: the table.
        label: of ``\ref``; none if empty.

    Example:
        >>> from upfeat.evaluation.tables.grid import Grid, GridCell, GridRow, latex_table
        >>> rows = (GridRow("a", (GridCell("71.0", 71.0, place=1),)),)
        >>> print(latex_table(Grid("street", ("upsampler", "mIoU, %"), rows)), end="")
        \begin{table}
          \centering
          \caption{street. Best bold, second best underlined.}
          \begin{tabular}{lr}
            \toprule
            upsampler & mIoU, \% \\
            \midrule
            a & \textbf{71.0} \\
            \bottomrule
          \end{tabular}
        \end{table}
    """
    lines = [" & ".join(map(latex_text, grid.head)) + r" \\", r"\midrule"]
    for row in grid.rows:
        lines.append(" & ".join((latex_text(row.name), *map(_latex_cell, row.cells))) + r" \\")
    columns = "l" + "r" * (len(grid.head) - 1)
    caption = f"{latex_text(grid.title)}. Best bold, second best underlined."
    named = [f"  \\label{{{label}}}"] if label else []
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{caption}}}",
            *named,
            f"  \\begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(cell: GridCell) -> str:
    text = latex_text(cell.text)
    command = {1: "textbf", 2: "underline"}.get(cell.place)
    return f"\\{command}{{{text}}}" if command else text


def table_files(tables: Sequence[Table]) -> dict[str, str]:
    """Return the files of tables, name to content: ``.md``, ``.csv`` and ``.tex`` of each.

    Args:
        tables: of :func:`upfeat.evaluation.tables.build_tables`; a table with an IoU of each class
            has three files more, ``…--classes.*``.
    """
    files: dict[str, str] = {}
    for table in tables:
        parts = (table.task, table.data, table.preset, table.backbone.rpartition("/")[2])
        stem = "--".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)
        number, own = 2, stem
        while any(name.startswith(f"{own}.") for name in files):
            own, number = f"{stem}--{number}", number + 1
        classes = class_grid(table)
        for tail, grids in (("", score_grids(table)), ("--classes", [classes] if classes else [])):
            if not grids:
                continue
            labels = [f"tab:{own}{tail}" + (f"-{i}" if i else "") for i in range(len(grids))]
            texts = {
                "md": "\n".join(f"### {grid.title}\n\n{markdown_grid(grid)}" for grid in grids),
                "csv": "\n".join(map(csv_text, grids)),
                "tex": "\n".join(map(latex_table, grids, labels)),
            }
            files |= {f"{own}{tail}.{kind}": text for kind, text in texts.items()}
    return files
