"""The budget of ``tiles()`` holds for the call as a whole: peaks of fresh processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import upfeat
from upfeat.evaluation.benchmark.measure import in_fresh_process, measure_memory, warm_libraries
from upfeat.upsamplers.registry import get_class, list_upsamplers, needs_feature_dim

MIB = 2**20
BUDGET = 8 * MIB
SIDE, CHANNELS, STRIDE = 384, 64, 16
PIXELS = SIDE * SIDE
SMALL: dict[str, dict[str, Any]] = {
    "jafar": {"qk_dim": 64},
    "anyup": {"qk_dim": 64},
    "naf": {"dim": 64},
    "loftup": {"num_heads": 4, "n_freqs": 4},
    "liif": {"hidden_dim": 32, "num_hidden": 2},
    "featup_implicit": {"pca_dim": 8, "n_freqs": 3},
    "pixelup": {
        **{"d_enc": 16, "num_heads_encoder": 2, "num_heads_decoder": 2, "rope_directions": 2},
        **{"semantic_scale": 1.0, "smallest_side": 288, "encoder": "test_convnext"},
    },
    "vit_up": {"num_blocks": 2, "num_heads": 4, "patch_size": 4},
}
# Of the streaming encoders, in one thread. Where no map may be kept, strips that pass naf's four
# 3x3 convolutions, or raysup's four branches, read many rows more than they give.
STRIPS = {"naf": 140 * MIB, "raysup": 140 * MIB}
USUAL_STRIPS = 24 * MIB
# What the docstring of tiles() names beside the budget, in bytes of float32.
HELD = {
    "kin": 4 * PIXELS * 9 * 16,
    "featup_jbu": 4 * PIXELS * (5 * 32 + CHANNELS // 4),
    "loftup": 4 * PIXELS * 2 * 3,
    "pixelup": 4 * PIXELS * 6 * 16,
    "vit_up": 4 * (8 * SIDE // STRIDE) ** 2 * (3 * 4**2 + CHANNELS),
    "featup_implicit": 4 * PIXELS * 2 * 3,
}


def peak(name: str) -> int:
    torch.set_num_threads(1)
    width = {"feature_dim": CHANNELS} if needs_feature_dim(name) else {}
    upsampler = upfeat.create_upsampler(name, **width, **SMALL.get(name, {})).eval()
    if name == "featup_implicit":
        upsampler.get_buffer("fitted").fill_(True)  # what a fit takes is no part of the promise

    @torch.no_grad()
    def run(side: int, budget: int) -> None:
        grid = side // STRIDE
        image, features = torch.randn(1, 3, side, side), torch.randn(1, CHANNELS, grid, grid)
        for _, tile in upsampler.tiles(image, features, max_bytes=budget):
            tile.sum()

    warm_libraries(torch.float32)
    run(10 * STRIDE, MIB)  # libraries load, and code is compiled
    return measure_memory(lambda: run(SIDE, BUDGET))


TILED = [
    pytest.param(name, marks=() if get_class(name).streams else pytest.mark.slow)
    for name in list_upsamplers()
    if get_class(name).info.abilities.tiles
]


@pytest.mark.parametrize("name", TILED)
def test_the_call_stays_within_its_budget(name: str) -> None:
    inputs = 4 * (3 * PIXELS + CHANNELS * (SIDE // STRIDE) ** 2)
    streams = get_class(name).streams
    held = STRIPS.get(name, USUAL_STRIPS) if streams else HELD.get(name, 0)
    used = in_fresh_process(peak, name) - inputs - held
    assert used <= 3 * BUDGET, f"{used / MIB:.0f} MiB of {BUDGET / MIB:.0f}"
