"""Queries and keys of a cross-attention whose values are raw features.

Legend: B batch, d channels, H' W' output grid, h w low-resolution grid, N = H'W', n = hw.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from upfeat.errors import CheckpointError, shape_text
from upfeat.layers.norm import RMSNorm


class CrossAttentionQueriesAndKeys(nn.Module):
    """What JAFAR and AnyUp do to queries and keys before their inner products.

    queries: 3x3 convolution (zero padding, no bias) -> RMSNorm -> linear; keys: RMSNorm -> linear.
    There is no value path: only the attention weights leave the attention, averaged over the heads.

    Args:
        dim: channels d, a multiple of ``num_heads``.
        num_heads: heads are consecutive groups of d / num_heads channels.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> import torch
        >>> block = CrossAttentionQueriesAndKeys(16, num_heads=4)
        >>> block.queries(torch.rand(1, 16, 6, 5)).shape, block.keys(torch.rand(1, 16, 2, 2)).shape
        (torch.Size([1, 30, 16]), torch.Size([1, 4, 16]))
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the width {dim}")
        self.num_heads = num_heads
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)

    def queries(self, query: Tensor) -> Tensor:
        """Map (B, d, H', W') to projected queries (B, N, d)."""
        tokens = self.conv2d(query).flatten(2).transpose(1, 2)  # (B, d, H', W') -> (B, N, d)
        return self.q_proj(self.norm_q(tokens))

    def keys(self, key: Tensor) -> Tensor:
        """Map (B, d, h, w) to projected keys (B, n, d)."""
        tokens = key.flatten(2).transpose(1, 2)  # (B, d, h, w) -> (B, n, d)
        return self.k_proj(self.norm_k(tokens))


def convert_multihead_attention(
    state: Mapping[str, Tensor], prefix: str, value_dim: int
) -> dict[str, Tensor]:
    """Take ``q_proj`` and ``k_proj`` out of the state of a ``torch.nn.MultiheadAttention``.

    The value projection, the value third of the input bias and the output projection never reach
    the head-averaged weights. They must be there in the right shapes, and are then dropped.

    Args:
        state: a state dict that holds the module's tensors under ``prefix``.
        prefix: of the module, with its final dot.
        value_dim: width of the values: equal to d the three projections are packed in one
            ``in_proj_weight`` (3d, d), otherwise there is one tensor for each.

    Returns:
        ``q_proj.weight``, ``q_proj.bias``, ``k_proj.weight``, ``k_proj.bias``.

    Raises:
        CheckpointError: a tensor is missing or has another shape.

    Example:
        >>> import torch
        >>> module = torch.nn.MultiheadAttention(8, 2)
        >>> state = {f"attention.{key}": value for key, value in module.state_dict().items()}
        >>> sorted(convert_multihead_attention(state, "attention.", value_dim=8))
        ['k_proj.bias', 'k_proj.weight', 'q_proj.bias', 'q_proj.weight']
    """
    bias = _take(state, f"{prefix}in_proj_bias", None)
    dim = len(bias) // 3
    if f"{prefix}in_proj_weight" in state:
        query, key, _ = _take(state, f"{prefix}in_proj_weight", (3 * dim, dim)).chunk(3)
    else:
        query = _take(state, f"{prefix}q_proj_weight", (dim, dim))
        key = _take(state, f"{prefix}k_proj_weight", (dim, dim))
        _take(state, f"{prefix}v_proj_weight", (dim, value_dim))
    _take(state, f"{prefix}out_proj.weight", (dim, dim))
    _take(state, f"{prefix}out_proj.bias", (dim,))
    return {
        "q_proj.weight": query,
        "q_proj.bias": bias[:dim],
        "k_proj.weight": key,
        "k_proj.bias": bias[dim : 2 * dim],
    }


def _take(state: Mapping[str, Tensor], key: str, shape: tuple[int, ...] | None) -> Tensor:
    if key not in state:
        raise CheckpointError(f"the state dict lacks {key}; is the file complete?")
    tensor = state[key]
    if shape is not None and tuple(tensor.shape) != shape:
        raise CheckpointError(f"{key} has shape {shape_text(tensor)}, expected {shape}")
    return tensor
