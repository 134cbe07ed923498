"""``upfeat eval NAME``: one command a protocol, generated from the registry.

What the help needs is kept in ``protocols.json`` (written by ``tools/protocol_list.py``), for the
protocols themselves import torch.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from upfeat.cli.options import (
    DEFAULT_OUT,
    UPSAMPLERS,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    DtypeOption,
    OutOption,
    SettingsOption,
    checked_folder,
    compute_in,
    parameter,
    parse_dtype,
    parse_seeds,
    parse_settings,
    with_parameters,
)
from upfeat.cli.output import progress_bar
from upfeat.cli.report import FiguresOption, TablesOption, write_figures, write_tables

if TYPE_CHECKING:
    from pydantic import BaseModel

    from upfeat.backbones import Backbone
    from upfeat.evaluation.registry import Progress as OnProgress
    from upfeat.evaluation.registry import Protocol
    from upfeat.evaluation.results import Result

SettingsT = TypeVar("SettingsT", bound="BaseModel")

eval_app = typer.Typer(help="Evaluate upsamplers on a task.", no_args_is_help=True)

_WEIGHTS = {
    "trained": "",
    "joint": " A method without published weights is trained with the heads.",
    "untrained": " Random weights do.",
}
_MOST_SHOWN = 9  # columns of a printed table
OWN = "folder"  # upfeat.data.own.FOLDER_SET, whose module imports torch


@eval_app.callback()
def eval_options() -> None:
    """Measure upsamplers in a task."""


def checked_settings(preset: "Callable[..., SettingsT]", changes: Mapping[str, Any]) -> "SettingsT":
    """Return a protocol's settings, or raise with one sentence about the wrong change."""
    from pydantic import ValidationError

    from upfeat._settings import readable_error
    from upfeat.errors import UnknownNameError

    try:
        return preset(**changes)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == "extra_forbidden":
                name, known = ".".join(map(str, detail["loc"])), type(preset()).model_fields
                raise UnknownNameError("setting", name, known) from error
        raise readable_error(error) from error


@contextmanager
def show_progress() -> Iterator["OnProgress"]:
    """Show method, stage and time left while the block runs."""
    with progress_bar(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("reading")
        stage = ""

        def show(label: str, name: str, done: int, total: int) -> None:
            nonlocal stage
            if stage != (stage := f"{label}: {name}"):
                progress.reset(task, description=stage, total=total)
            progress.update(task, completed=done)

        yield show


def print_scores(protocol: "Protocol", results: Sequence["Result"], title: str, note: str) -> None:
    """Print a row a method, mean and deviation over seeds; several tables if one is too wide."""
    from upfeat.evaluation.registry import column_groups, score_digits, score_text

    written = dict.fromkeys(name for result in results for name in result.scores)
    shown = [name for name in protocol.columns or written if name in written]
    groups = column_groups({name: protocol.kind(name) for name in shown}, _MOST_SHOWN)
    for heading, names in groups:
        heads = [protocol.kind(name).column(results[0].unit.partition(";")[0]) for name in names]
        parts = ", ".join(filter(None, (title, heading)))
        table = Table("upsampler", *heads, title=parts, caption=note)
        for result in results:
            cells = []
            for name in names:
                means = [r.scores[name].mean for r in results if name in r.scores]
                score = result.scores.get(name)
                cells.append("" if score is None else score_text(score, digits=score_digits(means)))
            table.add_row(result.label, *cells)
        Console(width=160).print(table)


# -- one command a protocol ----------------------------------------------------------------------


def protocol_command(name: str, facts: Mapping[str, Any]) -> Callable[..., None]:
    """Return the function behind ``upfeat eval NAME``.

    Args:
        name: of the protocol.
        facts: of :meth:`upfeat.evaluation.registry.Protocol.command_facts`.
    """

    def command(**given: Any) -> None:
        run_protocol(name, **given)

    command.__doc__ = f"{facts['summary'].rstrip('.')}; finished methods are skipped."
    return with_parameters(command, list(_parameters(facts)))


def kept_protocols() -> dict[str, dict[str, Any]]:
    """Return what tools/protocol_list.py keeps of the registry: importing that imports torch."""
    content: dict[str, dict[str, Any]]
    content = json.loads(files("upfeat.cli").joinpath("protocols.json").read_bytes())
    return content


def _parameters(facts: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    """Yield the options of a protocol's command, in the order of its help."""

    def text(help: str) -> Any:
        return Annotated[str, typer.Option(help=help)]

    def optional(kind: Any, help: str, **more: Any) -> Any:
        return Annotated[kind | None, typer.Option(help=help, **more)]

    yield parameter("upsampler", text(f"{UPSAMPLERS}{_WEIGHTS[facts['weights']]}"))
    if facts["data"]:
        own = " folder: your own data, see docs/your_data.md; or the path of an upfeat-data.yaml."
        sets = f"Data set: {', '.join(facts['data'])}."
        yield parameter("data", text(sets + own if OWN in facts["data"] else sets))
        root = "Folder of the data set; not needed if --data is an upfeat-data.yaml."
        yield parameter("root", optional(Path, root), None)
    if facts["backbone"]:
        yield parameter("backbone", BackboneOption)
    else:
        width = (
            "Backbone: timm/NAME or upfeat/NAME; presets without one only use its feature width."
        )
        yield parameter("backbone", optional(str, width), None)
    yield parameter("out", OutOption, DEFAULT_OUT)
    if presets := facts["presets"]:
        known = f"Preset of the protocol's settings: {', '.join(presets)}."
        yield parameter("preset", text(known), presets[0])
    yield parameter("settings", SettingsOption, None)
    if facts["seeds"]:
        seeds = "Random seeds of the heads, separated by commas: 0,1,2."
        yield parameter("seeds", optional(str, seeds), None)
    if facts["items"]:
        yield parameter(
            "limit", optional(int, f"Quick look at N {facts['items']} only.", min=1), None
        )
    for each in facts["options"]:
        kind: Any = {"text": str, "path": Path, "flag": bool}[each["kind"]]
        flag = typer.Option(f"--{each['name'].replace('_', '-')}", help=each["help"])
        kind = kind if each["default"] is not None else kind | None
        yield parameter(each["name"], Annotated[kind, flag], each["default"])
    yield parameter("backbone_weights", BackboneWeightsOption, None)
    yield parameter("tables", TablesOption, None)
    yield parameter("figures", FiguresOption, None)
    if facts["data"]:
        cache = "Folder to cache features in. Default: upfeat's cache."
        yield parameter("cache", optional(Path, cache, callback=checked_folder), None)
    yield parameter("dtype", DtypeOption, "float32")
    yield parameter("device", DeviceOption, "auto")


def run_protocol(
    name: str,
    *,
    upsampler: str,
    out: Path,
    device: str,
    dtype: str,
    data: str | None = None,
    root: Path | None = None,
    backbone: str | None = None,
    preset: str = "",
    settings: Sequence[str] | None = None,
    seeds: str | None = None,
    limit: int | None = None,
    backbone_weights: Path | None = None,
    cache: Path | None = None,
    tables: Path | None = None,
    figures: Path | None = None,
    **options: Any,
) -> None:
    """Run a protocol and print its scores."""
    from upfeat.checkpoints import cache_dir
    from upfeat.data.own import set_name
    from upfeat.evaluation.methods import load_methods
    from upfeat.evaluation.registry import Request, get_protocol

    protocol = get_protocol(name)
    changes: dict[str, Any] = {} if seeds is None else {"seeds": parse_seeds(seeds)}
    changes |= ({} if limit is None else {"limit": limit}) | parse_settings(settings)
    place, reader = _place(protocol, data, root)
    shown, fixed = data, {}
    if reader == OWN:
        shown = set_name(place)
        fixed = {"reader": OWN} | protocol.own_settings(preset, place)
    settings_of = partial(protocol.settings, preset, shown, **fixed)
    config, half = checked_settings(settings_of, changes), parse_dtype(dtype, "--dtype")
    if dtype == "float32":
        half = None
    elif "dtype" in type(config).model_fields:  # the protocol converts the networks itself
        config, half = checked_settings(settings_of, changes | {"dtype": dtype}), None
    elif protocol.backbone is not None:
        raise ValueError(f"{protocol.name} computes in float32 only; leave out --dtype")
    request = Request(reader, place, cache or cache_dir() / "eval", device, options)
    network = _backbone(protocol, backbone, backbone_weights, device)
    features = network or protocol.width(config)  # type: ignore[misc]
    methods = load_methods(upsampler, features, weights=protocol.weights, device=device)
    if half is not None:
        compute_in(half, network, methods)
    inputs = protocol.inputs(request)
    with show_progress() as show:
        results = protocol.run(
            config=config, backbone=network, methods=methods, out=out, on_progress=show, **inputs
        )
    titles = (preset or protocol.name, shown, None if network is None else network.name)
    title = ", ".join(filter(None, titles))
    notes = [protocol.caption]
    count = len(results[0].settings.get("seeds", ()))
    if count:
        notes.append("one seed" if count == 1 else f"mean ± deviation over {count} seeds")
    if "limit" in changes:
        notes.append(f"a quick look: {changes['limit']} {protocol.items}")
    if half is not None:
        notes.append(f"features computed in {dtype}")
    print_scores(protocol, results, title, "; ".join(filter(None, notes)))
    typer.echo(f"settings and numbers of each method in {out}")
    for file in _written(results, out, tables, figures):
        typer.echo(file)
    _print_notes(results)


def _place(protocol: "Protocol", data: str | None, root: Path | None) -> tuple[Path, str | None]:
    """Return the folder or card of a set, and the set's name; a card is the user's own."""
    if data is None:
        return Path(), None
    card = data.endswith((".yaml", ".yml"))
    if card and OWN not in protocol.data:
        raise ValueError(
            f"{protocol.name} reads no data of your own, got {data}; known: "
            f"{', '.join(protocol.data)}"
        )
    if card and root is not None:
        raise ValueError(
            f"--data {data} names its folder itself; leave out --root, or change path: in it"
        )
    if card:
        return Path(data), OWN
    if root is None:
        raise ValueError(f"name the folder of {data} with --root")
    return root, data


def _backbone(
    protocol: "Protocol", name: str | None, weights: Path | None, device: str
) -> "Backbone | None":
    """Build the network that is named; None where the protocol needs the channels alone."""
    import upfeat

    if name is None:
        if protocol.width is None:
            raise ValueError(f"{protocol.name} needs a backbone; name one with --backbone")
        return None
    if protocol.backbone is not None:
        return protocol.backbone(name, weights).to(device)
    return upfeat.create_backbone(name, weights=weights).to(device)


def _written(
    results: Sequence["Result"], out: Path, tables: Path | None, figures: Path | None
) -> list[Path]:
    """Write the tables and pictures that were asked for, of these results alone."""
    from upfeat.evaluation.report.content import panel_scenes
    from upfeat.evaluation.tables import build_tables
    from upfeat.evaluation.tables.panels import load_panel, panel_files

    scored = [result for result in results if result.scores]
    files = [] if tables is None else write_tables(tables, build_tables(scored))
    if figures is None:
        return files
    found = build_tables(scored)
    headings = {(table.task, table.data, table.backbone) for table in found}
    labels = {"image", "target", *(result.label for result in scored)}
    panels = [
        panel
        for panel in map(load_panel, panel_files(out))
        if (panel.task, panel.data, panel.backbone) in headings and panel.label in labels
    ]
    if not panels:
        typer.echo("no figures: this protocol or preset writes no pictures", err=True)
    return files + write_figures(figures, panel_scenes(panels))


def _print_notes(results: Sequence["Result"]) -> None:
    """Print notes and failures; a method without any score ends the command with 1."""
    for result in results:
        if note := result.details.get("note"):
            typer.echo(f"{result.label}: {note}")
        for part, problem in result.details.get("failures", {}).items():
            typer.echo(f"{result.label}, {part}: {problem}", err=True)
    if empty := [result.label for result in results if not result.scores]:
        typer.echo(f"no score could be computed for {', '.join(empty)}", err=True)
        raise typer.Exit(1)


for _name, _facts in kept_protocols().items():
    eval_app.command(_name)(protocol_command(_name, _facts))
