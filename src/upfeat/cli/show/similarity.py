"""``upfeat show similarity``: which pixels resemble one, by the features of several upsamplers."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_OUT,
    DEFAULT_UPSAMPLER,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    InputSizeOption,
    PictureOutOption,
    SizeOption,
    UpsamplersOption,
)
from upfeat.cli.output import TableColumn, answer_places, check_pictures, print_table, save_picture
from upfeat.cli.photo import PhotoFeatures
from upfeat.cli.show.attention import Mark, parse_mark

if TYPE_CHECKING:
    from upfeat.viz import AnswerMap

__all__ = ["similarity_command"]

MAKER = "upfeat show similarity"


def similarity_command(
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
    out: PictureOutOption = DEFAULT_OUT,
    input_size: InputSizeOption = None,
    size: SizeOption = None,
    side: Annotated[int, typer.Option(min=64, help="Longer side of each picture in pixels.")] = 448,
    backbone_weights: BackboneWeightsOption = None,
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
    check_pictures(places, MAKER)
    shown = PhotoFeatures(pixels, input_size, size, backbone, backbone_weights, upsampler, device)
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
        _print(mark, maps)
        save_picture(place, panel, json.dumps(record, indent=1), MAKER)


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


def _print(mark: Mark, maps: "Sequence[AnswerMap]") -> None:
    rows = []
    for shown in maps:
        spread = _spread(shown)
        rows.append([shown.name, f"{spread['smallest']:.3f}", f"{spread['mean']:.3f}", shown.note])
    typer.echo(f"cosine with pixel {mark.row},{mark.col} of the photo")
    heads = ("upsampler", "smallest", "mean", "time")
    print_table([TableColumn(head) for head in heads], rows)
