"""Scores along boundaries: stored ones, plain counting, and as options of the probe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import (
    BoundaryMetric,
    SegmentationMetric,
    boundary_band,
    boundary_iou,
    boundary_region,
    boundary_similarity,
    sobel_map,
)
from upfeat.evaluation.probes.parts import BoundaryOptions
from upfeat.evaluation.protocols.seg_probe import seg_probe_preset

RADII = (1, 2, 4, 8)


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "boundary_scores.safetensors")
    label, prediction = golden["label"], golden["prediction"]
    for radius in (4, 8):
        assert torch.equal(boundary_band(label, radius), golden[f"band_{radius}"].bool())
    metric = BoundaryMetric(4, radii=RADII)
    for pair in zip(prediction, label, strict=True):
        metric.add(*pair)
    scores = metric.compute()
    for name, key in (("trimap_miou", "band_miou"), ("trimap_accuracy", "band_accuracy")):
        found = torch.tensor([scores[f"{name}_{radius}"] for radius in RADII]).double()
        assert max_abs_difference(found, golden[key]) < GOLDEN_ATOL
    numbers = torch.arange(4)[:, None, None]
    said, true = prediction[:, None] == numbers, label[:, None] == numbers  # (B, K, H, W)
    for form in ("davis", "sobel"):
        found = boundary_similarity(said, true, form=form)
        assert max_abs_difference(found, golden[f"boundary_f_{form}"]) < GOLDEN_ATOL
    assert torch.equal(boundary_region(true), golden["boundary_region"].bool())
    assert max_abs_difference(boundary_iou(said, true), golden["boundary_iou"]) < GOLDEN_ATOL


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 99))
def test_region_is_what_erosions_leave(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(height, width, generator=generator) < 0.8
    eroded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    around = [eroded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    expected = mask & ~torch.stack(around).all(0)
    assert torch.equal(boundary_region(mask), expected)


def test_sobel_edges_are_two_pixels_thick() -> None:
    mask = torch.zeros(6, 6)
    mask[:, 3:] = 1
    assert sobel_map(mask).int().tolist() == [[0, 0, 1, 1, 0, 0]] * 6
    assert not sobel_map(torch.ones(4, 4)).any()
    assert float(boundary_similarity(mask * 0, mask * 0, form="sobel")) == 0
    with pytest.raises(ValueError, match="form"):
        boundary_similarity(mask, mask, form="canny")  # type: ignore[arg-type]


def test_ignored_pixels_are_background() -> None:
    label = torch.zeros(12, 12, dtype=torch.int64)
    label[:, 6:] = 1
    label[:4] = 255
    prediction = label.clone()
    prediction[:4] = 1  # anything may be said where nothing is known
    metric = BoundaryMetric(3, share=0.1, form="davis")
    metric.add(prediction, label)
    assert metric.compute() == {"boundary_iou": 1.0, "boundary_f": 1.0}
    metric.reset()
    assert all(math.isnan(score) for score in metric.compute().values())


def test_mean_is_over_classes_of_means_over_images() -> None:
    half = torch.zeros(8, 8, dtype=torch.int64)
    half[:, 4:] = 1
    metric = SegmentationMetric(2, boundaries=BoundaryMetric(2, share=0.02))
    for prediction, label in ((half, half), (half * 0, half * 0), (half * 0, half)):
        metric.add(prediction, label)
    # Class 0: 1, 1 and the IoU of an outline of 28 with one of 20; class 1: 1 and 0.
    first = float(boundary_iou(half * 0 == 0, half == 0))
    expected = ((1 + 1 + first) / 3 + (1 + 0) / 2) / 2
    assert metric.compute()["boundary_iou"] == pytest.approx(expected)


def test_only_what_is_asked_for_stands_in_the_settings() -> None:
    assert BoundaryOptions().boundary_metric(3, 255) is None
    for preset, data in (("pixel-sample", "msrc"), ("jafar", "voc")):
        plain = seg_probe_preset(preset, data).model_dump(mode="json")
        assert not {"trimap", "boundary_iou", "boundary_f"} & set(plain)
        more = seg_probe_preset(preset, data, trimap=[4, 8], boundary_f="sobel")
        assert more.model_dump(mode="json") == plain | {"trimap": [4, 8], "boundary_f": "sobel"}
