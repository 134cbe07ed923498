"""TokenCut against stored cuts and boxes, and the eigenproblem against the dense one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.errors import UnsupportedError
from upfeat.evaluation.metrics import CorLocMetric, box_iou, discovery, normalized_cut
from upfeat.evaluation.protocols.discovery import pixel_box, squashed_boxes


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "tokencut.safetensors")
    metric = CorLocMetric()
    for number, tokens in enumerate(golden["tokens"]):
        grid = tokens[1:].T.reshape(-1, 10, 13)  # (1 + N, C) -> (C, h, w)
        cut = normalized_cut(grid)
        assert cut.seed == divmod(int(golden["seed"][number]), 13)
        assert max_abs_difference(cut.eigenvector, golden["eigenvector"][number]) < GOLDEN_ATOL
        assert torch.equal(cut.bipartition, golden["bipartition"][number].bool())
        assert torch.equal(cut.foreground, golden["foreground"][number].bool())
        size = tuple(golden["image_sizes"][number].tolist())
        box = pixel_box(cut, (160, 208), size)
        assert torch.equal(box, golden["boxes"][number].double())
        heavy = normalized_cut(grid, weighted=True)
        expected = golden["boxes_weighted"][number].double()
        assert torch.equal(pixel_box(heavy, (160, 208), size), expected)
        objects = golden["gt_boxes"][number]
        assert max_abs_difference(box_iou(box, objects), golden["iou"][number]) < GOLDEN_ATOL
        metric.add(box, objects)
    assert metric.compute()["corloc"] == float(golden["hit"].float().mean())


@pytest.mark.golden
def test_golden_squashed(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "tokencut.safetensors")
    for number, tokens in enumerate(golden["square_tokens"]):
        cut = normalized_cut(tokens.T.reshape(-1, 12, 12))
        box = pixel_box(cut, (96, 96), (96, 96))
        assert torch.equal(box, golden["square_boxes"][number])
        size = tuple(golden["square_original_sizes"][number].tolist())
        objects = squashed_boxes(golden["square_gt"][number], size, 96)
        assert torch.equal(objects, golden["square_gt_scaled"][number])
        assert max_abs_difference(box_iou(box, objects), golden["square_iou"][number]) < 1e-9


def test_few_vectors_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(4, 12, 9)
    features[:, 3:7, 2:6] += 3
    dense = normalized_cut(features)
    monkeypatch.setattr(discovery, "_DENSE", 0)
    sparse = normalized_cut(features)
    assert max_abs_difference(sparse.eigenvector, dense.eigenvector) < 1e-8
    monkeypatch.setattr(discovery, "_STEPS", 5)  # too few: the dense way after all
    again = normalized_cut(features)
    assert max_abs_difference(again.eigenvector, dense.eigenvector) < 1e-10


def test_limits() -> None:
    with pytest.raises(UnsupportedError, match="area mean"):
        normalized_cut(torch.zeros(1, 65, 4))
    with pytest.raises(ValueError, match="two cells"):
        normalized_cut(torch.zeros(4, 1, 1))
    metric = CorLocMetric()
    metric.add(torch.zeros(4), torch.zeros(0, 4))
    assert metric.compute()["corloc"] != metric.compute()["corloc"]  # nothing to be found: NaN
