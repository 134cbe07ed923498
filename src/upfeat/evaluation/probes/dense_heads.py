"""Convolutional heads of Probe3D and of LoftUp's probes of depth and normals.

* ``dpt``: Probe3D's form (arXiv 2404.08636) of the decoder of Ranftl et al., "Vision transformers
  for dense prediction", ICCV 2021: four layers of the backbone, 20 convolutions.
* ``dpt7``: LoftUp (arXiv 2504.14032, appendix A.2) names "a DPT decoder head with 7 convolutional
  layers"; its code is not public. One input and no enlargement has seven: a projection, two
  residual units, two output convolutions. This reading is ours.

Legend: ``B`` batch, ``C`` channels, ``E`` hidden channels, ``K`` outputs of a head, ``s`` seeds.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.ops.runtime.draws import DrawsFrom

__all__ = ["DenseHeads", "DptHead"]


class DptHead(nn.Module):
    """Projections, residual units from the deepest layer to the first, two output convolutions.

    With one input the map keeps its size. With several it is enlarged by 2, 4 and 2, as far as it
    stays within ``limit``: upsampled features need no enlargement.

    Args:
        channels: C of each input.
        outputs: K.
        hidden: E.
        inputs: layers of the backbone, from the first to the deepest.
        limit: no map becomes larger than this side.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from upfeat.evaluation.probes.dense_heads import DptHead
        >>> head = DptHead(8, 4, hidden=16)
        >>> sum(isinstance(part, nn.Conv2d) for part in head.modules())
        7
        >>> DptHead(8, 4, hidden=16, inputs=4, limit=32)(torch.rand(1, 4 * 8, 2, 2)).shape
        torch.Size([1, 4, 32, 32])
    """

    def __init__(
        self, channels: int, outputs: int, hidden: int = 512, inputs: int = 1, limit: int = 512
    ) -> None:
        super().__init__()
        self.limit = limit
        self.projections = nn.ModuleList(nn.Conv2d(channels, hidden, 1) for _ in range(inputs))
        # Each level's unit behind the sum, and before it the unit of the skipped input.
        self.units = nn.ModuleList(_ResidualUnit(hidden) for _ in range(inputs))
        skips = inputs - 1 if inputs > 1 else 1
        self.skips = nn.ModuleList(_ResidualUnit(hidden) for _ in range(skips))
        self.output = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs * C, h, w), one layer's channels after the other's, to (B, K, h', w')."""
        inputs = len(self.projections)
        maps = [p(part) for p, part in zip(self.projections, x.chunk(inputs, 1), strict=True)]
        if inputs == 1:
            return self.output(self.units[0](self.skips[0](maps[0])))
        maps = [self._enlarge(each, 2) for each in maps]
        found = self.units[-1](maps[-1])
        for level in reversed(range(inputs - 1)):
            found = self.units[level](self.skips[level](maps[level]) + found)
        return self._enlarge(self.output(self._enlarge(found, 4)), 2)

    def _enlarge(self, x: Tensor, factor: int) -> Tensor:
        size = (x.shape[2] * factor, x.shape[3] * factor)
        if max(size) > self.limit:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=True)


class _ResidualUnit(nn.Module):
    """Twice a 3x3 convolution and ReLU, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, E, h, w) to the same shape."""
        out: Tensor = self.convolutions(x) + x
        return out


class DenseHeads(nn.Module):
    """One :class:`DptHead` a seed, with the call of :class:`~upfeat.evaluation.probes.parts.Heads`.

    Args:
        channels, outputs, hidden, inputs, limit: of each head.
        seeds: of the initialisation, torch's default.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.dense_heads import DenseHeads
        >>> heads = DenseHeads(8, 4, (0, 1), hidden=16)
        >>> heads(torch.rand(1, 8, 5, 5), None, slice(0, 2)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        seeds: Sequence[int],
        *,
        hidden: int = 512,
        inputs: int = 1,
        limit: int = 512,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for seed in seeds:
            with DrawsFrom(torch.Generator().manual_seed(seed)):
                self.heads.append(DptHead(channels, outputs, hidden, inputs, limit))

    def forward(self, x: Tensor, token: Tensor | None, seeds: slice) -> Tensor:
        """Apply the heads of some seeds to a map (B, C, h, w); there is no token."""
        # s x (B, K, h', w') -> (B, s*K, h', w')
        return torch.cat([head(x) for head in self.heads[seeds]], 1)
