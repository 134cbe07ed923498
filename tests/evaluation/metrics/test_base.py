"""Every metric adds, computes and forgets."""

from __future__ import annotations

import math

import pytest
import torch

from upfeat.evaluation.metrics import (
    BevMetric,
    BoundaryMetric,
    CamMetric,
    ClickMetric,
    CorLocMetric,
    DepthMetric,
    KeypointMetric,
    Metric,
    NormalMetric,
    RestorationMetric,
    SegmentationMetric,
    VideoMetric,
)
from upfeat.evaluation.results import MeanMetric

LABEL = torch.tensor([[[0, 0, 1, 1]]])
DEPTH = torch.tensor([[[1.0, 2.0, 4.0]]])
MASK = torch.nn.functional.pad(torch.ones(4, 4, 4, dtype=torch.uint8), (2, 2, 2, 2))
MAPS = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
ADDED = [
    (BevMetric(), (torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2))),
    (ClickMetric(clicks=2, thresholds=(80,)), ([0.5, 0.9],)),
    (NormalMetric(), (MAPS.expand(1, 3, 4, 4), MAPS.expand(1, 3, 4, 4), MAPS > -1)),
    (SegmentationMetric(2, boundary_radius=1), (LABEL.flip(2), LABEL)),
    (BoundaryMetric(2, radii=(1, 2), share=0.1, form="sobel"), (LABEL.repeat(1, 3, 1),) * 2),
    (DepthMetric(aligned=True), (DEPTH.sqrt(), DEPTH)),
    (CamMetric(), (torch.tensor([0.5]), torch.tensor([0.25]), MAPS, MAPS)),
    (CorLocMetric(), (torch.tensor([0, 0, 4, 4]), torch.tensor([[0, 0, 4, 3]]))),
    (KeypointMetric(("cat",), (0.1,)), ("cat", DEPTH[0, :, :2], DEPTH[0, :, :2], 9.0)),
    (RestorationMetric(), (MASK[None].float() / 2, MASK[None].float())),
    (VideoMetric(), ("one", MASK, MASK)),
]


def test_no_metric_is_forgotten() -> None:
    known = {*Metric.__subclasses__(), *MeanMetric.__subclasses__()} - {MeanMetric}
    assert {type(metric) for metric, _ in ADDED} == known


@pytest.mark.parametrize(("metric", "arguments"), ADDED, ids=lambda x: type(x).__name__)
def test_add_compute_reset(metric: Metric, arguments: tuple[object, ...]) -> None:
    assert all(map(math.isnan, metric.compute().values()))
    metric.add(*arguments)
    first = metric.compute()
    assert not any(map(math.isnan, first.values()))
    metric.reset()
    assert all(map(math.isnan, metric.compute().values()))
    metric.add(*arguments)
    metric.sync()  # a single process
    assert metric.compute() == first
