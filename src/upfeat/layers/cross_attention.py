"""Queries and keys of a cross-attention whose values are raw features.

Legend: B batch, d channels, H' W' output grid, h w low-resolution grid, N = H'W', n = hw.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from upfeat.errors import CheckpointError, shape_text
from upfeat.layers.norm import RMSNorm
from upfeat.ops import pixel_linear


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

    def queries(self, mixed: Tensor) -> Tensor:
        """Map rows (B, d, R, W') of ``conv2d``'s output to projected queries (B, R * W', d)."""
        tokens = mixed.flatten(2).transpose(1, 2)  # (B, d, R, W') -> (B, R * W', d)
        return pixel_linear(self.norm_q(tokens), self.q_proj.weight, self.q_proj.bias)

    def keys(self, key: Tensor) -> Tensor:
        """Map (B, d, h, w) to projected keys (B, n, d)."""
        tokens = key.flatten(2).transpose(1, 2)  # (B, d, h, w) -> (B, n, d)
        return self.k_proj(self.norm_k(tokens))


def convert_cross_decode(
    state: Mapping[str, Tensor], value_dim: int, unused: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Map the ``cross_decode.*`` tensors of an official state dict to this module's keys.

    The original keeps a ``torch.nn.MultiheadAttention``, whose value projection, value bias and
    output projection never reach the head-averaged weights. They must be there in the right shapes,
    and are then dropped.

    Args:
        state: official state dict; keys outside ``cross_decode`` are ignored.
        value_dim: width of the attention's values. Equal to d, the three projections are packed in
            one ``in_proj_weight`` (3d, d); otherwise there is one tensor for each.
        unused: further tensors without influence, key below ``cross_attn.`` to shape.

    Returns:
        State dict of `CrossAttentionQueriesAndKeys`; an official key that is none of the above
        stays under its full name, so that strict loading reports it.

    Raises:
        CheckpointError: a tensor is missing or has another shape.

    Example:
        >>> import torch
        >>> module = torch.nn.MultiheadAttention(8, 2)
        >>> prefix = "cross_decode.cross_attn."
        >>> state = {
        ...     f"{prefix}attention.{key}": value for key, value in module.state_dict().items()
        ... }
        >>> state |= {
        ...     f"{prefix}norm_q.weight": torch.ones(8),
        ...     f"{prefix}norm_k.weight": torch.ones(8),
        ... }
        >>> state["cross_decode.conv2d.weight"] = torch.zeros(8, 8, 3, 3)
        >>> sorted(convert_cross_decode(state, value_dim=8))[:3]
        ['conv2d.weight', 'k_proj.bias', 'k_proj.weight']
    """
    root = "cross_decode."
    rest = {key: tensor for key, tensor in state.items() if key.startswith(root)}

    def take(key: str, *shape: int) -> Tensor:
        if (tensor := rest.pop(f"{root}{key}", None)) is None:
            raise CheckpointError(f"the state dict lacks {root}{key}; is the file complete?")
        if shape and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{root}{key} has shape {shape_text(tensor)}, expected {tuple(shape)}"
            )
        return tensor

    norm_q = take("cross_attn.norm_q.weight")
    dim = len(norm_q)
    out = {
        "conv2d.weight": take("conv2d.weight"),
        "norm_q.weight": norm_q,
        "norm_k.weight": take("cross_attn.norm_k.weight"),
    }
    attention = "cross_attn.attention."
    if value_dim == dim:
        query, key, _ = take(f"{attention}in_proj_weight", 3 * dim, dim).chunk(3)
    else:
        query = take(f"{attention}q_proj_weight", dim, dim)
        key = take(f"{attention}k_proj_weight", dim, dim)
        take(f"{attention}v_proj_weight", dim, value_dim)
    query_bias, key_bias, _ = take(f"{attention}in_proj_bias", 3 * dim).chunk(3)
    take(f"{attention}out_proj.weight", dim, dim)
    take(f"{attention}out_proj.bias", dim)
    for name, shape in (unused or {}).items():
        take(f"cross_attn.{name}", *shape)
    out |= {"q_proj.weight": query, "q_proj.bias": query_bias}
    return out | {"k_proj.weight": key, "k_proj.bias": key_bias} | rest
