"""``upfeat reproduce``: tables and figures of the papers, ours beside the published numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.options import DeviceOption, checked_folder
from upfeat.cli.output import TableColumn, print_table

if TYPE_CHECKING:
    from upfeat.evaluation.papers import PublishedFigure, PublishedTable
    from upfeat.evaluation.papers.reproductions import Reproduction
    from upfeat.evaluation.papers.sources import Roots

__all__ = ["parse_roots", "reproduce_command"]


def reproduce_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tables or figures, such as jafar:table-1, or whole papers: jafar, loftup."
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list", help="List them with the data and weights found for each; run nothing."
        ),
    ] = False,
    needs: Annotated[
        bool,
        typer.Option(
            "--needs", help="Show the data and weights that each requires, with download addresses."
        ),
    ] = False,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of a data set, SET=DIR; repeat for several. data=DIR: a folder with all "
            "of them under their usual names; weights=DIR: backbone weights."
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Only these rows of a table, separated by commas: jafar,bilinear."),
    ] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Test run with small data, backbone and settings; scores mean nothing."
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=checked_folder, help="Folder for all output.")
    ] = Path("reproduce"),
    teacher: Annotated[
        Path | None, typer.Option(help="Folder with Depth Anything V2, for JAFAR's depth column.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Run the papers' tables and figures, and print our numbers beside the published ones."""
    from upfeat.cli.eval import show_progress
    from upfeat.cli.reproduce.figures import draw_figure
    from upfeat.cli.reproduce.needs import print_list, print_needs
    from upfeat.cli.reproduce.running import Runner
    from upfeat.evaluation.papers import PublishedTable, find_published

    roots = parse_roots(root or ())
    chosen = find_published(names or ())
    if list_ or needs:
        (print_needs if needs else print_list)(chosen, roots, small)
        return
    if not names:
        raise ValueError(
            "name tables or figures, such as jafar:table-1, or a paper; --list shows all"
        )
    keys = [key.strip() for key in rows.split(",")] if rows else []
    options: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
    with show_progress() as show:
        runner = Runner(roots, out, out / "cache", device, small, options, show)
        for item in chosen:
            if isinstance(item, PublishedTable):
                record = runner.run(item, keys)
                _print_table(item, record)
            else:
                record = draw_figure(item, runner)
                _print_figure(item, record, out)
    typer.echo(f"records, results and pictures in {out}")


def parse_roots(given: Sequence[str]) -> "Roots":
    """Read ``SET=DIR`` of ``--root``.

    Args:
        given: in any order.

    Raises:
        ValueError: not of this form, or an unknown set.

    Example:
        >>> from upfeat.cli.reproduce import parse_roots
        >>> sorted(parse_roots(["voc=a", "data=b"]).given)
        ['data', 'voc']
    """
    from upfeat.errors import UnknownNameError
    from upfeat.evaluation.papers.sources import SETS, Roots

    found = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign or not folder:
            raise ValueError(f"--root must be SET=DIR, such as voc=VOCdevkit, got {text!r}")
        if name != "data" and name not in SETS:
            raise UnknownNameError("data set", name, ["data", *SETS])
        found[name] = folder
    return Roots(found)


# -- printing ------------------------------------------------------------------------------------


def _print_table(table: "PublishedTable", record: "Reproduction") -> None:
    from upfeat.evaluation.papers.reproductions import comparison_rows, shared_differences

    heads, rows = comparison_rows(table, record)
    run = {each.row for each in record.ran}
    shown = [cells for cells, row in zip(rows, table.rows, strict=True) if row.key in run]
    kind = "a small run, no result to quote" if record.small else "ours"
    title = f"{table.paper}, {table.source}: {table.title}; published / {kind}"
    print_table([TableColumn(head) for head in heads], shown, title=title)
    if table.note:
        typer.echo(f"note: {table.note}")
    for text in shared_differences(record):
        typer.echo(f"differs: {text}")
    problems = dict.fromkeys(f"{each.row}: {each.problem}" for each in record.ran if each.problem)
    for problem in problems:
        typer.echo(f"no number: {problem}")


def _print_figure(figure: "PublishedFigure", record: "Reproduction", out: Path) -> None:
    typer.echo(f"{figure.paper}, {figure.source}: {figure.title}")
    for name in record.pictures:
        typer.echo(str(out / name))
    for each in record.ran:
        if each.problem:
            typer.echo(f"not drawn: {each.row}: {each.problem}")
