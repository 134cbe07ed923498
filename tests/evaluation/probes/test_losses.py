"""Losses of the probes of depth and normals against stored values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import fit_scale_and_shift
from upfeat.evaluation.probes.losses import (
    angular_loss,
    bin_depth,
    gradient_loss,
    midas_ssi_loss,
    probe3d_loss,
    sig_loss,
    uncertain_normals_loss,
    valid_depth,
)
from upfeat.evaluation.probes.parts import learning_rate_factor


@pytest.mark.golden
def test_golden_of_jafars_probe(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "depth_pseudolabel.safetensors")
    prediction, target = golden["pred"].requires_grad_(), golden["target"]
    valid = valid_depth(target)
    sig = sig_loss(prediction, target, valid)
    (gradient,) = torch.autograd.grad(sig, prediction)
    found = {
        "sig": sig,
        "sig_warm": sig_loss(prediction, target, valid, warm=True),
        "sig_grad": gradient,
        "gradient_loss_spatial": gradient_loss(prediction, target, valid),
        "bin_depth": bin_depth(golden["bin_logits"])[:, None],
    }
    for count in (2, 3, 4):
        found[f"gradient_loss_as_released_batch{count}"] = gradient_loss(
            prediction[:count], target[:count], valid[:count], released=True
        )
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences
    assert found["gradient_loss_as_released_batch2"].item() == 0


@pytest.mark.golden
def test_golden_of_probe3d(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "probe3d_depth.safetensors")
    prediction, target = golden["pred"].requires_grad_(), golden["target"]
    valid = valid_depth(target)
    loss = probe3d_loss(prediction, target, valid)
    (gradient,) = torch.autograd.grad(loss, prediction)
    steps = golden["lr_steps"].tolist()
    factors = [learning_rate_factor("probe3d", step, 10, 100) for step in steps]
    found = {
        "loss": loss,
        "loss_grad": gradient,
        "gradient_part": 2 * gradient_loss(prediction, target, valid),
        "lr_factor": torch.tensor(factors, dtype=torch.float64),
        "si_loss": probe3d_loss(golden["aligned_pred"], target, valid),
    }
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences


@pytest.mark.golden
def test_golden_of_midas(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "midas_ssi_loss.safetensors")
    prediction, target, mask = golden["pred"].requires_grad_(), golden["target"], golden["mask"]
    loss = midas_ssi_loss(prediction, target, mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    scale, shift = fit_scale_and_shift(prediction, target, mask)
    found = {"loss": loss, "grad": gradient, "scale": scale, "shift": shift}
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences


def test_bins_of_single_pixels_are_those_of_a_map() -> None:
    logits = torch.randn(2, 16, 3, 4)
    depth = bin_depth(logits, 0.5, 4)
    assert depth.shape == (2, 3, 4)
    assert 0.5 <= float(depth.min()) <= float(depth.max()) <= 4
    # (B, K, H, W) -> (B*H*W, K)
    pixels = bin_depth(logits.movedim(1, -1).reshape(-1, 16), 0.5, 4)
    torch.testing.assert_close(pixels, depth.flatten())
    share = logits.relu() + 0.1
    bins = torch.linspace(0.5, 4, 16)[:, None, None]
    torch.testing.assert_close(depth, (share / share.sum(1, keepdim=True) * bins).sum(1))


def test_pixels_that_do_not_count_have_no_influence() -> None:
    prediction = (torch.rand(2, 1, 9, 9) + 0.5).requires_grad_()
    target = torch.rand(2, 1, 9, 9) + 0.5
    target[:, :, 4:] = 0
    valid = valid_depth(target)
    for loss in (sig_loss, gradient_loss, probe3d_loss):
        (gradient,) = torch.autograd.grad(loss(prediction, target, valid), prediction)
        assert bool(gradient.isfinite().all())
        assert int(gradient[:, :, 4:].count_nonzero()) == 0
        assert int(gradient[:, :, :4].count_nonzero()) > 0


def test_a_perfect_prediction_has_finite_gradients() -> None:
    depth = (torch.rand(2, 1, 9, 9) + 0.5).requires_grad_()
    for loss in (sig_loss, probe3d_loss):
        value = loss(depth, depth.detach(), valid_depth(depth.detach()))
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, depth)
        assert bool(gradient.isfinite().all())


def test_gradients_in_double_precision() -> None:
    prediction = (torch.rand(2, 1, 8, 8, dtype=torch.float64) + 0.5).requires_grad_()
    target = torch.rand(2, 1, 8, 8, dtype=torch.float64) + 0.5
    valid = valid_depth(target)
    for loss in (sig_loss, gradient_loss, probe3d_loss):
        assert torch.autograd.gradcheck(lambda p, loss=loss: loss(p, target, valid), prediction)
    ones = torch.ones(2, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p: midas_ssi_loss(p[:, 0], target[:, 0], ones), prediction
    )
    logits = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bin_depth, logits)


def test_errors() -> None:
    depth = torch.ones(2, 4, 4)
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        gradient_loss(depth, depth, depth > 0)
    with pytest.raises(ValueError, match="one shape"):
        sig_loss(depth, depth[:1], depth > 0)


# -- normals -------------------------------------------------------------------------------------


@pytest.mark.golden
def test_golden_of_probe3ds_normals(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "probe3d_normals.safetensors")
    outputs, target = golden["pred4"].requires_grad_(), golden["target"]
    valid = golden["mask"][:, 0].bool()
    loss = uncertain_normals_loss(outputs, target, valid)
    (gradient,) = torch.autograd.grad(loss, outputs)
    found = {
        "loss_uncertainty": loss,
        "loss_uncertainty_grad": gradient,
        "loss_plain": angular_loss(outputs[:, :3], target, valid),
    }
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences


def test_a_perfect_prediction_has_finite_gradients_and_others_none() -> None:
    target = torch.randn(1, 3, 4, 4)
    outputs = torch.cat([2 * target, torch.zeros(1, 1, 4, 4)], 1).requires_grad_()
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, 2:] = False
    (gradient,) = torch.autograd.grad(uncertain_normals_loss(outputs, target, valid), outputs)
    assert bool(gradient.isfinite().all())
    assert int(gradient[:, :, 2:].count_nonzero()) == 0
    assert int(gradient[:, 3, :2].count_nonzero()) > 0
    with pytest.raises(ValueError, match="valid"):
        angular_loss(target, target, valid[:, :2])
