"""``upfeat upsample --upsampler all``: one panel of every method for each image."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import typer
from rich.console import Console

from upfeat.cli.pictures import check_pictures, save_picture
from upfeat.cli.tables import Column, print_table

if TYPE_CHECKING:
    from upfeat.cli.upsample import Colors, Request
    from upfeat.viz import Comparison

__all__ = ["compare_command"]

MAKER = "upfeat upsample --upsampler all"
ENDING = "_all"


def compare_command(
    request: "Request", files: Sequence[tuple[Path, Path]], out: Path, colors: "Colors"
) -> None:
    """Draw the panels and print the times.

    Args:
        request: the options; ``weights`` must be None, for each method has its own.
        files: images and the relative names of their results.
        out: folder; each image gives ``NAME_all.png`` and ``NAME_all.json``, with a longer ending
            where another image has that name.
        colors: the basis; ``"first"`` shares the first image's.

    Raises:
        ValueError: an option does not apply.
        ForeignFileError: a result would replace a file that this command did not write.
        typer.Exit: an image could not be read; the others have their panels.
    """
    import upfeat
    from upfeat.data import read_image
    from upfeat.viz import compare_upsamplers, usable_upsamplers

    fit = _check(request)
    pictures = _pictures([name for _, name in files], out)
    check_pictures(pictures, MAKER)
    backbone = upfeat.create_backbone(
        request.backbone, weights=request.backbone_weights, layer=request.layer
    )
    contenders, left_out = usable_upsamplers(backbone)
    console = Console(stderr=True)
    failed = 0
    for (source, _), picture in zip(files, pictures, strict=True):
        try:
            pixels = read_image(source)
        except Exception as error:  # noqa: BLE001  (readers raise anything; the others go on)
            failed += 1
            text = f"failed: {source}: {type(error).__name__}: {error}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            continue
        result = compare_upsamplers(
            backbone,
            pixels,
            contenders,
            left_out,
            basis=colors.basis,
            input_size=request.input_size,
            output_size=request.output_size,
            fit=fit,
            dtype=request.dtype,
            device=request.device,
            on_start=lambda name: console.print(f"running {name}", markup=False, highlight=False),
        )
        if colors.choice == "first" and colors.basis is None:
            colors.keep(result.basis)
        record = json.dumps(_record(request, source, result), indent=1)
        _print_result(result)
        save_picture(picture, result.panel, record, MAKER)
    if failed:
        raise typer.Exit(1)


def _check(request: "Request") -> Literal["pad", "resize"]:
    if request.weights is not None:
        raise ValueError("--weights names one method's file; --upsampler all finds each its own")
    if request.fit not in ("pad", "resize"):
        raise ValueError(f"--fit must be pad or resize, got {request.fit!r}")
    return "pad" if request.fit == "pad" else "resize"


def _pictures(names: Sequence[Path], out: Path) -> list[Path]:
    """Return where the panels go: all with the same ending, one that makes no image's name."""
    ending, known = ENDING, set(names)
    while any(name.with_name(name.name + ending) in known for name in names):
        ending += ENDING
    return [out / name.parent / f"{name.name}{ending}.png" for name in names]


def _record(request: "Request", source: Path, result: "Comparison") -> dict[str, Any]:
    """What was measured, with everything that decides it, as JSON."""
    import upfeat
    from upfeat.evaluation.results import processor

    return {
        "image": str(source),
        "backbone": request.backbone,
        "layer": request.layer,
        "fit": request.fit,
        "dtype": str(request.dtype).removeprefix("torch."),
        "device": str(request.device or "cpu"),
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
