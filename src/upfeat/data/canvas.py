"""Collecting the pieces of a map that was computed on a padded grid."""

from torch import Tensor

from upfeat.data.sizes import Size, resample

__all__ = ["Canvas"]


class Canvas:
    """Collects pieces of a padded output grid and returns the part that covers the image.

    Where the image ends on a whole pixel, pieces are cut as they come and nothing else is kept.
    Else (an output size that does not divide the padded one evenly) the whole grid is collected
    and resampled linearly at a scale close to 1, so that the result still covers exactly the image.

    Args:
        size: output size (H', W').
        padded: size of the grid that the pieces are given on.
        window: part of that grid that the image covers, from the top left, in pixels.

    Example:
        >>> import torch
        >>> from upfeat.data.canvas import Canvas
        >>> canvas = Canvas((2, 3), (4, 4), (2.0, 3.0))
        >>> canvas.put(slice(0, 4), torch.ones(1, 5, 4, 4))
        >>> canvas.result().shape
        torch.Size([1, 5, 2, 3])
    """

    def __init__(self, size: Size, padded: Size, window: tuple[float, float]) -> None:
        self.size = size
        self.padded = padded
        self.window = window
        self.exact = window == size
        self.grid = size if self.exact else padded
        self.data: Tensor | None = None

    def put(self, rows: slice, tile: Tensor) -> None:
        """Store some rows, cut to the grid."""
        if self.data is None:
            self.data = tile.new_empty(*tile.shape[:2], *self.grid)
        target = self.data[:, :, rows]
        target.copy_(tile[:, :, : target.shape[2], : target.shape[3]])

    def below(self, rows: slice) -> bool:
        """Whether these rows and all that follow hold only padding: pieces come top to bottom."""
        return rows.start >= self.grid[0]

    def result(self) -> Tensor:
        """Return (B, K, H', W')."""
        if self.data is None:
            raise RuntimeError("the upsampler returned no pieces")
        if self.exact:
            return self.data
        result = self.data.new_empty(*self.data.shape[:2], *self.size)
        # A few channels at a time: the temporaries stay small beside the two maps.
        for source, target in zip(self.data.split(8, 1), result.split(8, 1), strict=True):
            rows = resample(source, 2, self.window[0], self.size[0])
            target.copy_(resample(rows, 3, self.window[1], self.size[1]))
        return result
