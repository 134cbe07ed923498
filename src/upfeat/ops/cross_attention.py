"""A pre-norm cross-attention layer for inference: weights prepared once, residuals in place.

    x += W_o attention(W_q LN(x), W_k LN(t), W_v LN(t)),    x += W_2 gelu(W_1 LN(x))

Attention goes through ``scaled_dot_product_attention``, which keeps no matrix of queries x keys. A
head width that is no multiple of 8 (101 in LoftUp) is padded with zero rows of the projections,
which is faster and changes nothing; the scale stays that of the unpadded width.

Legend: N queries, n tokens, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_MULTIPLE = 8

Affine = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) of a linear map."""

Norm = tuple[tuple[int, ...], Tensor, Tensor, float]
"""What F.layer_norm takes after its input: shape, weight, bias, eps."""


@dataclass(frozen=True)
class CrossAttentionLayer:
    """The tensors of one layer, in the dtype it shall run in; head widths may be padded."""

    num_heads: int
    scale: float
    norm_query: Norm
    norm_tokens: Norm
    query: Affine
    key: Affine
    value: Affine
    output: Affine
    norm: Norm
    expand: Affine
    reduce: Affine

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) -> keys and values, (1, heads, n, padded head width) each."""
        tokens = F.layer_norm(tokens, *self.norm_tokens)
        keys, values = F.linear(tokens, *self.key), F.linear(tokens, *self.value)
        return self._heads(keys).contiguous(), self._heads(values).contiguous()

    def apply_(self, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Both residual steps, in place on ``queries`` (N, D)."""
        query = self._heads(F.linear(F.layer_norm(queries, *self.norm_query), *self.query))
        mixed = F.scaled_dot_product_attention(query, keys, values, scale=self.scale)
        queries += F.linear(mixed[0].transpose(0, 1).flatten(1), *self.output)
        hidden = F.linear(F.layer_norm(queries, *self.norm), *self.expand)
        queries += F.linear(F.gelu(hidden), *self.reduce)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(N, heads * width) -> (1, heads, N, width)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)[None]


def prepare_layer(
    tensors: Mapping[str, Tensor], num_heads: int, eps: float = 1e-5
) -> CrossAttentionLayer:
    """Gather a layer's tensors and pad its head width to a multiple of 8 with zeros.

    Args:
        tensors: ``NAME.weight`` and ``NAME.bias`` of ``norm_query``, ``norm_tokens``,
            ``attention.out_proj``, ``norm``, ``expand``, ``reduce``; ``attention.in_proj_weight``
            and ``attention.in_proj_bias`` (rows: queries, keys, values).
        num_heads: heads are consecutive groups of channels.
        eps: of the layer norms.

    Example:
        >>> import torch
        >>> names = ("norm_query", "norm_tokens", "attention.out_proj", "norm", "expand", "reduce")
        >>> tensors = {f"{name}.weight": torch.ones(6, 6) for name in names}
        >>> tensors |= {f"{name}.bias": torch.ones(6) for name in names}
        >>> tensors["attention.in_proj_weight"] = torch.ones(18, 6)
        >>> tensors["attention.in_proj_bias"] = torch.ones(18)
        >>> prepare_layer(tensors, num_heads=2).query[0].shape
        torch.Size([16, 6])
    """

    def rows(tensor: Tensor) -> Tensor:
        grouped = tensor.unflatten(0, (num_heads, -1))  # (heads, width, ...)
        pad = (0, 0) * (tensor.dim() - 1) + (0, -grouped.shape[1] % HEAD_MULTIPLE)
        return F.pad(grouped, pad).flatten(0, 1)

    def affine(name: str) -> Affine:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def norm(name: str) -> Norm:
        weight, bias = affine(name)
        return tuple(weight.shape), weight, bias, eps

    weights = tensors["attention.in_proj_weight"].chunk(3)
    biases = tensors["attention.in_proj_bias"].chunk(3)
    query, key, value = ((rows(w), rows(b)) for w, b in zip(weights, biases, strict=True))
    weight, bias = affine("attention.out_proj")
    return CrossAttentionLayer(
        num_heads=num_heads,
        scale=(weight.shape[1] / num_heads) ** -0.5,
        norm_query=norm("norm_query"),
        norm_tokens=norm("norm_tokens"),
        query=query,
        key=key,
        value=value,
        output=(rows(weight.T).T.contiguous(), bias),
        norm=norm("norm"),
        expand=affine("expand"),
        reduce=affine("reduce"),
    )


def cross_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> Tensor:
    """Multi-head attention (N, D), (n, D), (n, D) -> (N, D) with all weights in memory."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(0, 1) for t in (queries, keys, values))
    weights = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)  # (heads, N, n)
    return (weights @ v).transpose(0, 1).flatten(1)
