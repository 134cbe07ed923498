"""Tables that fit where they are printed: a terminal of any width, a pipe or a file."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["Column", "print_table"]

_PROSE_WIDTH = 30  # a column of prose narrower than this is not worth reading
_HEAD_WIDTH = 7  # heads are broken between words to about this, where room is scarce


@dataclass(frozen=True)
class Column:
    """A column's head, and whether its cells are prose that may be wrapped.

    Example:
        >>> from upfeat.cli.tables import Column
        >>> Column("summary", prose=True).head
        'summary'
    """

    head: str
    prose: bool = False


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Print rows under their columns; no cell is ever cut, and only prose is wrapped.

    In a terminal, columns that do not fit are left out from the right, and a line says which;
    the first one stays in any case. Elsewhere every row is one line, its cells two spaces apart or
    more, so that other programs can read it.

    Args:
        columns: in order of importance.
        rows: a text for each column.
        title: a line above.
        console: where to; default standard output.

    Example:
        >>> from upfeat.cli.tables import Column, print_table
        >>> print_table([Column("name"), Column("year")], [["jafar", "2025"]])
        name   year
        jafar  2025
    """
    console = console or Console()
    if title is not None:
        typer.echo(title)
    if not console.is_terminal:
        for line in _plain([[column.head for column in columns], *rows]):
            typer.echo(line)
        return
    heads, shown = _fit(columns, rows, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for index in shown:
        prose = columns[index].prose
        width = None if prose else max(map(len, _column(heads, rows, index)))
        table.add_column(heads[index], width=width, no_wrap=not prose, overflow="fold")
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    if len(shown) > 1:
        console.print(table)
    else:  # possibly wider than the terminal, which rich would cut
        typer.echo("\n".join(_column(heads, rows, 0)))
    if left := [column.head for index, column in enumerate(columns) if index not in shown]:
        typer.echo(f"not shown for want of room: {', '.join(left)}; see 'upfeat info NAME'")


def _plain(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _fit(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int
) -> tuple[list[str], list[int]]:
    """Return the heads, broken where that helps, and the columns that fit from the left."""
    plain = [column.head for column in columns]
    shown = _shown(columns, plain, rows, room)
    if len(shown) == len(columns):
        return plain, shown
    broken = ["\n".join(textwrap.wrap(head, _HEAD_WIDTH, break_long_words=False)) for head in plain]
    return broken, _shown(columns, broken, rows, room)


def _shown(
    columns: Sequence[Column], heads: Sequence[str], rows: Sequence[Sequence[str]], room: int
) -> list[int]:
    shown, used = [0], max(map(len, _column(heads, rows, 0))) + 2
    for index in range(1, len(columns)):
        wide = max(map(len, _column(heads, rows, index)))
        need = min(wide, _PROSE_WIDTH) if columns[index].prose else wide
        if used + need + 1 > room:
            break
        used += need + 1
        shown.append(index)
    return shown


def _column(heads: Sequence[str], rows: Sequence[Sequence[str]], index: int) -> list[str]:
    """The lines of a head and the cells below it."""
    return [*heads[index].splitlines(), *(row[index] for row in rows)]
