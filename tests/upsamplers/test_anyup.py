"""AnyUp against the stored outputs of the original, its file layouts and its limits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import HALF, UpsamplerContract, relative_error
from upfeat.checkpoints import file_sha256
from upfeat.errors import CheckpointError
from upfeat.ops.runtime import strips
from upfeat.upsamplers import anyup
from upfeat.upsamplers.registry import get_checkpoint

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
    narrow = False


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


@pytest.mark.parametrize("case", CASES[:3])
@torch.no_grad()
def test_golden_unification(golden_dir: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, meta = load_golden(golden_dir / f"{case}.safetensors")
    unify = official(tensors, meta).key_features_encoder[0]
    features = torch.nn.functional.normalize(tensors["input.features"], dim=1)
    assert max_abs_difference(unify(features), tensors["lfu"]) < 1e-6
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    assert max_abs_difference(unify(features), tensors["lfu"]) < 1e-6


def test_unification_in_bands_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    unify = anyup.FeatureUnification(8, 3, "released", gaussian_derivatives=False).double()
    features = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    leaves = (features, unify.basis)
    whole = torch.autograd.grad(unify(features).square().sum(), leaves)
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    bands = torch.autograd.grad(unify(features).square().sum(), leaves)
    torch.testing.assert_close(bands, whole)
    within = torch.func.grad(lambda x: unify(x).square().sum())(features.detach())
    torch.testing.assert_close(within, whole[0])


@torch.no_grad()
def test_filterwise_unification_ignores_the_order_of_channels() -> None:
    """The paper's text: every channel for itself. The released layout depends on the order."""
    features = torch.randn(1, 10, 4, 5)
    shuffled = features[:, torch.randperm(10)]
    for layout, same in (("filterwise", True), ("released", False)):
        unify = anyup.FeatureUnification(8, 3, layout, gaussian_derivatives=False)
        assert torch.allclose(unify(features), unify(shuffled), atol=1e-6) == same
        torch.testing.assert_close(unify(features).sum(1), torch.ones(1, 4, 5))


@torch.no_grad()
def test_filterwise_unification_is_its_formula() -> None:
    unify = anyup.FeatureUnification(6, 3, "filterwise", gaussian_derivatives=False)
    features = torch.randn(1, 4, 3, 5)
    responses = [
        torch.nn.functional.conv2d(features[:, c : c + 1], unify.basis, padding=1) for c in range(4)
    ]
    ones = torch.ones(1, 1, 3, 5)
    taps = torch.nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3), padding=1)
    expected = torch.stack([(r / taps).softmax(1) for r in responses]).mean(0)
    torch.testing.assert_close(unify(features), expected)


def test_gaussian_derivatives_start() -> None:
    config = {"qk_dim": 32, "num_heads": 2, "init_gaussian_derivatives": True}
    basis = upfeat.create_upsampler("anyup", **config).key_features_encoder[0].basis
    assert basis.shape == (32, 1, 5, 5)
    assert torch.equal(basis[1, 0], basis[2, 0].T)  # the two first derivatives
    assert abs(basis[1].sum().item()) < 1e-6


@pytest.mark.parametrize("name", ["anyup.paper", "anyup.multi_backbone"])
@torch.no_grad()
def test_published_weights(name: str, weights_dir: Path) -> None:
    record = get_checkpoint(name)
    assert record is not None
    path = weights_dir / record.file.filename
    assert file_sha256(path) == record.file.sha256
    upsampler = upfeat.create_upsampler(name, pretrained=True, weights=path)
    image, features = torch.randn(1, 3, 48, 48), torch.randn(1, 40, 4, 4)
    output = upsampler(image, features)
    assert output.shape == (1, 40, 48, 48)
    assert output.abs().max() <= features.abs().max() + 1e-5


def test_plain_weights_serve_the_natten_decoder(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / f"{CASES[0]}.safetensors")
    state = golden_state(tensors)
    upsampler = upfeat.from_official("anyup", state, attention="natten")
    output = upsampler(tensors["input.image"], tensors["input.features"], (16, 20))
    # Other windows, so not equal; but closer to the plain output than a random guess.
    difference = (output - tensors["output"]).std() / tensors["output"].std()
    assert 1e-3 < difference < 1


def test_loading_is_strict(golden_dir: Path) -> None:
    for case in (CASES[1], CASES[3]):
        state = golden_state(load_golden(golden_dir / f"{case}.safetensors")[0])
        for key in state:
            with pytest.raises(CheckpointError):
                upfeat.from_official("anyup", {k: v for k, v in state.items() if k != key})
        with pytest.raises(CheckpointError, match="unexpected"):
            upfeat.from_official("anyup", {**state, "cross_decode.more": torch.zeros(1)})


def test_limits_of_the_natten_decoder() -> None:
    upsampler = upfeat.create_upsampler("anyup", qk_dim=16, attention="natten", window_ratio=0.49)
    image = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="large as the grid"):
        upsampler(image, torch.randn(1, 8, 5, 5), (4, 9))
    with pytest.raises(ValueError, match="window of"):
        upsampler(image, torch.randn(1, 8, 4, 4))


def test_unknown_choices() -> None:
    for config in ({"attention": "dense"}, {"unification": "clean"}):
        with pytest.raises(ValueError, match="must be"):
            upfeat.create_upsampler("anyup", **config)


@pytest.mark.parametrize("unification", ["released", "filterwise"])
@torch.no_grad()
def test_many_channels_in_half_precision(unification: str) -> None:
    """The unification's shares are all close to 1 / O: what tells them apart must not be lost."""
    torch.manual_seed(0)
    up = upfeat.create_upsampler("anyup", qk_dim=64, unification=unification).eval()
    image, features = torch.randn(1, 3, 48, 48), torch.randn(1, 192, 12, 12)
    expected = up(image, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(up(image, features), expected) < HALF[torch.bfloat16]
    for dtype, limit in HALF.items():
        half = copy.deepcopy(up).to(dtype)
        assert relative_error(half(image.to(dtype), features.to(dtype)), expected) < limit


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 2)])
def test_kernel_larger_than_the_image(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up = upfeat.create_upsampler("anyup", qk_dim=16, kernel_size=7).eval()
    image, features = torch.randn(1, 3, *size), torch.randn(1, 16, 2, 2)
    plain = up(image, features, (4, 6))  # with a graph
    with torch.no_grad():
        torch.testing.assert_close(up(image, features, (4, 6)), plain, atol=5e-5, rtol=1e-4)
    assert torch.isfinite(plain).all()


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        upfeat.create_upsampler("anyup", qk_dim=16, kernel_size=2)


def test_parameters_of_the_original_are_counted() -> None:
    up = upfeat.create_upsampler("anyup")
    assert sum(weight.numel() for weight in up.parameters()) + up.unused_parameters == 878080
