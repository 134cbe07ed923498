"""``upfeat extract``: the features of many images into one store."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    store: Annotated[
        str, typer.Option(help="safetensors, or with the extra store zarr, parquet, lance.")
    ] = "safetensors",
    features: Annotated[
        str,
        typer.Option(
            help="low: the backbone's, upsampled when read; pca64: 64 principal components of "
            "them; high: upsampled to --size."
        ),
    ] = "low",
    save_dtype: SaveDtypeOption = "float16",
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Files of the store; of 64 images and 256 MB at most."),
    ] = None,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Store the images' files, too.")
    ] = False,
    max_gb: MaxGbOption = 10.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded together.")] = 8,
    engine: Annotated[str, typer.Option(help="local, or with the extra ray ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Workers of --engine ray.")] = 2,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of a worker; all, or its share of this machine."),
    ] = None,
) -> None:
    """Store the features of many images; finished shards are skipped on a second run.

    Read them with upfeat.open_store(OUT)["name"].upsample(448); docs/bulk.md shows more.
    """
    from upfeat.data import image_files
    from upfeat.extraction import Job, plan_store, write_store

    options.check()
    dtype = parse_dtype(save_dtype, "--save-dtype")
    found = [Job(path, name) for path, name in image_files(options.paths)]
    pipe = options.build()
    pipe.batch_size = batch_size
    weights = options.weights
    folder = weights if weights is not None and weights.is_dir() else None
    plan = plan_store(
        found,
        pipe,
        options.out,
        store=store,
        features=features,
        dtype=dtype,
        shards=shards,
        pictures=keep_images,
        upsampler=options.upsampler if folder is None else str(folder.absolute()),
        upsampler_file=weights if folder is None else None,
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
