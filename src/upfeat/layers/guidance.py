"""The image encoder of JAFAR and AnyUp: high-resolution queries and low-resolution keys.

Legend: B batch, d channels, H W guidance image, H' W' output grid, h w low-resolution grid.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.position_code import LearnedPositionCode
from upfeat.layers.residual import PointwiseEncoder, PointwiseResidualBlock
from upfeat.ops import stream
from upfeat.ops._dispatch import records_graph, wants_reference
from upfeat.ops.memory import new_large
from upfeat.ops.padding import reflect_pad
from upfeat.ops.pointwise_residual import BlockWeights
from upfeat.ops.pointwise_stack import OpenBand, PointwiseStack, PooledRows, Rows, pool_stack
from upfeat.ops.position_code import angle_tables, apply_position_code_

# Full-resolution maps of d channels that the bounded encoder may hold, all together: three of them
# up to about 1200 x 1200 pixels, one up to 2100 x 2100 (d = 128, float32), beyond that none.
MAP_BYTES = 2304 * 2**20

# First parts of the official keys that belong to this module.
OFFICIAL_PARTS = ("image_encoder", "key_encoder", "query_encoder", "rope")


class _Encoded(NamedTuple):
    """Query and key map (B, d, H, W), without a graph, of an image in the state ``version``."""

    image: Tensor
    version: int
    maps: tuple[Tensor, Tensor]


# What each encoder made of its last image, while `shared_guidance` lasts.
_shared: ContextVar["dict[nn.Module, _Encoded] | None"] = ContextVar("shared", default=None)


@contextlib.contextmanager
def shared_guidance() -> Iterator[None]:
    """Spare a `GuidanceEncoder` the same image twice: for the loss, and for a target without graph.

    Within, what an encoder made of an image where gradients were asked for is what it returns for
    that very tensor where they are not. The maps take memory until the end; weights must not change
    before it.

    Example:
        >>> import torch
        >>> encoder, image = GuidanceEncoder(16), torch.rand(1, 3, 8, 8)
        >>> with shared_guidance():
        ...     query, _ = encoder(image, (8, 8), (2, 2))
        ...     with torch.no_grad():
        ...         again, _ = encoder(image, (8, 8), (4, 4))
        >>> again.data_ptr() == query.data_ptr(), again.requires_grad
        (True, False)
    """
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


class GuidanceEncoder(nn.Module):
    """Encodes the image once, codes positions, and branches into queries and keys.

    E = position_code(image_encoder(I)); Q = pool(query_encoder(E)), K = pool(key_encoder(E)).
    Everything runs at the image's full resolution; the pooling is adaptive averaging (which also
    serves an output larger than the image).

    Args:
        dim: channels d.
        kernel_size: of the very first convolution.

    Example:
        >>> import torch
        >>> query, key = GuidanceEncoder(16)(torch.rand(1, 3, 12, 10), (6, 5), (3, 2))
        >>> query.shape, key.shape
        (torch.Size([1, 16, 6, 5]), torch.Size([1, 16, 3, 2]))
    """

    def __init__(self, dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.image_encoder = PointwiseEncoder(3, dim, kernel_size)
        self.rope = LearnedPositionCode(dim)
        self.query_encoder = PointwiseEncoder(dim, dim)
        self.key_encoder = PointwiseEncoder(dim, dim)

    def forward(
        self, image: Tensor, output_size: tuple[int, int], grid_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Map an image (B, 3, H, W) to queries (B, d, H', W') and keys (B, d, h, w)."""
        query, key = self._known(image) or self._encode(stream.lazy(image))
        return adaptive_pool(query, output_size), adaptive_pool(key, grid_size)

    def knows(self, image: Tensor) -> bool:
        """Return whether `shared_guidance` has the maps for a call with ``image`` now."""
        return self._known(image) is not None

    def _known(self, image: Tensor) -> tuple[Tensor, Tensor] | None:
        if records_graph():
            return None
        known = (_shared.get() or {}).get(self)
        if known is None or known.image is not image or known.version != image._version:
            return None
        return known.maps

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key map (B, d, H, W) of an image (B, 3, H, W)."""
        encoded = self.rope(self.image_encoder(image))  # (B, d, H, W)
        query, key = self.query_encoder(encoded), self.key_encoder(encoded)
        if not wants_reference() and query.requires_grad:
            shared = _shared.get()
            if shared is not None:
                shared[self] = _Encoded(image, image._version, (query.detach(), key.detach()))
        return query, key

    def encode_bounded(
        self,
        image: Tensor,
        output_size: tuple[int, int],
        grid_size: tuple[int, int],
        *,
        max_bytes: int = MAP_BYTES,
    ) -> tuple[Tensor, PooledRows]:
        """Encode one image for inference, in memory bounded by ``max_bytes`` and a few bands.

        Args:
            image: (1, 3, H, W).
            output_size: (H', W').
            grid_size: (h, w).
            max_bytes: for full-resolution maps. The fewer fit, the more is computed anew.

        Maps and matrix products are of the image's type, under autocast of autocast's; statistics
        and coordinates are float32 at least.

        Returns:
            The key map (1, d, h, w), and the rows of the query map as they are asked for.
        """
        kind = image.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
        size = (image.shape[2], image.shape[3])
        dim = self.rope.freqs.shape[1]
        # Three: the encoded image, stream and branch of the keys. The queries reuse the first two.
        map_bytes = size[0] * size[1] * dim * dtype.itemsize
        count = min(3, max_bytes // map_bytes)
        maps = [new_large(image, size[0] * size[1], dim, dtype=dtype) for _ in range(count)]
        tables = angle_tables(self.rope.freqs, size)

        def stack(
            open_band: OpenBand,
            encoder: PointwiseEncoder,
            own: Sequence[Tensor],
            close: Callable[[Tensor, Rows], None] | None = None,
            finish: bool = True,
        ) -> PointwiseStack:
            blocks = [_weights(block, dtype) for block in encoder.blocks]
            norm = encoder.blocks[0].norm1
            return PointwiseStack(
                open_band, blocks, norm.num_groups, norm.eps, size, own, close, finish
            )

        def code(band: Tensor, rows: Rows) -> None:
            apply_position_code_(band, tables, rows)

        encoded = stack(
            _first(self.image_encoder.first, image, dtype), self.image_encoder, maps[:2], code
        )
        keys = stack(
            _project(encoded, self.key_encoder.first, dtype),
            self.key_encoder,
            maps[1:],
            finish=False,
        )
        key = pool_stack(keys, grid_size)
        own = maps[
            1::-1
        ]  # stream in the second, branch in the first, once the encoded image is read
        queries = stack(_project(encoded, self.query_encoder.first, dtype), self.query_encoder, own)
        return key, PooledRows(queries, output_size)


def _weights(block: PointwiseResidualBlock, dtype: torch.dtype) -> BlockWeights:
    weights = block.weights()
    if weights.shortcut is not None:
        raise ValueError("an encoder's blocks keep their width and have no shortcut")
    return weights._replace(conv1=weights.conv1.to(dtype), conv2=weights.conv2.to(dtype))


def _first(conv: nn.Conv2d, image: Tensor, dtype: torch.dtype) -> OpenBand:
    """Return the first convolution as a function of image rows; image (1, 3, H, W)."""
    kernel = conv.kernel_size[0]
    padded = reflect_pad(image, kernel // 2)
    weight = conv.weight.to(dtype).flatten(1).T  # (3 * k * k, d)

    def open_band(rows: Rows, out: Tensor) -> None:
        source = padded[:, :, rows[0] : rows[1] + kernel - 1]
        patches = F.unfold(source, kernel)[0]  # (3 * k * k, p)
        torch.mm(patches.T.to(dtype), weight, out=out)

    return open_band


def _project(source: PointwiseStack, conv: nn.Conv2d, dtype: torch.dtype) -> OpenBand:
    """Return a 1x1 convolution of another stack's output as a function of image rows."""
    weight = conv.weight.to(dtype).flatten(1).T  # (d, d)

    def open_band(rows: Rows, out: Tensor) -> None:
        band = source.rows(*rows)
        if band.data_ptr() == out.data_ptr():
            out.copy_(band @ weight)
        else:
            torch.mm(band, weight, out=out)

    return open_band


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling (B, d, H, W) -> (B, d, *size); nothing to do at equal sizes."""
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
