import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.goldens import load_golden
from tests.tolerances import tolerance
from upfeat.ops import head_averaged_attention, reference, window_bounds, windowed_attention


def _inputs(output_size, grid_size, *, width=8, channels=5, batch=2, device="cpu", dtype=None):
    def make(length, features):
        tensor = torch.randn(batch, length, features, dtype=torch.float64)
        return tensor.to(device, dtype or torch.float64).requires_grad_()

    cells = grid_size[0] * grid_size[1]
    return (
        make(output_size[0] * output_size[1], width),
        make(cells, width),
        make(cells, channels),
    )


def _with_grads(function, inputs, grad, **options):
    out = function(*inputs, num_heads=2, **options)
    return out, torch.autograd.grad(out, inputs, grad)


SIZES = [
    ((24, 32), (8, 8), 0.1),
    ((35, 50), (6, 9), 0.2),
    ((9, 7), (12, 10), 0.15),  # coarser than the features
    ((1, 5), (1, 3), 0.1),
    ((28, 14), (4, 2), 0.3),
    ((13, 40), (13, 3), 0.45),
]


@pytest.mark.parametrize(("output_size", "grid_size", "ratio"), SIZES)
@pytest.mark.parametrize("max_bytes", [6000, None])
def test_fast_is_the_reference(output_size, grid_size, ratio, max_bytes):
    options = {"output_size": output_size, "grid_size": grid_size, "window_ratio": ratio}
    inputs = _inputs(output_size, grid_size)
    grad = torch.randn(2, output_size[0] * output_size[1], 5, dtype=torch.float64)
    out, grads = _with_grads(windowed_attention, inputs, grad, max_bytes=max_bytes, **options)
    want, want_grads = _with_grads(reference.windowed_attention, inputs, grad, **options)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


def test_every_type(device, dtype):
    options = {"output_size": (24, 30), "grid_size": (6, 5), "window_ratio": 0.15}
    inputs = _inputs((24, 30), (6, 5), device=device, dtype=dtype)
    grad = torch.randn(2, 720, 5, device=device).to(dtype)
    out, grads = _with_grads(windowed_attention, inputs, grad, **options)
    want, want_grads = _with_grads(reference.windowed_attention, inputs, grad, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, **tolerance(dtype))
    for got, expected in zip(grads, want_grads, strict=True):
        limit = tolerance(dtype)
        limit["atol"] *= max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, **limit)


@given(
    output_size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    grid_size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ratio=st.floats(0.05, 0.6),
    batch=st.integers(0, 2),
    channels=st.integers(0, 3),
    max_bytes=st.sampled_from([1, 3000, 10**6]),
)
def test_any_size(output_size, grid_size, ratio, batch, channels, max_bytes):
    options = {"output_size": output_size, "grid_size": grid_size, "window_ratio": ratio}
    inputs = _inputs(output_size, grid_size, batch=batch, channels=channels)
    grad = torch.randn(batch, inputs[0].shape[1], channels, dtype=torch.float64)
    out, grads = _with_grads(windowed_attention, inputs, grad, max_bytes=max_bytes, **options)
    want, want_grads = _with_grads(reference.windowed_attention, inputs, grad, **options)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


def test_gradcheck():
    inputs = _inputs((3, 4), (3, 2), width=4, channels=2, batch=1)
    assert torch.autograd.gradcheck(
        lambda q, k, v: windowed_attention(
            q, k, v, 2, output_size=(3, 4), grid_size=(3, 2), window_ratio=0.2
        ),
        inputs,
    )


def test_a_part_equals_the_part_of_the_whole():
    options = {"output_size": (35, 50), "grid_size": (6, 9), "window_ratio": 0.15}
    query, key, value = _inputs((35, 50), (6, 9))
    whole = windowed_attention(query, key, value, 2, **options).unflatten(1, (35, 50))
    for rows, cols in [((7, 19), None), (None, (11, 12)), ((30, 35), (0, 50)), ((4, 4), (0, 3))]:
        part = (slice(*(rows or (0, 35))), slice(*(cols or (0, 50))))
        queries = query.unflatten(1, (35, 50))[(slice(None), *part)].flatten(1, 2)
        out = windowed_attention(queries, key, value, 2, rows=rows, cols=cols, **options)
        torch.testing.assert_close(out, whole[(slice(None), *part)].flatten(1, 2))


@pytest.mark.golden
def test_bounds_are_those_of_the_original(golden_dir):
    tensors, meta = load_golden(golden_dir / "anyup" / "default_384.safetensors")
    allowed = tensors["attn_mask"] == 0  # (H'*W', h*w), 1 marks forbidden pairs
    rows, cols = window_bounds(tuple(meta["output_size"]), (8, 8), 0.1)
    cell = torch.arange(8)
    see_rows = (cell >= rows[:, :1]) & (cell < rows[:, 1:])  # (H', h)
    see_cols = (cell >= cols[:, :1]) & (cell < cols[:, 1:])  # (W', w)
    visible = see_rows[:, None, :, None] & see_cols[None, :, None, :]  # (H', W', h, w)
    assert torch.equal(visible.reshape(allowed.shape), allowed)


def test_window_widths_of_a_known_case():
    rows, _ = window_bounds((224, 224), (16, 16), 0.1)
    widths = rows[:, 1] - rows[:, 0]
    assert (int(widths[0]), int(widths.min()), int(widths.max())) == (2, 2, 5)


def test_no_window_is_global_attention():
    query, key, value = _inputs((6, 7), (3, 4))
    out = windowed_attention(
        query, key, value, 2, output_size=(6, 7), grid_size=(3, 4), window_ratio=0.0
    )
    torch.testing.assert_close(out, head_averaged_attention(query, key, value, 2))


def test_given_bounds_replace_the_ratio():
    query, key, value = _inputs((4, 4), (2, 2))
    own_cell = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2]])
    out = windowed_attention(
        query, key, value, 2, output_size=(4, 4), grid_size=(2, 2),
        row_bounds=own_cell, col_bounds=own_cell,
    )  # fmt: skip
    nearest = value.unflatten(1, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(out.unflatten(1, (4, 4)), nearest)


def test_buffers_fit_the_budget(monkeypatch):
    from upfeat.ops.attention import _tiled as _tiled_attention

    made = []

    class Recording(_tiled_attention.Scratch):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(_tiled_attention, "Scratch", Recording)
    options = {"output_size": (96, 96), "grid_size": (12, 12), "window_ratio": 0.2}
    inputs = _inputs((96, 96), (12, 12), dtype=torch.float32)
    windowed_attention(*inputs, num_heads=2, max_bytes=100_000, **options).sum().backward()
    for scratch in made:
        held = sum(flat.numel() * flat.element_size() for flat in scratch._flat.values())
        assert 0 < held <= 2 * 100_000  # a run's buffers, each at its largest over all runs


@pytest.mark.compile
def test_compile_without_graph_breaks():
    inputs = _inputs((8, 8), (4, 4), dtype=torch.float32)
    options = {"num_heads": 2, "output_size": (8, 8), "grid_size": (4, 4), "window_ratio": 0.1}
    compiled = torch.compile(windowed_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*inputs, **options),
        windowed_attention(*inputs, **options),
        **tolerance(torch.float32),
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window_ratio": None}, "window_ratio"),
        ({"grid_size": (3, 3)}, "9 cells"),
        ({"rows": (0, 3)}, "pass the queries"),
        ({"rows": (5, 9)}, "does not lie"),
        ({"row_bounds": torch.tensor([[0, 2]])}, "must be"),
        ({"row_bounds": torch.tensor([[1, 1]]).expand(8, 2)}, "empty window"),
    ],
)
def test_refuses_what_does_not_fit(change, match):
    inputs = _inputs((8, 8), (4, 4))
    options = {"output_size": (8, 8), "grid_size": (4, 4), "window_ratio": 0.1} | change
    with pytest.raises(ValueError, match=match):
        windowed_attention(*inputs, num_heads=2, **options)
