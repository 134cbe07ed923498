"""What a pipeline computes: an encoded image, and low-res features beside upsampled ones.

Legend: ``B`` batch, ``C`` feature channels, ``K`` channels of a head, ``h w`` low-resolution grid,
``H W`` an image's own size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upfeat.data.sizes import Frame
from upfeat.errors import shape_text


@dataclass(frozen=True)
class Encoded:
    """An image and its low-resolution features, ready for ``Pipeline.upsample``.

    Attributes:
        image: (B, 3, H, W) in [0, 1], as read.
        prepared: (B, 3, Hp, Wp) in [0, 1], what the networks see before normalisation.
        features: (B, C, hp, wp), the grid of the padded image.
        frame: own, input and padded size.
        single: whether one image without a batch axis came in.
    """

    image: Tensor
    prepared: Tensor
    features: Tensor
    frame: Frame
    single: bool = True

    @property
    def low(self) -> Tensor:
        """The features (C, h, w), batched for a batch, without cells that hold only padding."""
        sides = zip(self.frame.input, self.features.shape[-2:], self.frame.padded, strict=True)
        rows, cols = (math.ceil(size * grid / padded) for size, grid, padded in sides)
        low = self.features[..., :rows, :cols]
        return low[0] if self.single else low

    @property
    def low_extent(self) -> tuple[float, float]:
        """Height and width that ``low`` covers, in units of the image's; over 1 when padded."""
        cells, grids = self.low.shape[-2:], self.features.shape[-2:]
        sides = zip(cells, grids, self.frame.padded, self.frame.input, strict=True)
        rows, cols = (cell / grid * padded / size for cell, grid, padded, size in sides)
        return rows, cols

    def images(self) -> list["Encoded"]:
        """Return the images of a batch, each for itself."""
        image, prepared, features = self.image, self.prepared, self.features
        rows = [slice(row, row + 1) for row in range(len(image))]
        return [Encoded(image[one], prepared[one], features[one], self.frame) for one in rows]

    @classmethod
    def batch(cls, encoded: Sequence["Encoded"]) -> "Encoded":
        """Return images of equal sizes as one batch."""
        tensors = zip(*((one.image, one.prepared, one.features) for one in encoded), strict=True)
        image, prepared, features = (torch.cat(each) for each in tensors)
        return cls(image, prepared, features, encoded[0].frame, single=False)

    def with_high(self, high: Tensor) -> "PipelineOutput":
        """Return the output whose upsampled map is ``high``."""
        image = self.image[0] if self.single else self.image
        return PipelineOutput(image, self.low, high, self.low_extent)

    def __repr__(self) -> str:
        """Show shapes, not numbers."""
        return _shapes(self, image=self.image, low=self.low)


@dataclass(frozen=True)
class PipelineOutput:
    """What a pipeline returns for one image, or for one batch of equal sizes.

    Attributes:
        image: (3, H, W) in [0, 1], RGB, as read.
        low: (C, h, w), the backbone's features; every cell holds a part of the image.
        high: (C, H', W'), or (K, H', W') behind a head; covers exactly the image.
        low_extent: height and width that the grid of ``low`` covers, in units of the image's: 1.0,
            or a little more where the image was padded.

    Of a batch tensor, each has its batch axis in front.
    """

    image: Tensor
    low: Tensor
    high: Tensor
    low_extent: tuple[float, float]

    def __repr__(self) -> str:
        """Show shapes, not numbers."""
        return _shapes(self, image=self.image, low=self.low, high=self.high)


def _shapes(output: object, **tensors: Tensor) -> str:
    """Write the shapes of tensors, with the dtype and device of the last one."""
    shapes = [f"{name}={shape_text(tensor)}" for name, tensor in tensors.items()]
    last = next(reversed(tensors.values()))
    parts = ", ".join([*shapes, dtype_text(last.dtype), str(last.device)])
    return f"{type(output).__name__}({parts})"


def dtype_text(dtype: torch.dtype) -> str:
    """Return ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
