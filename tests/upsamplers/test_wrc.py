"""WRC: goldens of the original code, its operator, its limits."""

from pathlib import Path

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import FUSED_GOLDEN_ATOL, GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.upsamplers.wrc import ReverseConvolution, folded, spaced


class TestContract(UpsamplerContract):
    name = "wrc"


@pytest.mark.parametrize("grad", [False, True], ids=["whole", "plain"])
def test_golden(golden_dir: Path, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "wrc" / "model_p14_dim16.safetensors")
    patch = meta["constructor"]["patch_size"]
    state = golden_state(tensors)
    state |= {  # counters, which the golden leaves out
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for key in state
        if key.endswith("running_mean")
    }
    model = upfeat.from_official("wrc", state, patch_size=patch)
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    with torch.set_grad_enabled(grad):
        out = model(tensors["input.image"], tensors["input.features"], meta["output_shape"][2:])
    # The sums of Fourier transforms and convolutions are ordered otherwise.
    assert max_abs_difference(out, tensors["output"]) <= FUSED_GOLDEN_ATOL


@torch.no_grad()
def test_golden_of_the_operator(golden_dir: Path) -> None:
    tensors, meta = load_golden(golden_dir / "wrc" / "operator_x2.safetensors")
    operator = ReverseConvolution(meta["constructor"]["in_channels"])
    operator.load_state_dict(golden_state(tensors))
    assert max_abs_difference(operator(tensors["input.x"]), tensors["output"]) <= GOLDEN_ATOL


def test_parameters_of_the_paper() -> None:
    model = upfeat.create_upsampler("wrc", feature_dim=384)
    assert sum(p.numel() for p in model.parameters()) == 3_979_216


def test_folding_is_what_subsampling_does_to_a_spectrum() -> None:
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    spectrum = folded(torch.fft.fft2(x))
    torch.testing.assert_close(spectrum, torch.fft.fft2(x[:, :, ::2, ::2]))
    torch.testing.assert_close(spaced(x)[:, :, ::2, ::2], x)
    assert spaced(x).sum() == pytest.approx(x.sum().item())


@torch.no_grad()
def test_patch_8_is_not_pooled() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("wrc", feature_dim=8, patch_size=8).eval()
    other = upfeat.create_upsampler("wrc", feature_dim=8).eval()
    other.load_state_dict(model.state_dict())
    image, features = torch.randn(1, 3, 32, 48), torch.randn(1, 8, 4, 6)
    assert model(image, features).shape == (1, 8, 32, 48)
    assert max_abs_difference(model(image, features), other(image, features)) > 1e-4


def test_limits_are_explained() -> None:
    with pytest.raises(ValueError, match="patch_size must be 8, 14 or 16"):
        upfeat.create_upsampler("wrc", feature_dim=8, patch_size=10)
    with pytest.raises(ValueError, match="at least 2"):
        upfeat.create_upsampler("wrc", feature_dim=1)
