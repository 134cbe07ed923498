"""``upfeat list``, ``upfeat info`` and ``upfeat cache``: what there is, published and on disk."""

import difflib
import fnmatch
import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import upfeat
from upfeat.cli.output import TableColumn, print_table, size_text

_ABILITIES = {
    "any size": "any_size",
    "universal": "universal",
    "per image": "per_image",
    "commutes with a head": "linear",
}

# Baselines that work on the backbone's side: wrappers of a backbone, no upsamplers. Tables name
# them all the same.
_BACKBONE_SIDE: dict[str, dict[str, str]] = {
    "large_image": {
        "summary": "Features of a bilinearly enlarged image; then bilinear.",
        "call": "upfeat.large_image(backbone, factor)",
        "used by": "JAFAR (x8 for probing, x2 for open vocabulary), LoftUp (x2 and x4)",
    },
    "shift_and_interleave": {
        "summary": "Features of shifted images, interleaved; then bilinear.",
        "call": "upfeat.shift_and_interleave(backbone, factor)",
        "used by": "after shift-and-stitch of Long et al. (2015)",
    },
    "strided": {
        "summary": "Features of overlapping patches; then bilinear.",
        "call": "upfeat.strided(backbone, stride)",
        "used by": "JAFAR (patch 14, stride 6); after Amir et al. (2021)",
    },
}


def list_command(
    pattern: Annotated[str, typer.Argument(help="Wildcard, such as 'jafar*'.")] = "*",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List published weights (arch.tag).")
    ] = False,
    backbones: Annotated[
        bool, typer.Option("--backbones", help="List backbones instead of upsamplers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List upsamplers and their abilities, published weights, or backbones."""
    wrappers = []
    if backbones:
        names = upfeat.list_backbones(pattern)
    else:
        methods = _read_methods()
        shown = _weights_of(methods) if pretrained else methods
        names = sorted(fnmatch.filter(shown, pattern))
        wrappers = [] if pretrained else fnmatch.filter(_BACKBONE_SIDE, pattern)
    if as_json:
        typer.echo(json.dumps(names))
    elif backbones:
        typer.echo("\n".join(names))
    elif pretrained:
        if names:
            _print_weights({name: shown[name] for name in names})
    else:
        if names:
            _print_methods({name: shown[name] for name in names})
        if wrappers:
            _print_wrappers(wrappers)
    if not names and (as_json or not wrappers):
        known = upfeat.list_backbones() if backbones else [*shown, *_BACKBONE_SIDE]
        raise ValueError(f"nothing matches {pattern!r}{_meant(pattern, known)}")


def _meant(name: str, known: Sequence[str]) -> str:
    """Say what a name without wildcards may mean; as ``UnknownNameError`` does, without torch."""
    plain = {each.casefold(): each for each in known}
    behind = {each.casefold().partition("/")[2]: each for each in known}
    same = behind.get(name.casefold())
    close = difflib.get_close_matches(name.casefold(), list(plain), n=1, cutoff=0.5)
    if set(name) & set("*?[") or not (same or close):
        return "; 'upfeat list' shows all"
    return f"; did you mean {same or plain[close[0]]!r}?"


def _read_methods() -> dict[str, dict[str, Any]]:
    """Return what tools/method_pages.py keeps of the registry: importing that imports torch."""
    content: dict[str, dict[str, Any]]
    content = json.loads(files("upfeat.cli").joinpath("methods.json").read_bytes())
    return content


def _weights_of(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the published weights of all methods, by their full names."""
    return {
        f"{name}.{tag}": record
        for name, method in methods.items()
        for tag, record in method["weights"].items()
    }


def _print_methods(methods: dict[str, dict[str, Any]]) -> None:
    heads = ("name", "task-agnostic", *_ABILITIES, "weights available", "year")
    rows = []
    for name, method in methods.items():
        flags = [
            method["task_agnostic"],
            *(method["abilities"][key] for key in _ABILITIES.values()),
        ]
        marks = ["yes" if flag else "-" for flag in flags]
        weights, year = str(len(method["weights"]) or "-"), str(method["year"] or "-")
        rows.append([name, *marks, weights, year, method["summary"]])
    print_table([*heads, TableColumn("summary", prose=True)], rows)


def _print_wrappers(names: list[str]) -> None:
    prose = [TableColumn(head, prose=True) for head in ("used by", "summary")]
    facts = [(name, _BACKBONE_SIDE[name]) for name in names]
    rows = [[name, fact["call"], fact["used by"], fact["summary"]] for name, fact in facts]
    print_table(["name", "call", *prose], rows, title="\nbackbone-side")


def _print_weights(weights: dict[str, dict[str, Any]]) -> None:
    prose = [TableColumn(head, prose=True) for head in ("backbone", "licence")]
    rows = []
    for name, record in weights.items():
        width = str(record["channels"] or "any")
        rows.append([name, width, record["backbone"], record["licence"], record["file"]])
    print_table(["name", "channels", *prose, "file"], rows)


def info_command(
    name: Annotated[str, typer.Argument(help="Name of an upsampler, with or without tag.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show an upsampler's paper, abilities, licences and weights."""
    facts = _facts(name)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        text = "\n".join(value) if isinstance(value, list) else str(value)
        table.add_row(f"[bold]{key}[/bold]", text)
    Console().print(table)


def _facts(name: str) -> dict[str, object]:
    """Return everything that is known about a name, ready to print."""
    from upfeat.upsamplers.registry import get_checkpoint, get_class, needs_feature_dim

    if name in _BACKBONE_SIDE:
        return {"name": name, "kind": "backbone-side (no upsampler)", **_BACKBONE_SIDE[name]}
    cls = get_class(name)
    info, record = cls.info, get_checkpoint(name)
    facts: dict[str, object] = {
        "name": name,
        "summary": info.summary,
        "use it when": info.when,
        "claim": info.claim or "none",
        "needs": needs_of(info.name),
        "paper": info.paper or "none",
        "arXiv": info.arxiv or "none",
        "year": info.year or "none",
        "code": info.code or "none",
        "licence of the original code": info.code_license or "none",
        "task-agnostic": info.task_agnostic,
        **{label: getattr(info.abilities, key) for label, key in _ABILITIES.items()},
        "built for one feature width": needs_feature_dim(name),
        "mixes other values (values=)": info.abilities.mixes_values,
        "bounded memory (tiles)": info.abilities.tiles,
        "single positions (query)": info.abilities.query,
        "guidance mean": _numbers(info.image_mean),
        "guidance std": _numbers(info.image_std),
        **{f"as a baseline in {paper}": how for paper, how in baseline_notes(name).items()},
    }
    if record is None:
        facts["licence of the weights"] = _licences(name, "weights_license")
        facts["licence of the backbone"] = _licences(name, "backbone_license")
        facts["weights"] = upfeat.list_upsamplers(f"{name}.*", pretrained=True) or "none"
        return facts
    return facts | {
        "file": str(record.file),
        "SHA-256": record.file.sha256 or "not known",
        "backbone": record.backbone,
        "channels": record.feature_dim or "any",
        "trained on": record.training_data,
        "licence of the weights": record.weights_license,
        "licence of the backbone": record.backbone_license,
        "guidance mean": _numbers(record.image_mean),
        "guidance std": _numbers(record.image_std),
        "note": record.note or "none",
    }


def baseline_notes(name: str) -> dict[str, str]:
    """Return how the papers whose tables compare most methods ran this one, by the paper's name.

    Example:
        >>> from upfeat.cli.listing import baseline_notes
        >>> baseline_notes("nearest")
        {'JAFAR': 'to the target size', 'LoftUp': 'not compared'}
    """
    from upfeat.upsamplers.registry import get_class

    notes = get_class(name).info.as_baseline
    return {paper: notes.get(paper, "not compared") for paper in ("JAFAR", "LoftUp")}


def needs_of(name: str) -> list[str]:
    """Return what a user must have or do before a method works.

    Example:
        >>> from upfeat.cli.listing import needs_of
        >>> needs_of("bilinear")
        ['nothing: no weights, no training']
        >>> needs_of("carafe")[0]
        'training together with the task (upfeat train); no weights are published'
    """
    from upfeat.upsamplers.registry import get_checkpoint, get_class

    info = get_class(name).info
    tags = upfeat.list_upsamplers(f"{name}.*", pretrained=True)
    records = [record for tag in tags if (record := get_checkpoint(tag)) is not None]
    needs = []
    if info.abilities.per_image:
        needs.append("an optimisation for each image, at test time")
    elif records and all(record.feature_dim is None for record in records):
        where = "in the package" if any(r.bundled for r in records) else "published"
        needs.append(f"one set of weights for all backbones ({where})")
    elif records:
        inside = sum(record.bundled for record in records)
        where = f", {inside} of them in the package" if inside else ""
        needs.append(f"weights trained for the backbone ({len(records)} published{where})")
    elif not info.task_agnostic:
        needs.append("training together with the task (upfeat train); no weights are published")
    elif _learns(name):
        backbones = "once" if info.abilities.universal else "for each backbone"
        needs.append(f"training {backbones} (upfeat train); no weights are published")
    else:
        needs.append("nothing: no weights, no training")
    if not info.abilities.any_size:
        steps = f"x{info.factor}" if info.factor else "a whole factor"
        needs.append(f"a resize where the output is not the grid times {steps} (done for you)")
    return needs


def _learns(name: str) -> bool:
    """Whether a method has weights at all."""
    from upfeat.upsamplers.registry import get_class, needs_feature_dim

    width = {"feature_dim": 32} if needs_feature_dim(name) else {}
    return next(get_class(name)(**width).parameters(), None) is not None


def _licences(name: str, field: str) -> str:
    """All licences of a method's published weights, or of their backbones."""
    from upfeat.upsamplers.registry import get_checkpoint

    records = map(get_checkpoint, upfeat.list_upsamplers(f"{name}.*", pretrained=True))
    return "; ".join(dict.fromkeys(getattr(record, field) for record in records)) or "none"


def _numbers(values: tuple[float, ...] | None) -> str:
    return "as the backbone" if values is None else ", ".join(f"{v:g}" for v in values)


# -- the cache -------------------------------------------------------------------------------------

WEIGHTS, EVALUATION, OTHER = "weights", "features and probes of upfeat eval", "not upfeat's"

cache_app = typer.Typer(
    help="List or remove what upfeat keeps: downloaded weights, features of probes.",
    no_args_is_help=True,
)


@cache_app.command("list")
def cache_list_command() -> None:
    """List the contents of the cache, with sizes."""
    folder, entries = _cache()
    if not entries:
        typer.echo(f"{folder} is empty")
        return
    rows = [[path.name, _kind(path), size_text(_size(path))] for path in entries]
    print_table(["name", "what", "size"], rows)
    typer.echo(f"{size_text(sum(map(_size, entries)))} in {folder}")


@cache_app.command("clean")
def cache_clean_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Entries to remove, named as in upfeat cache list.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove everything, including downloaded weights.")
    ] = False,
) -> None:
    """Remove cached features; downloaded weights only with --all or by name."""
    folder, found = _cache()
    entries = {path.name: path for path in found}
    if names:
        chosen = [_cached(name, entries) for name in names]
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
    kept = [path for path in _cache()[1] if _kind(path) == WEIGHTS]
    if kept and not names:
        typer.echo(f"{len(kept)} with weights kept; --all removes them, too")


def _cache() -> tuple[Path, list[Path]]:
    """Return the folder of the cache and its entries."""
    from upfeat.checkpoints import cache_dir

    folder = cache_dir().expanduser()
    return folder, sorted(folder.iterdir()) if folder.is_dir() else []


def _cached(name: str, entries: dict[str, Path]) -> Path:
    from upfeat.errors import UnknownNameError

    if name not in entries:
        raise UnknownNameError("entry of the cache", name, entries)
    if _kind(entries[name]) == OTHER:
        raise ValueError(f"{entries[name]} was not put there by upfeat; remove it yourself")
    return entries[name]


def _kind(path: Path) -> str:
    """Say what an entry is; weights are files, or folders of nothing else."""
    from upfeat._lookup import SUFFIXES

    if path.name == "eval" and path.is_dir():
        return EVALUATION
    files = _cached_files(path)
    return WEIGHTS if files and all(each.name.endswith(SUFFIXES) for each in files) else OTHER


def _cached_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def _size(path: Path) -> int:
    """Return bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in _cached_files(path))
