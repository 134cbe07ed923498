"""Exceptions of upfeat, the checks that every public call shares, imports that may fail.

Every message answers three questions: what came, what was wanted, what to do. Shapes in messages
are written as in the docstrings: ``B`` batch, ``C`` feature channels, ``h w`` low-resolution grid,
``H W`` image, ``H' W'`` output.
"""

import difflib
import errno
import importlib
import math
import numbers
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from upfeat._compat import is_exporting

__all__ = [
    "CheckpointError",
    "ForeignFileError",
    "HubError",
    "MissingPackageError",
    "UnknownNameError",
    "UnsafeCheckpointError",
    "UnsupportedError",
    "UpfeatError",
    "WeightsNotFoundError",
]


SHOWN_NAMES = 30
MOST_PIXELS = 2**40  # of a map: with a few channels a row of it may fit, but nobody wants it
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class UpfeatError(Exception):
    """Base class of all exceptions that upfeat defines."""


class UnknownNameError(UpfeatError, ValueError):
    """A name that no registry holds; the message lists close matches.

    Example:
        >>> from upfeat.errors import UnknownNameError
        >>> print(UnknownNameError("upsampler", "JAFAR", ["jafar", "loftup"]))
        unknown upsampler 'JAFAR'; did you mean 'jafar'? Known: jafar, loftup
        >>> print(UnknownNameError("setting", "lrr", ["lr", "eps"], prefix="optimizer."))
        unknown setting 'optimizer.lrr'; did you mean 'optimizer.lr'? Known: eps, lr
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], prefix: str = "") -> None:
        known = sorted(known)
        close = _close_names(name, known)
        hint = f"; did you mean {' or '.join(repr(prefix + c) for c in close)}?" if close else "."
        shown = ", ".join(known[:SHOWN_NAMES])
        more = f", and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
        super().__init__(f"unknown {kind} {prefix + name!r}{hint} Known: {shown}{more}")


def _close_names(name: str, known: Sequence[str]) -> list[str]:
    """Return the names that were probably meant: the same letters in another case, else like ones.

    A name behind a prefix (``timm/resnet18``) is found by what stands behind it.
    """
    plain = name.casefold()
    same = [each for each in known if plain in (each.casefold(), each.casefold().split("/", 1)[-1])]
    if same:
        return same[:3]
    lower: dict[str, str] = {}
    for each in known:
        lower.setdefault(each.casefold(), each)
    return [lower[each] for each in difflib.get_close_matches(plain, list(lower), n=3, cutoff=0.5)]


class ForeignFileError(UpfeatError, ValueError):
    """A file that upfeat did not write lies where a result belongs; it is left as it is."""


class HubError(UpfeatError, RuntimeError):
    """The Hugging Face hub refused a model or cannot be reached; nothing was changed there."""


class WeightsNotFoundError(UpfeatError, FileNotFoundError):
    """No weight file in any of the places of the lookup."""


class CheckpointError(UpfeatError, ValueError):
    """A weight file that was read but does not fit: wrong keys, shapes, hash or architecture."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that asks for more than tensors and the globals that the method allows."""


class UnsupportedError(UpfeatError, ValueError):
    """A call that the method cannot serve by its nature; the message names one that can."""


class MissingPackageError(UpfeatError, ImportError):
    """An optional package is not installed, or does not work; the message holds the install line.

    Example:
        >>> from upfeat.errors import MissingPackageError
        >>> print(MissingPackageError("av", "video", "video files"))
        video files: missing the package 'av'; install it with: pip install 'upfeat[video]'
    """

    def __init__(
        self, package: str, extra: str, purpose: str, failure: Exception | None = None
    ) -> None:
        install = f"pip install 'upfeat[{extra}]'"
        if failure is None:
            text = f"missing the package {package!r}; install it with: {install}"
        else:
            text = (
                f"the package {package!r} is installed, but importing it fails with "
                f"{type(failure).__name__}: {failure}; install it anew, or with the versions that "
                f"upfeat is tested with: {install}"
            )
        super().__init__(f"{purpose}: {text}")


def import_optional(module: str, package: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package when it is needed.

    Args:
        module: its full name.
        package: what is installed for it.
        extra: of upfeat, which installs it.
        purpose: what needs it, the beginning of the message.

    Raises:
        MissingPackageError: the package is not installed, or its import fails.

    Example:
        >>> from upfeat.errors import import_optional
        >>> import_optional("av", "av", "video", "video files").__name__
        'av'
    """
    root = module.partition(".")[0]
    try:
        importlib.import_module(root)
        return importlib.import_module(module)
    except Exception as error:  # what a package does when it is imported, it may do wrong
        absent = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        failure = None if absent.partition(".")[0] in (root, package) else error
        raise MissingPackageError(package, extra, purpose, failure) from error


def shape_text(tensor: Tensor) -> str:
    """Return ``(2, 3, 224, 224)`` for a tensor of that shape, for error messages."""
    return "(" + ", ".join(str(n) for n in tensor.shape) + ")"


def special_file(path: str | os.PathLike[str]) -> str | None:
    """Return what is at a path that is neither a file nor a folder, such as ``"a named pipe"``.

    None stands for files, folders and paths that cannot be followed.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def check_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise unless a file is at ``path``, so that a named pipe is not waited for without end.

    ``what`` is its role, such as ``"depth map"``, for the message: ``FileNotFoundError`` where
    nothing is there, ``ValueError`` for a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        reason = "it is a link that leads to no file" if os.path.islink(path) else error.strerror
        raise FileNotFoundError(f"no {what} at {path}: {reason}; check the path") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder, wanted the {what}; name a file in it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {special_file(path) or 'no file'}, wanted the {what}")


def check_map(tensor: Tensor, name: str, layout: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` is a floating point 4-D map without empty axes.

    ``name`` is the argument's name and ``layout`` its documented shape, such as ``(B, C, h, w)``.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor {layout}, got {type(tensor).__name__}; "
            "use upfeat.Pipeline for paths, PIL images and numpy arrays"
        )
    check_dense(tensor, name, layout)
    if tensor.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions {layout}, got {tensor.dim()}: {shape_text(tensor)}; "
            "add the batch dimension with tensor[None] or reshape tokens to a grid"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} {layout} has an empty dimension: {shape_text(tensor)}")
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} {layout} must be floating point, got {tensor.dtype}; "
            "convert and normalise it first"
        )
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{name} {layout} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; "
            "convert it with .float()"
        )


def check_dense(tensor: Tensor, name: str, layout: str) -> None:
    """Raise ``ValueError`` for tensors that are no plain arrays: sparse, nested, MKL-DNN's."""
    if tensor.is_nested:
        raise ValueError(
            f"{name} must be one tensor {layout}, got a nested tensor; "
            "pad its parts to one size and stack them, or call once for each"
        )
    if tensor.layout != torch.strided:
        raise ValueError(
            f"{name} must be a dense tensor {layout}, got the layout {tensor.layout}; "
            "convert it with .to_dense()"
        )


def check_odd(kernel_size: int, name: str) -> None:
    """Raise ``ValueError`` unless a kernel has a pixel in its middle."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{name} must be odd and positive, got {kernel_size}")


def warn_user(message: str) -> None:
    """Issue a ``UserWarning`` at the line that called upfeat, through torch's own frames."""
    frame = sys._getframe().f_back
    level = 2
    while frame and frame.f_globals.get("__name__", "").startswith(("upfeat.", "torch.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ``ValueError`` for an option that is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_normalization(
    mean: object, std: object
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Return mean and deviation of an image's channels as triples, or None and None, or raise."""
    if mean is None and std is None:
        return None, None
    first, second = _triple(mean), _triple(std)
    if first is None or second is None or min(second) <= 0:
        raise ValueError(
            "image_mean and image_std must hold three finite numbers each (RGB), deviations "
            f"positive, got {mean!r} and {std!r}"
        )
    return first, second


def _triple(numbers: object) -> tuple[float, float, float] | None:
    if not isinstance(numbers, list | tuple) or len(numbers) != 3:
        return None
    if not all(_is_number(number) for number in numbers):
        return None
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_size(size: Sequence[int] | int, name: str = "output_size") -> tuple[int, int]:
    """Return ``size`` as a ``(height, width)`` pair of positive ints, or raise ``ValueError``."""
    pair = tuple(size) if isinstance(size, Sequence) and not isinstance(size, (str, bytes)) else ()
    if len(pair) != 2:
        raise ValueError(f"{name} must be a pair (height, width), got {size!r}")
    try:
        height, width = int(pair[0]), int(pair[1])
        whole = (height, width) == pair and min(height, width) >= 1
        whole = whole and not any(isinstance(side, bool) for side in pair)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # None, NaN, infinity, tensors
        whole = False
    if not whole:
        raise ValueError(f"{name} must hold two positive whole numbers, got {pair}")
    if height * width > MOST_PIXELS:
        raise ValueError(f"{name} must hold at most {MOST_PIXELS} pixels, got {pair}")
    return height, width


def keep_aspect(own: Sequence[int], shorter: int, name: str = "output_size") -> tuple[int, int]:
    """Return the (height, width) whose shorter side is ``shorter`` and whose aspect is ``own``'s.

    Example:
        >>> from upfeat.errors import keep_aspect
        >>> keep_aspect((480, 640), 240)
        (240, 320)
    """
    if isinstance(shorter, bool) or shorter < 1:
        raise ValueError(
            f"{name} must be a positive number of pixels (the shorter side) or a pair (height, "
            f"width), got {shorter!r}"
        )
    short = min(own)
    # Both sides by the exact ratio: the shorter one comes out as asked, without float error.
    height, width = (max(1, (2 * side * shorter + short) // (2 * short)) for side in own)
    return check_size((height, width), name)


def check_bytes(max_bytes: object, name: str = "max_bytes") -> int:
    """Return a bound on memory as a positive int, or raise ``ValueError``."""
    number: Any = max_bytes if isinstance(max_bytes, numbers.Real) else math.nan
    if isinstance(max_bytes, bool) or not 1 <= number < math.inf:
        raise ValueError(
            f"{name} must be a positive number of bytes, such as 256 * 2**20, got {max_bytes!r}"
        )
    return int(number)


def check_call(
    image: Tensor,
    features: Tensor,
    output_size: Sequence[int] | int | None,
    values: Tensor | None,
) -> tuple[int, int]:
    """Check the arguments of an upsampler call and return the output size ``(H', W')``.

    Image (B, 3, H, W), features (B, C, h, w) and values (B, K, h, w) must agree in batch, grid and
    device. The size is given as (H', W'), as the shorter side, or as None for the image's.
    """
    check_map(image, "image", "(B, 3, H, W)")
    check_map(features, "features", "(B, C, h, w)")
    if image.shape[1] != 3:
        swapped = features.shape[1] == 3
        advice = "convert it to RGB, or map other channels by upsampler.guidance_image(image)"
        if swapped:
            advice = "image and features look swapped: the order is upsampler(image, features)"
        raise ValueError(
            f"image must have 3 channels (B, 3, H, W), got {shape_text(image)}; {advice}"
        )
    if image.shape[0] != features.shape[0]:
        raise ValueError(
            f"image and features must have the same batch size, got {image.shape[0]} and "
            f"{features.shape[0]}; repeat the smaller one with expand"
        )
    tensors = {"image": image, "features": features}
    if values is not None:
        check_map(values, "values", "(B, K, h, w)")
        if values.shape[0] != features.shape[0] or values.shape[2:] != features.shape[2:]:
            raise ValueError(
                "values (B, K, h, w) must share batch and grid with features, got "
                f"{shape_text(values)} and {shape_text(features)}"
            )
        tensors["values"] = values
    devices = {name: str(t.device) for name, t in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(
            f"all inputs must be on one device, got {devices}; move them with .to(device)"
        )
    if output_size is None and is_exporting():  # may be symbols: kept as they are
        return image.shape[2], image.shape[3]
    if isinstance(output_size, int):
        return keep_aspect(image.shape[-2:], output_size)
    return check_size(image.shape[-2:] if output_size is None else output_size)


def check_coords(coords: Tensor, features: Tensor) -> None:
    """Raise ``ValueError`` unless ``coords`` (B, N, 2) are positions for ``features``."""
    if isinstance(coords, Tensor):
        check_dense(coords, "coords", "(B, N, 2)")
    if not isinstance(coords, Tensor) or coords.dim() != 3 or coords.shape[2] != 2:
        got = shape_text(coords) if isinstance(coords, Tensor) else type(coords).__name__
        raise ValueError(
            f"coords must be (B, N, 2), row and column, got {got}; "
            "add the batch dimension with coords[None]"
        )
    if not coords.is_floating_point():
        raise ValueError(
            f"coords must be floating point in [-1, 1], got {coords.dtype}; "
            "the centre of pixel i of n is at (2 * i + 1) / n - 1"
        )
    if coords.shape[0] != features.shape[0] or coords.device != features.device:
        raise ValueError(
            "coords and features must share batch size and device, got "
            f"{coords.shape[0]} on {coords.device} and {features.shape[0]} on {features.device}"
        )
    if coords.numel() and not bool((coords.detach().abs() <= 1 + 1e-5).all()):
        raise ValueError(
            f"coords must lie in [-1, 1] (the image's outer edges), got "
            f"{coords.detach().min().item():.4g} ... {coords.detach().max().item():.4g}; "
            "clamp them, or convert pixel numbers by (2 * i + 1) / n - 1"
        )
