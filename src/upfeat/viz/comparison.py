"""All methods on one photo: a picture of each with one PCA basis, and the time of each.

Only what can be run honestly is run: methods without weights, and methods whose weights lie in the
package or in a local folder and were trained for this backbone or for any. Nothing is downloaded,
nothing runs with random weights; what is left out is named with the reason.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from upfeat.checkpoints import find_weights
from upfeat.errors import UpfeatError, WeightsNotFoundError
from upfeat.loading import load_upsampler
from upfeat.upsamplers.creation import create_upsampler
from upfeat.upsamplers.fitted import short_fit
from upfeat.upsamplers.registry import get_checkpoint, get_class, list_upsamplers
from upfeat.viz.panel import PanelPicture, draw_grid, photo_pixels
from upfeat.viz.pca import PCABasis

if TYPE_CHECKING:
    from PIL import Image

    from upfeat.backbones.base import Backbone
    from upfeat.data.images import ImageSource
    from upfeat.data.sizes import Size, SizeRequest
    from upfeat.pipeline import Encoded
    from upfeat.upsamplers.base import Upsampler
    from upfeat.upsamplers.weights import Checkpoint

__all__ = [
    "Candidate",
    "Comparison",
    "Entry",
    "SkippedMethod",
    "compare_upsamplers",
    "usable_upsamplers",
]

LARGEST_SIDE = 448
"""The shorter side at which larger photos are compared, unless a size is asked for."""

PER_IMAGE_PIXELS = 400_000
"""Larger images are not given to methods that optimise for each image: minutes become hours."""

_WARM_SECONDS = 2.0  # a quicker first call is repeated: it may have loaded libraries


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method that is ready to run.

    Attributes:
        name: ``arch`` or ``arch.tag``.
        upsampler: with its weights.
        note: how it deviates from the method as published; empty where it does not.
    """

    name: str
    upsampler: "Upsampler"
    note: str = ""


@dataclass(frozen=True)
class SkippedMethod:
    """A method that is not shown, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Entry:
    """What one method made of the photo.

    Attributes:
        name: ``arch`` or ``arch.tag``.
        seconds: of one call.
        picture: (3, H', W') uint8.
        three_channels: only the three components were upsampled, as the method allows.
        note: as the candidate's.
    """

    name: str
    seconds: float
    picture: Tensor
    three_channels: bool
    note: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare_upsamplers` returns.

    Attributes:
        panel: PIL image of everything.
        entries: the methods that are shown, in the order of the panel.
        left_out: the others.
        basis: of all pictures.
        input_size: (H, W) at which the networks saw the photo.
        output_size: (H', W') of the pictures.
        photo: (3, H, W) uint8, as the networks saw it.
        low: (3, h, w) uint8, the coarse features.
        low_extent: height and width that ``low`` covers, in units of the photo.
    """

    panel: "Image.Image"
    entries: tuple[Entry, ...]
    left_out: tuple[SkippedMethod, ...]
    basis: PCABasis
    input_size: "Size"
    output_size: "Size"
    photo: Tensor
    low: Tensor
    low_extent: tuple[float, float]


def usable_upsamplers(
    backbone: "Backbone", pattern: str = "*"
) -> tuple[list[Candidate], list[SkippedMethod]]:
    """Build every method that can upsample this backbone's features without random weights.

    Of a method with several fitting sets of weights the first that lies here is taken; the package
    itself, ``$UPFEAT_WEIGHTS`` and the local cache are searched.

    Args:
        backbone: its name and width decide which weights fit.
        pattern: wildcard over the methods' names.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.viz.comparison import usable_upsamplers
        >>> backbone = upfeat.CallableBackbone(
        ...     lambda x: torch.nn.functional.avg_pool2d(x, 8), dim=3, patch_size=8
        ... )
        >>> shown, left_out = usable_upsamplers(backbone, "[bc]*")
        >>> [candidate.name for candidate in shown], [left.name for left in left_out]
        (['bicubic', 'bilinear'], ['carafe'])
    """
    shown: list[Candidate] = []
    left_out: list[SkippedMethod] = []
    for name in list_upsamplers(pattern):
        try:
            result = _prepare(name, backbone)
        except (UpfeatError, ValueError) as error:
            result = SkippedMethod(name, _first_line(error))
        if isinstance(result, Candidate):
            shown.append(result)
        else:
            left_out.append(result)
    return shown, left_out


def _prepare(name: str, backbone: "Backbone") -> Candidate | SkippedMethod:
    """Build one method, or say why not."""
    method = get_class(name)
    info = method.info
    tags = list_upsamplers(f"{name}.*", pretrained=True)
    records = [(tag, record) for tag in tags if (record := get_checkpoint(tag)) is not None]
    if records:
        fitting = [(tag, record) for tag, record in records if _fits(record, backbone)]
        if not fitting:
            return SkippedMethod(name, "no published weights for this backbone")
        for tag, record in fitting:
            if record.bundled:
                return Candidate(tag, load_upsampler(tag, backbone))
            if (file := _local_file(name, tag, record)) is not None:
                return Candidate(tag, load_upsampler(tag, backbone, weights=file))
        return SkippedMethod(name, "weights not found here; put them into $UPFEAT_WEIGHTS")
    short = short_fit(method)
    upsampler = load_upsampler(name, backbone, allow_random=True, **short)
    if not info.abilities.per_image and next(upsampler.parameters(), None) is not None:
        if info.task_agnostic:
            return SkippedMethod(name, "no weights are published; train it (upfeat train)")
        return SkippedMethod(name, "trained together with a task; no weights are published")
    full = load_upsampler(name, backbone, allow_random=True).config if short else {}
    note = ", ".join(f"{value} of {full[key]} {key}" for key, value in short.items())
    return Candidate(name, upsampler, note)


def _fits(record: "Checkpoint", backbone: "Backbone") -> bool:
    """Whether weights are universal, or of this backbone."""
    if record.feature_dim is None:
        return True
    return record.backbone == backbone.name and record.feature_dim == backbone.dim


def _local_file(name: str, tag: str, record: "Checkpoint") -> Path | None:
    try:
        return find_weights(tag, record.local_names(name))
    except WeightsNotFoundError:
        return None


def compare_upsamplers(
    backbone: "Backbone",
    image: "ImageSource",
    candidates: Sequence[Candidate],
    left_out: Sequence[SkippedMethod] = (),
    *,
    basis: PCABasis | None = None,
    input_size: "SizeRequest" = None,
    output_size: "SizeRequest" = None,
    guidance_size: "SizeRequest" = None,
    fit: Literal["pad", "resize"] = "pad",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    side: int = 320,
    on_start: Callable[[str], None] | None = None,
) -> Comparison:
    """Run all candidates on one photo and draw them side by side, each above its time.

    A candidate that fails, or that would optimise for a large image, joins those left out.

    Args:
        backbone: runs once; its features go to every candidate.
        image: anything that the pipeline reads.
        candidates: see :func:`usable_upsamplers`.
        left_out: what the panel's last lines should name beside them.
        basis: colours of all pictures; None fits one to the coarse features.
        input_size: as the pipeline's; None: the image's own, its shorter side at most 448.
        output_size: as the pipeline's; None: the input size.
        guidance_size: as the pipeline's.
        fit: as the pipeline's.
        dtype: as the pipeline's.
        device: as the pipeline's.
        side: longer side of each picture of the panel, in pixels.
        on_start: called with the name of each candidate before it runs.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.viz.comparison import compare_upsamplers, usable_upsamplers
        >>> backbone = upfeat.CallableBackbone(
        ...     lambda x: torch.nn.functional.avg_pool2d(x, 8), dim=3, patch_size=8
        ... )
        >>> shown, left_out = usable_upsamplers(backbone, "bi*")
        >>> result = compare_upsamplers(backbone, torch.rand(3, 32, 40), shown, left_out)
        >>> [entry.name for entry in result.entries], result.output_size
        (['bicubic', 'bilinear'], (32, 40))
    """
    from upfeat.data.images import read_image
    from upfeat.data.sizes import resolve_size
    from upfeat.pipeline import Pipeline

    pixels = read_image(image)
    own = (pixels.shape[-2], pixels.shape[-1])
    if input_size is None and min(own) > LARGEST_SIDE:
        input_size = LARGEST_SIDE
    seen = resolve_size(input_size, own, "input_size")
    size = seen if output_size is None else resolve_size(output_size, own, "output_size")

    def pipeline(upsampler: "Upsampler") -> Pipeline:
        options: dict[str, Any] = {"fit": fit, "dtype": dtype, "device": device}
        options["guidance_size"] = guidance_size
        return Pipeline(backbone, upsampler, input_size=seen, **options)

    first = pipeline(create_upsampler("bilinear"))
    encoded = _ordinary(first.encode(pixels))
    basis = basis or PCABasis.fit(encoded.low)
    entries: list[Entry] = []
    missing = list(left_out)
    for candidate in candidates:
        if on_start is not None:
            on_start(candidate.name)
        try:
            _check_cost(candidate, encoded, size)
            entries.append(_run(pipeline(candidate.upsampler), candidate, encoded, size, basis))
        except (UpfeatError, ValueError, RuntimeError, MemoryError) as error:
            missing.append(SkippedMethod(candidate.name, _first_line(error)))
    low = basis.colors(basis.project(encoded.low)).cpu()
    place = f"{first.device}, {str(first.dtype).removeprefix('torch.')}"
    if first.device.type == "cpu":
        place += f", {torch.get_num_threads()} threads"
    facts = (
        f"{backbone.name}: {low.shape[1]}x{low.shape[2]} cells of {backbone.dim} channels; "
        f"input {encoded.frame.input[0]}x{encoded.frame.input[1]}, output {size[0]}x{size[1]}; "
        "one PCA basis for all.",
        f"Time of one call ({place}), three components out.",
    )
    photo = photo_pixels(encoded.image[0])
    cells = [
        PanelPicture(photo, "image"),
        PanelPicture(low, "features", blocks=True, extent=encoded.low_extent),
        *(PanelPicture(entry.picture, _caption(entry)) for entry in entries),
    ]
    columns = max(2, min(len(cells), round((1.3 * len(cells)) ** 0.5)))
    notes = (*facts, *_notes(entries, missing))
    panel = draw_grid(cells, own, side, columns=columns, notes=notes)
    return Comparison(
        panel,
        tuple(entries),
        tuple(missing),
        basis,
        encoded.frame.input,
        size,
        photo,
        low,
        encoded.low_extent,
    )


def _ordinary(encoded: "Encoded") -> "Encoded":
    """Copy what inference mode made, so that methods that optimise may record it."""
    return replace(
        encoded,
        image=encoded.image.clone(),
        prepared=encoded.prepared.clone(),
        features=encoded.features.clone(),
    )


def _check_cost(candidate: Candidate, encoded: "Encoded", size: "Size") -> None:
    """Raise where a method would optimise for a long time."""
    pixels = max(height * width for height, width in (encoded.frame.padded, size))
    if candidate.upsampler.info.abilities.per_image and pixels > PER_IMAGE_PIXELS:
        raise ValueError(
            f"optimises for each image, so only up to {PER_IMAGE_PIXELS} pixels; choose a smaller "
            "input and output size"
        )


def _run(
    pipe: Any, candidate: Candidate, encoded: "Encoded", size: "Size", basis: PCABasis
) -> Entry:
    """Upsample the three components and take the time."""

    def call() -> tuple[Tensor, float]:
        wait_for_device(pipe.device)
        start = time.perf_counter()
        high = pipe.upsample(encoded, size, head=basis.project)
        wait_for_device(pipe.device)
        return high, time.perf_counter() - start

    high, seconds = call()
    info = candidate.upsampler.info
    if seconds < _WARM_SECONDS and not info.abilities.per_image:
        high, seconds = call()
    picture = basis.colors(high).cpu()
    return Entry(candidate.name, seconds, picture, info.abilities.linear, candidate.note)


def wait_for_device(device: torch.device) -> None:
    """Return when a GPU has done what it was asked for: only then is a time one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _caption(entry: Entry) -> str:
    seconds = entry.seconds
    text = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    return f"{entry.name}{'*' if entry.note else ''}  {text}"


def _notes(entries: Sequence[Entry], left_out: Sequence[SkippedMethod]) -> list[str]:
    """Lines below the pictures: what was cheaper, what was shortened, what is missing and why."""
    notes = []
    if three := [entry.name for entry in entries if entry.three_channels]:
        notes.append(
            "One set of weights for all channels, so only three were upsampled: "
            f"{', '.join(three)}. The others upsampled all."
        )
    notes += [f"* {entry.name}: {entry.note}." for entry in entries if entry.note]
    reasons: dict[str, list[str]] = {}
    for left in left_out:
        reasons.setdefault(left.reason, []).append(left.name)
    notes += [f"Left out ({reason}): {', '.join(names)}." for reason, names in reasons.items()]
    return notes


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
