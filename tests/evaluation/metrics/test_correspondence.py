"""Matching key points: stored predictions and scores of the original codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import (
    KeypointMetric,
    SquareCanvas,
    match_cells,
    nearest_points,
    soft_argmax,
)
from upfeat.evaluation.probes.key_points import (
    lift_canvas,
    lift_matches,
    recall_matches,
    square_image,
    square_matches,
)

ALPHAS = (0.1, 0.05, 0.01)
NAN = float("nan")


def known(points: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """The points (K, 2) as float64, NaN where they are not shown."""
    return torch.where(shown[:, None], points.double(), NAN)


@pytest.mark.golden
def test_golden_square(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "spair_pck.safetensors")
    metric = KeypointMetric(("one",), ALPHAS)
    for pair, expected in enumerate(golden["predictions"]):
        source, target = golden["features"][2 * pair : 2 * pair + 2].permute(0, 3, 1, 2)
        points = golden["keypoints"][2 * pair : 2 * pair + 2]
        shown = points[0, :, 0] >= 0
        sizes = [tuple(size.tolist()) for size in golden["image_sizes"][2 * pair : 2 * pair + 2]]
        canvases = [SquareCanvas.centred(size) for size in sizes]
        said = torch.full((len(shown), 2), NAN, dtype=torch.float64)
        queries = source.flatten(1).T[canvases[0].cells(points[0][shown].double(), 32)]
        said[shown] = square_matches(queries, target.split(5, 1), canvases[1], 32)
        assert torch.equal(said[shown].long(), expected[shown])
        true = known(points[1], points[1, :, 0] >= 0)
        single = KeypointMetric(("one",), ALPHAS)
        for each in (metric, single):
            each.add("one", said, true, float(golden["thresholds"][pair]))
        assert int(single.points) == golden["n_points"][pair]
        shares = torch.tensor([single.compute()[f"pck_image_{p}"] for p in (10, 5, 1)])
        assert max_abs_difference(shares, golden["pck_image"][pair]) < GOLDEN_ATOL
    scores = metric.compute()
    for name, key, unit in (
        ("pck", "pck", 1),
        ("pck_points", "pck", 1),
        ("pck_plus", "pck_plus", 1),
        ("pck_pairs", "pck_image_mean", 100),
    ):
        found = unit * torch.tensor([scores[f"{name}_{p}"] for p in (10, 5, 1)]).double()
        assert max_abs_difference(found, golden[key]) < GOLDEN_ATOL


@pytest.mark.golden
def test_golden_lift(golden_dir: Path) -> None:
    golden, meta = load_golden(golden_dir / "metrics2" / "spair_pck_lift.safetensors")
    side = 48
    metric = KeypointMetric(("one",), ALPHAS, strict=True)
    for pair, expected in enumerate(golden["predictions"]):
        rows = slice(2 * pair, 2 * pair + 2)
        # (T, C) -> (C, n, n)
        maps = [tokens.T.reshape(-1, 12, 12) for tokens in golden["tokens"][rows]]
        points = []
        for raw, size, stored in zip(
            golden["raw_keypoints"][rows],
            golden["image_sizes"][rows],
            golden["keypoints"][rows],
            strict=True,
        ):
            canvas = lift_canvas((int(size[0]), int(size[1])), side)
            shown = raw[:, 2] > 0
            points.append(known(canvas.place(raw[:, :2].double()), shown))
            assert max_abs_difference(points[-1][shown], stored[shown, :2]) < GOLDEN_ATOL
            box = golden["boxes"][2 * pair + 1]
        threshold = canvas.scale * float(max(box[2] - box[0], box[3] - box[1]))
        assert threshold == pytest.approx(float(golden["thresholds"][2 * pair + 1]), abs=1e-6)
        said = lift_matches(maps[0], maps[1], points[0], side)
        both = ~(points[0] + points[1]).isnan().any(1)
        assert torch.equal(said[both].long(), expected[both])
        metric.add("one", said, points[1], threshold)
    scores = metric.compute()
    found = torch.tensor([scores[f"pck_points_{p}"] for p in (10, 5, 1)])
    assert max_abs_difference(found, golden["pck"]) < GOLDEN_ATOL
    assert meta is not None


@pytest.mark.golden
def test_golden_recall(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "spair_recall_probe3d.safetensors")
    metric = KeypointMetric(("one",), ALPHAS, strict=True)
    for number, (source, target) in enumerate(golden["features"]):
        first, second = golden["kps_i"][number], golden["kps_j"][number]
        points = known(first[:, :2], first[:, 2] > 0)
        true = known(second[:, :2] / 80, second[:, 2] > 0)
        scale = float(golden["thresh_scale"][number])
        said = recall_matches(source, target, points, 80)
        both = ~(points + true).isnan().any(1)
        errors = (said - true).norm(dim=1) / scale
        assert max_abs_difference(errors[both], golden["error_same"][number][both]) < GOLDEN_ATOL
        distance, row = nearest_points(said[both], true)
        expected = golden["error_nearest"][number][both]
        assert max_abs_difference(distance / scale, expected) < GOLDEN_ATOL
        assert torch.equal(row, golden["nearest"][number][both])
        metric.add("one", said, true, scale)
    assert 100 * metric.compute()["pck_points_10"] == pytest.approx(float(golden["recall"]))


def test_strips_give_the_first_of_equal_matches() -> None:
    grid = torch.randn(5, 6, 4)
    grid[:, 4, 2] = 4 * grid[:, 1, 3]  # the same direction to the last bit, later
    for rows in (1, 2, 6):
        assert match_cells(grid[:, 1, 3][None], grid.split(rows, 1)).tolist() == [7]


def test_soft_argmax_by_its_definition() -> None:
    similarity = torch.rand(2, 5, 6, dtype=torch.float64)
    for window in (2, 0, -2):
        for one, found in zip(similarity, soft_argmax(similarity, window), strict=True):
            top = divmod(int(one.argmax()), 6)
            total, column, row = 0.0, 0.0, 0.0
            for y in range(5):
                for x in range(6):
                    down, across = y - top[0], x - top[1]
                    value = one[y, x]
                    if window > 0 and max(abs(down), abs(across)) > window:
                        value = torch.zeros(())
                    if window < 0:
                        value = value * torch.tensor(-(down**2 + across**2) / 8).exp()
                    weight = float(((value - one.max()) / 0.02).exp())
                    total, column, row = total + weight, column + weight * x, row + weight * y
            assert found.tolist() == pytest.approx([column / total, row / total])


def test_plus_wants_the_nearest_prediction_to_be_its_own() -> None:
    targets = torch.tensor([[0.0, 0.0], [10.0, 0.0], [NAN, NAN]])
    # Point 0 is found 2 pixels off; point 2, which the target does not show, falls right on it.
    predictions = torch.tensor([[2.0, 0.0], [10.0, 1.0], [0.0, 0.0]])
    metric = KeypointMetric(("a", "b"), (0.1,))
    metric.add("a", predictions, targets, 50)
    metric.add("b", predictions, targets, 5, torch.tensor([True, False, False]))
    scores = metric.compute()
    assert scores["pck_10"] == 0.5  # all of a, none of b
    assert scores["pck_plus_10"] == 0.25
    assert scores["pck_points_10"] == pytest.approx(2 / 3)
    assert scores["pck_image_10"] == 0.5
    with pytest.raises(ValueError, match="categories are a, b"):
        metric.add("c", predictions, targets, 5)


def test_an_odd_difference_leaves_the_square_a_pixel_short() -> None:
    assert SquareCanvas.centred((4, 7)) == SquareCanvas(7, 0, 1)
    image = torch.ones(3, 4, 7)
    assert square_image(image, 6)[0].sum(1).tolist() == [0, 6, 6, 6, 6, 0]  # 1 + 4 + 1 rows
