"""The square cut of the probing protocols: shorter side to S, centre S x S.

As the released code of JAFAR and LoftUp does it (reference, section 1): the image is resized as
8-bit pixels by Pillow's antialiased bilinear filter, the longer side rounded down; labels and depth
maps by Pillow's nearest neighbour.
"""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.images import ImageSource, read_image
from upfeat.data.sizes import Size
from upfeat.errors import shape_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["resize_and_crop"]


@overload
def resize_and_crop(image: ImageSource, label: None, size: int) -> tuple[Tensor, None]: ...
@overload
def resize_and_crop(image: ImageSource, label: Tensor, size: int) -> tuple[Tensor, Tensor]: ...
def resize_and_crop(
    image: ImageSource, label: Tensor | None, size: int
) -> tuple[Tensor, Tensor | None]:
    """Resize the shorter side of an image to ``size`` and cut the centre, and its label alike.

    Args:
        image: a path, or whatever :func:`upfeat.data.read_image` takes, such as (3, H, W) in
            [0, 1]; it is rounded to 8 bit.
        label: a label map (H, W) of whole numbers or a depth map (H, W) of floating point numbers,
            of the image's size; None for none.
        size: side of the result.

    Returns:
        Image (3, size, size), float32 in [0, 1], and label (size, size) in its own dtype.

    Raises:
        ValueError: the sizes differ, or ``size`` is not positive.

    Example:
        >>> import torch
        >>> from upfeat.data import resize_and_crop
        >>> label = torch.arange(8).repeat(4, 1)
        >>> image, label = resize_and_crop(torch.rand(3, 4, 8), label, 2)
        >>> image.shape, label.tolist()
        (torch.Size([3, 2, 2]), [[3, 5], [3, 5]])
    """
    from PIL import Image

    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    pixels = read_image(image)
    given = (pixels.shape[1], pixels.shape[2])
    if label is not None and label.shape != given:
        raise ValueError(
            f"image is {given} (height, width) and label {shape_text(label)}; "
            "they must have one size"
        )
    # (3, H, W) -> (H, W, 3)
    stored = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    cut = _cut(Image.fromarray(stored), size, Image.Resampling.BILINEAR)
    # (S, S, 3) -> (3, S, S)
    result = torch.from_numpy(cut).permute(2, 0, 1).float() / 255
    if label is None:
        return result, None
    kind = np.float32 if label.is_floating_point() else np.int32
    cut = _cut(Image.fromarray(label.cpu().numpy().astype(kind)), size, Image.Resampling.NEAREST)
    return result, torch.from_numpy(cut).to(label.dtype)


def _cut(image: "Image.Image", size: int, method: "Image.Resampling") -> npt.NDArray[Any]:
    """Resize the shorter side and cut the centre; an odd border is halved to even."""
    height, width = _resized((image.height, image.width), size)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), method)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.array(image)[top : top + size, left : left + size]


def _resized(own: Size, size: int) -> Size:
    height, width = own
    return (size, size * width // height) if height <= width else (size * height // width, size)
