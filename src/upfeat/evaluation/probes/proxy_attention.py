"""ProxyCLIP's attention: CLIP's values, mixed as another backbone's features resemble each other.

M. Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", ECCV
2024, arXiv 2408.04883.

Legend: ``B`` batch, ``P`` channels of the proxy, ``D`` channels of the values, ``h w`` grid of the
values, ``H W`` grid of the proxy, ``N`` = ``H W`` its cells.
"""

import torch
from torch import Tensor

from upfeat.ops import unit_vectors
from upfeat.ops.images import resize_bilinear
from upfeat.ops.runtime import STRIP_BYTES

__all__ = ["proxy_attention"]


def proxy_attention(
    proxy: Tensor, values: Tensor, *, beta: float = 1.2, gamma: float = 3.0
) -> Tensor:
    """Mix values by the similarity of proxy features.

    With S the cosines of all pairs of cells, the weights are the softmax over the second cell of
    ``gamma * (S - beta * mean(S))``, negative ones left out. mean(S) is the squared length of the
    mean unit vector, and the rows are computed in blocks: no N x N matrix is formed.

    Args:
        proxy: (B, P, H, W), such as upsampled features.
        values: (B, D, h, w), resized bilinearly to the proxy's grid.
        beta: share of the mean similarity that is taken off.
        gamma: sharpness.

    Returns:
        (B, D, H, W) in the dtype of the values. Where no cell is similar enough, a cell takes its
        own values.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.proxy_attention import proxy_attention
        >>> proxy_attention(torch.randn(1, 8, 6, 4), torch.ones(1, 2, 3, 2)).mean().item()
        1.0
    """
    size = (proxy.shape[2], proxy.shape[3])
    if values.shape[2:] != proxy.shape[2:]:
        values = resize_bilinear(values, size)
    cells = values.flatten(2).mT  # (B, N, D)
    vectors = unit_vectors(proxy.to(values.dtype), dim=1).flatten(2)  # (B, P, N)
    mean = vectors.mean(2).square().sum(1)[:, None, None]  # (B, 1, 1)
    count = cells.shape[1]
    step = max(1, STRIP_BYTES // (len(proxy) * count * values.element_size()))
    mixed = torch.empty_like(cells)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        weights = (vectors[:, :, rows].mT @ vectors - beta * mean) * gamma  # (B, R, N)
        weights.masked_fill_(weights < 0, -torch.inf)
        own = weights.diagonal(rows.start, 1, 2)  # a view: (B, R)
        own.masked_fill_(own == -torch.inf, 0)
        mixed[:, rows] = weights.softmax(-1) @ cells
    return mixed.mT.reshape(*values.shape[:2], *size)  # (B, N, D) -> (B, D, H, W)
