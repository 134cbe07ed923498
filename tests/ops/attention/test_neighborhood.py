import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, tolerance
from upfeat.ops import cross_scale_neighborhood_attention, reference


def _inputs(output_size, grid_size, *, width=8, channels=6, batch=2, device="cpu", dtype=None):
    def make(features, size):
        tensor = torch.randn(batch, features, *size, dtype=torch.float64)
        return tensor.to(device, dtype or torch.float64).requires_grad_()

    return make(width, output_size), make(width, grid_size), make(channels, grid_size)


def _with_grads(function, inputs, grad, **options):
    out = function(*inputs, num_heads=2, **options)
    return out, torch.autograd.grad(out, inputs, grad)


def _naive(query, key, value, num_heads, kernel_size):
    """Query by query, on keys and values really resized by nearest-exact: grouped values."""
    size, grid = query.shape[2:], key.shape[2:]
    key = F.interpolate(key, size, mode="nearest-exact")
    value = F.interpolate(value, size, mode="nearest-exact")
    out = torch.empty(value.shape, dtype=value.dtype)
    axes = []
    for length, cells in zip(size, grid, strict=True):
        step = length // cells
        axis = []
        for i in range(length):
            residue, place = i % step, i // step
            places = len(range(residue, length, step))
            first = min(max(place - kernel_size // 2, 0), places - kernel_size)
            axis.append([residue + step * (first + t) for t in range(kernel_size)])
        axes.append(axis)
    for i, rows in enumerate(axes[0]):
        for j, cols in enumerate(axes[1]):
            k = key[:, :, rows][:, :, :, cols].flatten(2).unflatten(1, (num_heads, -1))
            v = value[:, :, rows][:, :, :, cols].flatten(2).unflatten(1, (num_heads, -1))
            q = query[:, :, i, j].unflatten(1, (num_heads, -1))
            scores = torch.einsum("bhd,bhdt->bht", q, k) / q.shape[-1] ** 0.5
            mixed = torch.einsum("bht,bhct->bhc", scores.softmax(-1), v)
            out[:, :, i, j] = mixed.flatten(1)
    return out


@pytest.mark.parametrize(("size", "grid"), [((12, 15), (4, 5)), ((17, 23), (5, 7))])
def test_reference_is_the_definition_on_resized_maps(size, grid):
    query, key, value = (t.detach() for t in _inputs(size, grid))
    out = reference.cross_scale_neighborhood_attention(query, key, value, 2, kernel_size=3)
    torch.testing.assert_close(out, _naive(query, key, value, 2, 3))


CASES = [
    ((18, 20), (9, 10), 9),
    ((35, 50), (6, 9), 3),
    ((24, 27), (6, 9), (4, 5)),
    ((16, 16), (16, 16), 5),
    ((7, 64), (1, 8), (1, 8)),
    ((41, 30), (8, 4), (5, 3)),  # float32 nearest-exact differs from exact arithmetic at 41 / 8
]


@pytest.mark.parametrize(("size", "grid", "kernel_size"), CASES)
@pytest.mark.parametrize("head_values", ["grouped", "shared"])
@pytest.mark.parametrize("max_bytes", [6000, None])
def test_fast_is_the_reference(size, grid, kernel_size, head_values, max_bytes):
    options = {"kernel_size": kernel_size, "head_values": head_values}
    inputs = _inputs(size, grid)
    grad = torch.randn(2, 6, *size, dtype=torch.float64)
    out, grads = _with_grads(
        cross_scale_neighborhood_attention, inputs, grad, max_bytes=max_bytes, **options
    )
    want, want_grads = _with_grads(
        reference.cross_scale_neighborhood_attention, inputs, grad, **options
    )
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


@pytest.mark.parametrize("size", [(24, 30), (27, 31)], ids=["integer", "non-integer"])
def test_every_type(device, dtype, size):
    inputs = _inputs(size, (6, 5), device=device, dtype=dtype)
    grad = torch.randn(2, 6, *size, device=device).to(dtype)
    out, grads = _with_grads(cross_scale_neighborhood_attention, inputs, grad, kernel_size=3)
    want, want_grads = _with_grads(
        reference.cross_scale_neighborhood_attention, inputs, grad, kernel_size=3
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, **tolerance(dtype))
    for got, expected in zip(grads, want_grads, strict=True):
        limit = tolerance(dtype)
        limit["atol"] *= max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, **limit)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(0, 2),
    head_values=st.sampled_from(["grouped", "shared"]),
    max_bytes=st.sampled_from([1, 3000, 10**6]),
)
def test_any_size(grid, extra, kernel_size, batch, head_values, max_bytes):
    size = (grid[0] + extra[0], grid[1] + extra[1])
    assume(
        all(kernel * (s // g) <= s for kernel, s, g in zip(kernel_size, size, grid, strict=True))
    )
    options = {"kernel_size": kernel_size, "head_values": head_values}
    inputs = _inputs(size, grid, batch=batch)
    grad = torch.randn(batch, 6, *size, dtype=torch.float64)
    out, grads = _with_grads(
        cross_scale_neighborhood_attention, inputs, grad, max_bytes=max_bytes, **options
    )
    want, want_grads = _with_grads(
        reference.cross_scale_neighborhood_attention, inputs, grad, **options
    )
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grads, want_grads)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_gradcheck(size):
    inputs = _inputs(size, (2, 2), width=4, channels=2, batch=1)
    assert torch.autograd.gradcheck(
        lambda q, k, v: cross_scale_neighborhood_attention(q, k, v, 2, kernel_size=2), inputs
    )


@pytest.mark.parametrize(("size", "grid"), [((24, 36), (6, 9)), ((35, 50), (6, 9))])
def test_a_part_equals_the_part_of_the_whole(size, grid):
    query, key, value = _inputs(size, grid)
    whole = cross_scale_neighborhood_attention(query, key, value, 2, kernel_size=3)
    for rows, cols in [((7, 19), None), (None, (11, 12)), ((20, 24), (0, 31)), ((4, 4), (0, 3))]:
        part = (slice(*(rows or (0, size[0]))), slice(*(cols or (0, size[1]))))
        out = cross_scale_neighborhood_attention(
            query[:, :, part[0], part[1]], key, value, 2,
            kernel_size=3, output_size=size, rows=rows, cols=cols,
        )  # fmt: skip
        torch.testing.assert_close(out, whole[:, :, part[0], part[1]])


@pytest.mark.golden
def test_neighbours_are_those_of_the_original(golden_dir):
    """Stored scores, softmaxed and mixed over our neighbours, give the stored output."""
    tensors, meta = load_golden(golden_dir / "naf" / "nonint_ratio_small.safetensors")
    values, (height, width) = tensors["input.features"], meta["output_size"]
    rows = reference.neighbor_cells(height, values.shape[2], 3, height // values.shape[2])
    cols = reference.neighbor_cells(width, values.shape[3], 3, width // values.shape[3])
    window = values[:, :, rows[:, None, :, None], cols[None, :, None, :]].flatten(-2)
    weights = tensors["attn_scores"].softmax(-1)  # (B, heads, H', W', 9)
    out = torch.einsum("bhijt,bhcijt->bhcij", weights, window.unflatten(1, (4, -1))).flatten(1, 2)
    torch.testing.assert_close(out, tensors["output"], atol=GOLDEN_ATOL, rtol=0)


def test_cells_follow_the_float32_rule_of_nearest_exact():
    cells = reference.neighbor_cells(41, 8, kernel_size=1, dilation=5)[:, 0]
    assert int(cells[20]) == 3  # exact arithmetic would give 4


def test_integer_ratio_attends_to_consecutive_cells():
    cells = reference.neighbor_cells(224, 16, kernel_size=9, dilation=14)
    assert torch.equal(cells[:, 1:] - cells[:, :-1], torch.ones(224, 8, dtype=torch.long))
    assert torch.equal(cells[:, 0], (torch.arange(224) // 14 - 4).clamp(0, 7))


def test_autocast_mixed_types_and_strides():
    query, key, value = (t.detach().float() for t in _inputs((12, 12), (4, 4)))
    want = cross_scale_neighborhood_attention(query, key, value, 2, kernel_size=3)
    with torch.autocast("cpu", torch.bfloat16):
        same = cross_scale_neighborhood_attention(
            query.to(memory_format=torch.channels_last), key, value, 2, kernel_size=3
        )
    assert torch.equal(same, want)
    out = cross_scale_neighborhood_attention(query.bfloat16(), key, value, 2, kernel_size=3)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, want, **tolerance(torch.bfloat16))


def test_second_derivatives_are_refused():
    inputs = _inputs((4, 4), (2, 2))
    out = cross_scale_neighborhood_attention(*inputs, num_heads=2, kernel_size=1)
    (grad,) = torch.autograd.grad(out.sum(), inputs[2], torch.ones(()).double(), create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.compile
def test_compile_without_graph_breaks():
    inputs = _inputs((12, 13), (4, 4), dtype=torch.float32)
    compiled = torch.compile(cross_scale_neighborhood_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*inputs, num_heads=2, kernel_size=3),
        cross_scale_neighborhood_attention(*inputs, num_heads=2, kernel_size=3),
        **tolerance(torch.float32),
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kernel_size": 5}, "kernel_size 5"),
        ({"head_values": "mean"}, "head_values"),
        ({"rows": (0, 3)}, "output_size"),
        ({"rows": (0, 3), "output_size": (8, 8)}, "that part only"),
        ({"output_size": (3, 8)}, "smaller than the coarse grid"),
        ({"num_heads": 4}, "value channels"),
    ],
)
def test_refuses_what_does_not_fit(change, match):
    inputs = _inputs((8, 8), (4, 4))
    with pytest.raises(ValueError, match=match):
        cross_scale_neighborhood_attention(*inputs, **({"num_heads": 2, "kernel_size": 3} | change))
