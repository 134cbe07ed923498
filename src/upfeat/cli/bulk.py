"""The commands of many images: ``upfeat upsample`` and ``upfeat extract``."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from upfeat.cli.options import (
    MaxGbOption,
    MethodOptions,
    PipelineOptions,
    SaveDtypeOption,
    parse_dtype,
    parse_size,
    with_fields,
)
from upfeat.cli.output import Colors, progress_bar, size_text, tell
from upfeat.cli.videos import FrameOptions, VideoOptions, upsample_video

if TYPE_CHECKING:
    from upfeat.data import Video
    from upfeat.extraction import Job, Outcome, Summary, Writer
    from upfeat.pipeline import Encoded, Pipeline
    from upfeat.viz import PCAPicture

KINDS = ("panel", "pca", "overlay", "safetensors", "npz")
_WORTH_SAYING = 10**9  # bytes from which upfeat upsample announces the size of its results


@with_fields
def upsample_command(
    options: PipelineOptions,
    videos: VideoOptions,
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
    For a video file, a camera's number or (with --video) a folder of frames, a video of the
    features is written, all frames in one PCA basis. Only files that upfeat wrote are overwritten,
    and a later run does not read them as input.
    """
    kinds = _kinds(save)
    found, opened = _inputs(options, videos)
    views = [kind for kind in kinds if kind in KINDS[:3]]
    if opened and not views:
        raise ValueError(
            "--save names no picture, and a video is pictures; choose from panel, pca, overlay"
        )
    pipe = options.build()
    colors = Colors(options.basis, options.out)
    numbers = options.settings(pipe)
    settings = numbers | {"save": sorted(kinds), "basis": options.basis}
    for video in opened:
        upsample_video(video, pipe, options.out, settings, views, videos, colors.basis)
    if found:
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
    summary = _run(
        "upsampling", found, lambda show: run_bulk(
            found, pipe, writers, out, settings, workers=jobs, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, "", f"results in {out}")
    if summary.count("done") == 1:
        files = next(outcome.files for outcome in summary.outcomes if outcome.state == "done")
        typer.echo("\n".join(map(str, files)))


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


@with_fields
def extract_command(
    options: MethodOptions,
    videos: FrameOptions,
    store: Annotated[
        str, typer.Option(help="Format: safetensors; zarr, parquet, lance (upfeat[store]).")
    ] = "safetensors",
    features: Annotated[
        str,
        typer.Option(
            help="low: backbone features, upsampled when read; pca64: their first 64 principal "
            "components; high: features upsampled to --size."
        ),
    ] = "low",
    save_dtype: SaveDtypeOption = "float16",
    shards: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of files. Default: files of at most 64 images and 256 MB."
        ),
    ] = None,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Also store the image files.")
    ] = False,
    max_gb: MaxGbOption = 10.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    engine: Annotated[str, typer.Option(help="local, or ray (upfeat[ray]).")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes with --engine ray.")] = 2,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads per worker. Default: all, divided among the workers."
        ),
    ] = None,
) -> None:
    """Store the features of many images; finished shards are skipped on a second run.

    Frames of a video (a file, or a folder with --video) are written to OUT_frames and then read as
    images.

    Read them with upfeat.open_store(OUT)["name"].upsample(448); docs/bulk.md shows more.
    """
    from upfeat.data import write_frames
    from upfeat.extraction import Job, plan_store, write_store

    dtype = parse_dtype(save_dtype, "--save-dtype")
    found, opened = _inputs(options, videos)
    if any(video.endless and video.limit is None for video in opened):
        raise ValueError("a camera has no last frame; give the number of frames with --frames")
    for video in opened:
        folder = options.out.with_name(f"{options.out.name}_frames") / video.name
        files = write_frames(video, folder, "upfeat extract")
        found += [Job(file, Path(video.name, file.stem)) for file in files]
    pipe = options.build()
    pipe.batch_size = batch_size
    weights = options.weights
    saved = weights if weights is not None and weights.is_dir() else None
    plan = plan_store(
        found,
        pipe,
        options.out,
        store=store,
        features=features,
        dtype=dtype,
        shards=shards,
        pictures=keep_images,
        upsampler=options.upsampler if saved is None else str(saved.absolute()),
        upsampler_file=weights if saved is None else None,
        backbone_file=options.backbone_weights,
    )
    smaller = "--features low or pca64, a smaller --size or --input-size, or --save-dtype float16"
    announce_bytes(plan.bytes_left(), options.out, max_gb, smaller, always=True)
    start = time.perf_counter()
    summary = _run(
        "extracting", found, lambda show: write_store(
            plan, pipe, engine=engine, workers=workers, threads=threads, on_outcome=show
        )
    )  # fmt: skip
    seconds, done = time.perf_counter() - start, summary.count("done")
    speed = f" in {seconds:.1f} s ({done / seconds:.2f} images/s)" if done else ""
    count = "1 shard" if len(plan.shards) == 1 else f"{len(plan.shards)} shards"
    place = f"{count} in {options.out}, upfeat.open_store({str(options.out)!r}) reads them"
    _report(summary, speed, place)


# -- what both do ----------------------------------------------------------------------------------


def _inputs(options: MethodOptions, videos: FrameOptions) -> "tuple[list[Job], list[Video]]":
    """Return the images and the videos among the inputs; refuse options that cannot be read."""
    from upfeat.data import image_files
    from upfeat.extraction import Job

    options.pipeline_arguments()
    images, streams = videos.split(options.paths)
    found = [Job(path, name) for path, name in image_files(images)] if images else []
    return found, [videos.open(path) for path in streams]


def announce_bytes(
    expected: int, out: Path, max_gb: float, smaller: str, *, always: bool = False
) -> None:
    """Announce how many bytes a run will write, and refuse too many.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.bulk import announce_bytes
        >>> try:
        ...     announce_bytes(12 * 10**9, Path("out"), 10, "a smaller --size")
        ... except ValueError as error:
        ...     print(error)
        this would write about 12 GB, and --max-gb allows 10; choose a smaller --size, or raise \
--max-gb
    """
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if expected > max_gb * 10**9:
        raise ValueError(
            f"this would write about {size_text(expected)}, and --max-gb allows {max_gb:g}; choose "
            f"{smaller}, or raise --max-gb"
        )
    if expected > free:
        raise ValueError(
            f"this would write about {size_text(expected)}, and {folder} has {size_text(free)} "
            f"free; choose {smaller}"
        )
    if expected > (0 if always else _WORTH_SAYING):
        tell(f"will write about {size_text(expected)} to {out}; {size_text(free)} are free")


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} images/s", style="cyan")


def _run(
    description: str, jobs: "list[Job]", run: "Callable[[Callable[[Outcome], None]], Summary]"
) -> "Summary":
    """Show a bar while ``run`` works, and every failure as it happens."""
    with progress_bar(MofNCompleteColumn(), _Rate(), TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=len(jobs))

        def show(outcome: "Outcome") -> None:
            progress.advance(task)
            if outcome.state == "failed":
                progress.console.print(
                    f"failed: {outcome.job.source}: {outcome.error}", markup=False
                )

        return run(show)


def _report(summary: "Summary", speed: str, place: str) -> None:
    """Print what was done and where it is; failures end the command with 1."""
    done, skipped, failed = (summary.count(state) for state in ("done", "skipped", "failed"))
    typer.echo(f"{done} done, {skipped} already there, {failed} failed{speed}; {place}")
    if failed:
        typer.echo(f"failures are named in {summary.failures}", err=True)
        raise typer.Exit(1)
