"""What the page computes, in bounded memory and without Gradio.

Legend: ``C`` channels, ``h w`` feature grid, ``H W`` the photo, reduced, and the output; the
networks see it with sides that are multiples of the patch.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from upfeat.backbones import Backbone, create_backbone
from upfeat.data.images import decode_image
from upfeat.data.opening import read_picture
from upfeat.data.sizes import Size
from upfeat.errors import UnknownNameError
from upfeat.extraction import tensor_writer
from upfeat.loading import checked_dtype, load_upsampler, under_autocast
from upfeat.pipeline import Encoded, Pipeline
from upfeat.similarity import (
    embed_words,
    pixel_similarity,
    segment_words,
    split_words,
    templates,
    text_encoder,
)
from upfeat.upsamplers import Upsampler
from upfeat.viz import AnswerMap, PCABasis
from upfeat.viz.comparison import usable_upsamplers, wait_for_device

__all__ = ["Drawn", "Prepared", "Studio", "example_photos"]

LOW_RES = "low-res"
SIDES = (224, 336, 448)
"""Shorter sides to choose from, in pixels."""

LARGEST_PHOTO = 25_000_000  # pixels of a file
LONGEST = 2  # longer side, in shorter sides asked for
MOST_WORDS = 12
LARGEST_FILE = 256_000_000  # bytes of a file of features
_LIKE_LOW_RES = ("nearest", "area")  # the same pictures under other names
_KEPT = 4  # photos whose features are kept
_BACKBONES = 2  # that are kept

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo and its features."""

    pipe: Pipeline  # of the backbone, without an upsampler
    encoded: Encoded  # the photo and its features (1, C, h, w)
    basis: PCABasis  # colours of the features
    seconds: float  # of the backbone

    @property
    def size(self) -> Size:
        """Height and width of the photo as it is shown, and of the output."""
        return self.encoded.frame.own

    @property
    def photo(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self.encoded.image[0]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a method made of the features: name, picture (3, H, W) uint8, seconds of the call."""

    name: str
    picture: Tensor
    seconds: float


def example_photos() -> list[Path]:
    """Return the photos that come with the package."""
    return sorted((Path(__file__).parent / "photos").glob("*.jpg"))


def _alone(
    method: Callable[Concatenate["Studio", _Parameters], _Result],
) -> Callable[Concatenate["Studio", _Parameters], _Result]:
    """Let one call of a studio run at a time: its memory is that of one call."""

    @wraps(method)
    def locked(self: "Studio", *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class Studio:
    """Backbones and methods to choose from, and the answers about a photo.

    One call runs at a time. Two backbones with their methods and the features of four photos are
    kept.

    Args:
        backbones: specs, as ``upfeat.create_backbone`` reads them; the first is loaded at once.
        upsamplers: specs that are offered beside those that have their weights here.
        device: where everything runs.
        dtype: in which both networks compute; features come in float32.

    Raises:
        UpfeatError: the first backbone, or one of the upsamplers for it, cannot be loaded.

    Example:
        >>> from upfeat.app import Studio
        >>> from upfeat.app.studio import example_photos
        >>> studio = Studio(["upfeat/vit_compact_patch16"])
        >>> "kin.upfeat" in studio.methods("upfeat/vit_compact_patch16")
        True
        >>> prepared = studio.prepare(example_photos()[1], "upfeat/vit_compact_patch16", 64)
        >>> prepared.size
        (64, 96)
    """

    def __init__(
        self,
        backbones: Sequence[str],
        upsamplers: Sequence[str] = (),
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not backbones:
            raise ValueError("no backbone to choose from; name at least one")
        self.lock = threading.RLock()
        self.backbones, self.upsamplers, self.device = tuple(backbones), tuple(upsamplers), device
        self.dtype = checked_dtype(dtype)
        self._loaded: OrderedDict[str, tuple[Pipeline, dict[str, Upsampler]]] = OrderedDict()
        self._prepared: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._words: dict[tuple[Any, ...], Tensor] = {}
        self._load(self.backbones[0])

    # -- what there is ---------------------------------------------------------------------------

    @_alone
    def methods(self, backbone: str) -> list[str]:
        """Return the names of the methods for a backbone, those that were asked for first."""
        return list(self._load(backbone)[1])

    @_alone
    def takes_words(self, backbone: str) -> bool:
        """Whether a backbone has a text space."""
        try:
            text_encoder(self._load(backbone)[0].backbone)
        except ValueError:
            return False
        return True

    def _load(self, name: str) -> tuple[Pipeline, dict[str, Upsampler]]:
        """Return backbone and methods; what was used longest ago goes."""
        if name not in self.backbones:
            raise UnknownNameError("backbone of this page", name, self.backbones)
        if name not in self._loaded:
            network = self._placed(create_backbone(name))
            self._loaded[name] = (Pipeline(network, fit="resize"), self._offer(network))
            while len(self._loaded) > _BACKBONES:
                gone, _ = self._loaded.popitem(last=False)
                self._prepared = OrderedDict(
                    (key, kept) for key, kept in self._prepared.items() if gone not in key
                )
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _offer(self, network: Backbone) -> dict[str, Upsampler]:
        """Return the methods that were asked for, and all others with their weights here.

        Those that optimise for each image take minutes: only if asked for.
        """
        offered = {spec: load_upsampler(spec, network) for spec in self.upsamplers}
        for candidate in usable_upsamplers(network)[0]:
            name, abilities = candidate.name, candidate.upsampler.info.abilities
            if name not in _LIKE_LOW_RES and not abilities.per_image:
                offered.setdefault(candidate.name, candidate.upsampler)
        return {name: self._placed(upsampler) for name, upsampler in offered.items()}

    def _placed(self, module: _Module) -> _Module:
        """Move a network to the device, and let it compute in the type that is asked for."""
        module.to(self.device)
        return module if self.dtype == torch.float32 else under_autocast(module, self.dtype)

    def _on(self, prepared: Prepared, backbone: str, method: str) -> Pipeline:
        """Return the pipeline of a method."""
        if method == LOW_RES:
            return prepared.pipe.with_upsampler(load_upsampler(LOW_RES, prepared.pipe.backbone))
        methods = self._load(backbone)[1]
        if method not in methods:
            raise UnknownNameError(f"method for {backbone}", method, methods)
        return prepared.pipe.with_upsampler(methods[method])

    # -- what is asked ---------------------------------------------------------------------------

    @_alone
    def prepare(self, photo: str | os.PathLike[str], backbone: str, side: int) -> Prepared:
        """Read a photo and run the backbone, or return what was kept of it.

        Args:
            photo: a file, of at most 25 megapixels.
            backbone: one of those of the page.
            side: shorter side at which the networks see it, in pixels; a photo that is more than
                twice as long as wide gets a longer side of twice that.
        """
        if not 1 <= side <= SIDES[-1]:
            raise ValueError(f"the size must be from 1 to {SIDES[-1]} pixels, got {side}")
        path = Path(photo)
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size, backbone, side)
        if key not in self._prepared:
            self._prepared[key] = self._encode(path, backbone, side)
            while len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _encode(self, path: Path, backbone: str, side: int) -> Prepared:
        pipe, _ = self._load(backbone)
        small = _reduced(_read(path), side)
        encoded, seconds = _timed(pipe, lambda: pipe.encode(small))
        return Prepared(pipe, encoded, PCABasis.fit(encoded.low), seconds)

    @_alone
    def draw(self, prepared: Prepared, backbone: str, method: str) -> Drawn:
        """Upsample the three principal components by a method, or ``low-res``, and colour them."""
        pipe, basis = self._on(prepared, backbone, method), prepared.basis
        high, seconds = _timed(
            pipe, lambda: pipe.upsample(prepared.encoded, prepared.size, head=basis.project)
        )
        return Drawn(method, basis.colors(high).cpu(), seconds)

    @_alone
    def similar(
        self, prepared: Prepared, backbone: str, method: str, pixel: tuple[int, int]
    ) -> AnswerMap:
        """Compute the cosine of every pixel's features with those of one (row, column)."""
        pipe = self._on(prepared, backbone, method)
        maps, seconds = _timed(
            pipe, lambda: pixel_similarity(pipe, prepared.encoded, [pixel], prepared.size)
        )
        return AnswerMap(method, maps[0], seconds_text(seconds))

    @_alone
    def segment(self, prepared: Prepared, backbone: str, method: str, text: str) -> AnswerMap:
        """Give every pixel the nearest of at most twelve words, with commas between them.

        Raises:
            UnsupportedError: the backbone has no text space.
            ValueError: no words, or too many.
        """
        words = split_words(text, MOST_WORDS)
        encode = text_encoder(prepared.pipe.backbone)
        if (backbone, words) not in self._words:
            self._words.clear()
            self._words[backbone, words] = embed_words(encode, words, templates("clip7"))
        pipe, vectors = self._on(prepared, backbone, method), self._words[backbone, words]
        found, seconds = _timed(
            pipe, lambda: segment_words(pipe, prepared.encoded, prepared.size, vectors)
        )
        return AnswerMap(method, found, seconds_text(seconds))

    @_alone
    def save_features(
        self, prepared: Prepared, backbone: str, method: str, kind: str, folder: Path
    ) -> Path:
        """Write upsampled and low-resolution features, as ``upfeat upsample`` does.

        The file is ``safetensors`` or ``npz``; ``ValueError`` if it would be larger than 256 MB.
        """
        channels = prepared.pipe.backbone.dim
        settings = {"backbone": backbone, "upsampler": method, "input_size": prepared.size}
        writer = tensor_writer(kind, channels, torch.float16, settings=settings)
        size = int(writer.bytes_per_pixel * prepared.size[0] * prepared.size[1])
        if size > LARGEST_FILE:
            raise ValueError(
                f"the file would have {size / 1e6:.0f} MB, and the page offers at most "
                f"{LARGEST_FILE / 1e6:.0f} MB; choose a smaller size, or run upfeat upsample"
            )
        path = folder / f"features_{method.replace('/', '_')}{writer.suffix}"
        writer.write(self._on(prepared, backbone, method), prepared.encoded, path)
        return path


def _timed(pipe: Pipeline, call: Callable[[], _Result]) -> tuple[_Result, float]:
    """Return what a call returns and the seconds until the device has computed it."""
    start = time.perf_counter()
    result = call()
    wait_for_device(pipe.device)
    return result, time.perf_counter() - start


def seconds_text(seconds: float) -> str:
    """Write a time in seconds or milliseconds: ``2.3 s``, ``12 ms``."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _read(path: Path) -> Tensor:
    """Read a photo (3, H, W) in [0, 1]; messages name the file, not the folder of uploads."""
    width, height = read_picture(path, lambda image: image.size, name=path.name)
    if width * height > LARGEST_PHOTO:
        raise ValueError(
            f"{path.name} has {height} x {width} pixels, and the page takes at most "
            f"{LARGEST_PHOTO // 10**6} million; reduce it"
        )
    return decode_image(path, path.name, max_pixels=LARGEST_PHOTO)


def _reduced(pixels: Tensor, side: int) -> Tensor:
    """Resize (3, H, W): shorter side ``side``, longer side at most twice that."""
    from upfeat.data.sizes import resize

    height, width = pixels.shape[1:]
    scale = min(side / min(height, width), LONGEST * side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resize(pixels[None], size)[0]
