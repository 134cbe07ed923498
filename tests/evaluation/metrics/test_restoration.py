"""PSNR, SSIM and the training loss against stored ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import RestorationMetric
from upfeat.objectives import restoration_terms
from upfeat.objectives.base import weighted_sum
from upfeat.ops.images import ssim


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "restoration_metrics.safetensors")
    pred, clean = golden["pred"], golden["clean"]
    metric = RestorationMetric()
    metric.add(pred, clean)
    scores = metric.compute()
    assert scores["ssim"] == pytest.approx(float(golden["ssim"]), abs=GOLDEN_ATOL)
    assert scores["psnr"] == pytest.approx(float(golden["psnr"]), rel=GOLDEN_ATOL)
    terms = restoration_terms(pred, clean)
    weight, structure = terms["structure"]
    parts = {"loss_ssim": weight * structure, "loss_total": weighted_sum(terms)["loss"]}
    for name, value in parts.items():
        assert max_abs_difference(value, golden[name]) < GOLDEN_ATOL


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ssim(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
