"""``upfeat bench``: what upsamplers cost on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import upfeat
from upfeat.cli.options import DeviceOption, DtypeOption, checked_file, parse_dtype
from upfeat.cli.output import tell

if TYPE_CHECKING:
    from upfeat.evaluation.benchmark import BenchmarkRun, Measurement


def bench_command(
    names: Annotated[list[str] | None, typer.Argument(help="Upsamplers or wildcards.")] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Benchmark case, such as 448; repeat for several. Default: all five."),
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option(
            "--scaling", help="Measure output sides from 112 to 2048 instead of the cases."
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="Python file with implementations to compare with (PLAIN, FLOPS)."),
    ] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls per method and case.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed calls before the timed ones.")] = 1,
    max_seconds: Annotated[
        float, typer.Option(help="Stop repeating a method and case after this time.")
    ] = 60.0,
    memory: Annotated[bool, typer.Option(help="Also measure peak memory.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=checked_file, help="JSON file for the results."),
    ] = None,
) -> None:
    """Measure time and memory, compared with plain code, a lower bound and bilinear."""
    import torch

    from upfeat.errors import UnknownNameError
    from upfeat.evaluation.benchmark import CASES, load_rival, run_benchmark, scaling_cases

    methods = [m for name in names or ["*"] for m in upfeat.list_upsamplers(name)]
    if not methods:
        raise UnknownNameError("upsampler", str(names), upfeat.list_upsamplers())
    cases = case or ["224", "448", "448-21", "1024", "224-train"]
    growing = scaling_cases()
    known = CASES | {item.name: item for item in growing}
    for name in cases:
        if name not in known:
            raise UnknownNameError("case", name, known)
    report = run_benchmark(
        list(dict.fromkeys(methods)),
        growing if scaling else [known[name] for name in cases],
        rival=load_rival(against),
        dtype=parse_dtype(dtype, "--dtype"),
        device=torch.device(device),
        threads=threads,
        repeats=repeats,
        warmup=warmup,
        max_seconds=max_seconds,
        memory=memory,
        on_record=lambda record: tell(_line(record)),
        out=out,
    )
    Console(width=140).print(_table(report))
    for line in _losses(report):
        typer.echo(line)
    ours = [record for record in report.records if record.implementation == "upfeat"]
    if ours and all(record.error is not None for record in ours):
        raise typer.Exit(1)


def _line(record: "Measurement") -> str:
    start = f"{record.case:>12} {record.method:<16} {record.implementation:<9}"
    if record.error is not None:
        return f"{start} {record.error.splitlines()[0]}"
    return f"{start} {_seconds(record.median_seconds)} {_bytes(record.peak_bytes)}"


def _table(report: "BenchmarkRun") -> Table:
    """Return ours beside plain, ratio, floor and bilinear."""
    environment = report.environment
    title = (
        f"{environment.processor}, {environment.threads} threads, {environment.dtype}, matmul "
        f"{environment.matmul_flops / 1e9:.0f} GFLOP/s, torch {environment.torch_version}, "
        f"{environment.commit}"
    )
    columns = ("case", "method", "upfeat", "spread", "plain", "plain/upfeat", "floor", "bilinear")
    half = environment.dtype != "float32"
    last = "error to float32" if half else "difference"
    table = Table(*columns, "memory", "plain memory", "ratio", last, title=title)
    for record in report.records:
        if record.implementation != "upfeat":
            continue
        plain = report.find(record.method, record.case, "plain")
        bilinear = report.find(record.method, record.case, "bilinear")
        ours, theirs = record.median_seconds, plain.median_seconds if plain else None
        spread = max(record.seconds) - min(record.seconds) if record.seconds else None
        table.add_row(
            record.case,
            record.method,
            "failed" if record.error else _seconds(ours),
            _seconds(spread),
            _seconds(theirs),
            _ratio(theirs, ours),
            _seconds(record.floor_seconds),
            _seconds(bilinear.median_seconds if bilinear else None),
            _bytes(record.peak_bytes),
            _bytes(plain.peak_bytes if plain else 0),
            _ratio(plain.peak_bytes if plain else None, record.peak_bytes or None),
            _number(record.half_error if half else plain.max_difference if plain else None),
        )
    return table


def _losses(report: "BenchmarkRun") -> list[str]:
    """Say where ours is slower or larger than the plain implementation, or failed."""
    lines = []
    for record in report.records:
        if record.implementation != "upfeat":
            continue
        cell = f"{record.method} {record.case}"
        if record.error is not None:
            lines.append(f"failed: {cell}: {record.error.splitlines()[0]}")
        plain = report.find(record.method, record.case, "plain")
        if plain is None or record.error is not None:
            continue
        if (record.median_seconds or 0) > (plain.median_seconds or 0):
            lines.append(f"slower than plain: {cell}")
        if record.peak_bytes > plain.peak_bytes:
            lines.append(f"larger than plain: {cell}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _bytes(value: int) -> str:
    return "-" if value <= 0 else f"{value / 1e9:.2f} GB"


def _ratio(top: float | None, bottom: float | None) -> str:
    return "-" if not top or not bottom else f"{top / bottom:.2f}"
