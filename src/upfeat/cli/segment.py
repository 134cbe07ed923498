"""``upfeat segment``: the nearest of some words for every pixel, with CLIP's text space."""

import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfeat.cli.options import (
    DEFAULT_OUT,
    DEFAULT_UPSAMPLER,
    BackboneWeightsOption,
    DeviceOption,
    InputSizeOption,
    OutOption,
    SizeOption,
    UpsamplersOption,
)
from upfeat.cli.output import TableColumn, check_pictures, print_table, save_picture
from upfeat.cli.photo import PhotoFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.viz import AnswerMap

__all__ = ["label_png", "segment_command"]

MAKER = "upfeat segment"
CLIP = "clip/ViT-B-16.openai"
MOST_WORDS = 255  # numbers in a PNG of labels


def segment_command(
    photo: Annotated[Path, typer.Argument(help="The image.")],
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
    side: Annotated[int, typer.Option(min=64, help="Longer side of each picture in pixels.")] = 448,
    backbone_weights: BackboneWeightsOption = None,
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
    check_pictures([picture], MAKER)
    shown = PhotoFeatures(pixels, input_size, size, backbone, backbone_weights, upsampler, device)
    names = [f"{photo.stem}_labels_{_slug(method.label)}.png" for method in shown.methods]
    own = OwnFiles(out)
    for name in names:
        own.check(name, MAKER)
    vectors = embed_words(text_encoder(shown.network), words, prompts)
    maps = []
    for method in shown.methods:
        start = time.perf_counter()
        found = segment_words(method.on(shown.pipe), shown.encoded, shown.size, vectors)
        maps.append(AnswerMap(method.label, found, f"{time.perf_counter() - start:.2f} s"))
    _print(words, maps)
    for name, each in zip(names, maps, strict=True):
        typer.echo(own.write(name, label_png(each.values, len(words)), MAKER))
    record = {"task": "segment", "photo": photo.name, "words": words, "templates": templates}
    settings = json.dumps(record | shown.settings(), indent=1)
    panel = words_panel(pixels, maps, words, side=side, notes=(shown.note(),))
    save_picture(picture, panel, settings, MAKER)


def label_png(labels: "Tensor", count: int) -> bytes:
    """Return labels as a PNG of one byte a pixel, with the colours of the overlay as its palette.

    Args:
        labels: (H, W) whole numbers from 0.
        count: number of classes, at most 256.

    Example:
        >>> import torch
        >>> from upfeat.cli.segment import label_png
        >>> label_png(torch.zeros(2, 3, dtype=torch.int64), 2)[1:4]
        b'PNG'
    """
    import torch
    from PIL import Image

    from upfeat.ops.colors import class_palette

    image = Image.fromarray(labels.to(torch.uint8).numpy(), "P")
    image.putpalette([part for color in class_palette(count) for part in color])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _print(words: Sequence[str], maps: "Sequence[AnswerMap]") -> None:
    """Print which share of the photo each word has."""
    rows = []
    for number, word in enumerate(words):
        shares = [float((each.values == number).float().mean()) for each in maps]
        rows.append([str(number), word, *(f"{100 * share:.1f} %" for share in shares)])
    heads = ("label", "word", *(each.name for each in maps))
    print_table([TableColumn(head) for head in heads], rows)
    typer.echo(", ".join(f"{each.name} {each.note}" for each in maps))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")
