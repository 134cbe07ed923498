"""``upfeat upsample``: images in, feature maps and pictures out."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from upfeat.cli.options import PipelineOptions, parse_dtype, parse_size, with_fields
from upfeat.cli.output import Colors

if TYPE_CHECKING:
    from upfeat.extraction import Job, Outcome, Summary, Writer
    from upfeat.pipeline import Encoded, Pipeline


@with_fields
def upsample_command(
    options: PipelineOptions,
    save: Annotated[str, typer.Option(help="png, safetensors, npz; several with commas.")] = "png",
    store: Annotated[str, typer.Option(help="Numbers in files: float16, float32.")] = "float16",
    jobs: Annotated[int, typer.Option(min=1, help="Images that are read ahead.")] = 2,
) -> None:
    """Upsample the features of images; finished images are skipped on a second run.

    Only files that upfeat wrote are replaced; what it wrote is no input of a later run.
    """
    from upfeat.data import image_files
    from upfeat.extraction import Job, estimate_bytes, run_bulk

    kinds = list(dict.fromkeys(kind.strip() for kind in save.split(",") if kind.strip()))
    output_size, out = parse_size(options.size, "--size"), options.out
    options.check()
    found = [Job(path, name) for path, name in image_files(options.paths)]
    pipe = options.build()
    colors = Colors(options.basis, out)
    writers = [_writer(kind, pipe, store, colors) for kind in kinds]
    if not writers:
        raise ValueError("--save names no format; choose from png, safetensors, npz")
    settings = options.settings(pipe) | {
        "save": sorted(kinds),
        "store": store,
        "basis": options.basis,
    }
    expected = estimate_bytes(found, writers, output_size, out, settings)
    _announce(expected, out)
    summary = _run_with_progress(
        found, lambda show: run_bulk(
            found, pipe, writers, out, settings, workers=jobs, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, out)
    if summary.count("failed"):
        raise typer.Exit(1)


def _writer(kind: str, pipe: "Pipeline", store: str, colors: Colors) -> "Writer":
    from upfeat.errors import UnknownNameError
    from upfeat.extraction import Writer, tensor_writer
    from upfeat.viz import pca_picture, save_png

    def write_panel(pipe: "Pipeline", encoded: "Encoded", path: Path) -> None:
        save_png(pca_picture(pipe, encoded, basis=colors.of(encoded)).panel, path)

    if kind == "png":
        return Writer(".png", write_panel, 2.0)
    if kind not in ("safetensors", "npz"):
        raise UnknownNameError("format of --save", kind, ("png", "safetensors", "npz"))
    return tensor_writer(kind, pipe.backbone.dim, parse_dtype(store, "--store"))


def _announce(expected: int, out: Path) -> None:
    """Say how much will be written, and refuse what does not fit on the disk."""
    console = Console(stderr=True)
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise ValueError(
            f"this would write about {_size(expected)}, and {folder} has {_size(free)} free; "
            "choose a smaller --size, --store float16, or --save png"
        )
    if expected > 4 * 10**9:
        console.print(f"will write about {_size(expected)} to {out}", highlight=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Return the rate over the images that were computed."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} images/s", style="cyan")


def _run_with_progress(
    jobs: Sequence["Job"], run: Callable[[Callable[["Outcome"], None]], "Summary"]
) -> "Summary":
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("upsampling", total=len(jobs))

        def show(outcome: "Outcome") -> None:
            progress.advance(task)
            if outcome.state == "failed":
                progress.console.print(
                    f"failed: {outcome.job.source}: {outcome.error}", markup=False
                )

        return run(show)


def _report(summary: "Summary", out: Path) -> None:
    """Print what was done, with the settings' place."""
    done, skipped, failed = (summary.count(s) for s in ("done", "skipped", "failed"))
    line = f"{done} done, {skipped} already there, {failed} failed"
    typer.echo(f"{line}; results in {out}")
    if failed:
        typer.echo(f"failures are named in {summary.failures}", err=True)
    elif done == 1:
        files = next(o.files for o in summary.outcomes if o.state == "done")
        typer.echo("\n".join(str(file) for file in files))
