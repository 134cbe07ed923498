"""Scores against stored ones, against plain counting, and over two processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import load_golden
from upfeat.evaluation.metrics import (
    SegmentationMetric,
    boundary_band,
    confusion_matrix,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "seg_metrics.safetensors")
    matrix = confusion_matrix(golden["pred"], golden["gt"], 9)
    assert torch.equal(matrix, golden["confusion_gt_rows"])
    ious, expected = iou_per_class(matrix), golden["iou_per_class"].double()
    assert ious[8].isnan()  # absent from both
    torch.testing.assert_close(ious[:8], expected[:8], atol=1e-6, rtol=0)
    assert mean_iou(matrix) == pytest.approx(golden["miou"].item(), abs=1e-6)
    assert pixel_accuracy(matrix) == pytest.approx(golden["pixel_accuracy"].item(), abs=1e-6)


@pytest.mark.golden
def test_golden_image_by_image(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "seg_metrics.safetensors")
    metric = SegmentationMetric(9)
    for prediction, target in zip(golden["pred"], golden["gt"], strict=True):
        metric.add(prediction, target)
    assert metric.compute()["miou"] == pytest.approx(golden["miou"].item(), abs=1e-6)


def test_a_class_that_is_only_predicted() -> None:
    matrix = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 3)
    assert mean_iou(matrix) == pytest.approx((2 / 3 + 0) / 2)
    assert mean_iou(matrix, labelled_only=True) == pytest.approx(2 / 3)


def test_nothing_counted_is_no_score() -> None:
    metric = SegmentationMetric(2, boundary_radius=1)
    metric.add(torch.zeros(2, 2), torch.full((2, 2), 255))
    assert all(math.isnan(score) for score in metric.compute().values())


def near(label: torch.Tensor, radius: int) -> torch.Tensor:
    """The band, pixel by pixel."""
    height, width = label.shape
    edge = torch.zeros(height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    edge[y, x] |= bool(label[y, x] != label[y + dy, x + dx])
    band = torch.zeros_like(edge)
    for y in range(height):
        for x in range(width):
            for v, u in edge.nonzero().tolist():
                band[y, x] |= (y - v) ** 2 + (x - u) ** 2 <= radius**2
    return band


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_band_is_what_its_definition_says(height: int, width: int, radius: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(2, height, width, generator=generator) < 0.15).long() * 255
    expected = torch.stack([near(one, radius) for one in label])
    assert torch.equal(boundary_band(label, radius), expected)
    assert torch.equal(boundary_band(label[0], radius), expected[0])


def test_band_scores_count_the_band_only() -> None:
    target = torch.zeros(1, 20, dtype=torch.int64)
    target[:, 10:] = 1
    prediction = target.clone()
    prediction[:, 0] = 1  # far from the boundary
    metric = SegmentationMetric(2, boundary_radius=2)
    metric.add(prediction, target)
    scores = metric.compute()
    assert scores["accuracy"] == 0.95
    assert scores["band_accuracy"] == 1.0
    assert int(metric.band_matrix.sum()) == 6


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="resize the logits"):
        confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="target holds class 0 to 7, wanted 0 to 1 or the ignored"):
        confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 7]), 2)
    with pytest.raises(ValueError, match="prediction holds class"):
        confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="label must be"):
        boundary_band(torch.zeros(3), 1)


def _count(rank: int, store: str, targets: torch.Tensor, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = SegmentationMetric(3, boundary_radius=1)
    for target in targets[rank::2]:
        metric.add(target.flip(0), target)
    metric.sync()
    torch.save(metric.compute(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    targets = torch.randint(0, 3, (5, 4, 6))
    mp.spawn(_count, (str(tmp_path / "store"), targets, str(tmp_path)), nprocs=2)
    alone = SegmentationMetric(3, boundary_radius=1)
    for target in targets:
        alone.add(target.flip(0), target)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == alone.compute()
