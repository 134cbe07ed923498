"""``upfeat show attention``: which coarse cells a pixel of the upsampled map is made of."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.eval import load_networks
from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_OUT,
    DEFAULT_UPSAMPLER,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    OutOption,
    UpsamplersOption,
    parse_size,
)
from upfeat.cli.output import TableColumn, check_pictures, print_table, save_picture

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
    from upfeat.viz import Attended

__all__ = ["Mark", "attention_command", "parse_mark"]

MAKER = "upfeat show attention"


@dataclass(frozen=True)
class Mark:
    """A pixel of a photo: its row and column, and its centre as a share of height and width."""

    row: int
    col: int
    place: tuple[float, float]

    def pixel(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the pixel of an output (H', W') that lies there."""
        row, col = (
            min(int(share * side), side - 1) for share, side in zip(self.place, size, strict=True)
        )
        return row, col


def attention_command(
    photo: Annotated[Path, typer.Argument(help="The image.")],
    at: Annotated[
        list[str],
        typer.Option(
            help="The pixel: ROW,COL of the photo, or fractions of its height and width such as "
            "0.4,0.55; repeat for several."
        ),
    ],
    upsampler: UpsamplersOption = DEFAULT_UPSAMPLER,
    backbone: BackboneOption = DEFAULT_BACKBONE,
    out: OutOption = DEFAULT_OUT,
    input_size: Annotated[
        str, typer.Option(help="Size of the networks' input: 224, 224x320, 0.5x.")
    ] = "224",
    size: Annotated[
        str | None, typer.Option(help="Size of the upsampled map. Default: the input size.")
    ] = None,
    dots: Annotated[int, typer.Option(min=1, help="Number of dots per picture.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the dots.")] = 0,
    side: Annotated[int, typer.Option(min=64, help="Longer side of each picture in pixels.")] = 320,
    backbone_weights: BackboneWeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw which low-resolution cells a pixel attends to, as dots and heat maps."""
    from upfeat.data import read_image
    from upfeat.data.sizes import resolve_size
    from upfeat.viz import attention_panel

    pixels = read_image(photo)
    own = (pixels.shape[1], pixels.shape[2])
    marks = [parse_mark(text, own) for text in at]
    names = [f"{photo.stem}_attention_{mark.row}_{mark.col}.png" for mark in marks]
    check_pictures([out / name for name in names], MAKER)
    output_size = parse_size(size, "--size")
    network, methods = load_networks(backbone, backbone_weights, upsampler, device)
    image, features = _encode(network, pixels, parse_size(input_size, "--input-size"))
    seen = (image.shape[2], image.shape[3])
    output = seen if output_size is None else resolve_size(output_size, own, "--size")
    # Everything is computed before anything is written.
    found = [_attend(network, methods, image, features, mark, output) for mark in marks]
    for mark, name, attended in zip(marks, names, found, strict=True):
        row, col = mark.pixel(output)
        facts = (
            f"{network.name}: {features.shape[2]}x{features.shape[3]} cells, input "
            f"{seen[0]}x{seen[1]}; weights of row {row}, column {col} of the output "
            f"{output[0]}x{output[1]} (the cross).",
            f"{dots} dots drawn with replacement, anywhere in their cell (seed {seed}); each "
            "heat map from 0 to its own largest weight.",
        )
        place = ((row + 0.5) / output[0], (col + 0.5) / output[1])
        panel = attention_panel(
            image[0].cpu(), attended, place, count=dots, seed=seed, side=side, notes=facts
        )
        settings = {
            "photo": photo.name,
            "backbone": network.name,
            "input_size": seen,
            "output_size": output,
            "pixel": (row, col),
            "cells": tuple(features.shape[2:]),
            "dots": dots,
            "seed": seed,
        }
        record = json.dumps(_record(settings, methods, attended))
        _print(mark, attended)
        save_picture(out / name, panel, record, MAKER)


def parse_mark(text: str, size: tuple[int, int]) -> Mark:
    """Read ``120,200`` (pixels) or ``0.4,0.55`` (shares, where one has a point).

    Args:
        text: what stood behind ``--at``.
        size: (H, W) of the photo.

    Raises:
        ValueError: not two numbers, or outside the photo.

    Example:
        >>> from upfeat.cli.show.attention import parse_mark
        >>> parse_mark("0.5,0.25", (100, 200)).pixel((10, 20)), parse_mark("3,4", (8, 8)).place
        ((5, 5), (0.4375, 0.5625))
    """
    parts = text.split(",")
    shares = "." in text
    try:
        numbers = [float(part) if shares else int(part) for part in parts]
    except ValueError:
        numbers = []
    limits = (1.0, 1.0) if shares else size
    if len(numbers) != 2 or not all(
        math.isfinite(number) and 0 <= number <= (limit if shares else limit - 1)
        for number, limit in zip(numbers, limits, strict=True)
    ):
        raise ValueError(
            f"--at must be ROW,COL within the photo of {size[0]} rows and {size[1]} columns, or "
            f"two shares from 0 to 1 such as 0.4,0.55; got {text!r}"
        )
    if shares:
        row, col = (
            min(int(share * side), side - 1) for share, side in zip(numbers, size, strict=True)
        )
        return Mark(row, col, (numbers[0], numbers[1]))
    row, col = int(numbers[0]), int(numbers[1])
    return Mark(row, col, ((row + 0.5) / size[0], (col + 0.5) / size[1]))


def _encode(network: "Backbone", pixels: "Tensor", input_size: Any) -> tuple["Tensor", "Tensor"]:
    """The photo (1, 3, H, W) in [0, 1] as the networks see it, and its features (1, C, h, w).

    Sides are resized to whole cells, so that the cells cover the photo exactly.
    """
    import upfeat

    options: dict[str, Any] = {"input_size": input_size, "fit": "resize"}
    pipe = upfeat.Pipeline(network, **options)
    encoded = pipe.encode(pixels)
    # Copies: what inference mode made cannot be used by a method that optimises for each image.
    return encoded.prepared.clone(), encoded.features.clone()


def _attend(
    network: "Backbone",
    methods: Sequence["Method"],
    image: "Tensor",
    features: "Tensor",
    mark: Mark,
    output: tuple[int, int],
) -> list["Attended"]:
    """The weights of every method at one pixel."""
    from upfeat.upsamplers.fitted import with_views
    from upfeat.viz import Attended, attended_regions

    attended = []
    for method in methods:
        upsampler = with_views(method.upsampler, network)
        guidance = upsampler.guidance_image(image, network)
        weights = attended_regions(upsampler, guidance, features, mark.pixel(output), output)
        attended.append(Attended(method.label, weights.cpu()))
    return attended


def _record(
    settings: dict[str, Any], methods: Sequence["Method"], attended: Sequence["Attended"]
) -> dict[str, Any]:
    """All settings, versions and weights, as JSON."""
    from upfeat.evaluation.results import describe_environment

    return {
        "task": "attention",
        "settings": settings,
        "methods": [
            {"label": method.label, **method.identity, "cell_weights": shown.weights.tolist()}
            for method, shown in zip(methods, attended, strict=True)
        ],
        "environment": describe_environment(),
    }


def _print(mark: Mark, attended: Sequence["Attended"]) -> None:
    from upfeat.viz import effective_cells

    rows = [
        [
            method.name,
            str(block + 1),
            f"{float(weights.max()):.3f}",
            f"{effective_cells(weights):.1f}",
        ]
        for method in attended
        for block, weights in enumerate(method.weights)
    ]
    typer.echo(f"pixel {mark.row},{mark.col} of the photo")
    print_table(
        [
            TableColumn("upsampler"),
            TableColumn("block"),
            TableColumn("largest weight"),
            TableColumn("cells"),
        ],
        rows,
    )
