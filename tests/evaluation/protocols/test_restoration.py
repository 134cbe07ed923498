"""Restoration of small noisy images: what it scores, repeats and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import upfeat
from upfeat.data import image_files
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols.restoration import (
    RestorationConfig,
    add_noise,
    restoration_preset,
    run_restoration,
)
from upfeat.evaluation.results import Result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (90 + 20 * number, 120, 140)).save(
            tmp_path / f"images/{number}.png"
        )
    return tmp_path / "images"


def run(root: Path, config: RestorationConfig, *methods: Method) -> list[Result]:
    images = [(path, name.as_posix()) for path, name in image_files(root)]
    return run_restoration(config, images, methods, out=root.parent / "results")


def test_a_filter_removes_noise_and_nearest_does_not(root: Path) -> None:
    config = restoration_preset("gaussian", size=32)
    methods = [
        Method(name, upfeat.create_upsampler(name))
        for name in ("nearest", "joint_bilateral_filter")
    ]
    low, nearest, filtered = run(root, config, LowRes(), *methods)
    assert low.scores == nearest.scores
    assert low.scores["psnr"].mean == pytest.approx(20, abs=0.5)  # of a deviation of 0.1
    assert filtered.scores["psnr"].mean > low.scores["psnr"].mean
    assert run(root, config, LowRes()) == [low]


def test_a_network_runs_with_random_weights(root: Path) -> None:
    naf = Method("naf", upfeat.create_upsampler("naf", dim=32, heads_attn=1))
    (result,) = run(root, restoration_preset("salt-pepper", size=24, limit=2), naf)
    assert set(result.scores) == {"psnr", "ssim"}
    assert result.settings["splits"]["images"]["images"] == 2


def test_noise_is_what_the_settings_say() -> None:
    image = torch.full((3, 64, 64), 0.5)
    noisy = add_noise(image, restoration_preset("gaussian"), "a")
    assert float((noisy - image).std()) == pytest.approx(0.1, rel=0.05)
    noisy = add_noise(image, restoration_preset("salt-pepper"), "a")
    assert float((noisy != image).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert torch.equal(noisy, add_noise(image, restoration_preset("salt-pepper"), "a"))
    assert not torch.equal(noisy, add_noise(image, restoration_preset("salt-pepper"), "b"))
    with pytest.raises(ValueError, match="probability"):
        restoration_preset("gaussian", probability=2)
