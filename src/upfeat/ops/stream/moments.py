"""Statistics of a group norm, gathered band by band.

A map is given as bands of pixels (p, d). Mean and variance of a band are taken in float32 (float64
for float64 maps), the variance around that mean, so that nothing cancels; bands are put together in
float64. The result is that of one pass over the whole map.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.ops.runtime import (
    Block,
    block_bytes,
    compute_dtype,
    run_blocks,
)

BLOCK = 64  # bands whose moments lie in one tensor


def band_pixels(x: Tensor) -> int:
    """Return how many pixels of d = ``x.shape[-1]`` channels a band on this device should have."""
    return max(1, block_bytes(x.device) // (x.shape[-1] * x.element_size()))


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
        self._pixels: list[int] = []  # of each band
        # Mean and variance of each band, (BLOCK, 2, d) at a time: a small tensor that outlives each
        # band would lie between the large ones, and the heap would grow with every band.
        self._blocks: list[Tensor] = []
        self._free = 0  # places in the last of them
        self._running: tuple[Tensor, Tensor] | None = None

    def add(self, band: Tensor) -> None:
        """Add a band (p, d)."""
        if not len(band):
            return
        if not self._free:
            shape = (BLOCK, 2, band.shape[1])
            self._blocks.append(band.new_empty(shape, dtype=compute_dtype(band)))
            self._free = BLOCK
        place = self._blocks[-1][-self._free]  # (2, d)
        for row, values in zip(place, self._mean_variance(band), strict=True):
            row.copy_(values)
        self._pixels.append(len(band))
        self._free -= 1

    def _mean_variance(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel of (p, d), in float32 at least."""
        wide = compute_dtype(band)
        if band.device.type != "cpu":
            variance, mean = torch.var_mean(band.to(wide), 0, correction=0)
            return mean, variance
        # What batch norm does in training: on a CPU the fastest operator that gives both. The type
        # of its running statistics, which nobody reads, is that of its results.
        if self._running is None:
            self._running = (band.new_zeros(band.shape[1], dtype=wide),) * 2
        return torch.batch_norm_update_stats(band, *self._running, 0.0)

    def join(self, others: Iterable["GroupMoments"]) -> None:
        """Add what others gathered."""
        for other in others:
            if other._pixels:
                self._blocks = [x._moments() for x in (self, other) if x._pixels]
                self._pixels, self._free = self._pixels + other._pixels, 0

    def _moments(self) -> Tensor:
        """Mean and variance of each band, (bands, 2, d)."""
        return torch.cat(self._blocks)[: len(self._pixels)]

    def statistics(self) -> Statistics:
        """Return the statistics of everything added so far."""
        counts = self._pixels
        if not counts:
            raise ValueError("no band was added; add at least one")
        moments = self._moments()
        # (bands, 2, d) -> twice (bands, groups, d/g)
        mean, variance = moments.double().unflatten(2, (self.groups, -1)).unbind(1)
        share = mean.new_tensor(counts)[:, None, None] / (sum(counts) * mean.shape[2])
        group_mean = (mean * share).sum((0, 2), keepdim=True)  # (1, groups, 1)
        spread = variance + (mean - group_mean).square()
        rstd = ((spread * share).sum((0, 2), keepdim=True) + self.eps).rsqrt()
        vectors = [t[0].expand(-1, mean.shape[2]).flatten() for t in (group_mean, rstd)]
        return Statistics(*(t.to(moments.dtype) for t in vectors))


def gather_moments(
    blocks: Sequence[Block],
    band: Callable[[Block], Tensor],
    groups: int,
    eps: float,
    device: torch.device,
) -> Statistics:
    """Return the statistics over bands that are computed on the way, in parallel on a CPU.

    Args:
        blocks: one for each band, at least one.
        band: computes a band (p, d); may reuse a buffer of its thread.
        groups: as for `GroupMoments`.
        eps: as for `GroupMoments`.
        device: of the bands.
    """

    def add(block: Block, own: GroupMoments) -> None:
        own.add(band(block))

    moments = GroupMoments(groups, eps)
    moments.join(run_blocks(blocks, add, partial(GroupMoments, groups, eps), device))
    return moments.statistics()


def group_statistics(pixels: Tensor, groups: int, eps: float) -> Statistics:
    """Return the group norm statistics of a whole map of pixels (P, d)."""
    return gather_moments(
        pixels.split(band_pixels(pixels)), lambda band: band, groups, eps, pixels.device
    )
