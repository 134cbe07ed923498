"""``upfeat show compare``: one panel of every method for each image."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console

from upfeat.cli.pictures import check_pictures, draw_each, picture_places, save_picture
from upfeat.cli.tables import Column, print_table
from upfeat.cli.upsample import (
    DEFAULT_BACKBONE,
    BackboneOption,
    BackboneWeightsOption,
    BasisOption,
    Colors,
    DeviceOption,
    DtypeOption,
    FitOption,
    InputSizeOption,
    LayerOption,
    MaxPixelsOption,
    OutOption,
    PathsArgument,
    SizeOption,
    parse_dtype,
    parse_size,
)

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.viz import Comparison

__all__ = ["compare_command"]

MAKER = "upfeat show compare"
ENDING = "_compare"


def compare_command(
    paths: PathsArgument,
    out: OutOption = Path("out"),
    backbone: BackboneOption = DEFAULT_BACKBONE,
    backbone_weights: BackboneWeightsOption = None,
    size: SizeOption = None,
    input_size: InputSizeOption = None,
    fit: FitOption = "pad",
    layer: LayerOption = -1,
    basis: BasisOption = "image",
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    max_pixels: MaxPixelsOption = None,
) -> None:
    """Draw one panel of every method that has its weights here, with times, for each image.

    The shorter side is at most 448 unless --input-size says otherwise.
    """
    import torch

    import upfeat
    from upfeat.data import image_files
    from upfeat.viz import compare_upsamplers, usable_upsamplers

    whole = _fit(fit)
    seen, wanted = parse_size(input_size, "--input-size"), parse_size(size, "--size")
    number = parse_dtype(dtype, "--dtype")
    files = image_files(paths)
    places = picture_places([name for _, name in files], out, ENDING)
    check_pictures(places, MAKER)
    colors = Colors(basis, out)
    network = upfeat.create_backbone(backbone, weights=backbone_weights, layer=layer)
    contenders, left_out = usable_upsamplers(network)
    console = Console(stderr=True)

    def draw(pixels: "Tensor", source: Path, picture: Path) -> None:
        result = compare_upsamplers(
            network,
            pixels,
            contenders,
            left_out,
            basis=colors.basis,
            input_size=seen,
            output_size=wanted,
            fit=whole,
            dtype=number,
            device=torch.device(device) if device else None,
            on_start=lambda name: console.print(f"running {name}", markup=False, highlight=False),
        )
        if colors.choice == "first" and colors.basis is None:
            colors.keep(result.basis)
        options = {"backbone": backbone, "layer": layer, "fit": fit, "dtype": dtype}
        options |= {"device": device or "cpu"}
        record = json.dumps(_record(options, source, result), indent=1)
        _print_result(result)
        save_picture(picture, result.panel, record, MAKER)

    draw_each(files, places, draw)


def _fit(text: str) -> Literal["pad", "resize"]:
    if text not in ("pad", "resize"):
        raise ValueError(f"--fit must be pad or resize, got {text!r}")
    return "pad" if text == "pad" else "resize"


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
    print_table([Column("method"), Column("seconds"), Column("note", prose=True)], rows)
    for left in result.left_out:
        typer.echo(f"left out: {left.name}: {left.reason}")
