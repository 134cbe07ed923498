"""Losses of normals against stored values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.probes.normal_losses import angular_loss, uncertain_normals_loss


@pytest.mark.golden
def test_golden_of_probe3d(golden_dir: Path) -> None:
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
