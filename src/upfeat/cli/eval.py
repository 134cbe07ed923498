"""``upfeat eval``: what upsampled features are worth in a task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from upfeat.cli.errors import user_errors

if TYPE_CHECKING:
    from upfeat.evaluation.dense import Method
    from upfeat.evaluation.results import Result, Score
    from upfeat.evaluation.seg_probe import Progress as OnProgress

eval_app = typer.Typer(help="Measure upsamplers in a task.", no_args_is_help=True)

_COLUMNS = {
    "miou": "mIoU",
    "miou_labelled": "mIoU labelled",
    "accuracy": "accuracy",
    "band_miou": "band mIoU",
    "band_miou_labelled": "band mIoU labelled",
    "band_accuracy": "band accuracy",
}


@eval_app.callback()
def eval_options() -> None:
    """Measure upsamplers in a task."""


@eval_app.command("seg-probe")
def seg_probe_command(
    upsampler: Annotated[
        str,
        typer.Option(help="Several with commas: NAME, NAME.TAG, a saved folder, or LABEL=one."),
    ],
    data: Annotated[str, typer.Option(help="Data set: camvid, msrc.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    backbone: Annotated[str, typer.Option(help="Backbone: timm/NAME or upfeat/NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "results"
    ),
    preset: Annotated[str, typer.Option(help="The protocol.")] = "pixel-sample",
    seeds: Annotated[str, typer.Option(help="Seeds of the heads, with commas.")] = "0,1,2",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the heads.")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="1, 0.5, 0.25: all, every 2nd, every 4th training image.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Quick look: so many images of each split.")
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="Weights of the backbone: a file.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of features. Default: upfeat's cache.")
    ] = None,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="Keep the sampled pixels of finished methods.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Train linear segmentation heads on upsampled features; finished methods are skipped."""
    with user_errors():
        import upfeat
        from upfeat.checkpoints import cache_dir
        from upfeat.evaluation.seg_probe import DATA_SETS, run_seg_probe, seg_probe_preset

        changes: dict[str, object] = {"seeds": parse_seeds(seeds), "limit": limit}
        if steps is not None:
            changes["steps"] = steps
        if train_fraction is not None:
            changes["train_every"] = parse_fraction(train_fraction)
        config = seg_probe_preset(preset, data, **changes)
        network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
        methods = [load_method(spec, network.dim, device) for spec in upsampler.split(",")]
        with _progress() as show:
            results = run_seg_probe(
                config,
                DATA_SETS[data](root, "train"),
                DATA_SETS[data](root, "val"),
                network,
                methods,
                out=out,
                cache=cache or cache_dir() / "eval",
                keep_pixels=keep_pixels,
                on_progress=show,
            )
        Console(width=160).print(_table(results, f"{preset}, {data}, {network.name}"))
        typer.echo(f"settings and numbers of each method in {out}")


def load_method(spec: str, feature_dim: int, device: str = "cpu") -> "Method":
    """Load what one entry of ``--upsampler`` names.

    Args:
        spec: ``NAME`` of a method without weights, ``NAME.TAG``, a folder of ``save_pretrained``,
            or one of these behind ``LABEL=``.
        feature_dim: channels of the backbone.
        device: where it runs.

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
        upsampler = upfeat.create_upsampler(name, pretrained=True)
    else:
        width = {"feature_dim": feature_dim} if needs_feature_dim(name) else {}
        upsampler = upfeat.create_upsampler(name, pretrained=False, weights=None, **width)
        if next(upsampler.parameters(), None) is not None:
            published = ", ".join(upfeat.list_upsamplers(f"{name}.*", pretrained=True)) or "none"
            raise ValueError(
                f"{name} must be trained first: give a folder that save_pretrained wrote, or "
                f"published weights ({published})"
            )
    return Method(label or Path(name).name, upsampler.eval().to(device))


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


def parse_fraction(fraction: float) -> int:
    """Return n of a fraction 1/n.

    Example:
        >>> from upfeat.cli.eval import parse_fraction
        >>> parse_fraction(0.5), parse_fraction(0.33)
        (2, 3)
    """
    every = round(1 / fraction) if 0 < fraction <= 1 else 0
    if not every or abs(every * fraction - 1) > 0.02:
        raise ValueError(
            f"--train-fraction must be one over a whole number (1, 0.5, 0.25, …), got {fraction}"
        )
    return every


@contextmanager
def _progress() -> Iterator["OnProgress"]:
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


def _table(results: Sequence["Result"], title: str) -> Table:
    """Return mean and deviation over the seeds, in percent."""
    seeds = results[0].settings["seeds"] if results else []
    quick = results[0].settings["limit"] if results else None
    table = Table(
        "upsampler",
        *_COLUMNS.values(),
        title=title,
        caption=f"percent, mean ± deviation over {len(seeds)} seeds"
        + ("" if quick is None else f"; a quick look: {quick} images of each split"),
    )
    for result in results:
        table.add_row(result.label, *(_cell(result.scores[name]) for name in _COLUMNS))
    return table


def _cell(score: "Score") -> str:
    if score.deviation is None:
        return f"{score.mean:.2f}"
    return f"{score.mean:.2f} ± {score.deviation:.2f}"
