"""``upfeat cache``: what upfeat keeps on the disk between runs."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from upfeat.cli.output import TableColumn, print_table
from upfeat.cli.progress import size_text

WEIGHTS, EVALUATION, OTHER = "weights", "features and probes of upfeat eval", "not upfeat's"

cache_app = typer.Typer(
    help="List or remove what upfeat keeps: downloaded weights, features of probes.",
    no_args_is_help=True,
)


@cache_app.command("list")
def list_command() -> None:
    """List the contents of the cache, with sizes."""
    folder = _folder()
    entries = _entries(folder)
    if not entries:
        typer.echo(f"{folder} is empty")
        return
    rows = [[path.name, _kind(path), size_text(_size(path))] for path in entries]
    print_table([TableColumn("name"), TableColumn("what"), TableColumn("size")], rows)
    typer.echo(f"{size_text(sum(map(_size, entries)))} in {folder}")


@cache_app.command("clean")
def clean_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Entries to remove, named as in upfeat cache list.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove everything, including downloaded weights.")
    ] = False,
) -> None:
    """Remove cached features; downloaded weights only with --all or by name."""
    folder = _folder()
    entries = {path.name: path for path in _entries(folder)}
    if names:
        chosen = [_named(name, entries) for name in names]
    else:
        unwanted = (EVALUATION, WEIGHTS) if everything else (EVALUATION,)
        chosen = [path for path in entries.values() if _kind(path) in unwanted]
    freed = sum(map(_size, chosen))
    for path in chosen:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    typer.echo(f"{len(chosen)} removed from {folder}, {size_text(freed)} free again")
    kept = [path for path in _entries(folder) if _kind(path) == WEIGHTS]
    if kept and not names:
        typer.echo(f"{len(kept)} with weights kept; --all removes them, too")


def _folder() -> Path:
    from upfeat.checkpoints import cache_dir

    return cache_dir().expanduser()


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _named(name: str, entries: dict[str, Path]) -> Path:
    from upfeat.errors import UnknownNameError

    if name not in entries:
        raise UnknownNameError("entry of the cache", name, entries)
    if _kind(entries[name]) == OTHER:
        raise ValueError(f"{entries[name]} was not put there by upfeat; remove it yourself")
    return entries[name]


def _kind(path: Path) -> str:
    """Say what an entry is; weights are files, or folders of nothing else."""
    from upfeat.checkpoints import SUFFIXES

    if path.name == "eval" and path.is_dir():
        return EVALUATION
    files = _files(path)
    return WEIGHTS if files and all(each.name.endswith(SUFFIXES) for each in files) else OTHER


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def _size(path: Path) -> int:
    """Return bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in _files(path))
