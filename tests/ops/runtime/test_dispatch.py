"""The plumbing between an operator, its bounded version and its Triton module."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from upfeat.ops import (
    cross_scale_neighborhood_attention,
    head_averaged_attention,
    windowed_attention,
)
from upfeat.ops.runtime import dispatch

CALLS = {
    "head_averaged_attention": lambda: (
        head_averaged_attention,
        [torch.randn(1, 12, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 2)],
        {},
    ),
    "windowed_attention": lambda: (
        windowed_attention,
        [torch.randn(1, 36, 8), torch.randn(1, 9, 8), torch.randn(1, 9, 2)],
        {"output_size": (6, 6), "grid_size": (3, 3), "window_ratio": 0.1},
    ),
    "neighborhood_attention": lambda: (
        cross_scale_neighborhood_attention,
        [torch.randn(1, 8, 6, 6), torch.randn(1, 8, 3, 3), torch.randn(1, 2, 3, 3)],
        {"kernel_size": 3},
    ),
}


def _fake_kernel(calls):
    """A kernel that notes its options and gives ones."""

    def forward(query, key, value, **options):
        calls["forward"] = options
        rows = query.shape[1] if query.dim() == 3 else query.shape[2]
        shape = (1, rows, value.shape[2]) if query.dim() == 3 else (1, value.shape[1], 6, 6)
        return torch.ones(shape), (torch.tensor(7.0),)

    def backward(grad_output, query, key, value, residuals, **options):
        calls["backward"], calls["residuals"] = options, residuals
        return torch.ones_like(query), torch.ones_like(key), torch.ones_like(value)

    return SimpleNamespace(forward=forward, backward=backward)


@pytest.mark.parametrize("name", CALLS)
def test_kernel_gets_the_documented_options_and_its_residuals(monkeypatch, name):
    calls = {}
    asked = []

    def kernel_for(query, wanted):
        asked.append(wanted)
        return _fake_kernel(calls)

    monkeypatch.setattr(dispatch, "_kernel_for", kernel_for)
    function, inputs, options = CALLS[name]()
    inputs = [t.requires_grad_() for t in inputs]
    out = function(*inputs, num_heads=2, **options)
    out.sum().backward()
    assert asked == [name]
    assert torch.equal(out, torch.ones_like(out))
    assert all(torch.equal(t.grad, torch.ones_like(t)) for t in inputs)
    assert float(calls["residuals"][0]) == 7.0
    section = dispatch.__doc__.split(f"``{name}``:")[1].split("\n- ")[0].split("\n\n")[0]
    documented = {word for word in section.split("``")[1::2] if word.isidentifier()}
    assert set(calls["forward"]) == set(calls["backward"]) == documented


@pytest.mark.parametrize("name", CALLS)
def test_real_kernels_accept_these_options(monkeypatch, name):
    pytest.importorskip("triton", minversion="3.7")
    kernel = dispatch.triton_kernel(name)
    assert kernel is not None
    calls = {}
    monkeypatch.setattr(dispatch, "_kernel_for", lambda *_: _fake_kernel(calls))
    function, inputs, options = CALLS[name]()
    function(*inputs, num_heads=2, **options)
    inspect.signature(kernel.forward).bind(*inputs, **calls["forward"])
    inspect.signature(kernel.backward).bind(inputs[0], *inputs, (), **calls["forward"])


@pytest.mark.parametrize("name", CALLS)
def test_what_a_kernel_does_not_cover_runs_bounded(monkeypatch, name):
    def forward(*args, **options):
        raise NotImplementedError

    function, inputs, options = CALLS[name]()
    inputs = [t.requires_grad_() for t in inputs]
    want = torch.autograd.grad(function(*inputs, num_heads=2, **options).sum(), inputs)
    monkeypatch.setattr(dispatch, "_kernel_for", lambda *_: SimpleNamespace(forward=forward))
    got = torch.autograd.grad(function(*inputs, num_heads=2, **options).sum(), inputs)
    torch.testing.assert_close(got, want)


def test_no_kernel_for_cpu_tensors_or_unknown_names():
    assert dispatch._kernel_for(torch.zeros(1), "head_averaged_attention") is None
    assert dispatch.triton_kernel("no_such_operator") is None
