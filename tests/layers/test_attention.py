"""Attention with projected keys and values, against the framework's module."""

import pytest
import torch
from torch import nn

from upfeat.layers import record_attention
from upfeat.layers.attention import Attention


@pytest.mark.parametrize("width", [16, 202])
@pytest.mark.parametrize("grad", [False, True])
def test_it_is_the_frameworks(width: int, grad: bool) -> None:
    ours = Attention(width, 2, batch_first=True)
    plain = nn.MultiheadAttention(width, 2, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    plain.load_state_dict(ours.state_dict())
    queries, tokens = torch.randn(2, 5, width), torch.randn(2, 7, width)
    with torch.set_grad_enabled(grad):
        output, weights = plain(queries, tokens, tokens)
        memory = ours.keys_values(tokens)
        without, none = ours(queries, memory)
        with record_attention(ours) as recorded:
            asked, _ = ours(queries, memory)
    assert none is None
    torch.testing.assert_close(without, output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(asked, output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recorded[0], weights, atol=1e-5, rtol=1e-4)
