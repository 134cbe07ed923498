"""One random call of an upsampler, as a value, and what must hold of it.

A `Case` says everything about a call: ``check(Case(...))`` repeats it. What does not hold is a
`Finding`; a call that the method refuses as it may is a `Refused`.
"""

import contextlib
import dataclasses
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import upfeat
from tests.fuzz.methods import (
    CANNOT_REDUCE,
    DECIDED_BY_ROUNDING,
    FLOAT32_ERROR,
    GROUPED,
    SMALLEST_GRID,
    STRIDED,
    WIDTHS,
    abilities,
    instance,
    methods,
    registered,
)
from upfeat.ops.coordinates import pixel_centres
from upfeat.upsamplers.registry import needs_feature_dim

PACKAGE = Path(upfeat.__file__).resolve().parent
LONGEST_MESSAGE = 500
DEADLINE = 10
"""Seconds of the processor; a case takes milliseconds."""

Size = tuple[int, int]

DTYPES = ("float32", "float64", "bfloat16", "float16")

# How far two correct computations may lie apart, measured against the largest number that goes in
# or comes out: at most, and in half precision on average, as single pixels whose logits are large
# are decided by rounding.
_TOLERANCE = {"float64": 1e-9, "float32": 5e-5, "float16": 5e-3, "bfloat16": 2e-2}


class Finding(AssertionError):  # noqa: N818  (what it is, not an error of a program)
    """Something that must not be; ``key`` tells findings of different kinds apart."""

    def __init__(self, case: "Case", what: str, detail: str = "") -> None:
        super().__init__(f"{what}: {detail}" if detail else what)
        self.case = case
        self.key = (case.method, case.oracle, what)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A call that was refused with a sentence of ours."""

    message: str

    @property
    def kind(self) -> str:
        """The message without its numbers."""
        return re.sub(r"\d+", "N", self.message)


# -- inputs ----------------------------------------------------------------------------------------


def _strided(x: Tensor) -> Tensor:
    """Return every second row and column of a larger map."""
    large = x.new_full((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), 7.0)
    large[:, :, ::2, ::2] = x
    return large[:, :, ::2, ::2]


def _window(x: Tensor) -> Tensor:
    """Return a window of a larger map: all strides are those of the larger one."""
    batch, channels, height, width = x.shape
    large = x.new_full((batch + 1, channels + 1, height + 2, width + 3), 7.0)
    inner = large[1:, 1:, 1:-1, 2:-1]
    inner.copy_(x)
    return inner


def _loose(x: Tensor) -> Tensor:
    """Return axes of length one with strides that nothing else would give them."""
    strides = [s if n > 1 else 3 for n, s in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch_last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": _strided,
    "window": _window,
    "loose": _loose,
    "one_item": lambda x: x[:1].expand_as(x),
    "one_channel": lambda x: x[:, :1].expand_as(x),
    "one_row": lambda x: x[:, :, :1].expand_as(x),
    "one_pixel": lambda x: x[:, :, :1, :1].expand_as(x),
}


def _zero_cell(x: Tensor) -> Tensor:
    return x.index_fill(2, torch.tensor([0]), 0.0) if x.shape[2] > 1 else x * 0


CONTENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x,
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "zero_cells": _zero_cell,
    "large": lambda x: 30 * x,
    "huge": lambda x: 1000 * x,
    "small": lambda x: 1e-3 * x,
    "steps": torch.sign,
    "offset": lambda x: 10 + 0.1 * x,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: ``image`` (batch, 3, *image), ``features`` (batch, channels, *grid)."""

    method: str
    oracle: str = "plain"
    dtype: str = "float32"
    """Of the weights."""
    input_dtype: str = "float32"
    """Of image, features and values."""
    batch: int = 1
    channels: int = 8
    image: Size = (8, 8)
    grid: Size = (2, 2)
    size: Size | None = None
    values: int | None = None
    """Channels of the values."""
    layouts: tuple[str, str, str] = ("contiguous", "contiguous", "contiguous")
    """Of image, features and values."""
    contents: tuple[str, str] = ("noise", "noise")
    """Of image and features."""
    grad: bool = False
    max_bytes: int = 1
    positions: int = 3
    seed: int = 0

    @property
    def model(self) -> upfeat.Upsampler:
        """The method's instance for this width and dtype."""
        return instance(self.method, self.width, getattr(torch, self.dtype))

    @property
    def width(self) -> int:
        """Width that the instance is built for."""
        return self.channels if needs_feature_dim(registered(self.method)) else 0

    @property
    def output_size(self) -> Size:
        """Size of the output."""
        return self.size or self.image

    def generator(self) -> torch.Generator:
        """Return the source of everything random in the case."""
        return torch.Generator().manual_seed(self.seed)

    def maps(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return image, features and values in their layouts."""
        generator, dtype = self.generator(), getattr(torch, self.input_dtype)

        def made(channels: int, size: Size, content: str, layout: str) -> Tensor:
            noise = torch.randn(self.batch, channels, *size, generator=generator)
            return LAYOUTS[layout](CONTENTS[content](noise).to(dtype))

        image = made(3, self.image, self.contents[0], self.layouts[0])
        features = made(self.channels, self.grid, self.contents[1], self.layouts[1])
        if self.values is None:
            return image, features, None
        return image, features, made(self.values, self.grid, "noise", self.layouts[2])


_EDGE = st.one_of(st.integers(1, 6), st.integers(1, 40))
_CELLS = st.one_of(st.integers(1, 3), st.integers(1, 8))


@st.composite
def cases(draw: st.DrawFn, method: str | None = None, oracle: str | None = None) -> Case:
    """Draw a call of one method, or of any; most of them are of sizes that the method takes."""
    method = method or draw(st.sampled_from(methods()))
    oracle = oracle or draw(st.sampled_from([o for o in ORACLES if has_oracle(method, o)]))
    dtype = "float32" if oracle == "float64" else draw(st.sampled_from(DTYPES))
    mixed = oracle == "plain" and draw(st.booleans())
    grid, image, size = _sizes(draw, method)
    name = registered(method)
    width = WIDTHS if needs_feature_dim(name) or name in GROUPED else range(1, 21)
    layout, content = st.sampled_from(list(LAYOUTS)), st.sampled_from(list(CONTENTS))
    given = draw(st.sampled_from(DTYPES)) if mixed else dtype
    picture = draw(content)
    if picture in ("large", "huge") and ("float16" in (dtype, given) or oracle != "plain"):
        # Of an image that was not normalised, only finite outputs are asked: weights that fall with
        # squared colours are then decided by rounding, and squares leave float16.
        picture = "noise"
    return Case(
        method,
        oracle,
        dtype,
        given,
        batch=2 if oracle == "batch" else draw(st.integers(1, 3)),
        channels=draw(st.sampled_from(width)),
        image=image,
        grid=grid,
        size=size,
        values=_values(draw, method, width),
        layouts=(draw(layout), draw(layout), draw(layout)),
        contents=(picture, draw(content)),
        grad=draw(st.booleans()),
        max_bytes=draw(st.sampled_from((1, 5000, 100_000, 1 << 30))),
        positions=draw(st.integers(0, 9)),
        seed=draw(st.integers(0, 3)),
    )


def _sizes(draw: st.DrawFn, method: str) -> tuple[Size, Size, Size | None]:
    """Draw the sizes of grid, image and output; one in eight whatever the method says."""
    free = draw(st.integers(0, 7)) == 7
    least = 1 if free else SMALLEST_GRID.get(method, 1)
    grid = tuple(max(least, draw(_CELLS)) for _ in range(2))
    image = tuple(draw(_EDGE) for _ in range(2))
    size: Any = draw(st.none() | st.tuples(_EDGE, _EDGE) | st.integers(1, 6))
    if isinstance(size, int):
        size = tuple(size * n for n in grid)
    if not free and method == "featup_implicit":  # it pools the image to the grid
        image = tuple(max(3, n, cells) for n, cells in zip(image, grid, strict=True))
    if not free and registered(method) in GROUPED:  # they reflect the image's border
        image = tuple(max(2, n) for n in image)
    if not free and method in CANNOT_REDUCE:
        size = tuple(max(n, cells) for n, cells in zip(size or image, grid, strict=True))
    return grid, image, size  # type: ignore[return-value]


def _values(draw: st.DrawFn, method: str, width: Sequence[int]) -> int | None:
    """Draw the channels of the values; one in sixteen where the method takes none."""
    if not abilities(method).mixes_values and draw(st.integers(0, 15)) < 15:
        return None
    return draw(st.none() | st.sampled_from(width))


def has_oracle(method: str, oracle: str) -> bool:
    """Whether the method can do what the oracle judges."""
    able = abilities(method)
    exact = method not in DECIDED_BY_ROUNDING
    return {"tiles": able.tiles, "query": able.query, "float64": exact}.get(oracle, True)


# -- what must hold --------------------------------------------------------------------------------


def _plain(case: Case) -> None:
    """The output has its shape and dtype, is finite, and the inputs stay as they were."""
    image, features, values = case.maps()
    before = [t.clone() for t in (image, features, values) if t is not None]
    output = _call(case, image, features, values)
    width = case.channels if values is None else case.values
    _same_form(case, output, (case.batch, width, *case.output_size))
    after = [t for t in (image, features, values) if t is not None]
    if not all(torch.equal(a, b) for a, b in zip(after, before, strict=True)):
        raise Finding(case, "inputs changed")


def _layouts(case: Case) -> None:
    """Strides make no difference."""
    maps = case.maps()
    plain = [None if t is None else t.clone(memory_format=torch.contiguous_format) for t in maps]
    _close(case, _call(case, *maps), _call(case, *plain), "layouts differ")


def _batch(case: Case) -> None:
    """A batch of two equals two calls."""
    image, features, values = case.maps()
    together = _call(case, image, features, values)
    alone = [
        _call(
            case,
            image[i : i + 1],
            features[i : i + 1],
            None if values is None else values[i : i + 1],
        )
        for i in range(case.batch)
    ]
    _close(case, together, torch.cat(alone), "batch differs from single calls")


def _tiles(case: Case) -> None:
    """Tiles cover the output once and equal it."""
    image, features, values = case.maps()
    whole = _call(case, image, features, values)
    actual = torch.full_like(whole, torch.nan)
    with torch.set_grad_enabled(case.grad):
        tiles = case.model.tiles(image, features, case.size, values, max_bytes=case.max_bytes)
        for rows, tile in tiles:
            if not actual[:, :, rows].isnan().all():
                raise Finding(case, "tiles overlap")
            if tile.dtype != whole.dtype:
                raise Finding(case, "dtype of tiles", f"{tile.dtype} and {whole.dtype}")
            actual[:, :, rows] = tile.detach()
    _close(case, actual, whole, "tiles differ from the whole")


def _query(case: Case) -> None:
    """Pixel centres give the output, and any other positions finite numbers."""
    image, features, values = case.maps()
    whole = _call(case, image, features, values)
    centres = pixel_centres(case.output_size, dtype=torch.float64)
    some = torch.randint(len(centres), (case.positions,), generator=case.generator())
    coords = centres[some].expand(case.batch, -1, -1)
    anywhere = 2 * torch.rand(case.batch, case.positions, 2, generator=case.generator()) - 1
    with torch.set_grad_enabled(case.grad):
        asked = case.model.query(image, features, coords, values, case.output_size).detach()
        free = case.model.query(image, features, anywhere, values, case.output_size).detach()
    expected = whole.flatten(2).mT[:, some]  # (B, N, K)
    _same_form(case, free, tuple(expected.shape))
    _close(case, asked, expected, "query differs from the output")


def _double(case: Case) -> None:
    """Float32 is near float64."""
    image, features, values = case.maps()
    single = _call(case, image, features, values)
    exact = dataclasses.replace(case, dtype="float64", input_dtype="float64")
    doubled = [None if t is None else t.double() for t in (image, features, values)]
    expected = _call(exact, *doubled)
    # A border that falls on a pixel may go either way: the mean is judged, not the largest.
    error = (single.double() - expected).abs().mean() / _scale(case, features, values, expected)
    if not error < FLOAT32_ERROR.get(case.method, 2e-3):
        raise Finding(case, "float32 far from float64", f"mean error {error:.3g} of the scale")


def _gradients(case: Case) -> None:
    """Outputs with and without a graph agree, and the gradients are finite."""
    image, features, values = case.maps()
    without = _call(dataclasses.replace(case, grad=False), image, features, values)
    leaves = [t.detach().requires_grad_() for t in (image, features, values) if t is not None]
    model = case.model
    with torch.enable_grad():
        output = model(leaves[0], leaves[1], case.size, leaves[2] if values is not None else None)
        if output.requires_grad != abilities(case.method).gradients:
            raise Finding(case, "graph missing or unasked for")
        if not output.requires_grad:
            return
        weights = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(output.float().sum(), [*leaves, *weights], allow_unused=True)
    _close(case, output.detach(), without, "with a graph differs from without")
    if case.dtype == "float16":
        return  # its largest number is 65504: training in it takes a scaler of the loss
    narrow = registered(case.method) in STRIDED and case.image[1] <= 16
    if case.dtype == "bfloat16" and narrow:
        return  # see STRIDED
    if not all(g is None or g.isfinite().all() for g in grads):
        raise Finding(case, "gradient is not finite")


ORACLES: dict[str, Callable[[Case], None]] = {
    "plain": _plain,
    "layouts": _layouts,
    "batch": _batch,
    "tiles": _tiles,
    "query": _query,
    "float64": _double,
    "gradients": _gradients,
}


def check(case: Case) -> Refused | None:
    """Make the call and judge it; return the refusal if there was one.

    Raises:
        Finding: something does not hold, or an exception came that is no refusal of ours.
    """
    return judged(case, lambda: ORACLES[case.oracle](case))


def judged(case: Case, action: Callable[[], Any]) -> Refused | None:
    """Run an action and tell refusals of ours, findings and foreign exceptions apart."""
    try:
        with _deadline():
            action()
    except Finding:
        raise
    except ValueError as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if not last.is_relative_to(PACKAGE):
            raise Finding(case, f"{type(error).__name__} of {last.name}", str(error)) from error
        complaint = complaint_about(str(error))
        if complaint:
            raise Finding(case, complaint, str(error)) from error
        return Refused(str(error))
    except Exception as error:
        raise Finding(case, f"raised {type(error).__name__}", str(error)) from error
    return None


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Raise ``TimeoutError`` in an action that takes the processor for too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer after {DEADLINE} s of the processor")

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, DEADLINE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def complaint_about(message: str) -> str | None:
    """Return what is wrong with an error message that should be one sentence."""
    if len(message.split()) < 4:
        return "message says too little"
    if "\n" in message or re.search(r"\. [A-Z]", message):
        return "message is not one sentence"
    if len(message) > LONGEST_MESSAGE:
        return "message is too long"
    return None


# -- helpers ---------------------------------------------------------------------------------------


def _call(case: Case, image: Tensor, features: Tensor, values: Tensor | None) -> Tensor:
    """Call the method, with the weights' gradients on or all off; the result has no graph."""
    with torch.set_grad_enabled(case.grad):
        return case.model(image, features, case.size, values).detach()


def _same_form(case: Case, output: Tensor, shape: tuple[int | None, ...]) -> None:
    if tuple(output.shape) != shape:
        raise Finding(case, "shape", f"{tuple(output.shape)}, expected {shape}")
    if output.dtype != getattr(torch, case.input_dtype):
        raise Finding(case, "dtype", f"{output.dtype}")
    if not output.isfinite().all():
        bad = int((~output.isfinite()).sum())
        raise Finding(case, "not finite", f"{bad} of {output.numel()} numbers")


def _scale(case: Case, features: Tensor, values: Tensor | None, expected: Tensor) -> float:
    """Return the largest number of what goes in or comes out; 1 for zeros."""
    mixed = features if values is None else values
    return max(float(mixed.detach().abs().max()), float(expected.abs().max()), 1e-6)


def _close(case: Case, actual: Tensor, expected: Tensor, what: str) -> None:
    """Compare in the scale of the output; both must be finite."""
    _same_form(case, actual, tuple(expected.shape))
    if not expected.numel():
        return
    _, features, values = case.maps()
    difference = (actual.double() - expected.double()).abs()
    scale = _scale(case, features, values, expected)
    allowed = _TOLERANCE[case.dtype] * (10 if abilities(case.method).per_image else 1)
    exact = case.dtype in ("float32", "float64")
    worst = float(difference.max() if exact else difference.mean()) / scale
    if not worst < allowed:
        raise Finding(case, what, f"by {worst:.3g} of the scale, allowed {allowed:.3g}")
