"""Scores of depth, normals and restored images: stored ones, formulas, two processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import (
    DepthMetric,
    NormalMetric,
    RestorationMetric,
    angular_error,
    depth_scores,
    fit_scale_and_shift,
    normal_scores,
)
from upfeat.objectives import Objective, restoration_terms
from upfeat.ops.images import ssim

GOLDEN_NAMES = {"log10": "log_10"}


@pytest.mark.golden
def test_golden_scores_of_pooled_pixels(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "depth_pseudolabel.safetensors")
    target = golden["target"]
    scores = depth_scores(golden["pred"], target, (target > 1e-3) & (target < 10))
    stored = {name: golden[f"metric_{GOLDEN_NAMES.get(name, name)}"].item() for name in scores}
    assert len(stored) == 9
    assert max(abs(scores[name] - stored[name]) for name in scores) < GOLDEN_ATOL


@pytest.mark.golden
def test_golden_scores_with_and_without_a_fit(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "probe3d_depth.safetensors")
    prediction, target = golden["pred"], golden["target"]
    scale, shift = fit_scale_and_shift(prediction, target, target > 0)
    fitted = scale[:, None, None, None] * prediction + shift[:, None, None, None]
    assert max_abs_difference(fitted, golden["aligned_pred"]) < GOLDEN_ATOL
    for prefix, depth in (("sa", prediction), ("si", fitted)):
        for image, (said, true) in enumerate(zip(depth, target, strict=True)):
            scores = depth_scores(said, true)
            for name in ("d1", "d2", "d3", "rmse"):
                difference = abs(scores[name] - golden[f"{prefix}_{name}"][image].item())
                assert difference < GOLDEN_ATOL, (prefix, name, image)


def test_meter_is_the_mean_over_images() -> None:
    target, prediction = torch.rand(3, 1, 5, 6) * 9 + 0.5, torch.rand(3, 1, 5, 6) * 9 + 0.5
    target[0, :, :2] = 0  # missing
    target[1, :, 3:] = 12  # too far
    metric = DepthMetric(aligned=True)
    metric.add(prediction[:2], target[:2])
    metric.add(prediction[2:], target[2:])
    metric.add(prediction[:1], torch.zeros(1, 1, 5, 6))  # nothing to score
    assert int(metric.count) == 3
    valid = (target > 1e-3) & (target < 10)
    each = [depth_scores(*image) for image in zip(prediction, target, valid, strict=True)]
    scores = metric.compute()
    for name in each[0]:
        assert scores[name] == pytest.approx(sum(one[name] for one in each) / 3)
    assert scores["si_rmse"] < scores["rmse"]


def test_no_image_is_no_score() -> None:
    assert all(math.isnan(score) for score in DepthMetric().compute().values())
    assert math.isnan(depth_scores(torch.ones(2), torch.zeros(2))["d1"])


@given(st.floats(0.1, 5), st.floats(-2, 2), st.integers(0, 99))
def test_fit_finds_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(2, 4, 5, generator=generator, dtype=torch.float64)
    target = scale * low + shift
    target[:, 0] = 99  # not valid
    valid = torch.ones(2, 4, 5)
    valid[:, 0] = 0
    found = fit_scale_and_shift(low, target, valid)
    torch.testing.assert_close(found[0], torch.full((2,), scale, dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.full((2,), shift, dtype=torch.float64))


def test_a_fit_without_an_answer_changes_nothing() -> None:
    flat, target = torch.full((2, 3, 3), 0.3), torch.rand(2, 3, 3)
    valid = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)])
    scale, shift = fit_scale_and_shift(flat, target, valid)
    assert scale.tolist() == [1, 1]
    assert shift.tolist() == [0, 0]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="resize the prediction"):
        depth_scores(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        DepthMetric().add(torch.ones(2, 2), torch.ones(2, 2))


def _score(rank: int, store: str, depths: torch.Tensor, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = DepthMetric(aligned=True)
    for depth in depths[rank::2]:
        metric.add(depth.flip(1), depth)
    metric.sync()
    torch.save(metric.compute(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    depths = torch.rand(5, 1, 4, 6) + 0.5
    mp.spawn(_score, (str(tmp_path / "store"), depths, str(tmp_path)), nprocs=2)
    alone = DepthMetric(aligned=True)
    for depth in depths:
        alone.add(depth.flip(1), depth)
    expected = alone.compute()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(expected, abs=1e-12)


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
    assert int(one.count) == 2
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
    parts = {"loss_ssim": weight * structure, "loss_total": Objective.weighted_sum(terms)["loss"]}
    for name, value in parts.items():
        assert max_abs_difference(value, golden[name]) < GOLDEN_ATOL


def test_images_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ssim(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
