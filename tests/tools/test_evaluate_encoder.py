"""The evaluation script's arithmetic: agreement, cell labels, scores, probe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from upfeat import CallableBackbone


@pytest.fixture(scope="module")
def tool(repository: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repository / "tools"))
    yield importlib.import_module("evaluate_encoder")
    sys.path.remove(str(repository / "tools"))
    for name in ("evaluate_encoder", "distill_encoder"):
        del sys.modules[name]


def test_agreement_of_equal_tokens_is_one(tool):
    tokens = torch.randn(50, 8) + 3
    figures = tool.token_agreement(tokens, tokens)
    assert figures["cosine"] == figures["cosine_centred"] == 1
    assert 0.8 < figures["cosine_of_mean_token"] < 1


def test_a_constant_answer_earns_nothing_when_centred(tool):
    teacher = torch.randn(50, 8) + 3
    noise = 1e-3 * torch.randn(50, 8)
    figures = tool.token_agreement(teacher.mean(0, keepdim=True) + noise, teacher)
    assert figures["cosine"] == pytest.approx(figures["cosine_of_mean_token"], abs=1e-3)
    assert abs(figures["cosine_centred"]) < 0.2


def test_cell_labels_are_the_mix_of_known_pixels(tool):
    label = torch.zeros(4, 4, dtype=torch.long)
    label[:2, 2:] = 3
    label[2:, :2] = tool.IGNORED
    label[2, 2] = 5
    mix = tool.cell_labels(label, (2, 2))
    assert mix.shape == (4, tool.NUM_CLASSES)
    assert mix[0, 0] == 1
    assert mix[1, 3] == 1
    assert mix[2].sum() == 0
    assert mix[3, 5] == 0.25
    assert mix[3, 0] == 0.75


def test_scores_count_known_pixels_only(tool):
    label = torch.tensor([[0, 0, 1, tool.IGNORED]])
    prediction = torch.tensor([[0, 1, 1, 4]])
    figures = tool.scores(tool.confusion(prediction, label))
    assert figures["miou"] == 50.0  # 1/2 for class 0, 1/2 for class 1
    assert figures["pixel_accuracy"] == pytest.approx(66.67)


def test_fitted_size_keeps_the_shape(tool, tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    assert tool.fitted_size(tmp_path / "a.png", 224, 16) == (224, 448)


def test_probe_learns_colours(tool, tmp_path, monkeypatch):
    """Left half class 0, dark; right half class 1, bright: mean colour suffices."""
    monkeypatch.setattr(tool, "PROBE_SIZE", (32, 64))
    root = tmp_path / "camvid"
    root.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for index in range(4):
            pixels = rng.integers(0, 80, (32, 64, 3), dtype=np.uint8)
            pixels[:, 32:] += 150
            label = np.zeros((32, 64), dtype=np.uint8)
            label[:, 32:] = 1
            label[0] = tool.IGNORED
            names = [f"{split}{index}{kind}.png" for kind in ("", "_label")]
            for name, array in zip(names, (pixels, label), strict=True):
                Image.fromarray(array).save(root / name)
            lines.append(" ".join(names))
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    backbone = CallableBackbone(lambda x: torch.nn.functional.avg_pool2d(x, 16), 3, 16)
    figures = tool.linear_probe(backbone, tmp_path)
    assert figures["miou"] > 95
    assert len(figures["per_seed"]) == len(tool.PROBE["seeds"])
