"""Restoration of small noisy images: what it scores, repeats and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.data import image_files
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols.restoration import (
    ImageRestorationConfig,
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


def run(root: Path, config: ImageRestorationConfig, *methods: Method) -> list[Result]:
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


def command(*arguments: object, code: int = 0) -> str:
    outcome = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(part) for part in arguments])
    assert outcome.exit_code == code, outcome.output
    return " ".join(outcome.output.split())


def test_a_trained_network_denoises(root: Path, tmp_path: Path) -> None:
    """The recipe trains; what it leaves is a row, better than the noisy image and than nearest."""
    narrow = ["dim=32", "kernel_size=3"]
    changes = ["steps=25", "batch_size=2", "data.crop=24", "data.resize=24", "optimizer.lr=5e-3"]
    changes += [f"upsampler.config.{change}" for change in narrow]
    changes += ["device=cpu", "checkpoint.every=25", "schedule.warmup_steps=0"]
    command("train", "naf_restoration_small", "--data", root, "--out", tmp_path / "run", *changes)
    fixed = ("eval", "restoration", "--data", "images", "--root", root, "--set", "size=32")
    out = tmp_path / "results"
    methods = f"low-res,naf={tmp_path / 'run/model'}"
    text = command(*fixed, "--upsampler", methods, "--out", out)
    assert "PSNR, dB" in text
    found = {r.label: r for r in map(Result.load, out.glob("*.json"))}
    assert found["naf"].scores["psnr"].mean > found["low-res"].scores["psnr"].mean + 3
    assert found["naf"].settings["splits"]["images"]["images"] == 3


def test_a_network_without_weights_is_refused(root: Path, tmp_path: Path) -> None:
    line = ("eval", "restoration", "--data", "images", "--root", root, "--out", tmp_path / "none")
    assert "must be trained first" in command(*line, "--upsampler", "naf(heads_attn=1)", code=2)
    assert not (tmp_path / "none").exists()


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
