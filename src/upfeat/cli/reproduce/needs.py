"""What tables and figures need and what of it is there: a short line each, or all of it."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import typer

from upfeat.cli.output import TableColumn, print_table

if TYPE_CHECKING:
    from upfeat.evaluation.papers import PublishedFigure, PublishedTable
    from upfeat.evaluation.papers.sources import Roots

    Item = PublishedTable | PublishedFigure

__all__ = ["print_list", "print_needs"]

WIDTH = 100  # of what is printed, but for addresses
TITLE_WIDTH = 50  # of the last column of the list


class _Weights(NamedTuple):
    """Where the weights of a method come from, and whether something is still to be fetched."""

    text: str
    there: bool


def print_list(items: "Sequence[Item]", roots: "Roots", small: bool) -> None:
    """Print a line for each: how many of its sets and weights are there; then what is missing.

    Args:
        items: tables and figures.
        roots: folders that were given.
        small: of a small run.
    """
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
    """Print all that each needs: sets with what they are for, weights with addresses, remarks.

    Args:
        items: tables and figures.
        roots: folders that were given.
        small: of a small run.
    """
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
