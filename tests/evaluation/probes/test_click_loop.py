"""The loop of clicks against the original's, and its boxes by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import Click, ClickMetric
from upfeat.evaluation.probes.click_loop import ClickRules, click_steps, object_box


def toy(image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """The network of the stored case: brightness, blurred clicks, last probabilities."""
    bright = F.avg_pool2d(image, 5, 1, 2).mean(1, keepdim=True)
    previous, clicks = maps[:, :1], maps[:, 1:]
    for _ in range(2):
        clicks = F.avg_pool2d(clicks, 9, 1, 4)
    positive, negative = clicks.split(1, 1)
    return 6 * (bright - 0.5) + 9 * positive - 9 * negative + 1.5 * (previous - 0.3) - 1.2


CASES = {
    "a": ClickRules(size=56, clicks=6, smallest=50),
    "b": ClickRules(size=40, clicks=5, smallest=50),
    "c": ClickRules(size=56, clicks=4, smallest=50, flip=False),
}


@pytest.mark.golden
def test_the_loop_is_the_originals(golden_dir: Path) -> None:
    case, _ = load_golden(golden_dir / "metrics2" / "iseg_evaluation.safetensors")
    needed = []
    for name, rules in CASES.items():
        image = case[f"{name}_image"].permute(2, 0, 1) / 255
        steps = list(click_steps(toy, image, case[f"{name}_gt"], rules))
        assert [list(step.click) for step in steps] == case[f"{name}_clicks"].tolist()
        assert [list(step.box) for step in steps] == case[f"{name}_rois"].tolist()
        ious = torch.tensor([step.iou for step in steps])
        assert max_abs_difference(ious, case[f"{name}_iou"]) <= GOLDEN_ATOL
        for which, step in (("first", steps[0]), ("last", steps[-1])):
            stored = case[f"{name}_prob_{which}"]
            assert max_abs_difference(step.probability, stored) <= GOLDEN_ATOL
        metric = ClickMetric(rules.clicks, (50, 60, 70))
        metric.add([step.iou for step in steps])
        assert metric.missed.tolist() == [0, 0, 0]
        needed.append(metric.needed.double())
    assert max_abs_difference(torch.stack(needed).mean(0), case["noc"]) <= GOLDEN_ATOL
    assert case["over"].tolist() == [0, 0, 0]


def test_boxes() -> None:
    mask = torch.zeros(60, 80, dtype=torch.bool)
    rules = ClickRules(smallest=20)
    clicks = [Click(5, 70, True), Click(50, 2, False)]
    assert object_box(mask, clicks, rules) == (0, 59, 0, 79)
    mask[20:40, 30:40] = True
    assert object_box(mask, [], rules) == (16, 44, 24, 44)  # ends half to even, 20 wide at least
    assert object_box(mask, clicks, rules) == (0, 46, 21, 79)


def test_a_perfect_network_ends_early_and_a_target_without_object_is_refused() -> None:
    target = torch.zeros(30, 30, dtype=torch.int64)
    target[10:20, 10:20] = 1

    def right(image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return (target.float()[None, None] - 0.5).expand(len(image), 1, 30, 30)

    rules = ClickRules(size=30, flip=False)
    (step,) = click_steps(right, torch.rand(3, 30, 30), target, rules)
    assert (step.iou, step.box) == (1.0, (0, 29, 0, 29))
    with pytest.raises(ValueError, match="must mark an object"):
        next(click_steps(right, torch.rand(3, 30, 30), torch.zeros_like(target), rules))
