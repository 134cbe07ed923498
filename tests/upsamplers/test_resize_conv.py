"""FeatUp's layered resize-convolution against the stored outputs of the original."""

from pathlib import Path

import pytest

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract


class TestResizeConv(UpsamplerContract):
    name = "resize_conv"


@pytest.mark.golden
@pytest.mark.parametrize("case", ["k1_dim24", "k3_dim16"])
def test_golden(golden_dir: Path, case: str) -> None:
    tensors, _ = load_golden(golden_dir / "resize_conv" / f"{case}.safetensors")
    upsampler = upfeat.from_official("resize_conv", golden_state(tensors))
    expected = tensors["output"]
    image, features = tensors["input.guidance"], tensors["input.source"]
    output = upsampler(image, features, expected.shape[2:])
    assert max_abs_difference(output, expected) < GOLDEN_ATOL


@pytest.mark.parametrize(("kernel_size", "count"), [(1, 595_968), (3, 5_351_424)])
def test_counts_of_parameters(kernel_size: int, count: int) -> None:
    upsampler = upfeat.create_upsampler("resize_conv", feature_dim=384, kernel_size=kernel_size)
    assert sum(p.numel() for p in upsampler.parameters()) == count


def test_refuses_even_kernels() -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        upfeat.create_upsampler("resize_conv", feature_dim=16, kernel_size=2)
