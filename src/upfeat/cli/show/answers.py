"""What features answer: ``upfeat show attention``, ``show similarity`` and ``segment``."""

import io
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_OUT,
    DEFAULT_UPSAMPLER,
    AtOption,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    DtypeOption,
    InputSizeOption,
    OutOption,
    PhotoArgument,
    PictureOutOption,
    SideOption,
    SizeOption,
    UpsamplersOption,
    load_networks,
    parse_size,
)
from upfeat.cli.output import answer_places, check_pictures, print_table, save_picture

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.evaluation.methods import Method
    from upfeat.pipeline import Encoded, Pipeline
    from upfeat.viz import AnswerMap, Attended

ATTENTION, SIMILARITY, SEGMENT = "upfeat show attention", "upfeat show similarity", "upfeat segment"
CLIP = "clip/ViT-B-16.openai"
MOST_WORDS = 255  # numbers in a PNG of labels


class PhotoFeatures:
    """A photo's features and the methods that upsample them.

    Args:
        pixels: (3, H, W) in [0, 1].
        input_size: as ``--input-size``; None for the photo's own, its shorter side at most 448.
        output_size: as ``--size``; None for the input size.
        backbone, weights, upsamplers, device, dtype: as the options.
        low_res: whether low-res is one of the methods in any case.
    """

    def __init__(
        self,
        pixels: "Tensor",
        input_size: str | None,
        output_size: str | None,
        backbone: str,
        weights: Path | None,
        upsamplers: str,
        device: str,
        dtype: str,
        *,
        low_res: bool = True,
    ) -> None:
        import upfeat
        from upfeat.data.sizes import resolve_size
        from upfeat.evaluation.methods import LowRes
        from upfeat.viz.comparison import LARGEST_SIDE

        own = (pixels.shape[1], pixels.shape[2])
        wanted = parse_size(input_size, "--input-size") or (min(LARGEST_SIDE, *own))
        asked = parse_size(output_size, "--size")
        self.network, methods = load_networks(backbone, weights, upsamplers, device, dtype)
        if low_res and not any(isinstance(method, LowRes) for method in methods):
            methods.insert(0, LowRes())
        self.methods: list[Method] = methods
        options: dict[str, Any] = {"input_size": wanted, "fit": "resize"}
        self.pipe: Pipeline = upfeat.Pipeline(self.network, **options)
        self.encoded: Encoded = self.pipe.encode(pixels)
        seen = self.encoded.frame.input
        self.size = seen if asked is None else resolve_size(asked, own, "--size")

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON."""
        from upfeat.evaluation.results import describe_environment

        return {
            "backbone": self.pipe.identity,
            "input_size": self.encoded.frame.input,
            "output_size": self.size,
            "methods": [{"label": method.label, **method.identity} for method in self.methods],
            "environment": describe_environment(),
        }

    def note(self) -> str:
        """Say backbone and sizes in a line below the pictures."""
        seen, cells = self.encoded.frame.input, self.encoded.features.shape
        return (
            f"{self.network.name}: {cells[2]}x{cells[3]} cells of {cells[1]} channels, input "
            f"{seen[0]}x{seen[1]}, output {self.size[0]}x{self.size[1]}."
        )


@dataclass(frozen=True)
class Mark:
    """A pixel of a photo: its row and column, and its centre as a share of height and width."""

    row: int
    col: int
    place: tuple[float, float]

    def pixel(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the pixel of an output (H', W') that lies there."""
        return _pixel(self.place, size)


def parse_mark(text: str, size: tuple[int, int]) -> Mark:
    """Read ``120,200`` (pixels) or ``0.4,0.55`` (shares, where one has a point).

    Example:
        >>> from upfeat.cli.show.answers import parse_mark
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
    row, col = numbers
    if shares:
        return Mark(*_pixel((row, col), size), (row, col))
    return Mark(int(row), int(col), ((row + 0.5) / size[0], (col + 0.5) / size[1]))


def _pixel(place: tuple[float, float], size: tuple[int, int]) -> tuple[int, int]:
    """Return row and column of the pixel (of H x W) that lies at shares of height and width."""
    row, col = (min(int(share * side), side - 1) for share, side in zip(place, size, strict=True))
    return row, col


# -- attention -------------------------------------------------------------------------------------


def attention_command(
    photo: PhotoArgument,
    at: AtOption,
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
    side: SideOption = 320,
    backbone_weights: BackboneWeightsOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Draw which low-resolution cells a pixel attends to, as dots and heat maps."""
    from upfeat.data import read_image
    from upfeat.viz import attention_panel

    pixels = read_image(photo)
    marks = [parse_mark(text, (pixels.shape[1], pixels.shape[2])) for text in at]
    names = [f"{photo.stem}_attention_{mark.row}_{mark.col}.png" for mark in marks]
    check_pictures([out / name for name in names], ATTENTION)
    shown = PhotoFeatures(
        pixels,
        input_size,
        size,
        backbone,
        backbone_weights,
        upsampler,
        device,
        dtype,
        low_res=False,
    )
    image, cells = shown.encoded.prepared[0].cpu(), shown.encoded.features.shape[2:]
    seen, output, network = shown.encoded.frame.input, shown.size, shown.network
    # Everything is computed before anything is written.
    found = [_attend(shown, mark) for mark in marks]
    for mark, name, attended in zip(marks, names, found, strict=True):
        row, col = mark.pixel(output)
        facts = (
            f"{network.name}: {cells[0]}x{cells[1]} cells, input "
            f"{seen[0]}x{seen[1]}; weights of row {row}, column {col} of the output "
            f"{output[0]}x{output[1]} (the cross).",
            f"{dots} dots drawn with replacement, anywhere in their cell (seed {seed}); each "
            "heat map from 0 to its own largest weight.",
        )
        place = ((row + 0.5) / output[0], (col + 0.5) / output[1])
        panel = attention_panel(
            image, attended, place, count=dots, seed=seed, side=side, notes=facts
        )
        settings = {
            "photo": photo.name,
            "backbone": network.name,
            "input_size": seen,
            "output_size": output,
            "pixel": (row, col),
            "cells": tuple(cells),
            "dots": dots,
            "seed": seed,
        }
        _print_attended(mark, attended)
        save_picture(out / name, panel, _attention_record(settings, shown, attended), ATTENTION)


def _attend(shown: PhotoFeatures, mark: Mark) -> list["Attended"]:
    """Return the weights of every method at one pixel."""
    from upfeat.upsamplers.fitted import with_views
    from upfeat.viz import Attended, attended_regions

    attended, features = [], shown.encoded.features
    for method in shown.methods:
        upsampler = with_views(method.upsampler, shown.network)
        guidance = upsampler.guidance_image(shown.encoded.prepared, shown.network)
        at = mark.pixel(shown.size)
        weights = attended_regions(upsampler, guidance, features, at, shown.size)
        attended.append(Attended(method.label, weights.cpu()))
    return attended


def _attention_record(
    settings: dict[str, Any], shown: PhotoFeatures, attended: Sequence["Attended"]
) -> str:
    """Return all settings, versions and weights, as JSON."""
    every = shown.settings()
    methods = [
        method | {"cell_weights": each.weights.tolist()}
        for method, each in zip(every["methods"], attended, strict=True)
    ]
    record = {"task": "attention", "settings": settings, "methods": methods}
    return json.dumps(record | {"environment": every["environment"]})


def _print_attended(mark: Mark, attended: Sequence["Attended"]) -> None:
    from upfeat.viz import effective_cells

    rows = []
    for method in attended:
        for block, weights in enumerate(method.weights, start=1):
            largest, cells = float(weights.max()), effective_cells(weights)
            rows.append([method.name, str(block), f"{largest:.3f}", f"{cells:.1f}"])
    typer.echo(f"pixel {mark.row},{mark.col} of the photo")
    print_table(["upsampler", "block", "largest weight", "cells"], rows)


# -- similarity ------------------------------------------------------------------------------------


def similarity_command(
    photo: PhotoArgument,
    at: AtOption,
    upsampler: UpsamplersOption = DEFAULT_UPSAMPLER,
    backbone: BackboneOption = DEFAULT_BACKBONE,
    out: PictureOutOption = DEFAULT_OUT,
    input_size: InputSizeOption = None,
    size: SizeOption = None,
    side: SideOption = 448,
    backbone_weights: BackboneWeightsOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Draw the cosine similarity of one pixel with all others, low-res and for each upsampler.

    The shorter side is reduced to 448 unless --input-size is given.
    """
    from upfeat.data import read_image
    from upfeat.viz import similarity_panel

    pixels = read_image(photo)
    marks = [parse_mark(text, (pixels.shape[1], pixels.shape[2])) for text in at]
    names = [f"{photo.stem}_similarity_{mark.row}_{mark.col}.png" for mark in marks]
    places = answer_places(out, names)
    check_pictures(places, SIMILARITY)
    shown = PhotoFeatures(
        pixels, input_size, size, backbone, backbone_weights, upsampler, device, dtype
    )
    # Everything is computed before anything is written.
    answers = _similar(shown, marks)
    for number, (mark, place) in enumerate(zip(marks, places, strict=True)):
        maps = [of_method[number] for of_method in answers]
        panel = similarity_panel(pixels, maps, mark.place, side=side, notes=(shown.note(),))
        record = {
            "task": "similarity",
            "photo": photo.name,
            "pixel": mark.pixel(shown.size),
            "cosines": {each.name: _spread(each) for each in maps},
            **shown.settings(),
        }
        _print_similar(mark, maps)
        save_picture(place, panel, json.dumps(record, indent=1), SIMILARITY)


def _similar(shown: PhotoFeatures, marks: Sequence[Mark]) -> "list[list[AnswerMap]]":
    """Compute a list of maps, one a mark, for each method."""
    from upfeat.similarity import pixel_similarity
    from upfeat.viz import AnswerMap

    positions = [mark.pixel(shown.size) for mark in marks]
    answers = []
    for method in shown.methods:
        start = time.perf_counter()
        maps = pixel_similarity(method.on(shown.pipe), shown.encoded, positions, shown.size)
        note = f"{time.perf_counter() - start:.2f} s"
        answers.append([AnswerMap(method.label, values, note) for values in maps])
    return answers


def _spread(shown: "AnswerMap") -> dict[str, float]:
    return {
        "smallest": round(float(shown.values.min()), 4),
        "mean": round(float(shown.values.mean()), 4),
    }


def _print_similar(mark: Mark, maps: "Sequence[AnswerMap]") -> None:
    rows = []
    for shown in maps:
        spread = _spread(shown)
        rows.append([shown.name, f"{spread['smallest']:.3f}", f"{spread['mean']:.3f}", shown.note])
    typer.echo(f"cosine with pixel {mark.row},{mark.col} of the photo")
    print_table(["upsampler", "smallest", "mean", "time"], rows)


# -- words -----------------------------------------------------------------------------------------


def segment_command(
    photo: PhotoArgument,
    text: Annotated[str, typer.Option(help="Words, separated by commas: dog, grass, sky.")],
    upsampler: UpsamplersOption = DEFAULT_UPSAMPLER,
    backbone: Annotated[str, typer.Option(help="CLIP backbone: clip/NAME.")] = CLIP,
    out: OutOption = DEFAULT_OUT,
    templates: Annotated[
        str,
        typer.Option(help="Prompt templates: clip7 (quick), clip (80), maskclip (85)."),
    ] = "clip7",
    input_size: InputSizeOption = None,
    size: SizeOption = None,
    side: SideOption = 448,
    backbone_weights: BackboneWeightsOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Label every pixel with the most similar of some words: label PNGs and an overlay with legend.

    Nothing is trained: CLIP's patch features are upsampled in its text space. Needs the extra clip.
    """
    from upfeat._files import OwnFiles
    from upfeat.data import read_image
    from upfeat.similarity import embed_words, segment_words, split_words, text_encoder
    from upfeat.similarity import templates as prompt_templates
    from upfeat.viz import AnswerMap, words_panel

    words, prompts = split_words(text, MOST_WORDS), prompt_templates(templates)
    pixels, picture = read_image(photo), out / f"{photo.stem}_segment.png"
    check_pictures([picture], SEGMENT)
    shown = PhotoFeatures(
        pixels, input_size, size, backbone, backbone_weights, upsampler, device, dtype
    )
    names = [f"{photo.stem}_labels_{_slug(method.label)}.png" for method in shown.methods]
    own = OwnFiles(out)
    for name in names:
        own.check(name, SEGMENT)
    vectors = embed_words(text_encoder(shown.network), words, prompts)
    maps = []
    for method in shown.methods:
        start = time.perf_counter()
        found = segment_words(method.on(shown.pipe), shown.encoded, shown.size, vectors)
        maps.append(AnswerMap(method.label, found, f"{time.perf_counter() - start:.2f} s"))
    _print_shares(words, maps)
    for name, each in zip(names, maps, strict=True):
        typer.echo(own.write(name, label_png(each.values, len(words)), SEGMENT))
    record = {"task": "segment", "photo": photo.name, "words": words, "templates": templates}
    settings = json.dumps(record | shown.settings(), indent=1)
    panel = words_panel(pixels, maps, words, side=side, notes=(shown.note(),))
    save_picture(picture, panel, settings, SEGMENT)


def label_png(labels: "Tensor", count: int) -> bytes:
    """Return labels as a PNG of one byte a pixel, whose palette has the overlay's colours."""
    import torch
    from PIL import Image

    from upfeat.ops.colors import class_palette

    image = Image.fromarray(labels.to(torch.uint8).numpy(), "P")
    image.putpalette([part for color in class_palette(count) for part in color])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _print_shares(words: Sequence[str], maps: "Sequence[AnswerMap]") -> None:
    """Print which share of the photo each word has."""
    rows = []
    for number, word in enumerate(words):
        shares = [float((each.values == number).float().mean()) for each in maps]
        rows.append([str(number), word, *(f"{100 * share:.1f} %" for share in shares)])
    print_table(["label", "word", *(each.name for each in maps)], rows)
    typer.echo(", ".join(f"{each.name} {each.note}" for each in maps))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")
