"""The shared encoder and attention modules: bounded against plain, conversion, limits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.errors import CheckpointError
from upfeat.layers import (
    CrossAttentionQueriesAndKeys,
    GuidanceEncoder,
    LearnedPositionCode,
    PointwiseResidualBlock,
    RMSNorm,
)
from upfeat.layers.guidance import convert_cross_decode
from upfeat.ops import stream

DIM = 16
SIZE = (21, 17)


@pytest.mark.parametrize("maps", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("output_size", [SIZE, (8, 9), (40, 25)])
@torch.no_grad()
def test_encoder_by_row_strips_equals_the_whole(
    maps: int, kernel_size: int, output_size: tuple[int, int]
) -> None:
    encoder = GuidanceEncoder(DIM, kernel_size).double()
    conv = CrossAttentionQueriesAndKeys(DIM, 4).double().conv2d
    image = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    query, key = encoder(image, output_size, (4, 3))
    with stream.bounded(maps * SIZE[0] * SIZE[1] * DIM * 8):
        rows, cells = encoder(image, output_size, (4, 3))
        mixed = conv(F.group_norm(rows, 8))
    exact = tolerance(torch.float64)
    torch.testing.assert_close(cells[:, :, :], key, **exact)
    parts = [rows[:, :, start : start + 3] for start in range(0, output_size[0], 3)]
    torch.testing.assert_close(torch.cat(parts, dim=2), query, **exact)
    parts = [mixed[:, :, start : start + 3] for start in range(0, output_size[0], 3)]
    torch.testing.assert_close(torch.cat(parts, dim=2), conv(F.group_norm(query, 8)), **exact)


def test_position_code_starts_as_published() -> None:
    freqs = LearnedPositionCode(8).freqs.detach()
    high = 2 * torch.pi
    row = torch.tensor([high, high / 100, high, high / 100, 0, 0, 0, 0])
    torch.testing.assert_close(freqs, torch.stack((row, row.roll(4))))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_rms_norm_of_half_precision_is_that_of_float32(half: torch.dtype) -> None:
    x = torch.randn(3, 5, DIM) * 0.03  # far below torch's epsilon for half types
    expected = RMSNorm(DIM)(x.to(half).float())
    torch.testing.assert_close(
        RMSNorm(DIM).to(half)(x.to(half)).float(), expected, **tolerance(half)
    )


def test_limits() -> None:
    for message, make in (
        ("multiple of 4", lambda: LearnedPositionCode(6)),
        ("multiples of 8", lambda: PointwiseResidualBlock(12)),
        ("num_heads=3", lambda: CrossAttentionQueriesAndKeys(16, 3)),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def official_decoder(value_dim: int) -> dict[str, torch.Tensor]:
    """Return the state of an attention as the original keeps it."""
    same = value_dim == DIM
    module = nn.MultiheadAttention(DIM, 4, vdim=None if same else value_dim)
    nn.init.normal_(module.in_proj_bias)
    state = {f"cross_attn.attention.{key}": value for key, value in module.state_dict().items()}
    if not same:  # the original has queries and keys of width d
        assert "cross_attn.attention.q_proj_weight" in state
    state["cross_attn.norm_q.weight"] = torch.rand(DIM)
    state["cross_attn.norm_k.weight"] = torch.rand(DIM)
    state["conv2d.weight"] = torch.randn(DIM, DIM, 3, 3)
    return {f"cross_decode.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("value_dim", [DIM, 24])
def test_conversion_of_a_multihead_attention(value_dim: int) -> None:
    state = official_decoder(value_dim)
    ours = CrossAttentionQueriesAndKeys(DIM, 4)
    ours.load_state_dict(convert_cross_decode(state, value_dim), strict=True)
    theirs = nn.MultiheadAttention(DIM, 4, vdim=value_dim, batch_first=True)
    prefix = "cross_decode.cross_attn.attention."
    theirs.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    key = torch.randn(1, DIM, 3, 2)
    query = torch.randn(1, DIM, 4, 5)
    tokens = ours.norm_q(ours.conv2d(query).flatten(2).transpose(1, 2))
    memory = ours.norm_k(key.flatten(2).transpose(1, 2))
    values = torch.randn(1, 6, value_dim)
    _, expected = theirs(tokens, memory, values, average_attn_weights=False)
    q = ours.queries(ours.conv2d(query)).unflatten(2, (4, -1)).transpose(1, 2)
    k = ours.keys(key).unflatten(2, (4, -1)).transpose(1, 2)
    actual = (q @ k.transpose(2, 3) / 2).softmax(-1)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32))


def test_conversion_refuses_what_is_missing_or_misshapen() -> None:
    state = official_decoder(24)
    for key in state:
        rest = {k: v for k, v in state.items() if k != key}
        with pytest.raises(CheckpointError, match=key.rsplit(".", 1)[-1]):
            convert_cross_decode(rest, 24)
    with pytest.raises(CheckpointError, match="v_proj_weight has shape"):
        convert_cross_decode(state, 32)
    assert "cross_decode.more" in convert_cross_decode(
        {**state, "cross_decode.more": state[key]}, 24
    )
