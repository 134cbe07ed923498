"""Crops of training images and of the maps that belong to them, with one geometry.

A transform draws a :class:`CropGeometry` for an image of a size; the geometry then cuts the image
(bilinear or bicubic) and any map of labels or masks on it (nearest neighbour), whatever resolution
the map is stored at. Sizes are ``(height, width)``.

:func:`resize_and_crop` is the square cut of the probing protocols, as the released code of JAFAR
and LoftUp does it: the image is resized as 8-bit pixels by Pillow's antialiased bilinear filter,
the longer side rounded down; labels and depth maps by Pillow's nearest neighbour.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.images import ImageSource, read_image
from upfeat.data.sizes import Size, resolve_size
from upfeat.errors import check_choice, shape_text
from upfeat.ops.images import resize_antialiased

if TYPE_CHECKING:
    from PIL import Image


Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CropGeometry:
    """Resize, crop and flip of one image.

    Attributes:
        resized: size of the whole image before the crop.
        top, left: corner of the crop in it.
        size: size of the crop, and so of the result.
        flip: mirrored left to right at the end.
        interpolation: for images.

    Example:
        >>> import torch
        >>> from upfeat.data.transforms import CropGeometry
        >>> geometry = CropGeometry(resized=(4, 4), top=0, left=2, size=(4, 2), flip=True)
        >>> geometry.labels(torch.tensor([[1, 2], [3, 4]])).tolist()
        [[2, 2], [2, 2], [4, 4], [4, 4]]
    """

    resized: Size
    top: int
    left: int
    size: Size
    flip: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def image(self, image: Tensor) -> Tensor:
        """Cut an image (3, H, W) in [0, 1] to (3, *size); antialiased."""
        if image.shape[-2:] != self.resized:
            # (3, H, W) -> (1, 3, H, W)
            image = resize_antialiased(image[None], self.resized, self.interpolation)[0].clamp(0, 1)
        height, width = self.size
        image = image[:, self.top : self.top + height, self.left : self.left + width]
        return image.flip(-1) if self.flip else image

    def grid(self, source: Size) -> tuple[Indices, Indices]:
        """Return rows and columns of the nearest pixels in a map of size ``source``.

        Pixel centres are matched, as the interpolation of images does it.
        """
        rows, cols = (
            (2 * (start + np.arange(length)) + 1) * side // (2 * whole)
            for start, length, side, whole in zip(
                (self.top, self.left), self.size, source, self.resized, strict=True
            )
        )
        return rows, cols[::-1] if self.flip else cols

    def labels(self, labels: Tensor) -> Tensor:
        """Cut a map of labels (..., H, W) of any dtype and resolution to (..., *size)."""
        rows, cols = self.grid((labels.shape[-2], labels.shape[-1]))
        index = torch.from_numpy(rows).to(labels.device)
        labels = labels.index_select(-2, index)
        return labels.index_select(-1, torch.from_numpy(cols.copy()).to(labels.device))


class Transform(Protocol):
    """What draws a geometry for an image of size (H, W)."""

    def geometry(self, size: Size, generator: torch.Generator) -> CropGeometry:
        """Return the geometry; all chance comes from the generator."""
        ...


@dataclass(frozen=True)
class CropTransform:
    """Resize to a shorter side, cut a centred or random crop, flip.

    JAFAR and AnyUp train on ``CropTransform(448, 448)``, LoftUp's second stage on
    ``CropTransform(896, 896)`` (reference scripts).

    Args:
        resize: an int for the shorter side, a pair (height, width) that may change the aspect
            ratio, ``"cover"`` for the smallest size that holds the crop, or None to keep the size.
        crop: side or (height, width) of the crop; None keeps the whole image.
        position: of the crop.
        flip: probability of mirroring left to right.
        scale: the resized size is multiplied by a factor drawn uniformly from this range.
        interpolation: for the image.

    Raises:
        ValueError: an impossible value; from :meth:`geometry` also an image that is smaller than
            the crop.

    Example:
        >>> import torch
        >>> from upfeat.data.transforms import CropTransform
        >>> transform = CropTransform(64, 64)
        >>> geometry = transform.geometry((100, 200), torch.Generator())
        >>> geometry.resized, geometry.left, geometry.image(torch.rand(3, 100, 200)).shape
        ((64, 128), 32, torch.Size([3, 64, 64]))
    """

    resize: int | Size | Literal["cover"] | None
    crop: int | Size | None = None
    position: Literal["center", "random"] = "center"
    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        check_choice("position", self.position, ("center", "random"))
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {self.flip}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a range (low, high) above 0, got {self.scale}")
        if self.resize == "cover" and self.crop is None:
            raise ValueError("resize='cover' needs a crop to cover")
        side = None if self.resize == "cover" else self.resize
        for name, value in (("resize", side), ("crop", self.crop)):
            if isinstance(value, float):
                raise ValueError(f"{name} must be an int, a pair or None, got {value}")
            resolve_size(value, (1, 1), name)

    def geometry(self, size: Size, generator: torch.Generator) -> CropGeometry:
        """Draw the geometry of an image of size (H, W)."""
        # Always four numbers: what one option draws does not depend on the others.
        factor, row, col, mirror = torch.rand(4, generator=generator).tolist()
        resized = self._resized(size)
        low, high = self.scale
        if (low, high) != (1.0, 1.0):
            resized = resolve_size(float(low + factor * (high - low)), resized)
        crop = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop or resized
        free = [whole - part for whole, part in zip(resized, crop, strict=True)]
        if min(free) < 0:
            raise ValueError(
                f"an image of {size} resized to {resized} is smaller than the crop {crop}; resize "
                "to at least the crop's side, or leave small images out"
            )
        if self.position == "random":
            top, left = int(row * (free[0] + 1)), int(col * (free[1] + 1))
        else:
            top, left = round(free[0] / 2), round(free[1] / 2)  # as torchvision's crop
        return CropGeometry(resized, top, left, crop, mirror < self.flip, self.interpolation)

    def _resized(self, size: Size) -> Size:
        """Return the size before the random factor."""
        if self.resize != "cover":
            return resolve_size(self.resize, size, "resize")
        crop = resolve_size(self.crop, (1, 1), "crop")
        factor = max(part / whole for part, whole in zip(crop, size, strict=True))
        height, width = (
            max(part, round(whole * factor)) for part, whole in zip(crop, size, strict=True)
        )
        return height, width

    def __call__(
        self, image: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Cut an image (3, H, W) and, if given, a map of labels (..., H', W') on it."""
        if image.dim() != 3:
            raise ValueError(f"image must be (3, H, W), got {shape_text(image)}")
        geometry = self.geometry((image.shape[1], image.shape[2]), generator)
        return geometry.image(image), None if labels is None else geometry.labels(labels)


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
    width, height = image.size
    shorter = min(height, width)
    height, width = size * height // shorter, size * width // shorter
    if (width, height) != image.size:
        image = image.resize((width, height), method)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.array(image)[top : top + size, left : left + size]
