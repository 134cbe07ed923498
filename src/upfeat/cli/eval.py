"""``upfeat eval``: what upsampled features are worth in a task; what its commands share."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from upfeat.cli.options import checked_device, checked_folder

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from upfeat.backbones import Backbone
    from upfeat.evaluation.dense import LowRes, Method
    from upfeat.evaluation.probe_parts import JointMethod
    from upfeat.evaluation.probe_parts import Progress as OnProgress
    from upfeat.evaluation.results import Result, Score

SettingsT = TypeVar("SettingsT", bound="BaseModel")
RowT = TypeVar("RowT", bound="Method | LowRes | JointMethod")

eval_app = typer.Typer(help="Measure upsamplers in a task.", no_args_is_help=True)

# Options that every protocol has.
UpsamplerOption = Annotated[
    str, typer.Option(help="Several with commas: NAME, NAME.TAG, a saved folder, or LABEL=one.")
]
RootOption = Annotated[Path, typer.Option(help="Folder of the data set.")]
BackboneOption = Annotated[str, typer.Option(help="Backbone: timm/NAME or upfeat/NAME.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", callback=checked_folder, help="Folder of the results.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of the protocol: steps=100; repeat for several."),
]
SeedsOption = Annotated[str, typer.Option(help="Seeds of the heads, with commas.")]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Quick look: so many images of each split.")
]
BackboneWeightsOption = Annotated[
    Path | None, typer.Option(help="Weights of the backbone: a file.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(callback=checked_folder, help="Folder of features. Default: upfeat's cache."),
]
DeviceOption = Annotated[str, typer.Option(callback=checked_device, help="cpu, cuda, …")]
DEFAULT_OUT = Path("results")


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
        upsamplers: entries with commas between them, see :func:`load_method`.
        device: where they run.

    Raises:
        ValueError: a name is unknown, a method must be trained first, or a label occurs twice.
    """
    import upfeat

    network = upfeat.create_backbone(backbone, weights=weights).to(device)
    return network, _load_each(upsamplers, lambda spec: load_method(spec, network.dim, device))


def _load_each(upsamplers: str, load: Callable[[str], RowT]) -> list[RowT]:
    """Load all entries of ``--upsampler``; no label may occur twice."""
    rows = [load(spec) for spec in upsamplers.split(",")]
    labels = [row.label for row in rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(
            f"--upsampler names {', '.join(sorted(twice))} twice; tell them apart: LABEL=NAME"
        )
    return rows


def load_rows(upsamplers: str, feature_dim: int, device: str) -> list["Method | LowRes"]:
    """Load every entry of ``--upsampler``, for a protocol that knows ``low-res``, too.

    Args:
        upsamplers: entries with commas between them: ``low-res``, ``LABEL=low-res`` for the task
            on the backbone's own grid, or see :func:`load_method`.
        feature_dim: channels of the features.
        device: where the methods run.

    Raises:
        ValueError: as :func:`load_networks`.

    Example:
        >>> from upfeat.cli.eval import load_rows
        >>> [row.label for row in load_rows("low-res,linear=bilinear", 192, "cpu")]
        ['low-res', 'linear']
    """
    from upfeat.evaluation.dense import LowRes

    def load(spec: str) -> "Method | LowRes":
        label, _, name = spec.strip().rpartition("=")
        if name == LowRes.NAME:
            return LowRes(label or name)
        return load_method(spec, feature_dim, device)

    return _load_each(upsamplers, load)


def load_method(
    spec: str, feature_dim: int, device: str = "cpu", *, trained: bool = True
) -> "Method":
    """Load what one entry of ``--upsampler`` names.

    Args:
        spec: ``NAME`` of a method without weights, ``NAME.TAG``, a folder of ``save_pretrained``,
            or one of these behind ``LABEL=``.
        feature_dim: channels of the backbone.
        device: where it runs.
        trained: refuse a method that has weights and none are named; else it gets random ones.

    Raises:
        ValueError: neither a folder nor a name, or a method that must be trained first.

    Example:
        >>> from upfeat.cli.eval import load_method
        >>> load_method("linear=bilinear", 192).label
        'linear'
    """
    import upfeat
    from upfeat.evaluation.dense import Method
    from upfeat.upsamplers.registry import needs_feature_dim

    label, _, name = spec.strip().rpartition("=")
    if Path(name).is_dir():
        upsampler = upfeat.Upsampler.from_pretrained(name)
    elif "/" in name:
        raise FileNotFoundError(f"no folder at {name}; give a folder that save_pretrained wrote")
    elif "." in name:
        upsampler = upfeat.create_upsampler(name)
    else:
        width = {"feature_dim": feature_dim} if needs_feature_dim(name) else {}
        upsampler = upfeat.create_upsampler(name, pretrained=False, weights=None, **width)
        if trained and next(upsampler.parameters(), None) is not None:
            published = ", ".join(upfeat.list_upsamplers(f"{name}.*", pretrained=True)) or "none"
            raise ValueError(
                f"{name} must be trained first: give a folder that save_pretrained wrote, or "
                f"published weights ({published})"
            )
    return Method(label or Path(name).name, upsampler.eval().to(device))


def load_trainable(upsamplers: str, feature_dim: int, device: str) -> list["Method | JointMethod"]:
    """Load every entry of ``--upsampler``, for a protocol that can train methods with the task.

    Args:
        upsamplers: entries with commas between them, see :func:`load_method`; a method for which
            no weights are published, such as ``carafe``, is trained together with the heads.
        feature_dim: channels of the backbone.
        device: where the methods run.

    Raises:
        ValueError: as :func:`load_networks`.

    Example:
        >>> from upfeat.cli.eval import load_trainable
        >>> carafe, bilinear = load_trainable("carafe,bilinear", 192, "cpu")
        >>> carafe.identity["weights"]
        'trained with the heads, one copy a seed'
    """
    return _load_each(upsamplers, lambda spec: _load_trainable(spec, feature_dim, device))


def _load_trainable(spec: str, feature_dim: int, device: str) -> "Method | JointMethod":
    import upfeat
    from upfeat.evaluation.probe_parts import JointMethod

    name = spec.strip().rpartition("=")[2]
    bare = not Path(name).is_dir() and not set("/.") & set(name)
    if not bare or upfeat.list_upsamplers(f"{name}.*", pretrained=True):
        return load_method(spec, feature_dim, device)
    method = load_method(spec, feature_dim, device, trained=False)
    trained = next(method.upsampler.parameters(), None) is not None
    if trained and not method.upsampler.info.abilities.per_image:
        return JointMethod(method.label, method.upsampler)
    return method


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
        >>> from upfeat.evaluation.seg_probe import seg_probe_preset
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

    try:
        return preset(**changes)
    except ValidationError as error:
        known = type(preset()).model_fields
        raise _setting_error(error, known) from error


def _setting_error(error: "ValidationError", known: Mapping[str, Any]) -> ValueError:
    """Return pydantic's complaints as one sentence."""
    from upfeat.errors import UnknownNameError

    problems = []
    for detail in error.errors():
        name = ".".join(str(part) for part in detail["loc"]) or "the settings"
        if detail["type"] == "extra_forbidden":
            return UnknownNameError("setting", name, known)
        message = detail["msg"].removeprefix("Value error, ")
        message = message.removeprefix("Input should be ")
        problems.append(f"{name} must be {message}, got {detail['input']!r}")
    return ValueError("; ".join(problems))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``.

    Example:
        >>> from upfeat.cli.eval import parse_seeds
        >>> parse_seeds("0,1,2")
        (0, 1, 2)
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be different whole numbers such as 0,1,2, got {text!r}")
    return seeds


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Read ``--set name=value``; a value is JSON, or else plain text.

    Example:
        >>> from upfeat.cli.eval import parse_settings
        >>> parse_settings(["steps=100", "seeds=[0, 1]", "schedule=per_step"])
        {'steps': 100, 'seeds': [0, 1], 'schedule': 'per_step'}
    """
    parsed = {}
    for setting in settings or ():
        name, sign, text = setting.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"--set is written name=value, such as steps=100, got {setting!r}")
        try:
            parsed[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name.strip()] = text.strip()
    return parsed


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


def score_table(
    results: Sequence["Result"],
    columns: Mapping[str, str],
    title: str,
    caption: str = "",
    digits: int = 2,
) -> Table:
    """Return the table that a command prints: a row a method, mean and deviation over the seeds.

    Args:
        results: of one protocol.
        columns: name of a score to its heading, in order; scores that no result has are left out.
        title: above the table.
        caption: below it.
        digits: behind the point.
    """
    shown = {
        name: heading
        for name, heading in columns.items()
        if any(name in result.scores for result in results)
    }
    table = Table("upsampler", *shown.values(), title=title, caption=caption)
    for result in results:
        scores = (result.scores.get(name) for name in shown)
        cells = ("" if score is None else score_cell(score, digits) for score in scores)
        table.add_row(result.label, *cells)
    return table


def score_cell(score: "Score", digits: int = 2) -> str:
    """Return mean and deviation.

    Example:
        >>> from upfeat.cli.eval import score_cell
        >>> from upfeat.evaluation.results import Score
        >>> score_cell(Score.of([70.0, 72.0])), score_cell(Score.of([70.0]))
        ('71.00 ± 1.41', '70.00')
    """
    if score.deviation is None:
        return f"{score.mean:.{digits}f}"
    return f"{score.mean:.{digits}f} ± {score.deviation:.{digits}f}"
