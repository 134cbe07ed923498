"""The image encoder of JAFAR and AnyUp: high-resolution queries and low-resolution keys.

Legend: B batch, d channels, H W guidance image, H' W' output grid, h w low-resolution grid.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.position_code import LearnedPositionCode
from upfeat.layers.residual import pointwise_encoder


class GuidanceEncoder(nn.Module):
    """Encodes the image once, codes positions, and branches into queries and keys.

    E = position_code(image_encoder(I)); Q = pool(query_encoder(E)), K = pool(key_encoder(E)). Everything
    runs at the image's full resolution; the pooling is adaptive averaging (which also serves an
    output larger than the image).

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
        self.image_encoder = pointwise_encoder(3, dim, kernel_size)
        self.rope = LearnedPositionCode(dim)
        self.query_encoder = pointwise_encoder(dim, dim)
        self.key_encoder = pointwise_encoder(dim, dim)

    def forward(
        self, image: Tensor, output_size: tuple[int, int], grid_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the query map (B, d, H', W') and the key map (B, d, h, w) of an image (B, 3, H, W)."""
        encoded = self.rope(self.image_encoder(image))  # (B, d, H, W)
        query = adaptive_pool(self.query_encoder(encoded), output_size)
        return query, adaptive_pool(self.key_encoder(encoded), grid_size)


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling (B, d, H, W) -> (B, d, *size); nothing to do at equal sizes."""
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
