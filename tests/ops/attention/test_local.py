"""The local attender: the definition, its bounded version forward and backward, its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.ops import local_attender, reference

CROSS = [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
FULL5 = [(row, col) for row in range(-2, 3) for col in range(-2, 3)]


def _inputs(grid, ratio, taps, *, channels=6, batch=2, device="cpu", dtype=torch.float64):
    fine = (grid[0] * ratio[0], grid[1] * ratio[1])
    shapes = (batch, taps, *fine), (batch, channels, *grid)
    return [torch.randn(s, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]


def _with_grads(function, inputs, grad, *args, **options):
    out = function(*inputs, *args, **options)
    return out, torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_reference_is_the_definition(mode) -> None:
    logits, value = (t.detach() for t in _inputs((4, 5), (2, 3), len(FULL5), batch=1))
    out = reference.local_attender(logits, value, FULL5, padding=mode)
    padded = F.pad(value, (2, 2, 2, 2), mode=mode)
    for y, x in [(0, 0), (3, 7), (7, 14)]:
        seen = torch.stack([padded[0, :, y // 2 + 2 + r, x // 3 + 2 + c] for r, c in FULL5])
        expected = logits[0, :, y, x].softmax(0) @ seen
        torch.testing.assert_close(out[0, :, y, x], expected)


@pytest.mark.parametrize(
    ("grid", "ratio", "offsets"),
    [
        ((5, 6), (2, 2), CROSS),
        ((9, 7), (1, 1), FULL5),
        ((1, 3), (4, 1), FULL5),
        ((17, 18), (2, 2), [(0, 0)]),
    ],
)
@pytest.mark.parametrize("padding", ["replicate", "reflect"])
@pytest.mark.parametrize("max_bytes", [1, None])
def test_fast_is_the_reference(grid, ratio, offsets, padding, max_bytes) -> None:
    inputs = _inputs(grid, ratio, len(offsets))
    grad = torch.randn(2, 6, grid[0] * ratio[0], grid[1] * ratio[1], dtype=torch.float64)
    out, grads = _with_grads(
        local_attender, inputs, grad, offsets, padding=padding, max_bytes=max_bytes
    )
    want, want_grads = _with_grads(reference.local_attender, inputs, grad, offsets, padding=padding)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    offsets=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=6),
    batch=st.integers(0, 2),
    max_bytes=st.sampled_from([1, 5000, 10**6]),
    padding=st.sampled_from(["replicate", "reflect"]),
)
def test_any_size(grid, ratio, offsets, batch, max_bytes, padding) -> None:
    inputs = _inputs(grid, ratio, len(offsets), batch=batch)
    grad = torch.randn(batch, 6, grid[0] * ratio[0], grid[1] * ratio[1], dtype=torch.float64)
    out, grads = _with_grads(
        local_attender, inputs, grad, offsets, padding=padding, max_bytes=max_bytes
    )
    want, want_grads = _with_grads(reference.local_attender, inputs, grad, offsets, padding=padding)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


def test_every_type(device, dtype) -> None:
    inputs = _inputs((6, 5), (2, 2), 5, device=device, dtype=dtype)
    grad = torch.randn(2, 6, 12, 10, device=device).to(dtype)
    out, grads = _with_grads(local_attender, inputs, grad, CROSS)
    want, want_grads = _with_grads(reference.local_attender, inputs, grad, CROSS)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, **tolerance(dtype))
    for got, expected in zip(grads, want_grads, strict=True):
        limit = tolerance(dtype)
        limit["atol"] *= max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, **limit)


def test_gradcheck() -> None:
    inputs = _inputs((2, 3), (2, 2), 5, channels=2, batch=1)
    assert torch.autograd.gradcheck(lambda a, v: local_attender(a, v, CROSS), inputs)


def test_autocast_and_strides() -> None:
    logits, value = (t.detach().float() for t in _inputs((6, 5), (2, 2), 5))
    want = local_attender(logits, value, CROSS)
    with torch.autocast("cpu", torch.bfloat16):
        same = local_attender(logits, value.to(memory_format=torch.channels_last), CROSS)
    assert torch.equal(same, want)


def test_second_derivatives_are_refused() -> None:
    inputs = _inputs((2, 2), (1, 1), 5)
    out = local_attender(*inputs, CROSS)
    (grad,) = torch.autograd.grad(out.sum(), inputs[1], torch.ones(()).double(), create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.golden
@pytest.mark.parametrize("case", ["attender_n17", "attender_n25_narrow_guide"])
def test_golden(golden_dir: Path, case: str) -> None:
    from upfeat.upsamplers.uplift import LocalAttender

    tensors, meta = load_golden(golden_dir / "uplift" / f"{case}.safetensors")
    module = LocalAttender(meta["arguments"]["guide_dim"], meta["arguments"]["n"])
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("state.")})
    out = module(tensors["input.guide"], tensors["input.value"])
    difference = max_abs_difference(out, tensors["output"])
    assert difference <= GOLDEN_ATOL


@pytest.mark.compile
def test_compile_without_graph_breaks() -> None:
    inputs = _inputs((5, 4), (2, 2), 5, dtype=torch.float32)
    compiled = torch.compile(local_attender, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, CROSS), local_attender(*inputs, CROSS))


@pytest.mark.parametrize(
    ("shapes", "offsets", "options", "match"),
    [
        (((1, 5, 4, 4), (1, 3, 2, 2)), CROSS[:4], {}, "5 taps, offsets name 4"),
        (((1, 5, 5, 4), (1, 3, 2, 2)), CROSS, {}, "5 rows, the coarse grid 2"),
        (((1, 5, 4, 4), (2, 3, 2, 2)), CROSS, {}, "batch sizes"),
        (((5, 4, 4), (1, 3, 2, 2)), CROSS, {}, "four axes"),
        (((1, 5, 4, 4), (1, 3, 2, 2)), CROSS, {"padding": "zeros"}, "padding"),
        (((1, 5, 4, 4), (1, 3, 2, 2)), CROSS, {"max_bytes": 0}, "max_bytes"),
    ],
)
def test_refuses_what_does_not_fit(shapes, offsets, options, match) -> None:
    with pytest.raises(ValueError, match=match):
        local_attender(torch.zeros(shapes[0]), torch.zeros(shapes[1]), offsets, **options)


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", minversion="3.7")
    from tests.ops.test_triton import CompiledOnly
    from upfeat.ops.attention.local import Taps
    from upfeat.ops.triton import load

    module = load("local_attender")
    compiled: list[str] = []
    for name, kernel in vars(module).copy().items():
        if name.endswith("_kernel"):
            monkeypatch.setattr(module, name, CompiledOnly(kernel, compiled))
    monkeypatch.setattr(module._common, "check_covered", lambda *arguments: None)
    logits, value = torch.zeros(1, 5, 16, 16).bfloat16(), torch.zeros(1, 384, 8, 8).bfloat16()
    taps = Taps(tuple(CROSS), "replicate")
    output, residuals = module.forward(logits, value, taps=taps)
    module.backward(output, logits, value, residuals, taps=taps)
    assert set(compiled) == {"_forward_kernel", "_grad_weight_kernel", "_grad_value_kernel"}
