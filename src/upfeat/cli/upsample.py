"""``upfeat upsample``: images in, feature maps and pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.films import FilmOptions, upsample_film
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
    from upfeat.extraction import Job, Summary, Writer
    from upfeat.pipeline import Encoded, Pipeline
    from upfeat.viz import PCAPicture

KINDS = ("panel", "pca", "overlay", "safetensors", "npz")


@with_fields
def upsample_command(
    options: PipelineOptions,
    films: FilmOptions,
    save: Annotated[
        str,
        typer.Option(
            help="panel (image, low-res and upsampled features side by side), pca (upsampled "
            "features at full size), overlay (upsampled features over the image), safetensors, "
            "npz; separate several by commas."
        ),
    ] = "panel",
    save_dtype: SaveDtypeOption = "float16",
    max_gb: MaxGbOption = 10.0,
    jobs: Annotated[int, typer.Option(min=1, help="Images to read ahead.")] = 2,
) -> None:
    """Upsample the features of images and videos; finished ones are skipped on a second run.

    safetensors and npz files hold "high" (C, H', W'), "low" (C, h, w) and the settings as JSON.
    For a video file, a camera's number or (with --film) a folder of frames, a video of the features
    is written, all frames in one PCA basis. Only files that upfeat wrote are overwritten, and they
    are not read as input by a later run.
    """
    from upfeat.data import image_files
    from upfeat.extraction import Job

    kinds = _kinds(save)
    images, videos = films.split(options.paths)
    options.check()
    found = [Job(path, name) for path, name in image_files(images)] if images else []
    opened = [films.open(path) for path in videos]
    views = [kind for kind in kinds if kind in KINDS[:3]]
    if opened and not views:
        raise ValueError(
            "--save names no picture, and a film is pictures; choose from panel, pca, overlay"
        )
    pipe = options.build()
    colors = Colors(options.basis, options.out)
    numbers = options.settings(pipe)
    settings = numbers | {"save": sorted(kinds), "basis": options.basis}
    for film in opened:
        upsample_film(film, pipe, options.out, settings, views, films, colors.basis)
    if images:
        drawings = _Drawings(colors)
        writers = [_writer(kind, pipe, save_dtype, drawings, numbers) for kind in kinds]
        settings["save_dtype"] = save_dtype
        _upsample_images(found, pipe, writers, options, settings, max_gb, jobs)


def _kinds(save: str) -> list[str]:
    """Return what is written, each once; ``png`` is the panel."""
    from upfeat.errors import UnknownNameError

    named = [kind.strip() for kind in save.split(",") if kind.strip()]
    kinds = list(dict.fromkeys("panel" if kind == "png" else kind for kind in named))
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("format of --save", kind, KINDS)
    if not kinds:
        raise ValueError(f"--save names nothing to write; choose from {', '.join(KINDS)}")
    return kinds


def _upsample_images(
    found: "list[Job]",
    pipe: "Pipeline",
    writers: "list[Writer]",
    options: PipelineOptions,
    settings: dict[str, Any],
    max_gb: float,
    jobs: int,
) -> None:
    from upfeat.extraction import estimate_bytes, run_bulk

    out = options.out
    expected = estimate_bytes(found, writers, parse_size(options.size, "--size"), out, settings)
    announce_bytes(expected, out, max_gb, "a smaller --size, --save-dtype float16 or --save panel")
    summary = run_with_progress(
        "upsampling", len(found), lambda show: run_bulk(
            found, pipe, writers, out, settings, workers=jobs, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, out)
    if summary.count("failed"):
        raise typer.Exit(1)


class _Drawings:
    """The pictures of the image at hand, computed once for all views."""

    def __init__(self, colors: Colors) -> None:
        self.colors = colors
        self.last: tuple[Encoded, PCAPicture] | None = None

    def of(self, pipe: "Pipeline", encoded: "Encoded") -> "PCAPicture":
        from upfeat.viz import pca_picture

        if self.last is None or self.last[0] is not encoded:
            basis = self.colors.of(encoded)
            self.last = (encoded, pca_picture(pipe, encoded, basis=basis))
        return self.last[1]


def _writer(
    kind: str,
    pipe: "Pipeline",
    save_dtype: str,
    drawings: _Drawings,
    settings: dict[str, Any],
) -> "Writer":
    from upfeat.extraction import Writer, tensor_writer
    from upfeat.viz import draw_view, save_png

    def write_view(pipe: "Pipeline", encoded: "Encoded", path: Path) -> None:
        picture = drawings.of(pipe, encoded)
        save_png(draw_view(picture, encoded.image[0], kind), path)

    if kind in ("safetensors", "npz"):
        dtype = parse_dtype(save_dtype, "--save-dtype")
        return tensor_writer(kind, pipe.backbone.dim, dtype, settings=settings)
    return Writer(".png" if kind == "panel" else f"_{kind}.png", write_view, 2.0)


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
