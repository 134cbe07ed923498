"""JAFAR against the stored outputs of the original, its file layouts and its limits."""

from pathlib import Path

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract

CASES = ("dinov2s_384", "nonsquare_small", "equal_dims_k3")


class TestJafar(UpsamplerContract):
    name = "jafar"
    config = {"qk_dim": 16}  # noqa: RUF012


@pytest.mark.parametrize("grad", [True, False], ids=["training", "bounded"])
@pytest.mark.parametrize("case", CASES)
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "jafar" / f"{case}.safetensors")
    heads = meta.get("constructor", meta).get("num_heads", 4)
    upsampler = upfeat.from_official("jafar", golden_state(tensors), num_heads=heads)
    with torch.set_grad_enabled(grad):
        expected = tensors["output"]
        output = upsampler(tensors["input.image"], tensors["input.features"], expected.shape[2:])
    assert output.requires_grad == grad
    assert max_abs_difference(output, expected) < GOLDEN_ATOL
