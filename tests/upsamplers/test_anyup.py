"""AnyUp against the stored outputs of the original, its file layouts and its limits."""

from pathlib import Path
from typing import Any

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract

CASES = (
    "anyup/default_384",
    "anyup/nonsquare_default_output",
    "anyup/nowindow_gauss_init",
    "anyup_natten/int_ratio_small",
)


class TestAnyUp(UpsamplerContract):
    name = "anyup"
    config = {"qk_dim": 16, "window_ratio": 0.2}  # noqa: RUF012
    smallest_grid = (2, 2)


class TestAnyUpNatten(UpsamplerContract):
    name = "anyup"
    config = {"qk_dim": 16, "window_ratio": 0.2, "attention": "natten"}  # noqa: RUF012
    smallest_grid = (3, 3)


def official(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> upfeat.Upsampler:
    """Build the upsampler of a stored case."""
    given = {k: v for k, v in meta["constructor"].items() if k in ("num_heads", "window_ratio")}
    return upfeat.from_official("anyup", golden_state(tensors), **given)


@pytest.mark.parametrize("grad", [True, False], ids=["training", "bounded"])
@pytest.mark.parametrize("case", CASES)
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / f"{case}.safetensors")
    upsampler = official(tensors, meta)
    with torch.set_grad_enabled(grad):
        output = upsampler(tensors["input.image"], tensors["input.features"], meta["output_size"])
    assert output.requires_grad == grad
    assert max_abs_difference(output, tensors["output"]) < GOLDEN_ATOL
