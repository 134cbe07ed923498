"""Fewer channels: features in their first principal components, and back.

Legend: ``C`` channels of the backbone, ``K`` components.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from upfeat.ops.principal import principal_components, sample_positions

POSITIONS = 512  # drawn from each map


@dataclass(frozen=True, eq=False)
class ChannelBasis:
    """The principal directions of features, for storing fewer channels.

    Attributes:
        mean: (C,), float32.
        components: (K, C), float32, orthonormal rows by falling variance.
        explained: (K,), the share of the variance that each holds.

    Example:
        >>> import torch
        >>> from upfeat.extraction import ChannelBasis
        >>> features = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> basis = ChannelBasis.fit([features], 16)
        >>> bool((basis.restore(basis.project(features)) - features).abs().max() < 1e-5)
        True
    """

    mean: Tensor
    components: Tensor
    explained: Tensor

    @classmethod
    def fit(cls, maps: Iterable[Tensor], count: int, seed: int = 0) -> Self:
        """Fit a basis to up to 512 positions of each map (C, h, w)."""
        samples = [sample_positions(each, POSITIONS, seed).cpu() for each in maps]
        mean, components, explained = principal_components(torch.cat(samples), count)
        return cls(mean.float(), components.float(), explained.float())

    def project(self, features: Tensor) -> Tensor:
        """Return the components: (..., C, h, w) to (..., K, h, w), float32."""
        components = self.components.to(features.device)
        projected = torch.einsum("kc,...chw->...khw", components, features.float())
        return projected - (components @ self.mean.to(features.device))[:, None, None]

    def restore(self, projected: Tensor) -> Tensor:
        """Return features again, without what was dropped: (..., K, h, w) to (..., C, h, w)."""
        components = self.components.to(projected.device)
        features = torch.einsum("kc,...khw->...chw", components, projected.float())
        return features + self.mean.to(projected.device)[:, None, None]

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        from safetensors.torch import save

        return save(asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read such a file."""
        from safetensors.torch import load_file

        return cls(**load_file(path))
