"""What JAFAR and AnyUp share: the image encoder, and the queries and keys of their attention.

Legend: B batch, c channels in, d channels, H W guidance image, H' W' output grid, R rows of it, h w
low-resolution grid, n = hw.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError, check_odd, shape_text
from upfeat.layers.norm import RMSNorm
from upfeat.ops import (
    BlockWeights,
    pixel_linear,
    pointwise_conv,
    pointwise_residual,
    position_code,
    stream,
)
from upfeat.ops.images import average_areas, reflect_pad
from upfeat.ops.symbolic import same_size


class PointwiseResidualBlock(nn.Module):
    """x + conv2(SiLU(GN2(conv1(SiLU(GN1(x)))))), all convolutions 1x1 and without bias.

    Group norms have 8 groups, eps 1e-5 and an affine part. If the widths differ, the identity gives
    way to a 1x1 convolution ``shortcut``.

    Args:
        in_dim: channels c, a multiple of 8.
        out_dim: channels d, a multiple of 8; default ``in_dim``.

    Raises:
        ValueError: a width is no multiple of 8.
    """

    groups = 8

    def __init__(self, in_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        if in_dim % self.groups or out_dim % self.groups:
            raise ValueError(
                f"group norm needs widths that are multiples of {self.groups}, got {in_dim} "
                f"and {out_dim}"
            )
        self.norm1 = nn.GroupNorm(self.groups, in_dim)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.norm2 = nn.GroupNorm(self.groups, out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 1, bias=False)
        same = in_dim == out_dim
        self.shortcut = None if same else nn.Conv2d(in_dim, out_dim, 1, bias=False)

    def weights(self) -> BlockWeights:
        """Return the weights in the form that the operators take."""
        return BlockWeights(
            self.norm1.weight,
            self.norm1.bias,
            self.conv1.weight.flatten(1),
            self.norm2.weight,
            self.norm2.bias,
            self.conv2.weight.flatten(1),
            None if self.shortcut is None else self.shortcut.weight.flatten(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, c, H, W) to (B, d, H, W)."""
        return pointwise_residual(x, self.weights(), self.groups, self.norm1.eps)


class ReflectConvolution(nn.Conv2d):
    """Convolution with reflect padding k // 2 and without bias, to channels_last.

    A 1x1 convolution runs as one matrix product, which needs neither padding nor a copy.

    Raises:
        ValueError: k is even.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int) -> None:
        check_odd(kernel_size, "kernel_size")
        super().__init__(
            in_dim,
            out_dim,
            kernel_size,
            padding=kernel_size // 2,
            padding_mode="reflect",
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, c, H, W) to (B, d, H, W)."""
        if self.kernel_size != (1, 1):
            return F.conv2d(reflect_pad(x, self.kernel_size[0] // 2), self.weight)
        return pointwise_conv(x, self.weight)


class PointwiseEncoder(nn.Sequential):
    """A first convolution (odd kernel, reflect padding, no bias) and two residual blocks."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int = 1) -> None:
        first = ReflectConvolution(in_dim, out_dim, kernel_size)
        super().__init__(first, PointwiseResidualBlock(out_dim), PointwiseResidualBlock(out_dim))


class LearnedPositionCode(nn.Module):
    """x cos(angle) + rot(x) sin(angle) with trained frequencies; see `position_code`.

    At the start, with n = d/4 and f_k = 2 pi 100^(-k/(n-1)), the first half of the channels turns
    with the row and the second with the column.

    Attributes:
        freqs: (2, d), angular frequencies of rows and columns; trained, so always part of the
            weights.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"the position code needs a multiple of 4 channels, got {dim}")
        count = dim // 4
        exponent = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
        freq = 2 * math.pi * 100.0**-exponent  # (d/4,)
        zero = torch.zeros_like(freq)
        freqs = torch.stack(
            (torch.cat((freq, freq, zero, zero)), torch.cat((zero, zero, freq, freq)))
        )
        self.freqs = nn.Parameter(freqs.to(torch.get_default_dtype()))  # (2, d)

    def forward(self, x: Tensor) -> Tensor:
        """Code the positions of ``x`` (B, d, H, W); coordinates run from 0 to 1 on each axis."""
        return position_code(x, self.freqs)


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
        with_keys: build the branch of the keys; without it only :meth:`query` can be called.

    Example:
        >>> import torch
        >>> query, key = GuidanceEncoder(16)(torch.rand(1, 3, 12, 10), (6, 5), (3, 2))
        >>> query.shape, key.shape
        (torch.Size([1, 16, 6, 5]), torch.Size([1, 16, 3, 2]))
    """

    def __init__(self, dim: int, kernel_size: int = 1, with_keys: bool = True) -> None:
        super().__init__()
        self.image_encoder = PointwiseEncoder(3, dim, kernel_size)
        self.rope = LearnedPositionCode(dim)
        self.query_encoder = PointwiseEncoder(dim, dim)
        if with_keys:
            self.key_encoder = PointwiseEncoder(dim, dim)

    def forward(
        self, image: Tensor, output_size: tuple[int, int], grid_size: tuple[int, int]
    ) -> tuple[stream.Map, stream.Map]:
        """Map an image (B, 3, H, W) to queries (B, d, H', W') and keys (B, d, h, w)."""
        encoded = self.rope(self.image_encoder(stream.lazy(image)))  # (B, d, H, W)
        query, key = self.query_encoder(encoded), self.key_encoder(encoded)
        return adaptive_pool(query, output_size), adaptive_pool(key, grid_size)

    def query(self, image: Tensor, output_size: tuple[int, int]) -> Tensor:
        """Map an image (B, 3, H, W) to queries (B, d, H', W') alone."""
        encoded = self.rope(self.image_encoder(stream.lazy(image)))  # (B, d, H, W)
        return adaptive_pool(self.query_encoder(encoded), output_size)


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling (B, d, H, W) -> (B, d, *size); nothing to do at equal sizes."""
    return x if same_size((x.shape[2], x.shape[3]), size) else average_areas(x, size)


class CrossAttentionQueriesAndKeys(nn.Module):
    """What JAFAR and AnyUp do to queries and keys before their inner products.

    queries: 3x3 convolution (zero padding, no bias) -> RMSNorm -> linear; keys: RMSNorm -> linear.
    There is no value path: only the attention weights leave the attention, averaged over the heads.

    Args:
        dim: channels d, a multiple of ``num_heads``.
        num_heads: heads are consecutive groups of d / num_heads channels.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
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


def join_official(
    state: Mapping[str, Tensor], attention: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put the converted attention and the other official tensors in their places in an upsampler.

    The attention's tensors (of :func:`convert_cross_decode`) come under ``attention.``, those of
    `GuidanceEncoder` under ``guidance.``, and the rest, without ``cross_decode``, stays as it was.
    """
    out = {f"attention.{key}": tensor for key, tensor in attention.items()}
    for key, tensor in state.items():
        part = key.partition(".")[0]
        if part != "cross_decode":
            out[f"guidance.{key}" if part in OFFICIAL_PARTS else key] = tensor
    return out
