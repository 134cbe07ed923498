"""Multi-head attention whose keys and values are projected once, and that gives its weights."""

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import linear

__all__ = ["Attention", "Memory"]

Memory = tuple[Tensor, Tensor]
"""Projected keys and values, (B, heads, n, D / heads) each."""


class Attention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose keys and values are projected once for many queries.

    Its weights over the tokens can be read as ``record_attention`` does.

    Example:
        >>> import torch
        >>> attention = Attention(8, 2)
        >>> memory = attention.keys_values(torch.randn(1, 5, 8))
        >>> attention(torch.randn(1, 7, 8), memory)[0].shape
        torch.Size([1, 7, 8])
    """

    def keys_values(self, tokens: Tensor) -> Memory:
        """(B, n, D) -> keys and values."""
        _, *weights = self.in_proj_weight.chunk(3)
        _, *biases = self.in_proj_bias.chunk(3)
        pairs = zip(weights, biases, strict=True)
        keys, values = (self._heads(linear(tokens, *pair)) for pair in pairs)
        return keys, values

    def forward(  # type: ignore[override]
        self,
        queries: Tensor,
        memory: Memory,
        need_weights: bool = False,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> the output (B, N, D), and the weights (B, N, n) where they are asked for."""
        weight, bias = self.in_proj_weight.chunk(3)[0], self.in_proj_bias.chunk(3)[0]
        query, (keys, values) = self._heads(linear(queries, weight, bias)), memory
        weights = None
        if need_weights:
            weights = (query @ keys.mT * query.shape[3] ** -0.5).softmax(-1)
            mixed = weights @ values  # (B, heads, N, D / heads)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(query, keys, values)
        output = self.out_proj
        return linear(mixed.transpose(1, 2).flatten(2), output.weight, output.bias), weights

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
