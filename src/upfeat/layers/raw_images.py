"""A warning of images that were not normalised, for the modules that take normalised ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upfeat.errors import warn_user
from upfeat.ops.images import raw_scale
from upfeat.ops.runtime import wants_reference

__all__ = ["expect_raw_images", "warn_of_raw_image"]

_LOOKED = "an image on an accelerator"


def warn_of_raw_image(
    warned: set[str], image: Tensor, mean: Sequence[float], std: Sequence[float], name: str
) -> None:
    """Warn once of an image in [0, 1] and once of one in [0, 255].

    On a CPU every image is looked at, which takes microseconds; elsewhere only the first, because
    looking waits for the device. Nothing is looked at while torch compiles, exports or transforms.
    """
    if wants_reference() or torch.jit.is_tracing():
        return
    if type(image) is not Tensor or image.is_meta:
        return
    if image.device.type != "cpu":
        capturing = image.is_cuda and torch.cuda.is_current_stream_capturing()
        if _LOOKED in warned or capturing:
            return
        warned.add(_LOOKED)
    scale = raw_scale(image, mean, std)
    if scale is None or scale in warned:
        return
    warned.add(scale)
    warn_user(
        f"{name} got an image with values in {scale}, which looks as if it were not normalised; it "
        f"wants RGB in [0, 1], minus the mean {_numbers(mean)}, divided by the standard deviation "
        f"{_numbers(std)}: pixels, guidance = upsampler.prepare(image, backbone) normalises it for "
        "both, and upfeat.Pipeline does so by itself"
    )


def expect_raw_images(module: nn.Module) -> None:
    """Let a backbone or an upsampler take images that are not normalised without a warning."""
    warned = getattr(module, "_warned_of", None)
    if isinstance(warned, set):
        warned |= {"[0, 1]", "[0, 255]"}


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
