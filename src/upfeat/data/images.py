"""Reading one image, whatever it is, as RGB (3, H, W) float32 in [0, 1].

What is done to get there:

* the EXIF orientation is applied; of an animation the first frame is taken;
* grey is repeated to three channels; palettes are resolved; CMYK and YCbCr become RGB by Pillow's
  plain formulas (Adobe's inverted CMYK JPEGs included); colour profiles are ignored;
* transparency is composited on **white**, as most viewers show it;
* 8 bit is divided by 255 and 16 bit (grey PNG and TIFF, ``uint16`` arrays) by 65535. Pillow itself
  reduces 16-bit colour PNGs to 8 bit.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.errors import shape_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "read_image"]

ImageSource: TypeAlias = Union[str, os.PathLike[str], "Image.Image", npt.NDArray[Any], Tensor]

# Interpolation in half precision may step over the ends of [0, 1] by this much; it is clamped.
SLACK = 1e-3

# Alpha in the mode itself; palettes and plain modes may carry it in info["transparency"].
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def read_image(source: ImageSource) -> Tensor:
    """Return an image as RGB (3, H, W), float32, in [0, 1].

    Args:
        source: one of

            * a path of any file that Pillow reads,
            * a PIL image of any mode,
            * a numpy array (H, W) or (H, W, 1 | 2 | 3 | 4) for grey, grey + alpha, RGB and RGBA:
              bool, uint8, uint16, or floating point in [0, 1],
            * a tensor (3, H, W) or (1, H, W): uint8, or floating point in [0, 1], on any device.

    Returns:
        (3, H, W) float32 in [0, 1]; on the CPU, except that a tensor stays on its device. The
        result may share memory with a tensor that was passed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, broken, truncated or implausibly large (the message names
            the file); the array has another shape or dtype; values lie outside [0, 1], as those of
            a normalised image do.

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
        return _from_file(Path(source))
    from PIL import Image

    if isinstance(source, Image.Image):
        try:
            return _from_pil(source)
        except (OSError, SyntaxError) as error:
            name = getattr(source, "filename", "") or "the PIL image"
            raise ValueError(f"cannot read {name}: {error}") from error
    raise ValueError(
        f"cannot read an image from {type(source).__name__}; pass a path, a PIL image, a numpy "
        "array (H, W, 3) or a tensor (3, H, W) with values in [0, 1]"
    )


def _from_file(path: Path) -> Tensor:
    """Read a file; every way in which it can be broken becomes one ValueError that names it."""
    from PIL import Image, UnidentifiedImageError

    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image; list it with upfeat.data.image_files")
    if not path.is_file():
        raise FileNotFoundError(f"no image file at {path}; check the path")
    try:
        with warnings.catch_warnings():
            # A file over half of Pillow's limit only warns; the limit itself is an error below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _from_pil(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image file that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} claims more pixels than Pillow's safety limit allows ({error}); if you trust "
            "the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except PermissionError:
        raise
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read, it may be broken or truncated: {error}"
        ) from error


def _from_pil(image: "Image.Image") -> Tensor:
    """Convert a PIL image of any mode; Pillow's own errors pass through."""
    from PIL import ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16))
    if image.mode == "I":
        return _from_array(_sixteen_bit(np.asarray(image)))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        if image.mode == "La":  # Pillow converts premultiplied grey to LA only
            image = image.convert("LA")
        return _from_array(np.asarray(image.convert("RGBA")))
    return _from_array(np.asarray(image.convert("RGB")))


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
            f"{array.dtype}; convert it, for example with .astype(np.uint8)"
        )
    # (H, W, channels) -> (channels, H, W)
    tensor = _in_range(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return _to_rgb(tensor)


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
    """Return pixels clamped to [0, 1], or say what kind of image they look like."""
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


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (H, W) of an image file from its header, EXIF orientation applied.

    Args:
        path: the file.

    Raises:
        ValueError: no readable image.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import image_size
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.png")
        ...     Image.new("RGB", (6, 4)).save(path)
        ...     image_size(path)
        (4, 6)
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            # Pillow may have turned the size of a TIFF already; its tags hold the stored one.
            tags = getattr(image, "tag_v2", {})
            width, height = tags.get(256, image.width), tags.get(257, image.height)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return (width, height) if turned else (height, width)
