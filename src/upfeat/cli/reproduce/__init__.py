"""``upfeat reproduce``: tables and figures of the papers, ours beside the published numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.options import CpuOption, checked_folder
from upfeat.cli.output import TableColumn, print_table

if TYPE_CHECKING:
    from upfeat.evaluation.papers import PublishedFigure, PublishedTable
    from upfeat.evaluation.papers.reproductions import Reproduction
    from upfeat.evaluation.papers.sets import Roots

__all__ = ["parse_roots", "reproduce_command"]


def reproduce_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Tables and figures, such as jafar:table-1, or papers: jafar, loftup."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what each needs and what is there; run nothing.")
    ] = False,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of a data set, SET=DIR; repeat. data=DIR holds several under their usual "
            "names, weights=DIR files of backbones."
        ),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Only these rows of a table, with commas: jafar,bilinear.")
    ] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Small sets, backbone and settings: shows that all works, no more."
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=checked_folder, help="Folder of everything.")
    ] = Path("reproduce"),
    teacher: Annotated[
        Path | None, typer.Option(help="Folder with Depth Anything V2, for JAFAR's depth column.")
    ] = None,
    device: CpuOption = "cpu",
) -> None:
    """Run tables and figures of the papers, and print ours beside the published numbers."""
    from upfeat.cli.eval import show_progress
    from upfeat.cli.reproduce.figures import draw_figure
    from upfeat.cli.reproduce.running import Runner
    from upfeat.evaluation.papers import PublishedTable, find_published

    roots = parse_roots(root or ())
    chosen = find_published(names or ())
    if list_:
        _print_list(chosen, roots, small)
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
    from upfeat.evaluation.papers.sets import SETS, Roots

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


def _print_list(
    items: "Sequence[PublishedTable | PublishedFigure]", roots: "Roots", small: bool
) -> None:
    """Say of each what it needs and what of that is there."""
    from upfeat.evaluation.papers import PublishedTable
    from upfeat.evaluation.papers.plan import needed_sets, not_ready

    lines = []
    for item in items:
        sets = needed_sets(item, small=small)
        data = ", ".join(
            f"{name} {'(there)' if roots.missing(name) is None else '(missing)'}" for name in sets
        )
        state = "figure"
        if isinstance(item, PublishedTable):
            waits = {not_ready(column.task, column.preset) for column in item.columns} - {None}
            state = "; ".join(sorted(map(str, waits))) or "ready"
        rows = [row.uses for row in item.rows] if isinstance(item, PublishedTable) else item.methods
        weights = _weights_text(list(rows), item.backbone)
        lines.append([item.id, item.title, state, data or "-", weights, f"{item.gpu_hours:g}"])
    heads = ("name", "title", "protocols", "data sets", "weights", "GPU hours")
    print_table([TableColumn(head, prose=head != "name") for head in heads], lines)
    needed = dict.fromkeys(name for item in items for name in needed_sets(item, small=small))
    missing = [problem for name in needed if (problem := roots.missing(name)) is not None]
    if missing:
        typer.echo("missing:")
        for problem in missing:
            typer.echo(f"  {problem}")


def _weights_text(uses: Sequence[str], backbone: str) -> str:
    """Say where the weights of a table's methods come from."""
    from upfeat.checkpoints import find_weights
    from upfeat.cli.reproduce.methods import published_name
    from upfeat.errors import WeightsNotFoundError
    from upfeat.evaluation.papers.methods import paper_method
    from upfeat.upsamplers.registry import get_checkpoint

    parts = []
    for name in dict.fromkeys(uses):
        method = paper_method(name)
        if method.joint:
            parts.append(f"{method.arch} (trained with the probe)")
        elif method.recipes:
            tag = published_name(method.arch, backbone)
            record = None if tag is None else get_checkpoint(tag)
            if tag is None or record is None:
                parts.append(f"{method.arch} (to train: {', '.join(method.recipes)})")
                continue
            try:
                if not record.bundled:
                    find_weights(tag, record.local_names(method.arch))
                parts.append(f"{tag} (there)")
            except WeightsNotFoundError:
                parts.append(f"{tag} ({record.file})")
    return ", ".join(parts) or "-"


def _print_table(table: "PublishedTable", record: "Reproduction") -> None:
    from upfeat.evaluation.papers.reproductions import comparison_rows, shared_differences

    heads, rows = comparison_rows(table, record)
    run = {each.row for each in record.ran}
    shown = [cells for cells, row in zip(rows, table.rows, strict=True) if row.key in run]
    kind = "a small run, no result to quote" if record.small else "ours"
    title = f"{table.paper}, {table.source}: {table.title}; published / {kind}"
    print_table([TableColumn(head) for head in heads], shown, title=title)
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
