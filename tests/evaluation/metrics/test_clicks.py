"""Clicks, click maps, distances and scores against the original code's outputs and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import (
    Click,
    ClickMetric,
    click_maps,
    clicks_needed,
    next_click,
    region_similarity,
    squared_distance,
    step_distance,
)
from upfeat.evaluation.metrics.clicks import STEP_UNIT


def nearest_outside(mask: torch.Tensor, weight) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The smallest weight of an offset to a pixel outside, by looking at all of them."""
    padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    outside = (padded == 0).nonzero() - 1
    inside = torch.cartesian_prod(*(torch.arange(side) for side in mask.shape))
    offsets = (inside[:, None] - outside[None]).abs()
    return weight(offsets).amin(1).reshape(mask.shape)


def step_length(offsets: torch.Tensor) -> torch.Tensor:
    """Knight's moves and diagonals, or knight's moves and sides, whichever octant it is."""
    long, short = offsets.amax(-1).double(), offsets.amin(-1).double()
    steep = (2 * short - long) * 1.4 + (long - short) * 2.1969
    flat = short * 2.1969 + (long - 2 * short)
    return torch.where(2 * short >= long, steep, flat)


@pytest.mark.parametrize("share", [0.6, 0.97, 1.0])
def test_distances_are_those_of_all_pairs(share: float, device: torch.device) -> None:
    mask = torch.rand(23, 31) < share
    expected = nearest_outside(mask, lambda offsets: offsets.square().sum(-1))
    assert torch.equal(squared_distance(mask.to(device)).cpu(), expected * mask)
    steps = nearest_outside(mask, step_length) * mask
    both = torch.stack([mask, mask.flip(1)]).to(device)
    found = (step_distance(both) / STEP_UNIT).double().cpu()
    torch.testing.assert_close(found[0], steps, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], steps.flip(1), atol=1e-3, rtol=0)


@pytest.mark.golden
def test_clicks_are_those_of_the_original(golden_dir: Path) -> None:
    case, _ = load_golden(golden_dir / "metrics" / "clicks.safetensors")
    clicked: list[Click] = []
    for prediction, expected in zip(case["preds_before_click"], case["clicks"], strict=True):
        click = next_click(prediction, case["gt"], clicked)
        assert click is not None
        assert list(click) == expected.tolist()
        clicked.append(click)
    ious = region_similarity(
        case["pred_after_click"],
        (case["gt"] == 1).expand_as(case["pred_after_click"]),
        case["gt"] == -1,
    )
    assert max_abs_difference(ious, case["iou_after_click"]) <= GOLDEN_ATOL
    for encoding in ("disk", "tanh"):
        maps = click_maps(case["points"], (48, 60), 5, encoding)  # type: ignore[arg-type]
        assert max_abs_difference(maps, case[f"{encoding}_maps"]) <= GOLDEN_ATOL


def test_a_click_is_not_repeated_and_the_missing_part_must_be_larger() -> None:
    target, said = torch.zeros(7, 12, dtype=torch.int64), torch.zeros(7, 12)
    target[2:5, 1:4] = 1
    said[2:5, 6:9] = 1
    assert next_click(said, target) == Click(3, 7, False)  # a tie is negative
    first = next_click(torch.zeros(7, 12), target)
    assert first == Click(3, 2, True)
    assert next_click(torch.zeros(7, 12), target, [first]) == Click(2, 1, True)
    target[said == 1] = -1
    assert next_click(said, target) == Click(3, 2, True)  # ignored pixels are no error
    assert next_click(target == 1, target) is None


def test_scores_by_hand() -> None:
    metric = ClickMetric(clicks=3, thresholds=(50, 90))
    for ious in ([0.4, 0.6, 0.8], [0.9, 0.7, 0.95]):
        metric.add(ious)
    expected = {"iou_1": 0.65, "noc_50": 1.5, "noc_90": 2.0, "missed_50": 0.0, "missed_90": 0.5}
    assert metric.compute() == pytest.approx(expected)
    assert metric.curve() == pytest.approx([0.65, 0.65, 0.875])
    assert clicks_needed([0.4, 0.6], 0.9, never=7) == 7
    with pytest.raises(ValueError, match="after 3 clicks, got 1"):
        metric.add([0.1])
    metric.reset()
    assert metric.compute()["iou_1"] != metric.compute()["iou_1"]
