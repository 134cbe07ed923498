"""Multi-head attention whose keys and values are projected once, and attention's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import linear
from upfeat.ops.symbolic import exporting, pieces

__all__ = [
    "Attention",
    "CrossAttentionLayer",
    "Memory",
    "TokenLinear",
    "attention_modules",
    "record_attention",
]


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
            mixed = _mix(query, keys, values)
        output = self.out_proj
        return linear(mixed.transpose(1, 2).flatten(2), output.weight, output.bias), weights

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _mix(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Torch's attention (B, heads, N, D / heads); an exported graph cuts a known N into pieces."""
    if not exporting():
        return F.scaled_dot_product_attention(query, keys, values)
    floats = query.shape[1] * keys.shape[2]
    parts = [
        (query[:, :, part] @ keys.mT * query.shape[3] ** -0.5).softmax(-1) @ values
        for part in pieces(query.shape[2], floats)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class TokenLinear(nn.Linear):
    """``nn.Linear`` by the faster of two libraries (`upfeat.ops.linear`).

    Example:
        >>> import torch
        >>> TokenLinear(8, 4)(torch.randn(1, 7, 8)).shape
        torch.Size([1, 7, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> (..., d)."""
        return linear(x, self.weight, self.bias)


class CrossAttentionLayer(nn.Module):
    """Layer of a transformer that reads tokens: cross-attention, then feed-forward.

    Both are pre-norm and residual; one norm serves keys and values.

    Args:
        width: D, channels of queries and tokens.
        hidden: of the feed-forward.
        num_heads: of the attention; must divide the width.
    """

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.expand = TokenLinear(width, hidden)
        self.reduce = TokenLinear(hidden, width)

    def keys_values(self, tokens: Tensor) -> Memory:
        """(B, n, D) -> what :meth:`forward` attends to."""
        return self.attention.keys_values(self.norm_tokens(tokens))

    def forward(self, queries: Tensor, memory: Memory) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        queries = queries + self.attention(self.norm_query(queries), memory)[0]
        return queries + self.reduce(F.gelu(self.expand(self.norm(queries))))


def attention_modules(module: nn.Module) -> list[nn.MultiheadAttention]:
    """Return the attention modules within a module, in the order of their registration."""
    return [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]


@contextmanager
def record_attention(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights of every attention within ``module`` that is called in the block.

    They are averaged over the heads, (B, N, n) in the order of the calls, and carry gradients.

    Example:
        >>> import torch
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> with record_attention(attention) as weights:
        ...     _ = attention(torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8))
        >>> weights[0].shape
        torch.Size([1, 5, 3])
    """
    recorded: list[Tensor] = []

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"need_weights": True, "average_attn_weights": True}

    def keep(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        recorded.append(output[1])

    hooks = []
    for attention in attention_modules(module):
        hooks.append(attention.register_forward_pre_hook(ask, with_kwargs=True))
        hooks.append(attention.register_forward_hook(keep))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
