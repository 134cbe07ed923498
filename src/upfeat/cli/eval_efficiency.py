"""``upfeat eval efficiency``: time, memory and operations in the papers' settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from upfeat.cli.eval import (
    DEFAULT_OUT,
    BackboneWeightsOption,
    DeviceOption,
    OutOption,
    SettingsOption,
    load_method,
    parse_settings,
    show_progress,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upfeat.evaluation.results import Result


def efficiency_command(
    upsampler: Annotated[
        str, typer.Option(help="Several with commas: NAME (random weights do), NAME.TAG, a folder.")
    ],
    preset: Annotated[
        str, typer.Option(help="jafar_paper, jafar_released, loftup or naf.")
    ] = "jafar_paper",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="timm/NAME or upfeat/NAME: measured, too, by preset loftup; for the others its "
            "width counts."
        ),
    ] = None,
    backbone_weights: BackboneWeightsOption = None,
    out: OutOption = DEFAULT_OUT,
    settings: SettingsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Measure time, peak memory and operations as the papers' tables do."""
    import upfeat
    from upfeat.evaluation.efficiency import efficiency_preset, run_efficiency

    config = efficiency_preset(preset, **parse_settings(settings))
    network = None
    if backbone is not None:
        network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
    width = config.channels if network is None else network.dim
    methods = [load_method(spec, width, device, trained=False) for spec in upsampler.split(",")]
    with show_progress() as show:
        results = run_efficiency(config, methods, backbone=network, out=Path(out), on_progress=show)
    Console(width=160).print(_table(results, preset))
    for result in results:
        for cell, problem in result.details["failures"].items():
            typer.echo(f"{result.label}, {cell}: {problem}", err=True)
    typer.echo(f"settings and numbers of each method in {out}")
    failed = [r.label for r in results if not any(n.startswith("ms_") for n in r.scores)]
    if failed:
        typer.echo(f"nothing could be measured of {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _table(results: "Sequence[Result]", preset: str) -> Table:
    """Return a row a method and pass: the columns' times and peaks."""
    sides = list(
        dict.fromkeys(
            name.rpartition("_")[2]
            for result in results
            for name in result.scores
            if name.startswith("ms_")
        )
    )
    table = Table("upsampler", "params (M)", "pass", *sides, title=f"efficiency, {preset}")
    for result in results:
        for which in ("forward", "backward"):
            cells = [_cell(result, which, side) for side in sides]
            if any(cells):
                millions = f"{result.scores['parameters'].mean:.2f}"
                table.add_row(result.label, millions, which, *cells)
    return table


def _cell(result: "Result", which: str, side: str) -> str:
    time = result.scores.get(f"ms_{which}_{side}")
    memory = result.scores.get(f"mb_{which}_{side}")
    if time is None:
        return ""
    return f"{time.mean:.1f} ms" + ("" if memory is None else f", {memory.mean:.0f} MB")
