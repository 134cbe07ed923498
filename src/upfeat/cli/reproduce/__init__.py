"""``upfeat reproduce``: tables and figures of the papers, ours beside the published numbers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from upfeat.cli.options import DeviceOption, checked_folder
from upfeat.cli.output import TableColumn, print_table

if TYPE_CHECKING:
    from upfeat.evaluation.papers import PublishedFigure, PublishedTable
    from upfeat.evaluation.papers.reproductions import Reproduction
    from upfeat.evaluation.papers.sources import Roots

    Item = PublishedTable | PublishedFigure

__all__ = ["parse_roots", "print_list", "print_needs", "reproduce_command"]

WIDTH = 100  # of what is printed, but for addresses
TITLE_WIDTH = 50  # of the last column of the list


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

    Raises:
        ValueError: not of this form, or an unknown set.
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


# -- what is needed ------------------------------------------------------------------------------


class _Weights(NamedTuple):
    """Where the weights of a method come from, and whether something is still to be fetched."""

    text: str
    there: bool


def print_list(items: "Sequence[Item]", roots: "Roots", small: bool) -> None:
    """Print a line for each: how many of its sets and weights are there; then what is missing."""
    from upfeat.evaluation.papers.plan import needed_sets

    rows = []
    for item in items:
        sets, weights = needed_sets(item, small=small), _weights(item)
        there = [name for name in sets if roots.missing(name) is None]
        named = [f"{name} (there)" if name in there else name for name in sets]
        first, *more = textwrap.wrap("; ".join([item.title, *_waits(item)]), TITLE_WIDTH)
        more += textwrap.wrap(", ".join(named), TITLE_WIDTH, initial_indent="needs ")
        counts = [
            _share(len(there), len(sets)),
            _share(sum(w.there for w in weights), len(weights)),
        ]
        rows.append([item.id, *counts, f"{item.gpu_hours:g}", first])
        rows += [[""] * 4 + [line] for line in more]
    heads = ("name", "sets", "weights", "GPU h", "title and sets")
    print_table([TableColumn(head) for head in heads], rows)
    typer.echo("sets, weights: how many of those needed are there; upfeat reproduce NAME --needs")
    _print_missing(items, roots, small)


def print_needs(items: "Sequence[Item]", roots: "Roots", small: bool) -> None:
    """Print all that each needs: sets with what they are for, weights with addresses, remarks."""
    from upfeat.evaluation.papers.plan import needed_sets

    for item in items:
        typer.echo(f"{item.id}: {item.title}, about {item.gpu_hours:g} GPU hours")
        for name, purpose in needed_sets(item, small=small).items():
            state = "there" if roots.missing(name) is None else "missing"
            text = f"set {name} ({state}): {purpose}"
            if purpose == "training of interactive":
                text += f", which `upfeat eval interactive` itself takes as --train {name}=DIR"
            _echo(text)
        for weights in _weights(item):
            _echo(f"weights {weights.text}")
        for text in [*_waits(item), *([item.note] if item.note else [])]:
            _echo(text)
    _print_missing(items, roots, small)


def _echo(text: str) -> None:
    """Print an indented sentence, wrapped between words; addresses stay whole."""
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent="  ", subsequent_indent="    ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    typer.echo(wrapper.fill(text))


def _share(there: int, of: int) -> str:
    return f"{there}/{of}" if of else "-"


def _print_missing(items: "Sequence[Item]", roots: "Roots", small: bool) -> None:
    from upfeat.evaluation.papers.plan import needed_sets

    needed = dict.fromkeys(name for item in items for name in needed_sets(item, small=small))
    missing = [problem for name in needed if (problem := roots.missing(name)) is not None]
    if missing:
        typer.echo("missing:")
        for problem in missing:
            _echo(problem)


def _waits(item: "Item") -> list[str]:
    """Return what protocols of a table still wait for in this version."""
    from upfeat.evaluation.papers import PublishedTable
    from upfeat.evaluation.papers.plan import not_ready

    columns = item.columns if isinstance(item, PublishedTable) else ()
    return sorted({problem for c in columns if (problem := not_ready(c.task, c.preset))})


def _weights(item: "Item") -> list[_Weights]:
    """Say where the weights of the methods come from; those without any are left out."""
    from upfeat.cli.reproduce.methods import at_hand, published_name
    from upfeat.evaluation.papers import PublishedTable
    from upfeat.evaluation.papers.sources import paper_method
    from upfeat.upsamplers.registry import get_checkpoint

    uses = [row.uses for row in item.rows] if isinstance(item, PublishedTable) else item.methods
    parts = []
    for method in map(paper_method, dict.fromkeys(uses)):
        if method.joint:
            parts.append(_Weights(f"{method.arch}: trained with the probe", True))
        elif method.recipes:
            tag = published_name(method.arch, item.backbone)
            record = None if tag is None else get_checkpoint(tag)
            if tag is None or record is None:
                recipes = ", ".join(method.recipes)
                parts.append(_Weights(f"{method.arch}: to train ({recipes})", False))
                continue
            there = at_hand(tag)
            parts.append(_Weights(f"{tag}: {'there' if there else record.file}", there))
    return parts
