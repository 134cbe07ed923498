import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerances import tolerance
from upfeat.ops import head_averaged_attention, head_averaged_attention_weights, reference


def _inputs(
    batch, queries, keys, width, channels, *, device="cpu", dtype=torch.float64, spread=1.0
):
    """Query, key and value; ``spread`` widens the scores, so that the softmax becomes peaked."""
    make = lambda *shape: torch.randn(shape, dtype=torch.float64).to(device, dtype)  # noqa: E731
    return (
        (make(batch, queries, width) * spread).requires_grad_(),
        make(batch, keys, width).requires_grad_(),
        make(batch, keys, channels).requires_grad_(),
    )


def _with_grads(function, inputs, grad, **options):
    out = function(*inputs, **options)
    return out, torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("spread", [0.5, 200.0], ids=["flat", "peaked"])
def test_fast_is_the_reference_forward_and_backward(device, dtype, spread):
    inputs = _inputs(2, 53, 19, 16, 6, device=device, dtype=dtype, spread=spread)
    grad = torch.randn(2, 53, 6, device=device).to(dtype)
    out, grads = _with_grads(head_averaged_attention, inputs, grad, num_heads=4, max_bytes=9000)
    want, want_grads = _with_grads(reference.head_averaged_attention, inputs, grad, num_heads=4)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, **tolerance(dtype))
    for got, expected in zip(grads, want_grads, strict=True):
        assert got.dtype == dtype
        limit = tolerance(dtype)
        limit["atol"] *= max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, **limit)


def test_half_types_stay_near_float64(device, dtype):
    query, key, value = _inputs(1, 40, 33, 32, 5)
    exact = reference.head_averaged_attention(query, key, value, 4)
    cast = [t.detach().to(device, dtype) for t in (query, key, value)]
    out = head_averaged_attention(*cast, num_heads=4)
    torch.testing.assert_close(out.double().cpu(), exact, **tolerance(dtype))


def test_gradcheck():
    inputs = _inputs(2, 5, 3, 4, 3)
    assert torch.autograd.gradcheck(
        lambda q, k, v: head_averaged_attention(q, k, v, 2, max_bytes=100), inputs
    )


@given(
    batch=st.integers(0, 2),
    queries=st.integers(0, 9),
    keys=st.integers(1, 7),
    heads=st.integers(1, 3),
    head_width=st.integers(1, 3),
    channels=st.integers(0, 4),
    max_bytes=st.sampled_from([1, 200, 10**7]),
)
def test_any_size(batch, queries, keys, heads, head_width, channels, max_bytes):
    inputs = _inputs(batch, queries, keys, heads * head_width, channels)
    grad = torch.randn(batch, queries, channels, dtype=torch.float64)
    out, grads = _with_grads(
        head_averaged_attention, inputs, grad, num_heads=heads, max_bytes=max_bytes
    )
    want, want_grads = _with_grads(reference.head_averaged_attention, inputs, grad, num_heads=heads)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


def test_weights_are_a_convex_combination_and_mix_the_values():
    query, key, value = _inputs(2, 7, 5, 8, 3)
    weights = head_averaged_attention_weights(query, key, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    torch.testing.assert_close(weights @ value, head_averaged_attention(query, key, value, 2))


def test_strided_inputs_and_mixed_types(device):
    query, key, value = (t.detach().float() for t in _inputs(2, 30, 12, 8, 4))
    want = reference.head_averaged_attention(query, key, value, 2).to(device)
    query, key, value = query.to(device), key.to(device), value.to(device)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    torch.testing.assert_close(
        head_averaged_attention(*strided, num_heads=2), want, **tolerance(torch.float32)
    )
    out = head_averaged_attention(query.bfloat16(), key, value, 2)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, want, **tolerance(torch.bfloat16))
    out = head_averaged_attention(query, key, value.bfloat16(), 2)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, **tolerance(torch.bfloat16))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e18])
def test_large_scores_neither_overflow_nor_vanish(size):
    query = torch.tensor([[[size], [-size], [0.0]]])
    key = torch.tensor([[[1.0], [-1.0], [0.5]]])
    out = head_averaged_attention(query, key, torch.eye(3)[None], 1, scale=1.0)
    want = torch.softmax(query.double() @ key.double().transpose(1, 2), -1).float()
    torch.testing.assert_close(out, want, atol=0, rtol=1e-5)


def test_buffers_fit_the_budget(monkeypatch):
    from upfeat.ops.attention import head_averaged

    made = []

    class Recording(head_averaged.Scratch):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(head_averaged, "Scratch", Recording)
    inputs = _inputs(1, 500, 40, 8, 3, dtype=torch.float32)
    head_averaged_attention(*inputs, num_heads=2, max_bytes=20_000).sum().backward()
    workers = torch.get_num_threads()
    assert len(made) == 2 * workers  # forward and backward
    for scratch in made:
        held = sum(flat.numel() * flat.element_size() for flat in scratch._flat.values())
        assert 0 < held <= 20_000 // workers


def test_only_wanted_gradients():
    query, key, value = _inputs(1, 6, 4, 4, 2)
    out = head_averaged_attention(query, key, value.detach(), 2)
    grads = torch.autograd.grad(out.sum(), (query, key))
    want = torch.autograd.grad(
        reference.head_averaged_attention(query, key, value.detach(), 2).sum(), (query, key)
    )
    torch.testing.assert_close(grads, want)
    out = head_averaged_attention(query.detach(), key.detach(), value, 2)
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(grad.sum(), torch.tensor(12.0, dtype=torch.float64))


def test_second_derivatives_are_refused():
    inputs = _inputs(1, 3, 3, 2, 2)
    out = head_averaged_attention(*inputs, num_heads=1)
    (grad,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_autocast_changes_nothing():
    inputs = _inputs(1, 20, 9, 8, 3, dtype=torch.float32)
    grad = torch.randn(1, 20, 3)
    want, want_grads = _with_grads(head_averaged_attention, inputs, grad, num_heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = _with_grads(head_averaged_attention, inputs, grad, num_heads=2)
    assert torch.equal(out, want)
    torch.testing.assert_close(grads, want_grads, atol=0, rtol=0)


@pytest.mark.compile
def test_compile_without_graph_breaks():
    inputs = _inputs(1, 20, 9, 8, 3, dtype=torch.float32)
    compiled = torch.compile(head_averaged_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*inputs, num_heads=2),
        head_averaged_attention(*inputs, num_heads=2),
        **tolerance(torch.float32),
    )


@pytest.mark.parametrize(
    ("shapes", "heads", "match"),
    [
        ([(1, 4, 8), (1, 3, 6), (1, 3, 2)], 2, "same number"),
        ([(1, 4, 8), (1, 3, 8), (1, 3, 2)], 3, "divisor"),
        ([(1, 4, 8), (1, 3, 8), (1, 5, 2)], 2, "agree"),
        ([(2, 4, 8), (1, 3, 8), (1, 3, 2)], 2, "batch sizes"),
        ([(4, 8), (3, 8), (3, 2)], 2, "three axes"),
        ([(1, 4, 8), (1, 0, 8), (1, 0, 2)], 2, "at least 1"),
    ],
)
def test_refuses_what_does_not_fit(shapes, heads, match):
    with pytest.raises(ValueError, match=match):
        head_averaged_attention(*(torch.zeros(shape) for shape in shapes), num_heads=heads)


def test_refuses_an_empty_budget_and_integers():
    inputs = _inputs(1, 3, 3, 2, 2)
    with pytest.raises(ValueError, match="max_bytes"):
        head_averaged_attention(*inputs, num_heads=1, max_bytes=0)
    with pytest.raises(ValueError, match="floating point"):
        head_averaged_attention(*(t.long() for t in inputs), num_heads=1)
