"""A head in front of the upsampler: equal where it may go there, refused where not."""

import pytest
import torch
from torch import nn

import upfeat
from upfeat.errors import UnsupportedError

CONFIGS = {
    "jafar": {"feature_dim": 16, "qk_dim": 32},
    "anyup": {"qk_dim": 32},
    "naf": {"dim": 32, "kernel_size": 3, "heads_rope": 2},
    "loftup": {"feature_dim": 16},
}


def build(name: str) -> upfeat.Upsampler:
    return upfeat.create_upsampler(name, **CONFIGS.get(name, {})).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 30, 40), torch.randn(2, 16, 5, 6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["jafar", "anyup", "joint_bilateral", "bicubic"])
def test_equals_the_head_behind(
    name: str, bias: bool, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    upsampler, head = build(name), nn.Conv2d(16, 5, 1, bias=bias)
    folded = upfeat.fold_head(upsampler, head)
    for size in (None, (17, 23)):
        expected = head(upsampler(*inputs, size))
        torch.testing.assert_close(folded(*inputs, size), expected, atol=1e-5, rtol=1e-5)
        tiles = torch.cat([tile for _, tile in folded.tiles(*inputs, size, max_bytes=1)], dim=2)
        torch.testing.assert_close(tiles, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["naf", "loftup"])
def test_refuses_where_it_would_be_wrong(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"must not go before {name}"):
        upfeat.fold_head(build(name), nn.Conv2d(16, 5, 1))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Conv2d(16, 5, 3), "kernel_size"),
        (nn.Conv2d(16, 5, 1, stride=2), "stride"),
        (nn.Conv2d(16, 5, 1, padding=1), "padding"),
        (nn.Conv2d(8, 5, 1), "takes 8 channels"),
        (nn.Linear(16, 5), "Linear"),
    ],
)
def test_refuses_other_heads(head: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upfeat.fold_head(build("jafar"), head)  # type: ignore[arg-type]


def test_gradients_reach_both(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    upsampler, head = build("jafar"), nn.Conv2d(16, 5, 1)
    upfeat.fold_head(upsampler, head)(*inputs, (10, 12)).square().mean().backward()
    for parameter in (*upsampler.parameters(), *head.parameters()):
        assert parameter.grad is not None
