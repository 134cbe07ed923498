"""The page: components, which event calls what, and how it is served.

Nothing is fetched from elsewhere: system fonts, no analytics, no scripts of other hosts.
"""

import html
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from upfeat._compat import ensure_torchvision_operators
from upfeat.app.answers import KINDS, MOST_METHODS, PICTURES, Answers, Choice
from upfeat.app.studio import LOW_RES, MOST_WORDS, SIDES, Studio, example_photos
from upfeat.cli.errors import user_message
from upfeat.errors import import_optional

__all__ = ["build_page", "launch"]

logger = logging.getLogger(__name__)

TITLE = "upfeat: sharp features of a photo"
HEAD = """# Sharp features of a photo
A vision backbone sees a photo in patches. An upsampler gives every pixel its own feature vector.
Choose a photo, then compare methods, click a pixel, or ask for words."""
NO_WORDS = (
    "Words need a CLIP backbone: start the page with `upfeat app --backbone clip/ViT-B-16.openai` "
    "(`pip install upfeat[clip]`), or choose one under Backbone."
)
UPLOAD = "20mb"
WAITING = 16  # requests that wait; further ones are told that the page is busy
KEPT_SECONDS = 3600  # of files that were shown
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED = ("ui-monospace", "Consolas", "monospace")
MOVE = "(share) => ({__type__: 'update', slider_position: share})"


def _gradio() -> Any:
    """Import Gradio, or raise ``MissingPackageError``."""
    ensure_torchvision_operators()
    return import_optional("gradio", "gradio", "app", "the page of upfeat app")


def build_page(studio: Studio) -> Any:
    """Build the page of a studio: ``gradio.Blocks``, which :func:`launch` serves.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gr = _gradio()
    answers, backbone = Answers(studio), studio.backbones[0]
    methods = studio.methods(backbone)
    chosen = list(studio.upsamplers[:MOST_METHODS]) or _usual(methods)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(HEAD)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                choice = _choices(gr, studio, methods, chosen)
                button = gr.Button("Upsample", variant="primary", elem_id="run")
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                features = _features_tab(gr)
                target = _similar_tab(gr, answers, choice)
                hint = _words_tab(gr, answers, choice, takes_words=studio.takes_words(backbone))
                whose = _files_tab(gr, answers, choice, chosen)
        parts = {**features, "target": target, "whose": whose, "hint": hint}
        _connect(gr, studio, answers, choice, button, parts)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def launch(
    backbones: Sequence[str] = ("upfeat/vit_compact_patch16",),
    upsamplers: Sequence[str] = (),
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    block: bool = True,
) -> Any:
    """Serve the page.

    Args:
        backbones: to choose from, as ``upfeat.create_backbone`` reads them.
        upsamplers: chosen at first; without any, ``kin.upfeat`` and ``bilinear``.
        device: where everything runs.
        dtype: in which both networks compute, such as ``torch.bfloat16``.
        host: address; None for ``$GRADIO_SERVER_NAME`` or this machine alone.
        port: None for the first free one from 7860.
        share: give the page a public address through Gradio's servers.
        block: do not return before the page is closed.

    Returns:
        The page; ``local_url`` is its address, ``close()`` ends it.

    Raises:
        MissingPackageError: Gradio is not installed.
        ValueError: the port is taken.
    """
    gr = _gradio()
    page = build_page(Studio(backbones, upsamplers, device=device, dtype=dtype))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=not block,
            quiet=True,
            show_error=True,
            max_file_size=UPLOAD,
            footer_links=[],
            ssr_mode=False,
            theme=_theme(gr),
            css_paths=Path(__file__).with_name("page.css"),
        )
    except OSError as error:
        if port is None:
            raise
        raise ValueError(
            f"port {port} is in use; choose another one, or none for the first free port"
        ) from error
    return page


def _theme(gr: Any) -> Any:
    """Return system fonts and text of enough contrast."""
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONOSPACED)
    return theme.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


# -- parts ---------------------------------------------------------------------------------------


def _usual(methods: Sequence[str]) -> list[str]:
    """Return what is compared at first."""
    return [name for name in ("bilinear", "kin.upfeat") if name in methods] or list(methods[:1])


def _choices(gr: Any, studio: Studio, methods: Sequence[str], chosen: Sequence[str]) -> list[Any]:
    """Make the components of a :class:`Choice`, in its order."""
    photo = gr.Image(
        label="Photo",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=260,
        elem_id="photo",
    )
    photo.preprocess = _path_of  # Gradio's own reading names no cause in its messages
    _examples(gr, photo)
    backbone = gr.Dropdown(
        list(studio.backbones), value=studio.backbones[0], label="Backbone", elem_id="backbone"
    )
    hint = f"One to {MOST_METHODS}."
    names = gr.CheckboxGroup(
        list(methods), value=list(chosen), label="Methods", info=hint, elem_id="methods"
    )
    hint = "Shorter side in pixels; larger is slower."
    side = gr.Radio(list(SIDES), value=SIDES[0], label="Size", info=hint, elem_id="side")
    return [photo, backbone, names, side]


def _path_of(payload: Any) -> str | None:
    """Return the file of an upload."""
    return None if payload is None else payload.path


def _examples(gr: Any, photo: Any) -> None:
    """Offer the photos of the package."""
    paths = [str(path) for path in example_photos()]
    gallery = gr.Gallery(
        [(path, Path(path).stem) for path in paths],
        label="Or one of these",
        columns=len(paths),
        allow_preview=False,
        height="auto",
        interactive=False,
        buttons=[],
        elem_id="examples",
        elem_classes="upfeat-pictures",
    )

    def take(event: gr.SelectData) -> str:
        return paths[event.index]

    gallery.select(take, None, photo, show_progress="hidden")


def _features_tab(gr: Any) -> dict[str, Any]:
    """Make the slider, what stands on its two sides, all pictures, and the times."""
    with gr.Tab("Features"):
        slider = gr.ImageSlider(
            label="Drag to compare",
            format="png",
            type="filepath",
            buttons=["fullscreen"],
            max_height=560,
            elem_id="slider",
        )
        # For the keyboard and for fingers: the slider's own handle takes neither.
        position = gr.Slider(
            0, 100, value=50, step=1, label="Share of the left picture, percent", elem_id="position"
        )
        position.input(None, position, slider, js=MOVE, show_progress="hidden")
        with gr.Row():
            left = gr.Dropdown([LOW_RES], value=LOW_RES, label="Left", elem_id="left")
            right = gr.Dropdown([LOW_RES], value=LOW_RES, label="Right", elem_id="right")
        gallery = _gallery(gr, "Three principal components as red, green and blue", "pictures")
        times = gr.Markdown(elem_id="times")
    return {"slider": slider, "left": left, "right": right, "gallery": gallery, "times": times}


def _gallery(gr: Any, label: str, name: str) -> Any:
    return gr.Gallery(
        label=label,
        format="png",
        columns=3,
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="upfeat-pictures",
    )


def _similar_tab(gr: Any, answers: Answers, choice: list[Any]) -> Any:
    """Make the picture to click in; return it."""
    with gr.Tab("Similar"):
        target = gr.Image(
            label="Click a pixel",
            type="filepath",
            format="png",
            interactive=False,
            buttons=[],
            height=320,
            elem_id="target",
        )
        with gr.Row():
            row = gr.Number(label="Row", precision=0, minimum=0, min_width=80, elem_id="row")
            col = gr.Number(label="Column", precision=0, minimum=0, min_width=80, elem_id="col")
            button = gr.Button("Show", elem_id="similar-run", min_width=100)
        found = _gallery(
            gr, "Cosine similarity with that pixel: dark is low, light is high", "similar"
        )

    @_shown
    def ask(*given: Any) -> Iterator[Any]:
        *values, row, col, shown = given
        if shown is None:
            raise ValueError("there is no photo yet; upload one, or choose one of the examples")
        yield from answers.similar(Choice(*values), (int(row or 0), int(col or 0)), shown)

    def clicked(event: gr.SelectData) -> tuple[int, int]:
        return event.index[1], event.index[0]

    inputs = [*choice, row, col, target]
    place = target.select(clicked, None, [row, col], show_progress="hidden")
    place.then(ask, inputs, found, **_one())
    button.click(ask, inputs, found, **_one())
    return target


def _words_tab(gr: Any, answers: Answers, choice: list[Any], *, takes_words: bool) -> Any:
    """Make what words need; return the hint that stands where they are not to be had."""
    with gr.Tab("Words"):
        hint = gr.Markdown("" if takes_words else NO_WORDS, elem_id="no-words")
        with gr.Row():
            text = gr.Textbox(
                label="Words",
                info=f"Up to {MOST_WORDS}, with commas between them.",
                placeholder="dog, grass, sky",
                scale=4,
                elem_id="words",
            )
            button = gr.Button("Segment", elem_id="words-run", scale=1, min_width=100)
        legend = gr.HTML(elem_id="legend")
        found = _gallery(gr, "The nearest word of each pixel", "segments")

    @_shown
    def ask(*given: Any) -> Iterator[Any]:
        *values, words = given
        yield from answers.segment(Choice(*values), words)

    for event in (button.click, text.submit):
        event(ask, [*choice, text], [found, legend], **_one())
    return hint


def _files_tab(gr: Any, answers: Answers, choice: list[Any], chosen: Sequence[str]) -> Any:
    """Make what can be downloaded; return the dropdown of the methods."""
    with gr.Tab("Files"):
        what = gr.Radio(list(KINDS), value=PICTURES, label="What", elem_id="what")
        whose = gr.Dropdown(
            [LOW_RES, *chosen], value=chosen[-1], label="Features of", elem_id="whose"
        )
        button = gr.Button("Prepare the file", elem_id="file-run")
        file = gr.File(label="File", elem_id="file")

    @_shown
    def ask(*given: Any) -> Iterator[Any]:
        *values, what, method = given
        yield from answers.file(Choice(*values), what, method)

    button.click(ask, [*choice, what, whose], file, **_one())
    return whose


def _connect(
    gr: Any,
    studio: Studio,
    answers: Answers,
    choice: list[Any],
    button: Any,
    parts: dict[str, Any],
) -> None:
    """Say what a new photo, another backbone, the button and the two sides of the slider do."""
    photo, backbone, names, _ = choice
    names_of_parts = ("gallery", "slider", "left", "right", "times", "target", "whose")
    outputs = [parts[name] for name in names_of_parts]

    def run(*given: Any) -> Iterator[Any]:
        asked = Choice(*given)
        for pictures, times in answers.features(asked):
            shown = [name for _, name in pictures]
            yield (
                pictures,
                (pictures[1][0], pictures[-1][0]),
                gr.update(choices=shown, value=shown[1]),
                gr.update(choices=shown, value=shown[-1]),
                times,
                pictures[0][0],
                gr.update(choices=shown[1:], value=shown[-1]),
            )

    @_shown
    def run_if_there(*given: Any) -> Iterator[Any]:
        if given[0] is not None:
            yield from run(*given)

    @_shown
    def slide(pictures: Any, left: str, right: str) -> Iterator[Any]:
        by_name = {name: file for file, name in pictures or ()}
        if left in by_name and right in by_name:
            yield by_name[left], by_name[right]

    @_shown
    def change(name: str) -> Iterator[Any]:
        methods = studio.methods(name)
        hint = "" if studio.takes_words(name) else NO_WORDS
        yield gr.update(choices=methods, value=_usual(methods)), hint

    button.click(_shown(run), choice, outputs, **_one())
    photo.change(run_if_there, choice, outputs, **_one())
    backbone.change(change, backbone, [names, parts["hint"]], **_one())
    sides = [parts["left"], parts["right"]]
    for side in sides:
        side.input(slide, [parts["gallery"], *sides], parts["slider"], show_progress="hidden")


def _one() -> dict[str, Any]:
    """One event computes at a time, whichever it is."""
    return {"concurrency_limit": 1, "concurrency_id": "upfeat"}


def _shown(answer: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Show errors that the user can mend as a message on the page."""

    @wraps(answer)
    def shown(*given: Any) -> Iterator[Any]:
        try:
            yield from answer(*given)
        except Exception as error:
            sentence = user_message(error)
            if sentence is None:
                raise
            logger.debug("where it happened:", exc_info=True)
            raise _gradio().Error(html.escape(sentence), print_exception=False) from error

    return shown
