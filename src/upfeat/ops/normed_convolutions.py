"""A stack of group norm, SiLU, convolution at full image resolution, in bounded memory.

    x_0 = conv_0(image),   x_l = conv_l(silu(group_norm_l(x_(l-1)))),   borders reflected

The statistics of a group norm need the whole map before the next layer may start. Either one map is
kept and overwritten layer by layer, or no map is kept and every pass computes its rows anew through
all layers: more time instead of memory. Inference only.

Legend: H W the image, R rows of a band, d channels.
"""

from typing import NamedTuple

from torch import Tensor

from upfeat.ops._dispatch import Scratch
from upfeat.ops.banded_convolution import ConvolvedRows, Kernel, RowSource
from upfeat.ops.group_moments import GroupMoments, band_pixels
from upfeat.ops.memory import new_large
from upfeat.ops.pointwise_residual import normed_silu


class GroupNormWeights(NamedTuple):
    """Groups, eps, weight (d,) and bias (d,) of a group norm."""

    groups: int
    eps: float
    weight: Tensor
    bias: Tensor


class NormedConvolutions:
    """Reads the stack's last map in row bands, as often as asked.

    Args:
        image: (C, H, W).
        kernels: of ``prepare_kernel``, one more than norms.
        norms: the norm in front of each kernel but the first.
        scratch: buffers, shared with other stacks that are not read in between.
        keep: keep one map (H, W, d), or none.

    Example:
        >>> import torch
        >>> from upfeat.ops.banded_convolution import prepare_kernel
        >>> image = torch.randn(3, 12, 10)
        >>> kernels = [prepare_kernel(torch.randn(8, c, 3, 3), torch.randn(8)) for c in (3, 8)]
        >>> norms = [GroupNormWeights(4, 1e-5, torch.ones(8), torch.zeros(8))]
        >>> scratch = Scratch(image, image.dtype)
        >>> kept, anew = (
        ...     NormedConvolutions(image, kernels, norms, scratch, k) for k in (True, False)
        ... )
        >>> torch.allclose(kept.reader()(0, 5), anew.reader()(0, 5), atol=1e-4)
        True
    """

    def __init__(
        self,
        image: Tensor,
        kernels: list[Kernel],
        norms: list[GroupNormWeights],
        scratch: Scratch,
        keep: bool,
    ) -> None:
        self.image, self.kernels, self.scratch = image, kernels, scratch
        self.size = (image.shape[1], image.shape[2])
        self.affine: list[tuple[Tensor, Tensor]] = []
        width = kernels[0].channels[1]
        self.map = new_large(image, *self.size, width) if keep else None
        self.step = max(1, band_pixels(image.new_empty(0, width)) // self.size[1])
        for norm in norms:
            self._advance(norm)
        if self.map is not None:
            self._advance(None)

    def reader(self) -> RowSource:
        """A new pass from top to bottom: ``read(start, stop)`` gives rows (R, W, d).

        A band is valid until the next is read, here or in a stack with the same buffers.
        """
        if self.map is not None:
            return self._kept
        source = self._convolved(self._pixels, 0)
        for layer in range(1, len(self.affine) + 1):
            source = self._convolved(self._activated(source, layer), layer)
        return source

    def _advance(self, norm: GroupNormWeights | None) -> None:
        """Run the next layer, and gather the statistics that the one after it needs."""
        moments = None if norm is None else GroupMoments(norm.groups, norm.eps)
        read = self.reader() if self.map is None else self._next_layer()
        for start in range(0, self.size[0], self.step):
            stop = min(start + self.step, self.size[0])
            rows = read(start, stop)  # (R, W, d)
            if self.map is not None:
                # The layer has read these rows, and keeps what it needs of them.
                self.map[start:stop] = rows
            if moments is not None:
                moments.add(rows.flatten(0, 1))
        if moments is not None and norm is not None:
            scale, shift = moments.statistics().affine(norm.weight, norm.bias)
            self.affine.append((scale.to(self.image.dtype), shift.to(self.image.dtype)))

    def _next_layer(self) -> RowSource:
        layer = len(self.affine)
        source = self._pixels if layer == 0 else self._activated(self._kept, layer)
        return self._convolved(source, layer)

    def _convolved(self, source: RowSource, layer: int) -> RowSource:
        kernel = self.kernels[layer]
        return ConvolvedRows(source, kernel, self.size, "reflect", self.scratch).read

    def _activated(self, source: RowSource, layer: int) -> RowSource:
        """Rows of a source, overwritten by what a layer convolves."""
        scale, shift = self.affine[layer - 1]

        def read(start: int, stop: int) -> Tensor:
            rows = source(start, stop)
            return normed_silu(rows, scale, shift, out=rows)

        return read

    def _pixels(self, start: int, stop: int) -> Tensor:
        return self.image[:, start:stop].permute(1, 2, 0)

    def _kept(self, start: int, stop: int) -> Tensor:
        if self.map is None:
            raise RuntimeError("no map is kept")
        return self.map[start:stop]
