"""``upfeat upsample``: images in, feature maps and pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.options import (
    MaxGbOption,
    PipelineOptions,
    SaveDtypeOption,
    parse_dtype,
    parse_size,
    with_fields,
)
from upfeat.cli.output import Colors
from upfeat.cli.progress import announce_bytes, run_with_progress

if TYPE_CHECKING:
    from upfeat.extraction import Summary, Writer
    from upfeat.pipeline import Encoded, Pipeline


@with_fields
def upsample_command(
    options: PipelineOptions,
    save: Annotated[str, typer.Option(help="png, safetensors, npz; several with commas.")] = "png",
    save_dtype: SaveDtypeOption = "float16",
    max_gb: MaxGbOption = 10.0,
    jobs: Annotated[int, typer.Option(min=1, help="Images that are read ahead.")] = 2,
) -> None:
    """Upsample the features of images; finished images are skipped on a second run.

    safetensors and npz hold "high" (C, H', W') and "low" (C, h, w), and their settings as JSON.
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
    numbers = options.settings(pipe)
    writers = [_writer(kind, pipe, save_dtype, colors, numbers) for kind in kinds]
    if not writers:
        raise ValueError("--save names no format; choose from png, safetensors, npz")
    settings = numbers | {"save": sorted(kinds), "save_dtype": save_dtype, "basis": options.basis}
    expected = estimate_bytes(found, writers, output_size, out, settings)
    smaller = "a smaller --size, --save-dtype float16 or --save png"
    announce_bytes(expected, out, max_gb, smaller)
    summary = run_with_progress(
        "upsampling", len(found), lambda show: run_bulk(
            found, pipe, writers, out, settings, workers=jobs, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, out)
    if summary.count("failed"):
        raise typer.Exit(1)


def _writer(
    kind: str, pipe: "Pipeline", save_dtype: str, colors: Colors, settings: dict[str, Any]
) -> "Writer":
    from upfeat.errors import UnknownNameError
    from upfeat.extraction import Writer, tensor_writer
    from upfeat.viz import pca_picture, save_png

    def write_panel(pipe: "Pipeline", encoded: "Encoded", path: Path) -> None:
        save_png(pca_picture(pipe, encoded, basis=colors.of(encoded)).panel, path)

    if kind == "png":
        return Writer(".png", write_panel, 2.0)
    if kind not in ("safetensors", "npz"):
        raise UnknownNameError("format of --save", kind, ("png", "safetensors", "npz"))
    return tensor_writer(
        kind, pipe.backbone.dim, parse_dtype(save_dtype, "--save-dtype"), settings=settings
    )


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
