"""Attention with projected keys and values, against the framework's module."""

import pytest
import torch
from torch import nn

from upfeat.layers import attention_modules, record_attention
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


def attend(layer: nn.MultiheadAttention, queries: torch.Tensor, tokens: torch.Tensor):
    return layer(queries, tokens, tokens, need_weights=False)


def test_weights_come_in_the_order_of_the_calls_and_leave_the_output_alone():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
    queries, tokens = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    plain = attend(layers[1], queries, tokens)[0]
    with record_attention(layers) as recorded:
        second = attend(layers[1], queries, tokens)[0]
        attend(layers[0], queries, tokens)
    torch.testing.assert_close(second, plain)
    for weights, layer in zip(recorded, (layers[1], layers[0]), strict=True):
        expected = layer(queries, tokens, tokens, average_attn_weights=True)[1]
        torch.testing.assert_close(weights, expected)
        assert weights.requires_grad


def test_nothing_is_recorded_after_the_block_even_after_an_error():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(KeyError), record_attention(layer) as recorded:
        raise KeyError
    assert attend(layer, torch.randn(1, 2, 8), torch.randn(1, 3, 8))[1] is None
    assert recorded == []


def test_modules_without_attention():
    assert attention_modules(nn.Linear(2, 2)) == []
