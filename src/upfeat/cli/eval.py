"""``upfeat eval NAME``: one command a protocol, made from what the registry says of it.

What the help needs is kept in ``protocols.json`` (written by ``tools/protocol_list.py``), for the
protocols themselves import torch.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from upfeat.cli.files import FiguresOption, TablesOption, write_figures, write_tables
from upfeat.cli.options import (
    DEFAULT_OUT,
    UPSAMPLERS,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    OutOption,
    SettingsOption,
    checked_folder,
    parse_seeds,
    parse_settings,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
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


def load_networks(
    backbone: str, weights: Path | None, upsamplers: str, device: str
) -> tuple["Backbone", list["Method"]]:
    """Load the backbone and every entry of ``--upsampler``.

    Args:
        backbone: name of it.
        weights: file of its weights; None for the usual lookup.
        upsamplers: entries with commas, see :func:`upfeat.evaluation.methods.load_methods`.
        device: where they run.
    """
    import upfeat
    from upfeat.evaluation.methods import load_methods

    network = upfeat.create_backbone(backbone, weights=weights).to(device)
    return network, load_methods(upsamplers, network, device=device)


def checked_settings(preset: "Callable[..., SettingsT]", changes: Mapping[str, Any]) -> "SettingsT":
    """Return a protocol's settings; say in one sentence what is wrong with a change.

    Args:
        preset: called with the changes; without any it gives the usual settings.
        changes: of ``--set`` and other options.

    Raises:
        ValueError: an unknown setting or an impossible value.

    Example:
        >>> from functools import partial
        >>> from upfeat.cli.eval import checked_settings
        >>> from upfeat.evaluation.protocols.seg_probe import seg_probe_preset
        >>> preset = partial(seg_probe_preset, "pixel-sample", "msrc")
        >>> checked_settings(preset, {"steps": 7}).steps
        7
        >>> try:
        ...     checked_settings(preset, {"stepps": 7})
        ... except ValueError as error:
        ...     print(str(error).split(";")[0])
        unknown setting 'stepps'
    """
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
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading")
        stage = ""

        def show(label: str, name: str, done: int, total: int) -> None:
            nonlocal stage
            if stage != (stage := f"{label}: {name}"):
                progress.reset(task, description=stage, total=total)
            progress.update(task, completed=done)

        yield show


def print_scores(protocol: "Protocol", results: Sequence["Result"], title: str, note: str) -> None:
    """Print a row a method, mean and deviation over the seeds; several tables if one is too wide.

    Args:
        protocol: whose columns are printed, as far as a result has them.
        results: of it.
        title: above the table.
        note: below it.
    """
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


@dataclass(frozen=True)
class _Parameter:
    """An option of a generated command: what typer reads, and its default."""

    type: Any
    default: Any = inspect.Parameter.empty


def protocol_command(name: str, facts: Mapping[str, Any]) -> Callable[..., None]:
    """Return the function behind ``upfeat eval NAME``.

    Args:
        name: of the protocol.
        facts: of :meth:`upfeat.evaluation.registry.Protocol.command_facts`.

    Example:
        >>> import inspect
        >>> from upfeat.cli.eval import kept_protocols, protocol_command
        >>> command = protocol_command("vos", kept_protocols()["vos"])
        >>> "split" in inspect.signature(command).parameters
        True
    """
    parameters = _parameters(facts)

    def command(**given: Any) -> None:
        run_protocol(name, **given)

    command.__doc__ = f"{facts['summary'].rstrip('.')}; finished methods are skipped."
    command.__annotations__ = {key: each.type for key, each in parameters.items()}
    signature = inspect.Signature(
        [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
            )
            for key, each in parameters.items()
        ]
    )
    vars(command)["__signature__"] = signature
    return command


def kept_protocols() -> dict[str, dict[str, Any]]:
    """Return what tools/protocol_list.py keeps of the registry: importing that imports torch."""
    content: dict[str, dict[str, Any]]
    content = json.loads(files("upfeat.cli").joinpath("protocols.json").read_bytes())
    return content


def _parameters(facts: Mapping[str, Any]) -> dict[str, _Parameter]:
    """Return the options of a protocol's command, in the order of its help."""
    entries = f"{UPSAMPLERS}{_WEIGHTS[facts['weights']]}"
    found = {"upsampler": _Parameter(Annotated[str, typer.Option(help=entries)])}
    if facts["data"]:
        sets = f"Data set: {', '.join(facts['data'])}."
        if OWN in facts["data"]:
            sets += (
                " folder: your own data, see docs/your_data.md; or the path of an upfeat-data.yaml."
            )
        found["data"] = _Parameter(Annotated[str, typer.Option(help=sets)])
        root = Annotated[
            Path | None,
            typer.Option(
                help="Folder of the data set; not needed if --data is an upfeat-data.yaml."
            ),
        ]
        found["root"] = _Parameter(root, None)
    if facts["backbone"]:
        found["backbone"] = _Parameter(BackboneOption)
    else:
        width = (
            "Backbone: timm/NAME or upfeat/NAME; presets without one only use its feature width."
        )
        found["backbone"] = _Parameter(Annotated[str | None, typer.Option(help=width)], None)
    found["out"] = _Parameter(OutOption, DEFAULT_OUT)
    if presets := facts["presets"]:
        known = Annotated[
            str, typer.Option(help=f"Preset of the protocol's settings: {', '.join(presets)}.")
        ]
        found["preset"] = _Parameter(known, presets[0])
    found["settings"] = _Parameter(SettingsOption, None)
    if facts["seeds"]:
        seeds = Annotated[
            str | None, typer.Option(help="Random seeds of the heads, separated by commas: 0,1,2.")
        ]
        found["seeds"] = _Parameter(seeds, None)
    if facts["items"]:
        limit = Annotated[
            int | None, typer.Option(min=1, help=f"Quick look at N {facts['items']} only.")
        ]
        found["limit"] = _Parameter(limit, None)
    for option in facts["options"]:
        kind: Any = {"text": str, "path": Path, "flag": bool}[option["kind"]]
        flag = f"--{option['name'].replace('_', '-')}"
        kind = kind if option["default"] is not None else kind | None
        found[option["name"]] = _Parameter(
            Annotated[kind, typer.Option(flag, help=option["help"])], option["default"]
        )
    found["backbone_weights"] = _Parameter(BackboneWeightsOption, None)
    found["tables"] = _Parameter(TablesOption, None)
    found["figures"] = _Parameter(FiguresOption, None)
    if facts["data"]:
        cache = Annotated[
            Path | None,
            typer.Option(
                callback=checked_folder,
                help="Folder to cache features in. Default: upfeat's cache.",
            ),
        ]
        found["cache"] = _Parameter(cache, None)
    found["device"] = _Parameter(DeviceOption, "auto")
    return found


def run_protocol(
    name: str,
    *,
    upsampler: str,
    out: Path,
    device: str,
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
    """Run a protocol and print its scores.

    Args:
        name: of the protocol.
        upsampler: entries with commas between them.
        out: folder of the results.
        device: where everything runs.
        data: name of the set.
        root: folder of it; None for a card, which names its own.
        backbone: name of it.
        preset: of the settings.
        settings: changes of them, ``name=value``.
        seeds: with commas between them; None for the preset's.
        limit: at most so many images or videos.
        backbone_weights: file of its weights; None for the usual lookup.
        cache: folder of features; None for upfeat's.
        tables: folder of the tables as Markdown, CSV and LaTeX; None writes none.
        figures: folder of the pictures as PNG and PDF; None writes none.
        **options: of the protocol itself.

    Raises:
        ValueError: something named is unknown or does not fit.
        typer.Exit: with 1, a method without any result.
    """
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
    config = checked_settings(partial(protocol.settings, preset, shown, **fixed), changes)
    request = Request(reader, place, cache or cache_dir() / "eval", device, options)
    network = None
    if backbone is not None:
        network = _build(protocol, backbone, backbone_weights).to(device)
    features = network or _width(protocol, config)
    methods = load_methods(upsampler, features, weights=protocol.weights, device=device)
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
        raise ValueError(f"--data {data} names its folder itself; leave out --root, or write path:")
    if card:
        return Path(data), OWN
    if root is None:
        raise ValueError(f"name the folder of {data} with --root")
    return root, data


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
        typer.echo("no figures: this protocol or preset leaves no pictures", err=True)
    return files + write_figures(figures, panel_scenes(panels))


def _build(protocol: "Protocol", name: str, weights: Path | None) -> "Backbone":
    import upfeat

    if protocol.backbone is not None:
        return protocol.backbone(name, weights)
    return upfeat.create_backbone(name, weights=weights)


def _width(protocol: "Protocol", config: "BaseModel") -> int:
    """Return the channels of the features where no backbone is named."""
    if protocol.width is None:
        raise ValueError(f"{protocol.name} needs a backbone; name one with --backbone")
    return protocol.width(config)


def _print_notes(results: Sequence["Result"]) -> None:
    """Print notes and failures; a method without any score ends the command with 1."""
    for result in results:
        if note := result.details.get("note"):
            typer.echo(f"{result.label}: {note}")
        for part, problem in result.details.get("failures", {}).items():
            typer.echo(f"{result.label}, {part}: {problem}", err=True)
    if empty := [result.label for result in results if not result.scores]:
        typer.echo(f"nothing could be measured of {', '.join(empty)}", err=True)
        raise typer.Exit(1)


for _name, _facts in kept_protocols().items():
    eval_app.command(_name)(protocol_command(_name, _facts))
