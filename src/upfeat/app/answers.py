"""What the events of the page call: values of components in, values of components out.

Each is a generator, so that what one method gives is shown while the next one computes. Pictures
are files, written once: Gradio would rewrite one that a browser is just reading. They are gone when
the generator ends; Gradio has copied them by then.
"""

import html
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upfeat.app.studio import LOW_RES, Drawn, Prepared, Studio, seconds_text
from upfeat.data.images import image_size
from upfeat.ops.colors import class_palette
from upfeat.viz import AnswerMap
from upfeat.viz.panel import PanelPicture, draw_grid
from upfeat.viz.pca import save_png
from upfeat.viz.pictures import overlay_picture, shared_scale, similarity_picture

__all__ = ["MOST_METHODS", "Answers", "Choice"]

MOST_METHODS = 4
PHOTO = "photo"
PICTURES = "all pictures, PNG"
KINDS = {PICTURES: "", "features, .safetensors": "safetensors", "features, .npz": "npz"}

Gallery = list[tuple[str, str]]
"""Files of pictures and captions."""


class Choice(NamedTuple):
    """What is chosen on the left of the page."""

    photo: str | None
    backbone: str
    methods: list[str]
    side: int


class Answers:
    """The answers of a studio as the components show them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def features(self, choice: Choice) -> Iterator[tuple[Gallery, str]]:
        """Yield photo, low-res and upsampled features in one PCA basis, and times as Markdown."""
        prepared = self._prepare(choice)
        drawn: list[Drawn] = []
        with _Folder() as folder:
            shown: Gallery = [(folder.save(_bytes(prepared.photo), PHOTO), PHOTO)]
            for method in _with_low_res(choice.methods):
                drawn.append(self.studio.draw(prepared, choice.backbone, method))
                shown = [*shown, (folder.save(drawn[-1].picture, method), method)]
                yield shown, _times(prepared, drawn)

    def similar(self, choice: Choice, pixel: tuple[int, int], shown: str) -> Iterator[Gallery]:
        """Yield pictures of the cosine with one pixel's features, all in one scale of colours.

        Args:
            choice: photo, backbone, methods, size.
            pixel: row and column of the picture that was clicked.
            shown: file of that picture; it may have another size than is now chosen.
        """
        height, width = image_size(shown)
        if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise ValueError(
                f"row {pixel[0]}, column {pixel[1]} lies outside the photo of {height} rows and "
                f"{width} columns"
            )
        place = ((pixel[0] + 0.5) / height, (pixel[1] + 0.5) / width)
        prepared = self._prepare(choice)
        size = prepared.size
        at = (int(place[0] * size[0]), int(place[1] * size[1]))
        maps: list[AnswerMap] = []
        with _Folder() as folder:
            for method in _with_low_res(choice.methods):
                maps.append(self.studio.similar(prepared, choice.backbone, method, at))
                scale = shared_scale(maps)  # may be wider than before: all are drawn again
                pictures = [similarity_picture(each.values, place, scale) for each in maps]
                yield [
                    (folder.save(picture, each.name), each.caption)
                    for picture, each in zip(pictures, maps, strict=True)
                ]

    def segment(self, choice: Choice, text: str) -> Iterator[tuple[Gallery, str]]:
        """Yield pictures of the nearest word of each pixel, and the legend as HTML."""
        from upfeat.similarity import split_words

        words = split_words(text)
        prepared = self._prepare(choice)
        palette = class_palette(len(words))
        legend = _legend(words, palette)
        shown: Gallery = []
        with _Folder() as folder:
            for method in _with_low_res(choice.methods):
                found = self.studio.segment(prepared, choice.backbone, method, text)
                picture = overlay_picture(prepared.photo, found.values, palette)
                shown = [*shown, (folder.save(picture, method), found.caption)]
                yield shown, legend

    def file(self, choice: Choice, what: str, method: str) -> Iterator[str]:
        """Yield a file to download, a key of ``KINDS``; it is gone when the generator goes on."""
        prepared = self._prepare(choice)
        with _Folder() as folder:
            if what == PICTURES:
                place = folder.path / "features.png"
                drawn = [
                    self.studio.draw(prepared, choice.backbone, name)
                    for name in _with_low_res(choice.methods)
                ]
                save_png(_panel(prepared, drawn), place)
            else:
                place = self.studio.save_features(
                    prepared, choice.backbone, method, KINDS[what], folder.path
                )
            yield str(place)

    def _prepare(self, choice: Choice) -> Prepared:
        if choice.photo is None:
            raise ValueError("there is no photo yet; upload one, or choose one of the examples")
        if not 1 <= len(choice.methods) <= MOST_METHODS:
            raise ValueError(
                f"{len(choice.methods)} methods are chosen; choose one to {MOST_METHODS}"
            )
        return self.studio.prepare(choice.photo, choice.backbone, choice.side)


class _Folder(tempfile.TemporaryDirectory[str]):
    """A folder of pictures that is removed with all that is in it."""

    def __init__(self) -> None:
        super().__init__(prefix="upfeat-app-")
        self.path = Path(self.name)
        self._count = 0

    def __enter__(self) -> "_Folder":  # type: ignore[override]
        return self

    def save(self, picture: Tensor, name: str) -> str:
        """Write (3, H, W) uint8 as PNG and return the file."""
        self._count += 1
        place = self.path / str(self._count) / f"{name.replace('/', '-')}.png"
        place.parent.mkdir()
        save_png(picture, place)
        return str(place)


def _with_low_res(methods: Sequence[str]) -> list[str]:
    return [LOW_RES, *methods]


def _bytes(photo: Tensor) -> Tensor:
    return (photo.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def _times(prepared: Prepared, drawn: Sequence[Drawn]) -> str:
    """Write sizes and times as a Markdown table."""
    rows, cols = prepared.encoded.features.shape[-2:]
    height, width = prepared.size
    head = (
        f"{rows} x {cols} features of {prepared.pipe.backbone.dim} channels become "
        f"{height} x {width}.\n\n| step | time |\n| --- | ---: |\n"
        f"| backbone | {seconds_text(prepared.seconds)} |\n"
    )
    lines = [
        f"| {one.name} | {seconds_text(one.seconds)} |" for one in drawn if one.name != LOW_RES
    ]
    return head + "\n".join(lines)


def _legend(words: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> str:
    """Write words behind squares of their colours, as HTML."""
    items = [
        f'<li><span style="background: rgb({red}, {green}, {blue})"></span>{html.escape(word)}</li>'
        for word, (red, green, blue) in zip(words, palette, strict=True)
    ]
    return f'<ul class="legend" aria-label="colours of the words">{"".join(items)}</ul>'


def _panel(prepared: Prepared, drawn: Sequence[Drawn]) -> Any:
    """Draw all pictures side by side under their names."""
    cells = [PanelPicture(_bytes(prepared.photo), PHOTO)]
    cells += [
        PanelPicture(one.picture, f"{one.name}  {seconds_text(one.seconds)}") for one in drawn
    ]
    note = f"{prepared.pipe.backbone.name}, one PCA basis for all."
    return draw_grid(cells, prepared.size, max(prepared.size), columns=3, notes=(note,))
