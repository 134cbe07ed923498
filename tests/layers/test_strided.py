"""Strided convolutions of narrow maps."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import upfeat
from upfeat.layers.strided import StridedConv2d


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_equals_the_plain_one(width: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = StridedConv2d(4, 6, 3, stride, padding=1)
    plain = nn.Conv2d(4, 6, 3, stride, padding=1)
    plain.load_state_dict(ours.state_dict())
    x, again = (torch.randn(2, 4, 5, width).requires_grad_() for _ in range(2))
    again.data = x.data
    (ours(x).square().sum()).backward()
    (plain(again).square().sum()).backward()
    torch.testing.assert_close(ours(x), plain(again))
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1, 2])
def test_one_column_is_finite_in_bfloat16(width: int) -> None:
    convolution = StridedConv2d(4, 4, 3, 2, padding=1, dtype=torch.bfloat16)
    for _ in range(20):
        output = convolution(torch.randn(3, 4, 21, width, dtype=torch.bfloat16))
        assert output.isfinite().all()
        convolution.zero_grad()
        output.sum().backward()
        assert convolution.weight.grad.isfinite().all()


def test_methods_have_no_other_strided_convolution_with_neighbours() -> None:
    """``nn.Conv2d`` with a kernel of 3 and a stride: it reads memory that nobody wrote."""
    found = []
    for path in (Path(upfeat.__file__).parent / "upsamplers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "nn.Conv2d":
                continue
            strided = len(node.args) > 3 or any(each.arg == "stride" for each in node.keywords)
            if strided and ast.unparse(node.args[2]) == "3":
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert not found
