"""Angular scores against stored values and an independent computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import NormalMetric, angular_error, normal_scores


@pytest.mark.golden
def test_golden_of_probe3d(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "probe3d_normals.safetensors")
    said, true, valid = golden["pred4"][:, :3], golden["target"], golden["mask"][:, 0].bool()
    images = [normal_scores(*one) for one in zip(said, true, valid, strict=True)]
    stored = {"recall_11": "d1", "recall_22": "d2", "recall_30": "d3", "rmse": "rmse"}
    for name, theirs in stored.items():
        found = torch.tensor([image[name] for image in images])
        assert max_abs_difference(found, golden[f"metric_{theirs}"]) < GOLDEN_ATOL, name


def test_metric_is_the_mean_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    said, true = (torch.randn(3, 3, 5, 6, generator=generator) for _ in range(2))
    valid = torch.rand(3, 5, 6, generator=generator) > 0.3
    valid[2] = False
    one, other = NormalMetric(), NormalMetric()
    one.add(said, true, valid)
    for i in range(3):
        other.add(said[i : i + 1], true[i : i + 1], valid[i : i + 1])
    assert one.compute() == other.compute()
    assert int(one.images) == 2
    rmses = []
    for i in range(2):
        a, b = (x[i].numpy().astype(np.float64)[:, valid[i].numpy()] for x in (said, true))
        dots = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        rmses.append(math.sqrt((np.degrees(np.arccos(dots)) ** 2).mean()))
    assert one.compute()["rmse"] == pytest.approx(sum(rmses) / 2)
    assert math.isnan(NormalMetric().compute()["recall_11"])


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"must both be \(B, 3, H, W\)"):
        angular_error(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 3))
