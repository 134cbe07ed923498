"""Convolutions of a map that is read row band by row band, channels last.

For inference in bounded memory: :class:`ConvolvedRows` asks a source for input rows, once each and
in order, keeps the two rows that the next band needs, and hands out output rows. Sources can be
such streams themselves: a stack of convolutions needs a few rows of each map and recomputes none.

3x3 kernels with many channels in float32 and float64 on the CPU take Winograd's minimal filtering
F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 16 products for 4 outputs instead of 36, as 16
matrix products whose operands are sums of at most four inputs. All others take the framework's own
convolution, which is faster there.

Legend: H W the map, R rows of a band, C input and K output channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops._dispatch import Scratch

# What the buffers of a Winograd chunk may take: long enough matrices, still near the cache.
CHUNK_BYTES = 64 * 2**20

# Below this many channels the sums around the products cost more than the products save.
WINOGRAD_CHANNELS = 192

RowSource = Callable[[int, int], Tensor]


@dataclass
class Kernel:
    """A 1x1 or 3x3 convolution prepared for :func:`convolve_rows` by :func:`prepare_kernel`."""

    weight: Tensor  # (C, K); (K, C, 3, 3) channels last; or (16, C, K), transformed
    bias: Tensor  # (K,)
    channels: tuple[int, int]  # (C, K)
    reach: int  # border rows and columns that an output needs: 0 or 1
    winograd: bool = False


def prepare_kernel(weight: Tensor, bias: Tensor, winograd: bool | None = None) -> Kernel:
    """Bring a convolution's weights into the form that runs fastest.

    Args:
        weight: (K, C, 3, 3) or (K, C, 1, 1).
        bias: (K,).
        winograd: force the choice for 3x3; default: by channels, dtype and device.

    Raises:
        ValueError: another kernel size.

    Example:
        >>> import torch
        >>> prepare_kernel(torch.zeros(5, 2, 3, 3), torch.zeros(5)).channels
        (2, 5)
    """
    channels = (weight.shape[1], weight.shape[0])
    if weight.shape[2:] == (1, 1):
        return Kernel(weight.flatten(1).T.contiguous(), bias, channels, reach=0)
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be (K, C, 1, 1) or (K, C, 3, 3), got {tuple(weight.shape)}")
    if winograd is None:
        exact = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        winograd = exact and min(channels) >= WINOGRAD_CHANNELS
    if not winograd:
        last = weight.contiguous(memory_format=torch.channels_last)
        return Kernel(last, bias, channels, reach=1)
    half = 0.5
    rows = weight.new_tensor([[1, 0, 0], [half, half, half], [half, -half, half], [0, 0, 1]])
    # G g G^T for every pair of channels: (K, C, 3, 3) -> (4, 4, C, K)
    spread = torch.einsum("ia,jb,kcab->ijck", rows.double(), rows.double(), weight.double())
    spread = spread.flatten(0, 1).to(weight.dtype).contiguous()  # (16, C, K)
    return Kernel(spread, bias, channels, reach=1, winograd=True)


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    affine: tuple[Tensor, Tensor],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Fold a batch norm of eval mode into the convolution (K, C, k, k) before it.

    Args:
        weight: (K, C, k, k).
        bias: (K,).
        mean: running mean, (K,).
        variance: running variance, (K,).
        affine: weight and bias of the norm, (K,) each.
        eps: added to the variance.

    Returns:
        Weight and bias of the types that came, computed in float32 at least.

    Example:
        >>> import torch
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> weight, bias = fold_batch_norm(
        ...     torch.ones(1, 1, 1, 1), one, one, 4 * one, (one, zero), 0.0
        ... )
        >>> weight.item(), bias.item()
        (0.5, 0.0)
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    factor = affine[0].to(wide) / (variance.to(wide) + eps).sqrt()  # (K,)
    folded = weight * factor[:, None, None, None]
    shift = (bias.to(wide) - mean.to(wide)) * factor + affine[1].to(wide)
    return folded.to(weight.dtype), shift.to(bias.dtype)


def convolve_rows(padded: Tensor, kernel: Kernel, scratch: Scratch) -> Tensor:
    """Convolve rows that carry their own border.

    Args:
        padded: (R + 2, W + 2, C), contiguous, border included; (R, W, C) for a 1x1 kernel.
        kernel: of :func:`prepare_kernel`.
        scratch: buffers to reuse between calls.

    Returns:
        (R, W, K), which may be a buffer that the next call overwrites.

    Example:
        >>> import torch
        >>> weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
        >>> image = torch.randn(1, 3, 9, 8)
        >>> kernel = prepare_kernel(weight, bias)
        >>> rows = image[0].permute(1, 2, 0).contiguous()
        >>> out = convolve_rows(rows, kernel, Scratch(image, image.dtype))
        >>> expected = torch.nn.functional.conv2d(image, weight, bias)[0].permute(1, 2, 0)
        >>> torch.allclose(out, expected, atol=1e-5)
        True
    """
    if kernel.reach and not kernel.winograd:
        x = padded.permute(2, 0, 1)[None]  # (1, C, R + 2, W + 2), channels last in memory
        return F.conv2d(x, kernel.weight, kernel.bias)[0].permute(1, 2, 0)
    rows, cols = padded.shape[0] - 2 * kernel.reach, padded.shape[1] - 2 * kernel.reach
    out = scratch.take("convolved", rows, cols, kernel.channels[1])
    if out.data_ptr() == padded.data_ptr():  # a 1x1 kernel on what another one gave
        out = scratch.take("convolved_again", *out.shape)
    if kernel.reach == 0:
        torch.addmm(kernel.bias, padded.flatten(0, 1), kernel.weight, out=out.flatten(0, 1))
        return out
    wide, deep = kernel.channels
    even = cols + cols % 2
    line_bytes = 4 * (even // 2 + 1) * (6 * wide + 6 * deep) * padded.element_size()
    step = 2 * max(1, CHUNK_BYTES // line_bytes)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        source, target = padded[start : start + count + 2], out[start : start + count]
        if count % 2 == 0 and cols == even:
            _winograd(source, kernel, target, scratch)
            continue
        # An odd side: work on a copy with one more row or column of zeros.
        tall = count + count % 2
        grown = scratch.take("odd_input", tall + 2, even + 2, wide).zero_()
        grown[: count + 2, : cols + 2] = source
        result = scratch.take("odd_output", tall, even, deep)
        _winograd(grown, kernel, result, scratch)
        target.copy_(result[:count, :cols])
    return out


def _winograd(padded: Tensor, kernel: Kernel, out: Tensor, scratch: Scratch) -> None:
    """F(2x2, 3x3) on tiles of 4x4 inputs; both sides of ``out`` are even."""
    rows, cols = out.shape[0] // 2, out.shape[1] // 2  # of tiles
    wide, deep = kernel.channels
    tall = scratch.take("rows", 4, rows, 2 * cols + 2, wide)
    _spread([padded[i : i + 2 * rows : 2] for i in range(4)], list(tall))
    spread = scratch.take("spread", 4, 4, rows, cols, wide)
    for i in range(4):
        _spread([tall[i, :, j : j + 2 * cols : 2] for j in range(4)], list(spread[i]))
    product = scratch.take("product", 16, rows * cols, deep)
    torch.bmm(spread.view(16, rows * cols, wide), kernel.weight, out=product)
    product[5].add_(kernel.bias)  # element (1, 1) enters each of the four outputs once
    product = product.view(4, 4, rows, cols, deep)
    gathered = scratch.take("gathered", 2, 4, rows, cols, deep)
    _gather(list(product), list(gathered))
    for i in range(2):
        _gather(list(gathered[i]), [out[i::2, j::2] for j in range(2)])


def _spread(source: list[Tensor], out: list[Tensor]) -> None:
    """B^T: four inputs in a line to the four factors of the products."""
    torch.sub(source[0], source[2], out=out[0])
    torch.add(source[1], source[2], out=out[1])
    torch.sub(source[2], source[1], out=out[2])
    torch.sub(source[1], source[3], out=out[3])


def _gather(source: list[Tensor], out: list[Tensor]) -> None:
    """A^T: four products in a line to two outputs."""
    torch.add(source[0], source[1], out=out[0])
    out[0] += source[2]
    torch.sub(source[1], source[2], out=out[1])
    out[1] -= source[3]


class ConvolvedRows:
    """Rows of a convolved map, computed in order from a source of input rows.

    Args:
        source: ``source(start, stop)`` returns input rows (stop - start, W, C); it is asked once
            for each row, from top to bottom, and its result is used before it is asked again.
        kernel: of :func:`prepare_kernel`.
        size: (H, W), that of the output, too.
        border: ``"zeros"`` or ``"reflect"``, what lies beyond the map.
        scratch: buffers; streams that feed each other may share one.

    Raises:
        ValueError: a map too small to be reflected.

    Example:
        >>> import torch
        >>> weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
        >>> image = torch.randn(1, 3, 9, 8)
        >>> rows = image[0].permute(1, 2, 0)
        >>> stream = ConvolvedRows(
        ...     lambda start, stop: rows[start:stop],
        ...     prepare_kernel(weight, bias),
        ...     (9, 8),
        ...     "zeros",
        ...     Scratch(image, image.dtype),
        ... )
        >>> out = torch.cat([stream.read(0, 5).clone(), stream.read(5, 9)])
        >>> expected = torch.nn.functional.conv2d(image, weight, bias, padding=1)[0].permute(
        ...     1, 2, 0
        ... )
        >>> torch.allclose(out, expected, atol=1e-5)
        True
    """

    def __init__(
        self,
        source: RowSource,
        kernel: Kernel,
        size: tuple[int, int],
        border: str,
        scratch: Scratch,
    ) -> None:
        if border == "reflect" and kernel.reach and min(size) < 2:
            raise ValueError(f"a map of {size} cannot be reflected; at least 2x2 is needed")
        self.source, self.kernel, self.size = source, kernel, size
        self.border, self.scratch = border, scratch
        self.position = 0
        self.tail: Tensor | None = None  # the last two padded rows

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows (stop - start, W, K), valid until the next call.

        ``start`` is where the last call stopped.
        """
        if start != self.position or not start < stop <= self.size[0]:
            raise ValueError(
                f"rows are read in order: expected {self.position} < stop <= {self.size[0]}, "
                f"got {start}..{stop}"
            )
        self.position = stop
        if self.kernel.reach:
            padded = self._padded(start, stop)
        else:
            padded = self.source(start, stop).contiguous()
        return convolve_rows(padded, self.kernel, self.scratch)

    def _padded(self, start: int, stop: int) -> Tensor:
        """Input rows start - 1 ... stop with their border, (R + 2, W + 2, C)."""
        height, width = self.size
        have = start + 1 if start else 0  # rows read so far; the last two of them are kept
        until = min(stop + 1, height)
        fresh = self.source(have, until) if have < until else None
        padded = self.scratch.take("padded", stop - start + 2, width + 2, self.kernel.channels[0])
        if self.tail is not None:
            padded[:2] = self.tail
        if fresh is not None:
            inner = padded[have - start + 1 : until - start + 1]
            inner[:, 1:-1] = fresh
            self._fill(inner[:, 0], inner[:, 2])
            self._fill(inner[:, -1], inner[:, -3])
        if start == 0:
            self._fill(padded[0], padded[2])
        if stop == height:
            self._fill(padded[-1], padded[-3])
        self.tail = padded[-2:].clone()
        return padded

    def _fill(self, outside: Tensor, mirrored: Tensor) -> None:
        if self.border == "reflect":
            outside.copy_(mirrored)
        else:
            outside.zero_()
