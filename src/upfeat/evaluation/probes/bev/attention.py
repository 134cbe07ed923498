"""BevFormer's encoder, static as PointBeV's code hosts it: deformable attention in plain torch.

Legend: ``Q`` queries, ``H`` heads, ``S`` points that a head samples. Keys of the parameters are
those of the published code.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.evaluation.probes.bev.lifting import Projection

HEADS, POINTS = 4, 8
DROPOUT = 0.1
QUERY_DEVIATION = 0.1
FEED_FORWARD = 1028


class DeformableAttention(nn.Module):
    """Attention to a few places around a reference point, at offsets predicted from the query.

    Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159) with one level.

    Args:
        width: C.
        project_output: with a last layer (self-attention).
    """

    def __init__(self, width: int, *, project_output: bool) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"the width must be a multiple of {HEADS} heads, got {width}")
        self.sampling_offsets = nn.Linear(width, HEADS * POINTS * 2)
        self.attention_weights = nn.Linear(width, HEADS * POINTS)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width) if project_output else None
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.sampling_offsets.bias.data = _first_offsets()
        for projection in filter(None, (self.value_proj, self.output_proj)):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def values(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return what is sampled, (B, C, h, w), of a map (B, h*w, C)."""
        # (B, h w, C) -> (B, C, h w) -> (B, C, h, w)
        return self.value_proj(x).transpose(1, 2).unflatten(2, tuple(size))

    def forward(self, query: Tensor, references: Tensor, values: Tensor) -> Tensor:
        """Return (B, Q, C).

        Args:
            query: (B, Q, C).
            references: (B, Q, R, 2), x and y in 0 to 1; point p starts from reference p mod R.
            values: (B, C, h, w) of :meth:`values`.
        """
        batch, count = query.shape[:2]
        height, width = values.shape[-2:]
        # (B, Q, H*S*2) -> (B, Q, H, S, 2), in cells
        offsets = self.sampling_offsets(query).view(batch, count, HEADS, POINTS, 2)
        repeats = POINTS // references.shape[2]
        starts = references.repeat(1, 1, repeats, 1)[:, :, None]  # (B, Q, 1, S, 2)
        places = starts + offsets / offsets.new_tensor([width, height])
        weights = self.attention_weights(query).view(batch, count, HEADS, POINTS).softmax(-1)
        # (B, C, h, w) -> (B*H, C/H, h, w)
        heads = values.reshape(batch * HEADS, values.shape[1] // HEADS, height, width)
        # (B, Q, H, S, 2) -> (B*H, Q, S, 2)
        grid = (2 * places - 1).transpose(1, 2).reshape(batch * HEADS, count, POINTS, 2)
        sampled = F.grid_sample(heads, grid, align_corners=False)  # (B*H, C/H, Q, S)
        share = weights.transpose(1, 2).reshape(batch * HEADS, 1, count, POINTS)
        found = (sampled * share).sum(-1)  # (B*H, C/H, Q)
        found = found.view(batch, values.shape[1], count).transpose(1, 2)  # (B, Q, C)
        return found if self.output_proj is None else self.output_proj(found)


def _first_offsets() -> Tensor:
    """Return the offsets (H*S*2,) of an untrained layer: one direction a head, points in a row."""
    angle = 2 * math.pi * torch.arange(HEADS) / HEADS
    direction = torch.stack((angle.cos(), angle.sin()), -1)  # (H, 2)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, POINTS + 1)[None, :, None]  # (1, S, 1)
    return (direction[:, None] * steps).flatten()


class Views(NamedTuple):
    """Where the voxels of every cell lie in the cameras' maps.

    Attributes:
        references: (N, B, Q, Z, 2), x and y in 0 to 1 where a voxel is in the map.
        seen: (N, B, Q), whether a camera sees at least one voxel of a cell.
    """

    references: Tensor
    seen: Tensor

    @classmethod
    def of(cls, projection: Projection, size: Sequence[int], heights: int) -> "Views":
        """Return them for points (P = Q*Z) in maps (h, w)."""
        sides = projection.pixels.new_tensor([size[1], size[0]])
        # (B, N, P, 2) -> (N, B, Q, Z, 2)
        references = (projection.pixels / sides).transpose(0, 1).unflatten(2, (-1, heights))
        inside = (projection.pixels >= 0) & (projection.pixels < sides)
        inside = inside.all(-1) & (projection.depth > 0)
        return cls(references, inside.transpose(0, 1).unflatten(2, (-1, heights)).any(-1))


class CameraAttention(nn.Module):
    """Cross-attention of the queries to the cameras that see them.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deformable_attention = DeformableAttention(width, project_output=False)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, features: Tensor, views: Views) -> Tensor:
        """Return (B, Q, C), without the residual.

        Args:
            query: (B, Q, C), with its position.
            features: (N, B, C, h, w).
            views: where the cells lie.
        """
        attend = self.deformable_attention
        total = torch.zeros_like(query)
        for maps, references, seen in zip(features, *views, strict=True):
            values = attend.values(maps.flatten(2).transpose(1, 2), maps.shape[-2:])
            # Cells that no frame of the batch sees in this camera need no sampling.
            some = seen.any(0).nonzero()[:, 0]
            found = attend(query[:, some], references[:, some].to(query), values)
            total = total.index_add(1, some, found * seen[:, some, None])
        count = views.seen.sum(0).clamp(min=1)[..., None]  # (B, Q, 1)
        result: Tensor = self.output_proj(total / count)
        return result


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.deformable_attention = DeformableAttention(width, project_output=True)
        self.mlp_out = nn.Linear(width, width)

    def forward(self, query: Tensor, references: Tensor, size: tuple[int, int]) -> Tensor:
        values = self.deformable_attention.values(query, size)
        result: Tensor = self.mlp_out(self.deformable_attention(query, references, values))
        return result


class BevFormerEncoder(nn.Module):
    """Queries of the map from above, one a cell, that look at each other and at the cameras.

    Args:
        width: C.
        size: (X, Y) of the grid.
        count: of layers.
        feed_forward: width of the layers' last part.
        layers: ``as_released``: every layer starts from the first query, as PointBeV's code has it,
            so that only the last one counts; ``chained``: each starts from the one before.
        references: ``as_released``: a query looks around the transposed cell, (row, column) being
            read as (x, y); ``swapped``: around its own.
    """

    def __init__(
        self,
        width: int,
        size: tuple[int, int],
        *,
        count: int = 6,
        feed_forward: int = FEED_FORWARD,
        layers: Literal["as_released", "chained"] = "as_released",
        references: Literal["as_released", "swapped"] = "as_released",
    ) -> None:
        super().__init__()
        self.size, self.layers, self.references = size, layers, references
        self.query = nn.Parameter(QUERY_DEVIATION * torch.randn(*size, width))
        self.sa_layers = nn.ModuleList(_SelfAttention(width) for _ in range(count))
        self.ca_layers = nn.ModuleList(CameraAttention(width) for _ in range(count))
        self.mlp_layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, width))
            for _ in range(count)
        )
        self.sa_norm_layers = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        self.ca_norm_layers = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        self.last_norm_layers = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, features: Tensor, views: Views) -> Tensor:
        """Return the map (B, C, X, Y).

        Args:
            features: (B, N, C, h, w).
            views: where the cells lie, Q = X*Y.
        """
        batch = features.shape[0]
        first = self.query.flatten(0, 1).expand(batch, -1, -1)  # (B, Q, C)
        references = self.own_places().expand(batch, -1, -1, -1)
        cameras = features.transpose(0, 1)
        found = first
        released = self.layers == "as_released"
        # Of released layers only the last one's output is used.
        for number in range(len(self.sa_layers))[-1 if released else 0 :]:
            found = self.layer(
                number, first if released else found, first, references, cameras, views
            )
        # (B, Q, C) -> (B, C, Q) -> (B, C, X, Y)
        return found.transpose(1, 2).unflatten(2, self.size)

    def layer(
        self,
        number: int,
        query: Tensor,
        position: Tensor,
        references: Tensor,
        features: Tensor,
        views: Views,
    ) -> Tensor:
        """Return the queries (B, Q, C) behind one layer; norms come after each sum."""
        seen = self.sa_layers[number](query + position, references, self.size)
        x = self.sa_norm_layers[number](query + self.dropout(seen))
        seen = self.ca_layers[number](x + position, features, views)
        x = self.ca_norm_layers[number](x + self.dropout(seen))
        result: Tensor = self.last_norm_layers[number](x + self.mlp_layers[number](x))
        return result

    def own_places(self) -> Tensor:
        """Return the reference points of self-attention (1, Q, 1, 2)."""
        rows, columns = ((torch.arange(side) + 0.5) / side for side in self.size)
        pair = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)  # (X, Y, 2)
        if self.references == "swapped":
            pair = pair.flip(-1)
        return pair.view(1, -1, 1, 2).to(self.query)
