"""Centre-of-mass fields: by hand, at borders, reliability, and the term of the objective."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.objectives.setups import tiny_backbone, tiny_batch, tiny_upsampler
from upfeat.objectives import MultiResolutionConfig, naf_config
from upfeat.objectives.mass_fields import (
    consensus_field,
    field_loss,
    mass_field,
    neighbour_weights,
    reliability,
)


def test_field_by_hand() -> None:
    """Against a loop over positions and offsets."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    expected = torch.zeros(1, 2, 6, 4, dtype=torch.float64)
    for row in range(6):
        for col in range(4):
            weights, offsets = [], []
            for y in range(max(0, row - 2), min(6, row + 3)):
                for z in range(max(0, col - 2), min(4, col + 3)):
                    near = F.cosine_similarity(x[0, :, row, col], x[0, :, y, z], dim=0)
                    weights.append((near / 0.3).exp())
                    offsets.append(torch.tensor([y - row, z - col], dtype=torch.float64) / 2)
            mass = torch.stack(weights)
            expected[0, :, row, col] = (mass[:, None] * torch.stack(offsets)).sum(0) / mass.sum()
    actual = mass_field(x, window=5, temperature=0.3)
    torch.testing.assert_close(actual, expected)


def test_size_of_features_does_not_matter_and_flat_ones_have_no_field() -> None:
    x = torch.randn(2, 5, 9, 9)
    torch.testing.assert_close(mass_field(7 * x), mass_field(x))
    flat = torch.ones(1, 3, 9, 9)
    assert mass_field(flat)[:, :, 4, 4].abs().max() < 1e-6
    assert torch.isfinite(mass_field(torch.zeros(1, 3, 2, 2))).all()
    torch.testing.assert_close(neighbour_weights(x, 3, 0.1).sum(1), torch.ones(2, 9, 9))


def test_the_sharper_and_less_spiky_guide_is_trusted() -> None:
    torch.manual_seed(0)
    sharp = torch.randn(1, 64, 9, 9)  # each position resembles itself alone
    flat = torch.ones(1, 64, 9, 9)
    spiky = sharp.clone()
    spiky[:, 0] = 100
    assert (reliability(sharp) > reliability(flat)).all()
    assert (reliability(sharp) > reliability(spiky)).all()
    assert torch.equal(consensus_field([flat, sharp]), mass_field(sharp))
    half = torch.where(torch.arange(9) < 5, sharp, flat)
    both = consensus_field([flat, half])
    torch.testing.assert_close(both[..., 0], mass_field(half)[..., 0])


def test_loss_leads_to_the_prediction_alone() -> None:
    pred = torch.randn(1, 4, 8, 8, requires_grad=True)
    guide = torch.randn(1, 6, 8, 8, requires_grad=True)
    field_loss(pred, [guide]).backward()
    assert pred.grad is not None
    assert pred.grad.abs().sum() > 0
    assert guide.grad is None
    with pytest.raises(ValueError, match="window must be odd"):
        field_loss(pred, [guide], window=4)


def test_the_term_of_the_objective() -> None:
    """It is added with its weight, and is not there without one."""
    parts = tiny_batch(), tiny_backbone(), tiny_upsampler("naf").eval()
    plain = naf_config()
    guided = plain.model_copy(update={"field_weight": 2.0})
    losses = []
    for config in (plain, guided):
        assert isinstance(config, MultiResolutionConfig)
        objective = config.build()
        objective.prepare(parts[2], parts[1])
        losses.append(objective.step(*parts, torch.Generator().manual_seed(0)))
    assert "field" not in losses[0]
    expected = losses[0]["loss"] + 2 * losses[1]["field"]
    torch.testing.assert_close(losses[1]["loss"], expected)
    assert losses[1]["field"] > 0
