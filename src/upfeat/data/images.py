"""Reading one image, whatever it is, as RGB (3, H, W) float32 in [0, 1].

What is done to get there:

* the EXIF orientation is applied; of an animation the first frame is taken;
* grey is repeated to three channels; palettes are resolved; CMYK and YCbCr become RGB by Pillow's
  plain formulas (Adobe's inverted CMYK JPEGs included); colour profiles are ignored;
* transparency is composited on **white**, as most viewers show it;
* metadata that are broken are passed over: the picture is read as if it had none;
* 8 bit is divided by 255 and 16 bit (grey PNG and TIFF, ``uint16`` arrays) by 65535. Pillow itself
  reduces 16-bit colour PNGs to 8 bit.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.opening import orientation, read_picture, upright
from upfeat.errors import shape_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "decode_image", "encode_png", "image_size", "read_image"]

ImageSource: TypeAlias = Union[str, os.PathLike[str], "Image.Image", npt.NDArray[Any], Tensor]

# Interpolation in half precision may step over the ends of [0, 1] by this much; it is clamped.
SLACK = 1e-3

# Alpha in the mode itself; palettes and plain modes may carry it in info["transparency"].
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def read_image(source: ImageSource, *, max_pixels: int | None = None) -> Tensor:
    """Return an image as RGB (3, H, W), float32, in [0, 1].

    Args:
        source: one of

            * a path of any file that Pillow reads,
            * a PIL image of any mode,
            * a numpy array (H, W) or (H, W, 1 | 2 | 3 | 4) for grey, grey + alpha, RGB and RGBA:
              bool, uint8, uint16, or floating point in [0, 1], of either byte order,
            * a tensor (3, H, W) or (1, H, W): uint8, or floating point in [0, 1], on any device.
        max_pixels: a file that claims more pixels, height times width, is refused before it is
            decoded; default Pillow's limit, 178,956,970 unless ``PIL.Image.MAX_IMAGE_PIXELS`` was
            changed. A few formats (WebP, ICO) obey only that one.

    Returns:
        (3, H, W) float32 in [0, 1]; on the CPU, except that a tensor stays on its device. The
        result may share memory with a tensor that was passed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, broken, truncated or implausibly large, or it is a named
            pipe or a device (the message names it); the array has another shape or dtype; values
            lie outside [0, 1], as those of a normalised image do.

    Example:
        >>> import numpy as np
        >>> from upfeat.data import read_image
        >>> image = read_image(np.full((4, 6), 255, dtype=np.uint8))
        >>> image.shape, image.max().item()
        (torch.Size([3, 4, 6]), 1.0)
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder, not an image; list it with upfeat.data.image_files"
            )
        return decode_image(path, str(path), max_pixels=max_pixels)
    from PIL import Image

    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the PIL image"
        try:
            pixels = _pixels(source)
        # Decoders of broken files raise whatever their parser stumbles over.
        except Exception as error:
            raise ValueError(f"cannot read {name}: {error}") from error
        return _named(name, pixels)
    raise ValueError(
        f"cannot read an image from {type(source).__name__}; pass a path, a PIL image, a numpy "
        "array (H, W, 3) or a tensor (3, H, W) with values in [0, 1]"
    )


def decode_image(source: Path | bytes, name: str, *, max_pixels: int | None = None) -> Tensor:
    """Return an image file, or its content, as RGB (3, H, W), float32, in [0, 1]."""
    pixels = read_picture(source, _pixels, name=name, max_pixels=max_pixels)
    return _named(name, pixels)


def _pixels(image: "Image.Image") -> npt.NDArray[Any]:
    """Decode a PIL image of any mode, (H, W) or (H, W, channels); Pillow's errors pass through."""
    image.load()
    image = upright(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        if image.mode == "La":  # Pillow converts premultiplied grey to LA only
            image = image.convert("LA")
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _named(name: str, pixels: npt.NDArray[Any]) -> Tensor:
    """Convert decoded pixels; errors of their values name the file."""
    try:
        return _from_array(_sixteen_bit(pixels) if pixels.dtype == np.int32 else pixels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _sixteen_bit(array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return Pillow's 32-bit integers, in which some releases hold 16-bit files, as uint16."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"32-bit integer pixels from {low} to {high} have no known range; scale them to [0, 1] "
            "and pass a floating point array"
        )
    return array.astype(np.uint16)


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    """Convert (H, W) or (H, W, channels) of any accepted dtype."""
    shape = tuple(array.shape)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in shape:
        hint = ""
        if array.ndim == 3 and shape[0] in (1, 3, 4):
            hint = "; it looks channels-first: transpose it to (H, W, 3), or pass a torch tensor"
        elif array.ndim == 4:
            hint = "; pass a list of images instead of a batch"
        raise ValueError(
            f"a numpy image must be (H, W) or (H, W, 1 | 2 | 3 | 4) and not empty, "
            f"got {shape}{hint}"
        )
    if array.dtype in (np.bool_, np.uint8, np.uint16):
        scale = {1: 1.0, 8: 255.0, 16: 65535.0}[
            1 if array.dtype == np.bool_ else 8 * array.dtype.itemsize
        ]
        pixels = array.astype(np.float32) / np.float32(scale)
    elif np.issubdtype(array.dtype, np.floating):
        pixels = array.astype(np.float32)
    else:
        raise ValueError(
            f"a numpy image must be bool, uint8, uint16 or floating point in [0, 1], got "
            f"{array.dtype}{_integer_advice(array)}"
        )
    # (H, W, channels) -> (channels, H, W)
    tensor = _in_range(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return _to_rgb(tensor)


def _integer_advice(array: npt.NDArray[Any]) -> str:
    """Say how to convert whole numbers without a change of their values."""
    if not np.issubdtype(array.dtype, np.integer):
        return ""
    low, high = int(array.min()), int(array.max())
    for top, name in ((255, "uint8"), (65535, "uint16")):
        if low >= 0 and high <= top:
            return f"; its values are from {low} to {high}: if {top} is white, .astype(np.{name})"
    return (
        f" with values from {low} to {high}; divide it by the value of white, which gives floating "
        "point in [0, 1]"
    )


def _to_rgb(tensor: Tensor) -> Tensor:
    """Expand grey and composite alpha on white: (1 | 2 | 3 | 4, H, W) -> (3, H, W)."""
    channels = tensor.shape[0]
    if channels in (2, 4):
        color, alpha = tensor[:-1], tensor[-1:]
        tensor = color * alpha + (1 - alpha)
    return tensor.expand(3, -1, -1).contiguous() if channels < 3 else tensor


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3) or tensor.numel() == 0:
        hint = ""
        if tensor.dim() == 4:
            hint = "; pass one image of the batch at a time"
        elif tensor.dim() == 3 and tensor.shape[-1] in (1, 3, 4):
            hint = "; it looks channels-last: use tensor.permute(2, 0, 1)"
        raise ValueError(
            f"an image tensor must be (3, H, W) or (1, H, W), got {shape_text(tensor)}{hint}"
        )
    if tensor.dtype == torch.uint8:
        return _to_rgb(tensor.float() / 255)
    if not tensor.is_floating_point():
        raise ValueError(
            f"an image tensor must be uint8 or floating point in [0, 1], got {tensor.dtype}"
        )
    return _to_rgb(_in_range(tensor.detach().float()))


def _in_range(pixels: Tensor) -> Tensor:
    """Return pixels clamped to [0, 1], or raise with the kind of image they look like."""
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low >= -SLACK and high <= 1 + SLACK:
        return pixels.clamp(0, 1) if low < 0 or high > 1 else pixels
    span = f"values must be in [0, 1], got {low:.4g} to {high:.4g}"
    if low != low or high != high:
        raise ValueError("the image holds NaN; values must be in [0, 1]")
    if low >= -SLACK and 2 < high <= 255:
        raise ValueError(f"{span}: the image looks like 0 to 255; divide it by 255 or pass uint8")
    if low < 0 and high < 10:
        raise ValueError(
            f"{span}: the image looks normalised; pass plain RGB in [0, 1], or clamp what an "
            "interpolation overshot; both networks' normalisations are applied for you"
        )
    raise ValueError(f"{span}; scale it first")


def encode_png(pixels: npt.NDArray[Any], compress_level: int = 6) -> bytes:
    """Return a PNG of pixels (H, W) of 8 or 16 bit, or (H, W, 3) of 8 bit."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(buffer, "png", compress_level=compress_level)
    return buffer.getvalue()


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (H, W) of an image file from its header, EXIF orientation applied."""
    return read_picture(path, _upright_size)


def _upright_size(image: "Image.Image") -> tuple[int, int]:
    turned = orientation(image) >= 5
    # Pillow may have turned the size of a TIFF already; its tags hold the stored one.
    tags = getattr(image, "tag_v2", {})
    width, height = int(tags.get(256, image.width)), int(tags.get(257, image.height))
    return (width, height) if turned else (height, width)
