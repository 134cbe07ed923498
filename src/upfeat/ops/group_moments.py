"""Statistics of a group norm, gathered band by band.

A map is given as bands of pixels (p, d). The sums of a band are taken in float32 (float64 for
float64 maps) around a pivot, the mean of the first band, so that nothing cancels; the sums over the
bands are kept in float64. The result is that of one pass over the whole map.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.ops._dispatch import compute_dtype
from upfeat.ops._workers import Block, run_blocks

# What a band of a map takes. On a CPU it should stay in the cache of the core that made it; an
# accelerator needs large kernels.
CPU_BAND_BYTES = 2**19
DEVICE_BAND_BYTES = 128 * 2**20


def band_pixels(x: Tensor) -> int:
    """Return how many pixels of d = ``x.shape[-1]`` channels a band on this device should have."""
    budget = CPU_BAND_BYTES if x.device.type == "cpu" else DEVICE_BAND_BYTES
    return max(1, budget // (x.shape[-1] * x.element_size()))


class Statistics(NamedTuple):
    """Mean and reciprocal deviation of each channel's group, (d,) each, float32 at least."""

    mean: Tensor
    rstd: Tensor

    def affine(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fold the norm and its affine part into ``x * scale + shift``; returns both, (d,)."""
        scale = self.rstd if weight is None else self.rstd * weight.to(self.rstd.dtype)
        shift = -self.mean * scale
        return scale, shift if bias is None else shift + bias.to(shift.dtype)


class GroupMoments:
    """Accumulates the statistics of a group norm over bands of pixels.

    Args:
        groups: groups are consecutive runs of d / groups channels.
        eps: added to the variance.

    Example:
        >>> import torch
        >>> pixels = torch.randn(100, 16) + 7
        >>> moments = GroupMoments(8, 1e-5)
        >>> for band in pixels.split(30):
        ...     moments.add(band)
        >>> scale, shift = moments.statistics().affine(None, None)
        >>> whole = torch.nn.functional.group_norm(pixels.T[None], 8)[0].T
        >>> torch.allclose(pixels * scale + shift, whole, atol=1e-5)
        True
    """

    def __init__(self, groups: int, eps: float) -> None:
        self.groups = groups
        self.eps = eps
        self.count = 0
        self.pivot: Tensor | None = None
        self._buffer: Tensor | None = None  # reused: fresh pages cost more than the arithmetic

    def add(self, band: Tensor) -> None:
        """Add a band (p, d)."""
        wide = compute_dtype(band)
        if self.pivot is None:
            self.pivot = band.to(wide).mean(0)  # (d,)
            self.sums = band.new_zeros(2, band.shape[1], dtype=torch.float64)
        if self._buffer is None or len(self._buffer) < len(band):
            self._buffer = band.new_empty(band.shape, dtype=wide)
        centred = torch.sub(band, self.pivot, out=self._buffer[: len(band)])
        self.sums[0] += centred.sum(0)
        self.sums[1] += centred.square_().sum(0)
        self.count += len(band)

    def fork(self) -> "GroupMoments":
        """Return empty sums around the same pivot, for another worker; needs a first band."""
        other = GroupMoments(self.groups, self.eps)
        if self.pivot is not None:
            other.pivot, other.sums = self.pivot, torch.zeros_like(self.sums)
        return other

    def join(self, others: Iterable["GroupMoments"]) -> None:
        """Add what workers gathered after :meth:`fork`."""
        for other in others:
            if other.count:
                self.sums += other.sums
                self.count += other.count

    def statistics(self) -> Statistics:
        """Return the statistics of everything added so far."""
        if self.pivot is None:
            raise ValueError("no band was added; add at least one")
        pivot = self.pivot.double()
        first, second = self.sums / self.count  # (d,) each: mean and mean square around the pivot
        mean = (pivot + first).unflatten(0, (self.groups, -1))  # (groups, d / groups)
        group_mean = mean.mean(1, keepdim=True)
        within = (second - first.square()).unflatten(0, (self.groups, -1))
        variance = (within + (mean - group_mean).square()).mean(1, keepdim=True)
        rstd = (variance.clamp(min=0) + self.eps).rsqrt()
        dtype = self.pivot.dtype
        spread = [t.expand_as(mean).flatten().to(dtype) for t in (group_mean, rstd)]
        return Statistics(*spread)


def gather_moments(
    blocks: Sequence[Block], band: Callable[[Block], Tensor], groups: int, eps: float
) -> Statistics:
    """Return the statistics over bands that are computed on the way, in parallel on a CPU.

    Args:
        blocks: one for each band, at least one.
        band: computes a band (p, d); may reuse a buffer of its thread.
        groups: as for `GroupMoments`.
        eps: as for `GroupMoments`.
    """
    moments = GroupMoments(groups, eps)
    first = band(blocks[0])
    moments.add(first)  # its mean is the pivot of all

    def add(block: Block, own: GroupMoments) -> None:
        own.add(band(block))

    moments.join(run_blocks(blocks[1:], add, moments.fork, first.device))
    return moments.statistics()


def group_statistics(pixels: Tensor, groups: int, eps: float) -> Statistics:
    """Return the group norm statistics of a whole map of pixels (P, d)."""
    return gather_moments(pixels.split(band_pixels(pixels)), lambda band: band, groups, eps)
