"""``upfeat extract``: the features of many images into one store."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfeat.cli.films import FrameOptions
from upfeat.cli.options import (
    MaxGbOption,
    MethodOptions,
    SaveDtypeOption,
    parse_dtype,
    with_fields,
)
from upfeat.cli.progress import announce_bytes, run_with_progress

if TYPE_CHECKING:
    from upfeat.extraction import Summary


@with_fields
def extract_command(
    options: MethodOptions,
    films: FrameOptions,
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

    Frames of a video (a file, or a folder with --film) are written to OUT_frames and then read as
    images.

    Read them with upfeat.open_store(OUT)["name"].upsample(448); docs/bulk.md shows more.
    """
    from upfeat.data import image_files, write_frames
    from upfeat.extraction import Job, plan_store, write_store

    options.check()
    dtype = parse_dtype(save_dtype, "--save-dtype")
    images, videos = films.split(options.paths)
    found = [Job(path, name) for path, name in image_files(images)] if images else []
    opened = [films.open(video) for video in videos]
    if any(film.endless and film.limit is None for film in opened):
        raise ValueError("a camera has no last frame; say how many are wanted with --frames")
    for film in opened:
        folder = options.out.with_name(f"{options.out.name}_frames") / film.name
        files = write_frames(film, folder, "upfeat extract")
        found += [Job(file, Path(film.name, file.stem)) for file in files]
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
    summary = run_with_progress(
        "extracting", len(found), lambda show: write_store(
            plan, pipe, engine=engine, workers=workers, threads=threads, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, options.out, len(plan.shards), time.perf_counter() - start)
    if summary.count("failed"):
        raise typer.Exit(1)


def _report(summary: "Summary", out: Path, shards: int, seconds: float) -> None:
    done, skipped, failed = (summary.count(state) for state in ("done", "skipped", "failed"))
    line = f"{done} done, {skipped} already there, {failed} failed"
    if done:
        line += f" in {seconds:.1f} s ({done / seconds:.2f} images/s)"
    files = "1 shard" if shards == 1 else f"{shards} shards"
    typer.echo(f"{line}; {files} in {out}, upfeat.open_store({str(out)!r}) reads them")
    if failed:
        typer.echo(f"failures are named in {summary.failures}", err=True)
