"""Clicks of the training against the original code's, and what is drawn where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.goldens import load_golden
from tests.tolerances import max_abs_difference
from upfeat.data.objects import ObjectImage
from upfeat.evaluation.probes.training_clicks import (
    SLOTS,
    augmented,
    click_count_chances,
    corrective_candidates,
    draw_clicks,
    draw_crop,
    eroded,
    place_corrective,
    ring_around,
)


@pytest.mark.golden
def test_candidates_and_chances_are_the_originals(golden_dir: Path) -> None:
    case, _ = load_golden(golden_dir / "metrics2" / "iseg_training_clicks.safetensors")
    target = case["gt"] != 0
    places, positive = corrective_candidates(case["pred"][:, 0], target)
    assert torch.equal(places, case["candidates"] != 0)
    first = torch.zeros_like(places)  # only the first candidate is left to draw
    for one, found in zip(first, places, strict=True):
        if found.any():
            one[tuple(found.nonzero()[0])] = True
    points = place_corrective(case["points_in"], first, positive, 2, torch.Generator())
    assert torch.equal(points, case["points_out"])
    assert torch.equal(eroded(target), case["eroded"] != 0)
    assert torch.equal(eroded(case["small"] != 0), case["small_eroded"] != 0)
    for mask, ring in zip(target, case["border"], strict=True):
        assert torch.equal(ring_around(mask), ring != 0)
    for name, count in (("positive_probs", 24), ("negative_probs", 25)):
        assert max_abs_difference(click_count_chances(count), case[name]) <= 1e-12


def test_first_clicks_fall_where_they_belong() -> None:
    target, others = torch.zeros(2, 60, 60, dtype=torch.bool)
    target[10:30, 10:30] = True
    others[40:50, 40:50] = True
    counts, inner, kinds = [], [], []
    for seed in range(200):
        points = draw_clicks(target, others, torch.Generator().manual_seed(seed))
        used = points[:, 0] >= 0
        rows, cols = points[:, 0].long(), points[:, 1].long()
        positive = used & (torch.arange(2 * SLOTS) < SLOTS)
        negative = used & ~positive
        assert target[rows[positive], cols[positive]].all()
        assert not target[rows[negative], cols[negative]].any()
        counts.append((int(positive.sum()), int(negative.sum())))
        inner.append(eroded(target)[rows[positive], cols[positive]])
        kinds.append(others[rows[negative], cols[negative]])
    means = torch.tensor(counts).double().mean(0)
    chances = click_count_chances(24)
    assert means[0] == pytest.approx(1 + float(chances @ torch.arange(24.0).double()), rel=0.1)
    assert torch.tensor(counts)[:, 0].min() == 1
    assert torch.cat(inner).float().mean() == pytest.approx(0.9 + 0.1 * 196 / 400, abs=0.03)
    assert torch.cat(kinds).float().mean() == pytest.approx(0.4 + 0.1 * 100 / 3200, abs=0.05)


def test_without_an_object_there_are_negative_clicks_only() -> None:
    nothing = torch.zeros(20, 20, dtype=torch.bool)
    points = torch.stack(
        [draw_clicks(nothing, nothing, torch.Generator().manual_seed(seed)) for seed in range(9)]
    )
    assert (points[:, :SLOTS] == -1).all()
    assert (points[:, SLOTS:] >= 0).any()
    places, _ = corrective_candidates(torch.zeros(1, 20, 20), nothing[None])
    assert not places.any()
    kept = place_corrective(points[:1], places, torch.tensor([False]), 1, torch.Generator())
    assert torch.equal(kept, points[:1])


# -- crops ---------------------------------------------------------------------------------------


def test_image_and_labels_move_together() -> None:
    """Red is drawn where the objects are, so every crop must show it there still."""
    labels = torch.zeros(90, 120, dtype=torch.int64)
    labels[20:60, 30:70], labels[50:80, 80:110] = 1, 2
    image = torch.stack([(labels > 0).float(), torch.zeros(90, 120), torch.full((90, 120), 0.5)])
    for seed in range(30):
        colours, moved = augmented(image, labels, 64, torch.Generator().manual_seed(seed))
        assert colours.shape == (3, 64, 64)
        assert colours.min() >= 0
        assert colours.max() <= 1
        red = colours[0] > colours[0].mean()
        if moved.any() and not moved.all():
            assert (red == (moved > 0)).float().mean() > 0.93
        assert set(moved.unique().tolist()) <= {0, 1, 2}


def test_objects_of_a_crop() -> None:
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[8:28, 8:28], labels[36:56, 36:56], labels[40:43, 10:13] = 1, 2, 3
    item = ObjectImage(torch.rand(3, 64, 64), labels)
    merged = 0
    for seed in range(100):
        crop = draw_crop(item, 96, torch.Generator().manual_seed(seed))
        assert not (crop.target & crop.others).any()
        areas = int(crop.target.sum()), int(crop.others.sum())
        assert min(a for a in areas if a) >= 80  # the third object, 9 pixels, is none
        merged += areas[1] == 0
    assert 5 <= merged <= 30
    assert draw_crop(item, 96, torch.Generator().manual_seed(3)).image.equal(
        draw_crop(item, 96, torch.Generator().manual_seed(3)).image
    )


def test_an_image_without_objects_gives_an_empty_crop() -> None:
    item = ObjectImage(torch.rand(3, 40, 40), torch.zeros(40, 40, dtype=torch.int64))
    crop = draw_crop(item, 48, torch.Generator())
    assert not crop.target.any()
    assert not crop.others.any()
