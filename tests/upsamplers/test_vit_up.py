"""ViT-Up: goldens of the original's blocks, its levels, its limits."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError


class TestContract(UpsamplerContract):
    name = "vit_up"
    config: ClassVar = {"num_blocks": 2, "num_heads": 2, "patch_size": 2, "bands": 4}
    refused_transforms = ("jvp",)  # torch has no tangents of its fused attention


class TestContractLevels(UpsamplerContract):
    """Features of two layers, a level for each block."""

    name = "vit_up"
    config: ClassVar = {"levels": 2, "num_blocks": 2, "num_heads": 1, "patch_size": 2}
    refused_transforms = ("jvp",)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", ["points_square", "points_nonsquare_grid"])
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "vit_up" / f"{case}.safetensors")
    told = meta["constructor"]
    patch = {  # the goldens give the map of patches instead
        "patch_embedding.weight": torch.zeros(told["d"], 3, 2, 2),
        "patch_embedding.bias": torch.zeros(told["d"]),
    }
    model = upfeat.from_official(
        "vit_up",
        golden_state(tensors) | patch,
        num_heads=told["heads"],
        rope_base=told.get("base", 100.0),
    )
    blocks = told["nblocks"]
    assert model.config["num_blocks"] == model.config["levels"] == blocks
    hidden = [tensors[f"input.hidden.{level}"] for level in range(1, blocks + 1)]
    tokens = torch.stack([state.flatten(1, 2) for state in hidden], dim=1)  # (B, L, n, d)
    patches = tensors["input.patch_map"].movedim(-1, 1)
    with torch.set_grad_enabled(grad):
        state = model.prepared(patches, tokens, tuple(meta["grid"]), (1, 1))
        out = model.decode_at(state, tokens, 2 * tensors["input.query_xy"].flip(-1) - 1)
    expected = [tensors[f"output_layer.{level}"] for level in range(1, blocks + 1)]
    assert torch.equal(expected[-1], tensors["output"])
    assert max_abs_difference(out, torch.cat(expected, dim=2)) <= GOLDEN_ATOL


def test_constants_of_the_paper() -> None:
    """24,273,792 parameters, of which level 0's decoder is not held; the patches are ours."""
    model = upfeat.create_upsampler("vit_up", feature_dim=6 * 384, levels=6)
    count = sum(p.numel() for p in model.parameters())
    patches = sum(p.numel() for p in model.patch_embedding.parameters())
    assert count - patches + 2 * 384 + 385 * 384 == 24_273_792
    assert model.config["rope_base"] == 100.0
    assert model.freqs[0] == 1
    assert model.freqs[-1].item() == pytest.approx(10)


@torch.no_grad()
def test_levels_are_the_backbones_layers() -> None:
    """The first level knows nothing of the later ones, the last one of all."""
    torch.manual_seed(0)
    model = upfeat.create_upsampler(
        "vit_up", feature_dim=16, levels=2, num_blocks=2, num_heads=1, patch_size=2
    ).eval()
    image, features = torch.randn(1, 3, 16, 24), torch.randn(1, 16, 2, 3)
    other = features.clone()
    other[:, 8:] += 1 + torch.randn(1, 8, 2, 3)
    one, two = model(image, features), model(image, other)
    assert torch.equal(one[:, :8], two[:, :8])
    assert max_abs_difference(one[:, 8:], two[:, 8:]) > 1e-2


def test_limits_are_explained() -> None:
    with pytest.raises(ValueError, match="levels must be 1 or num_blocks=6"):
        upfeat.create_upsampler("vit_up", feature_dim=48, levels=2)
    with pytest.raises(ValueError, match="divisible by 4 x levels x num_heads=24"):
        upfeat.create_upsampler("vit_up", feature_dim=32, num_heads=6)
    with pytest.raises(CheckpointError, match="adapters inside"):
        upfeat.from_official("vit_up", {"rel_pos_enc.freqs": torch.zeros(16)})
