"""SAPA against the stored outputs of the original, and its limits."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import FUSED_GOLDEN_ATOL, GOLDEN_ATOL, max_abs_difference, tolerance
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError, UnsupportedError
from upfeat.upsamplers.sapa import SAPA, SAPAStage, similarity_attention


class TestSAPA(UpsamplerContract):
    name = "sapa"
    config = {"embedding_dim": 16, "up_kernel_size": 3, "stages": 2}  # noqa: RUF012


@pytest.mark.golden
@pytest.mark.parametrize("case", ["base_y16_x32", "exp_gate", "exp_cat_v"])
def test_golden_of_a_stage(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "sapa" / f"{case}.safetensors")
    stage = SAPAStage(**meta["arguments"]["kw"]).eval()
    stage.load_state_dict(golden_state(tensors))
    output = stage(tensors["input.y"], tensors["input.x"])
    assert max_abs_difference(output, tensors["output"]) < GOLDEN_ATOL


@pytest.mark.golden
def test_golden_of_the_stack(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "sapa" / "featup_stack_x16.safetensors")
    upsampler = upfeat.from_official("sapa", golden_state(tensors))
    assert upsampler.config["stages"] == 4
    expected = tensors["output"]
    image, features = tensors["input.guidance"], tensors["input.source"]
    output = upsampler(image, features, expected.shape[2:])
    # Four stages of large random logits amplify rounding: the stored float32 output is itself 1e-4
    # away from the same computation in float64.
    assert max_abs_difference(output, expected) < FUSED_GOLDEN_ATOL
    exact = upsampler.double()(image.double(), features.double(), expected.shape[2:])
    assert (exact - expected).abs().max() > FUSED_GOLDEN_ATOL


def products_in_order(query: Tensor, cells: Tensor, kernel_size: int, **_: object) -> Tensor:
    """`window_products`, with one rounding for each product and each sum, channel after channel."""
    scale = query.shape[2] // (cells.shape[2] - kernel_size + 1)
    products = []
    for i, j in itertools.product(range(kernel_size), repeat=2):
        window = cells[:, :, i : i + query.shape[2] // scale, j : j + query.shape[3] // scale]
        pixels = window.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (B, d, H', W')
        total = torch.zeros_like(query[:, 0])
        for channel in range(query.shape[1]):
            total = total + query[:, channel] * pixels[:, channel]
        products.append(total)
    return torch.stack(products, dim=1)  # (B, k * k, H', W')


@pytest.mark.golden
def test_golden_of_the_stack_in_the_order_of_the_original(
    golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the sums is all that lies between the stack and the usual tolerance."""
    module = importlib.import_module("upfeat.upsamplers.sapa")
    monkeypatch.setattr(module, "window_products", products_in_order)
    tensors, _ = load_golden(golden_dir / "sapa" / "featup_stack_x16.safetensors")
    upsampler = upfeat.from_official("sapa", golden_state(tensors))
    expected = tensors["output"]
    with torch.no_grad():
        output = upsampler(tensors["input.guidance"], tensors["input.source"], expected.shape[2:])
    assert max_abs_difference(output, expected) < GOLDEN_ATOL


def test_counts_of_parameters() -> None:
    upsampler = upfeat.create_upsampler("sapa", feature_dim=384, stages=1)
    assert sum(p.numel() for p in upsampler.parameters()) == 25_670


@pytest.mark.parametrize("mode", ["encoder_only", "cat", "gate"])
@pytest.mark.parametrize("v_embed", [False, True])
def test_a_single_module_loads_as_one_stage(mode: str, v_embed: bool) -> None:
    stage = SAPAStage(3, 16, q_mode=mode, v_embed=v_embed, qkv_bias=False)  # type: ignore[arg-type]
    upsampler = upfeat.from_official("sapa", stage.state_dict())
    assert upsampler.config["q_mode"] == mode
    assert upsampler.config["v_embed"] == v_embed
    assert upsampler.info.factor == 2
    image, features = torch.randn(1, 3, 8, 10), torch.randn(1, 16, 4, 5)
    output = upsampler(image, features)
    torch.testing.assert_close(output, stage(image, features))
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in upsampler.parameters())


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(CheckpointError, match="16 channels"):
        upfeat.from_official("sapa", SAPAStage(16, 32).state_dict())
    for options, match in (
        ({"up_kernel_size": 4}, "up_kernel_size"),
        ({"q_mode": "both"}, "q_mode"),
        ({"stages": 0}, "stages"),
    ):
        with pytest.raises(ValueError, match=match):
            upfeat.create_upsampler("sapa", feature_dim=16, **options)
    projected = SAPA(16, stages=1, v_embed=True)
    features = torch.randn(1, 16, 3, 3)
    with pytest.raises(UnsupportedError, match="values"):
        projected(torch.zeros(1, 3, 6, 6), features, values=features)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """The definition, with every window laid out."""
    wide = torch.promote_types(value.dtype, torch.float32)
    scale = [query.shape[axis] // key.shape[axis] for axis in (2, 3)]

    def windows(cells: Tensor) -> Tensor:  # (B, C, h, w) -> (B, C, k * k, H', W')
        taps = F.unfold(cells.to(wide), kernel_size, padding=kernel_size // 2)
        taps = taps.unflatten(1, (cells.shape[1], -1)).unflatten(3, cells.shape[2:])
        return taps.repeat_interleave(scale[0], 3).repeat_interleave(scale[1], 4)

    logits = (query.to(wide)[:, :, None] * windows(key)).sum(1, keepdim=True)
    return (logits.softmax(2) * windows(value)).sum(2).to(value.dtype)


def inputs(
    cells: tuple[int, int], scale: tuple[int, int], batch: int = 2, **kwargs: object
) -> list[Tensor]:
    pixels = (cells[0] * scale[0], cells[1] * scale[1])
    shapes = [(batch, 6, *pixels), (batch, 6, *cells), (batch, 5, *cells)]
    kwargs = {"dtype": torch.float64, **kwargs}
    return [torch.randn(shape).to(**kwargs).requires_grad_() for shape in shapes]


def compare(tensors: list[Tensor], kernel_size: int, limit: dict[str, float]) -> None:
    ours = similarity_attention(*tensors, kernel_size)
    plain = plain_attention(*tensors, kernel_size)
    assert ours.dtype == tensors[2].dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(plain, tensors, grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(
    cells=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.sampled_from([1, 3, 5]),
)
def test_any_size(cells: tuple[int, int], scale: tuple[int, int], kernel_size: int) -> None:
    compare(inputs(cells, scale), kernel_size, tolerance(torch.float64))


def test_every_type(device: torch.device, dtype: torch.dtype) -> None:
    compare(inputs((5, 7), (2, 2), device=device, dtype=dtype), 5, tolerance(dtype))


def test_taps_outside_weigh_but_give_nothing() -> None:
    query, key = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 4, 4)
    out = similarity_attention(query, key, torch.ones(1, 1, 4, 4), 3)[0, 0]
    assert out[0, 0].item() == pytest.approx(4 / 9)
    assert out[0, 3].item() == pytest.approx(6 / 9)
    assert out[4, 4].item() == pytest.approx(1)


@pytest.mark.compile
def test_compile_without_graph_breaks() -> None:
    tensors = inputs((4, 5), (2, 2), dtype=torch.float32)
    compiled = torch.compile(similarity_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*tensors, 3), similarity_attention(*tensors, 3), **tolerance(torch.float32)
    )
