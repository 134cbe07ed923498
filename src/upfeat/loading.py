"""The only way from what a user writes to an upsampler of the right width.

Commands, recipes, pictures and benchmarks all call :func:`load_upsampler`: one syntax, one rule of
what needs weights, one set of messages.
"""

import copy
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from upfeat._settings import read_call
from upfeat.backbones.base import Backbone
from upfeat.backbones.baselines import large_image, shift_and_interleave, strided
from upfeat.errors import CheckpointError, UnknownNameError, UnsupportedError
from upfeat.ops.images import resize_bilinear
from upfeat.upsamplers.base import Abilities, Upsampler, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.creation import create_upsampler, from_official
from upfeat.upsamplers.registry import (
    get_checkpoint,
    get_class,
    list_upsamplers,
    needs_feature_dim,
)

__all__ = ["FinerGrid", "load_upsampler", "runs_backbone", "split_label", "split_specs"]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FINER = re.compile(r"(?P<kind>large|strided|shifted):(?P<number>\d+)")
_WRAPPERS: dict[str, Callable[[Backbone, int], Backbone]] = {
    "large": large_image,
    "strided": strided,
    "shifted": shift_and_interleave,
}
_LOW_RES = "low-res"

_Module = TypeVar("_Module", bound=nn.Module)


class FinerGrid(WholeMapUpsampler):
    """The papers' rows without an upsampler: the backbone itself on a finer grid, then bilinear.

    ``"large:8"`` enlarges the image, by the factor on each side; ``"strided:6"`` lets the patches
    overlap, with that distance in pixels; ``"shifted:2"`` interleaves the features of shifted
    images, so many along each axis. The features of the image as it is play no part; cost and
    memory are those of the finer grid.

    Raises:
        ValueError: the factor or the stride is out of range, or ``spec`` is none of them.
        UnsupportedError: the backbone takes one size only, or its patches cannot overlap.

    Example:
        >>> import torch, upfeat
        >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> up = upfeat.load_upsampler("large:2", encoder)
        >>> pixels, guidance = up.prepare(torch.rand(1, 3, 32, 48), encoder)
        >>> up(guidance, encoder(pixels)).shape
        torch.Size([1, 192, 32, 48])
    """

    def __init__(self, spec: str, backbone: Backbone) -> None:
        super().__init__()
        match = _FINER.fullmatch(spec)
        if match is None:
            raise ValueError(
                f"a finer grid is large:FACTOR, strided:PIXELS or shifted:FACTOR, got {spec!r}"
            )
        self.backbone = _WRAPPERS[match["kind"]](backbone, int(match["number"]))
        self.config = {"feature_dim": backbone.dim, "backbone": self.backbone.name}
        self.info = UpsamplerInfo(
            name=spec,
            summary="The backbone's features on a finer grid, resized bilinearly.",
            abilities=Abilities(mixes_values=False),
            views=True,
        )

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Run the backbone on the image, which is normalised for it."""
        return resize_bilinear(self.backbone(image), output_size)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuse: there are no weights beside the backbone's."""
        raise UnsupportedError(f"{self.info.name} is the backbone itself: it has nothing to save")


def load_upsampler(
    spec: str | os.PathLike[str],
    backbone: Backbone | int,
    *,
    weights: str | os.PathLike[str] | None = None,
    allow_random: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    any_backbone: bool = False,
    **options: Any,
) -> Upsampler:
    """Load the upsampler that a name, a folder or a repository stands for, for a backbone.

    Args:
        spec: one of

            * ``"bilinear"``, a method that needs no weights or optimises for each image;
            * ``"jafar.dinov2_vits14"``, published weights;
            * ``"guided_filter(radius=4)"``, either of them with arguments of the method's class,
              whose values are literals;
            * a folder that ``save_pretrained`` or ``upfeat train`` wrote (``"./jafar"`` where a
              method has that name);
            * a Hugging Face repository that holds one, ``"me/name"``;
            * ``"large:8"``, ``"strided:6"`` or ``"shifted:2"``, the backbone itself on a finer grid
              (:class:`FinerGrid`), or ``"low-res"``, its features as they are: every pixel takes
              its cell's.
        backbone: whose features it upsamples, or their number of channels.
        weights: a file in the official or in upfeat's layout, or a folder of ``save_pretrained``,
            for the method that ``spec`` names.
        allow_random: a method that must be trained and is named without weights gets random ones,
            for training or to measure its cost; by default it is refused.
        device: where the upsampler goes; None: the CPU.
        dtype: its floating point type; None: float32.
        any_backbone: weights that were trained for another backbone of as many channels are taken
            without a word; by default a warning names it.
        **options: further arguments of the method's class; they win over those of ``spec``.

    Returns:
        The upsampler in eval mode.

    Raises:
        UnknownNameError: no such method, tag or argument; the message lists close matches.
        FileNotFoundError: no such folder, and it cannot be a repository.
        WeightsNotFoundError: no place has the weights.
        CheckpointError: the weights do not fit, or belong to another method or width.
        ValueError: the method must be trained first, or the spec cannot be read.
        TypeError: ``options`` that the method's class does not take.

    Example:
        >>> import upfeat
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> upfeat.load_upsampler("jafar.vit_compact_patch16", backbone).training
        False
        >>> up = upfeat.load_upsampler("resize_conv(kernel_size=3)", backbone, allow_random=True)
        >>> up.config["feature_dim"], up.config["kernel_size"]
        (192, 3)
    """
    text = os.fspath(spec).strip()
    width = backbone if isinstance(backbone, int) else backbone.dim
    if text == _LOW_RES or runs_backbone(text):
        if weights is not None or options:
            raise ValueError(f"{text} is the backbone itself and takes no weights or arguments")
        return _load_backbone_row(text, backbone).to(device=device, dtype=dtype)
    if _is_saved(text):
        if weights is not None or options:
            raise ValueError(f"{text} holds weights and arguments already; give no others with it")
        upsampler = Upsampler.from_pretrained(text)
    else:
        name, written = _parse(text)
        try:
            upsampler = _load_named(name, backbone, weights, allow_random, written | options)
        except TypeError as error:
            if not written:
                raise
            raise ValueError(f"{text} does not fit: {error}") from error
    own = upsampler.config.get("feature_dim")
    if own is not None and own != width:
        raise CheckpointError(
            f"{text} is an upsampler of {own} channels and the backbone has {width}; choose "
            "weights that were trained for this backbone"
        )
    if isinstance(backbone, Backbone):
        check = upsampler.accept_backbone if any_backbone else upsampler.warn_of_other_backbone
        check(backbone)
    return upsampler.eval().to(device=device, dtype=dtype)


def _load_backbone_row(text: str, backbone: Backbone | int) -> Upsampler:
    """Build the row of a table that has no upsampler."""
    if text == _LOW_RES:
        return create_upsampler("nearest").eval()
    if isinstance(backbone, int):
        raise ValueError(f"{text} runs the backbone itself; give the backbone, not its channels")
    return FinerGrid(text, backbone).eval()


def runs_backbone(spec: str) -> bool:
    """Whether a spec, such as ``large:8``, means the backbone itself on a finer grid."""
    return _FINER.fullmatch(spec.strip()) is not None


def split_specs(text: str) -> list[str]:
    """Split several specs at the commas between them, not at those between arguments.

    Example:
        >>> from upfeat.loading import split_specs
        >>> split_specs("bilinear, best=resize_conv(kernel_size=3, depth=2)")
        ['bilinear', 'best=resize_conv(kernel_size=3, depth=2)']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def split_label(text: str) -> tuple[str, str]:
    """Split ``LABEL=SPEC``; without a label it is the spec, or the last part of a path.

    Example:
        >>> from upfeat.loading import split_label
        >>> split_label("small=runs/a/model"), split_label("resize_conv(kernel_size=3)")
        (('small', 'runs/a/model'), ('resize_conv(kernel_size=3)', 'resize_conv(kernel_size=3)'))
    """
    text = text.strip()
    label, sign, spec = text.partition("=")
    if not sign or "(" in label or Path(text).expanduser().is_dir():
        label, spec = "", text
    return label.strip() or (spec if "(" in spec else Path(spec).name), spec.strip()


def _is_saved(text: str) -> bool:
    """Whether a spec means a folder or a repository, and not a name."""
    if text in list_upsamplers():
        return False
    if Path(text).expanduser().is_dir():
        return True
    if "(" in text or not set(text) & {"/", os.sep}:
        return False
    if not _REPOSITORY.fullmatch(text):
        raise FileNotFoundError(f"no folder at {text}; give a folder that save_pretrained wrote")
    return True


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name`` or ``name(option=value, ...)`` and check the options' names."""
    name, options = read_call(text, "an upsampler")
    if options:
        known = list(inspect.signature(get_class(name).__init__).parameters)[1:]
        for option in options:
            if option not in known:
                raise UnknownNameError(f"argument of {name}", option, known)
    return name, options


def _load_named(
    name: str,
    backbone: Backbone | int,
    weights: str | os.PathLike[str] | None,
    allow_random: bool,
    options: Mapping[str, Any],
) -> Upsampler:
    """Build the method behind a registry name with its weights, the caller's, or random ones."""
    if weights is not None and Path(weights).expanduser().is_dir():
        return _load_folder(name, weights, options)
    if weights is not None and "." not in name:
        return from_official(name, weights, **options)
    if weights is not None or "." in name:
        return create_upsampler(name, weights=weights, **options)
    width = backbone if isinstance(backbone, int) else backbone.dim
    given = {"feature_dim": width, **options} if needs_feature_dim(name) else dict(options)
    upsampler = create_upsampler(name, pretrained=False, **given)
    learns = next(upsampler.parameters(), None) is not None
    if learns and not allow_random and not upsampler.info.abilities.per_image:
        raise ValueError(
            f"{name} must be trained first: give {_published(name, backbone)}, a folder that "
            "save_pretrained or upfeat train wrote, or a file where weights= or --weights is taken"
        )
    return upsampler


def _published(name: str, backbone: Backbone | int) -> str:
    """Say which published weights of a method fit a backbone, or which there are."""
    tags = list_upsamplers(f"{name}.*", pretrained=True)
    records = {tag: get_checkpoint(tag) for tag in tags}
    own = getattr(backbone, "name", None)
    fitting = [
        tag
        for tag, record in records.items()
        if record is not None and (record.feature_dim is None or record.backbone == own)
    ]
    if fitting:
        return f"its published weights ({', '.join(fitting)})"
    return f"published weights ({', '.join(tags) or 'none'}; none for this backbone)"


def _load_folder(
    name: str, folder: str | os.PathLike[str], options: Mapping[str, Any]
) -> Upsampler:
    """Load a folder, which must hold the method and the arguments that were asked for."""
    model = Upsampler.from_pretrained(folder)
    differing = [key for key, value in options.items() if model.config.get(key) != value]
    if model.info.name != name.partition(".")[0] or differing:
        raise CheckpointError(
            f"{folder} holds {model.info.name} with {model.config}, and {name} with "
            f"{dict(options)} was asked for; change one of them"
        )
    return model


# -- networks of a pipeline -----------------------------------------------------------------------


def checked_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a floating point type, or raise."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, such as torch.bfloat16, got {dtype!r}")
    return dtype


def fitting_upsampler(
    upsampler: Upsampler | str | os.PathLike[str] | None, backbone: Backbone
) -> Upsampler | None:
    """Load what is named, and raise unless it can work with the backbone."""
    if isinstance(upsampler, str | os.PathLike):
        return load_upsampler(upsampler, backbone)
    if upsampler is None:
        return None
    if not isinstance(upsampler, Upsampler):
        raise ValueError(
            f"upsampler must be a name, a folder or an upfeat.Upsampler, got "
            f"{type(upsampler).__name__}; the order is Pipeline(backbone, upsampler)"
        )
    info = upsampler.info
    width = upsampler.config.get("feature_dim")
    if width is not None and width != backbone.dim:
        raise ValueError(
            f"the upsampler {info.name} was built for feature_dim={width}, the backbone "
            f"{backbone.name} has {backbone.dim} channels; build it with create_upsampler("
            f"{info.name!r}, feature_dim={backbone.dim}) or load weights trained for this backbone"
        )
    return upsampler


def under_autocast(module: _Module, dtype: torch.dtype) -> _Module:
    """Let a backbone or an upsampler, and copies of it, compute under autocast and give float32.

    The weights stay as they are, and what is trained on the features computes in float32.
    """
    kind = type(module)

    def within(name: str) -> Callable[..., Any]:
        plain = getattr(kind, name)

        def call(self: nn.Module, image: Tensor, *given: Any, **named: Any) -> Tensor:
            with torch.autocast(image.device.type, dtype):
                result: Tensor = plain(self, image, *given, **named)
            return result.float()

        return call

    def tiles(
        self: Upsampler, image: Tensor, *given: Any, **named: Any
    ) -> Iterator[tuple[slice, Tensor]]:
        pieces = kind.tiles(self, image, *given, **named)  # type: ignore[attr-defined]
        while True:
            with torch.autocast(image.device.type, dtype):  # left before the caller goes on
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece[0], piece[1].float()

    changed: dict[str, Any] = {"autocast_dtype": dtype, "forward": within("forward")}
    if isinstance(module, Upsampler):
        changed |= {"tiles": tiles, "query": within("query")}
    module.__class__ = type(kind.__name__, (kind,), changed)
    return module


class Place(NamedTuple):
    """Where a network computes, and in which type."""

    device: torch.device
    dtype: torch.dtype


def place_of(*modules: nn.Module) -> Place:
    """Return device and dtype of the first floating point weight, torch's default without any."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return Place(tensor.device, tensor.dtype)
    empty = torch.empty(0)
    return Place(empty.device, empty.dtype)


def converted(module: _Module, device: torch.device, dtype: torch.dtype | None) -> _Module:
    """Return the module itself if it fits, else a converted copy."""
    tensors = [*module.parameters(), *module.buffers()]
    fits = all(
        tensor.device == device
        and (dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype)
        for tensor in tensors
    )
    return module if fits else copy.deepcopy(module).to(device=device, dtype=dtype)
