"""The image encoder of JAFAR and AnyUp: high-resolution queries and low-resolution keys.

Legend: B batch, d channels, H W guidance image, H' W' output grid, h w low-resolution grid.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.position_code import LearnedPositionCode
from upfeat.layers.residual import PointwiseEncoder
from upfeat.ops import stream

# First parts of the official keys that belong to this module.
OFFICIAL_PARTS = ("image_encoder", "key_encoder", "query_encoder", "rope")


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
    ) -> tuple[stream.Map, stream.Map]:
        """Map an image (B, 3, H, W) to queries (B, d, H', W') and keys (B, d, h, w)."""
        encoded = self.rope(self.image_encoder(stream.lazy(image)))  # (B, d, H, W)
        query, key = self.query_encoder(encoded), self.key_encoder(encoded)
        return adaptive_pool(query, output_size), adaptive_pool(key, grid_size)


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling (B, d, H, W) -> (B, d, *size); nothing to do at equal sizes."""
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
