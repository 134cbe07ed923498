"""Grad-CAM and its scores: stored ones, plain formulas, and two processes."""

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
    CamMetric,
    adcc,
    average_drop,
    average_gain,
    average_increase,
    coherency,
    complexity_l0,
    complexity_l1,
    gradcam_map,
    gradcam_weights,
    normalize_map,
)


@pytest.mark.golden
def test_golden_map(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "gradcam_map.safetensors")
    weights = gradcam_weights(golden["gradients"])
    maps = gradcam_map(golden["activations"], weights)
    ready = normalize_map(maps)
    resized = torch.nn.functional.interpolate(ready[:, None], (42, 56), mode="bilinear")[:, 0]
    assert max_abs_difference(weights, golden["weights"]) <= GOLDEN_ATOL
    assert max_abs_difference(maps, golden["cam_relu"]) <= GOLDEN_ATOL
    assert max_abs_difference(ready, golden["cam_minmax"]) <= GOLDEN_ATOL
    assert max_abs_difference(resized, golden["cam_minmax_resized_w56_h42"]) <= 1e-4


@pytest.mark.golden
def test_golden_scores(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "cam_metrics.safetensors")
    chosen = golden["logits_full"].argmax(1, keepdim=True)
    full, masked = (
        golden[name].double().softmax(1).gather(1, chosen)[:, 0]
        for name in ("logits_full", "logits_masked")
    )
    maps, masked_maps = golden["cam"][:, 0], golden["cam_of_masked_image"][:, 0]
    drop, alike = average_drop(full, masked), coherency(maps, masked_maps)
    light, heavy = complexity_l0(maps), complexity_l1(maps)
    ours = {
        "avg_drop": drop,
        "coherency": alike,
        "complexity_l1": heavy,
        "complexity_l0": light,
        "adcc_per_image": adcc(alike, heavy, drop),
        "avg_increase": average_increase(full, masked),
        "avg_gain": average_gain(full, masked),
        "adcc_of_means": adcc(alike.mean(), heavy.mean(), drop.mean()),
        "adcc_of_means_l0": adcc(alike.mean(), light.mean(), drop.mean()),
    }
    differences = {name: max_abs_difference(value, golden[name]) for name, value in ours.items()}
    assert max(differences.values()) <= GOLDEN_ATOL, differences
    metric = CamMetric()
    for row in range(6):
        one = slice(row, row + 1)
        metric.add(full[one], masked[one], maps[one], masked_maps[one])
    scores = metric.compute()
    assert scores["adcc_l1"] == pytest.approx(float(golden["adcc_of_means"]), abs=1e-5)
    assert scores["adcc_l0"] == pytest.approx(float(golden["adcc_of_means_l0"]), abs=1e-5)
    per_image = float(golden["adcc_per_image"].mean())
    assert scores["adcc_l1_per_image"] == pytest.approx(per_image, abs=1e-5)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))
def test_maps_and_scores_are_their_formulas(channels: int, height: int, width: int) -> None:
    activations = torch.randn(2, channels, height, width)
    gradients = torch.randn(2, channels, height, width)
    maps = gradcam_map(activations, gradcam_weights(gradients))
    for b in range(2):
        for y in range(height):
            for x in range(width):
                total = sum(
                    float(gradients[b, k].mean()) * float(activations[b, k, y, x])
                    for k in range(channels)
                )
                assert float(maps[b, y, x]) == pytest.approx(max(0.0, total), abs=1e-5)
    first, second = torch.rand(2, height, width), torch.rand(2, height, width)
    expected = [
        (np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1] + 1) / 2
        for a, b in zip(first.double(), second.double(), strict=True)
    ]
    np.testing.assert_allclose(coherency(first, second).numpy(), expected, atol=1e-9)


def test_what_is_undefined() -> None:
    flat, varied = torch.full((1, 3, 3), 0.1), torch.rand(1, 3, 3)
    assert float(coherency(flat, varied)) == float(coherency(varied, flat)) == 0
    assert float(average_gain(torch.ones(1), torch.ones(1))) == 0
    assert float(adcc(torch.zeros(()), torch.tensor(0.5), torch.tensor(0.5))) == 0
    assert float(adcc(torch.tensor(0.5), torch.ones(()), torch.zeros(()))) == 0
    assert torch.equal(normalize_map(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))
    assert all(math.isnan(score) for score in CamMetric().compute().values())


def test_errors() -> None:
    with pytest.raises(ValueError, match="weights"):
        gradcam_map(torch.ones(1, 3, 2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="one shape"):
        coherency(torch.ones(1, 2, 2), torch.ones(1, 2, 3))


def images(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(2, 3, generator=generator)
    maps = torch.rand(2, 3, 4, 5, generator=generator)
    return (*probabilities, *(maps * (maps > 0.3)))


def _score(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = CamMetric()
    for seed in range(rank, 3, 2):
        metric.add(*images(seed))
    metric.sync()
    torch.save(metric.compute(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    mp.spawn(_score, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    alone = CamMetric()
    for seed in range(3):
        alone.add(*images(seed))
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert shared == pytest.approx(alone.compute(), abs=1e-12)
