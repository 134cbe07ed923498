"""``upfeat show``: pictures of what upsamplers do with photos, over :mod:`upfeat.viz`.

Here are ``show pca`` and ``show compare``, which draw upsampled features in one PCA basis.
"""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from upfeat.cli.options import PhotoOptions, PipelineOptions, with_fields
from upfeat.cli.output import (
    Colors,
    TableColumn,
    check_pictures,
    draw_each,
    picture_places,
    print_table,
    save_picture,
    tell,
)
from upfeat.cli.show.answers import attention_command, similarity_command
from upfeat.cli.show.targets import targets_command

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.viz import Comparison


@with_fields
def pca_command(options: PipelineOptions) -> None:
    """Draw image, low-resolution and upsampled features in one PCA basis, for each image."""
    from upfeat.viz import pca_picture

    options.pipeline_arguments()
    maker = "upfeat show pca"
    files, places = _pictures(options, "_pca", maker)
    colors, pipe = Colors(options.basis, options.out), options.build()
    settings = options.settings(pipe)

    def draw(pixels: "Tensor", source: Path, picture: Path) -> None:
        encoded = pipe.encode(pixels)
        drawn = pca_picture(pipe, encoded, basis=colors.of(encoded))
        record = {"image": str(source), "settings": settings}
        record["explained"] = drawn.basis.explained.tolist()
        save_picture(picture, drawn.panel, json.dumps(record, default=str), maker)

    draw_each(files, places, draw)


@with_fields
def compare_command(options: PhotoOptions) -> None:
    """Draw all methods whose weights are available side by side, with times, for each image.

    The shorter side is reduced to 448 unless --input-size is given.
    """
    from upfeat.viz import compare_upsamplers, usable_upsamplers

    arguments, maker = options.pipeline_arguments(), "upfeat show compare"
    files, places = _pictures(options, "_compare", maker)
    colors, network = Colors(options.basis, options.out), options.load_backbone()
    candidates, left_out = usable_upsamplers(network)
    settings = {name: getattr(options, name) for name in ("backbone", "layer", "fit", "dtype")}
    settings["device"] = options.device or "cpu"

    def draw(pixels: "Tensor", source: Path, picture: Path) -> None:
        result = compare_upsamplers(
            network,
            pixels,
            candidates,
            left_out,
            basis=colors.basis,
            on_start=lambda name: tell(f"running {name}"),
            **arguments,
        )
        if colors.choice == "first" and colors.basis is None:
            colors.keep(result.basis)
        record = json.dumps(_record(settings, source, result), indent=1)
        _print_result(result)
        save_picture(picture, result.panel, record, maker)

    draw_each(files, places, draw)


def _pictures(
    options: PhotoOptions, ending: str, maker: str
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return the images and where their pictures go, none of which may be another's file."""
    from upfeat.data import image_files

    files = image_files(options.paths)
    places = picture_places([name for _, name in files], options.out, ending)
    check_pictures(places, maker)
    return files, places


def _record(options: Mapping[str, Any], source: Path, result: "Comparison") -> dict[str, Any]:
    """What was measured, with everything that decides it, as JSON."""
    import torch

    import upfeat
    from upfeat.evaluation.results import processor

    return {
        "image": str(source),
        **options,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "upfeat": upfeat.__version__,
        "input_size": result.input_size,
        "output_size": result.output_size,
        "methods": [
            {
                "name": entry.name,
                "seconds": entry.seconds,
                "upsampled": "three components" if entry.three_channels else "all channels",
                "note": entry.note,
            }
            for entry in result.entries
        ],
        "left_out": [{"name": left.name, "reason": left.reason} for left in result.left_out],
    }


def _print_result(result: "Comparison") -> None:
    rows = [
        [entry.name, f"{entry.seconds:.3f}", entry.note or "-"]
        for entry in sorted(result.entries, key=lambda entry: entry.seconds)
    ]
    print_table(["method", "seconds", TableColumn("note", prose=True)], rows)
    for left in result.left_out:
        typer.echo(f"left out: {left.name}: {left.reason}")


show_app = typer.Typer(
    help="Draw pictures of what upsamplers do with a photo.", no_args_is_help=True
)
show_app.command("attention")(attention_command)
show_app.command("compare")(compare_command)
show_app.command("pca")(pca_command)
show_app.command("similarity")(similarity_command)
show_app.command("targets")(targets_command)
