"""IFA as FeatUp runs it: golden, contract, and grids that are not square."""

from pathlib import Path
from typing import ClassVar

import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import HALF, UpsamplerContract
from upfeat.upsamplers.ifa import places


class TestContract(UpsamplerContract):
    name = "ifa"
    # Frequencies up to e^10 see the rounding of the places in float32, as LoftUp's do.
    half: ClassVar = {**HALF, torch.float64: 1e-3}
    guided = False


@torch.no_grad()
def test_golden(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "featup_ifa" / "dim20.safetensors")
    model = upfeat.from_official("ifa", golden_state(tensors))
    source = tensors["input.source"]
    output = model(torch.zeros(2, 3, 20, 20), source, (10, 10))
    difference = max_abs_difference(output, tensors["output"])
    assert difference <= GOLDEN_ATOL


def test_places_of_rows_do_not_depend_on_the_number_of_columns() -> None:
    square, wide = (places(grid, torch.zeros(())) for grid in ((4, 4), (4, 7)))
    rows = [*range(0, 80, 2), 80]  # frequency slow, row before column
    assert torch.equal(square[0, rows, :, 0], wide[0, rows, :, 0])
    assert places((1, 1), torch.zeros(())).isfinite().all()
