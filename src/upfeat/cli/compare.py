"""``upfeat upsample --upsampler all``: one panel of every method for each image."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.console import Console

from upfeat.cli.tables import Column, print_table

if TYPE_CHECKING:
    from upfeat.cli.upsample import Colors, Request
    from upfeat.viz import Comparison

__all__ = ["compare_command"]


def compare_command(
    request: "Request", files: Sequence[tuple[Path, Path]], out: Path, colors: "Colors"
) -> None:
    """Draw the panels and print the times.

    Args:
        request: the options; ``weights`` must be None, for each method has its own.
        files: images and the relative names of their results.
        out: folder; each image gives ``NAME_all.png`` and ``NAME_all.json``.
        colors: the basis; ``"first"`` shares the first image's.

    Raises:
        ValueError: an image cannot be read, or an option does not apply.
    """
    import upfeat
    from upfeat._files import write_bytes
    from upfeat.viz import compare_upsamplers, save_png, usable_upsamplers

    if request.weights is not None:
        raise ValueError("--weights names one method's file; --upsampler all finds each its own")
    if request.fit not in ("pad", "resize"):
        raise ValueError(f"--fit must be pad or resize, got {request.fit!r}")
    backbone = upfeat.create_backbone(
        request.backbone, weights=request.backbone_weights, layer=request.layer
    )
    contenders, left_out = usable_upsamplers(backbone)
    console = Console(stderr=True)

    def announce(name: str) -> None:
        console.print(f"running {name}", markup=False, highlight=False)

    for source, name in files:
        result = compare_upsamplers(
            backbone,
            source,
            contenders,
            left_out,
            basis=colors.basis,
            input_size=request.input_size,
            output_size=request.output_size,
            fit="pad" if request.fit == "pad" else "resize",
            dtype=request.dtype,
            device=request.device,
            on_start=announce,
        )
        if colors.choice == "first" and colors.basis is None:
            colors.basis = result.basis
            colors.basis.save(colors.path)
        picture = out / name.parent / f"{name.name}_all.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(result.panel, picture)
        record = json.dumps(_record(request, source, result), indent=1)
        write_bytes(picture.with_suffix(".json"), f"{record}\n".encode())
        _print_result(result)
        typer.echo(f"{picture}\n{picture.with_suffix('.json')}")


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
