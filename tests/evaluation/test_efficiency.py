"""Times, peaks and operations in the settings of the published tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.evaluation.dense import Method
from upfeat.evaluation.efficiency import (
    PRESETS,
    efficiency_preset,
    run_efficiency,
)
from upfeat.evaluation.results import Result

SMALL = {"cells": ((32, 4, 16), (32, 4, 32)), "channels": 8, "warmup": 1, "repeats": 2}


def test_presets_are_the_tables() -> None:
    paper = efficiency_preset("jafar_paper")
    assert [cell[2] for cell in paper.cells] == [56, 112, 224, 448]
    assert {cell[:2] for cell in paper.cells} == {(448, 32)}
    assert (paper.warmup, paper.repeats, paper.channels) == (5, 10, 384)
    assert efficiency_preset("jafar_released").cells[-1] == (448, 32, 448)
    assert [cell[2] // cell[1] for cell in efficiency_preset("naf").cells] == [2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match="jafar_paper"):
        efficiency_preset("jafar_papr")
    assert set(PRESETS) == {"jafar_paper", "jafar_released", "naf", "loftup"}


def test_all_numbers_of_a_method(tmp_path: Path) -> None:
    config = efficiency_preset("jafar_paper", **SMALL, memory=False)
    up = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8)
    result = run_efficiency(config, [Method("mine", up)], out=tmp_path)[0]
    assert result.details["failures"] == {}
    for side in ("16", "32"):
        for which in ("forward", "backward"):
            assert len(result.scores[f"ms_{which}_{side}"].per_seed) == 2
    own = sum(parameter.numel() for parameter in up.parameters())
    assert result.scores["parameters"].mean == pytest.approx(own / 1e6)
    # Four times the pixels, at least the attention's share of the operations grows as much.
    assert result.scores["gflop_32"].mean > result.scores["gflop_16"].mean > 0
    stored = list(tmp_path.iterdir())
    assert [Result.load(path) for path in stored] == [result]
    again = run_efficiency(config, [Method("mine", up)], out=tmp_path)[0]
    assert again == result  # read, not measured anew


def test_memory_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    cells = {"cells": ((32, 4, 512),), "channels": 64, "warmup": 1, "repeats": 1}
    config = efficiency_preset("naf", **cells, passes=("forward",), operations=False)
    methods = [Method("bilinear", upfeat.create_upsampler("bilinear"))]
    result = run_efficiency(config, methods, out=tmp_path)[0]
    output = 4 * 64 * 512 * 512 / 2**20
    assert output < result.scores["mb_forward_512"].mean < 3 * output


def test_operations_are_the_convolutions(tmp_path: Path) -> None:
    config = efficiency_preset("naf", **SMALL, memory=False, passes=["forward"])
    up = upfeat.create_upsampler("lift", feature_dim=8)
    result = run_efficiency(config, [Method("lift", up)], out=tmp_path)[0]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        up(torch.randn(1, 3, 32, 32), torch.randn(1, 8, 4, 4), (16, 16))
    assert result.scores["gflop_16"].mean == pytest.approx(counter.get_total_flops() / 1e9)


def test_a_backbone_is_part_of_loftups_table(tmp_path: Path) -> None:
    config = efficiency_preset("loftup", cells=[[32, 4, 32]], warmup=1, repeats=2, memory=False)
    methods = [Method("bilinear", upfeat.create_upsampler("bilinear"))]
    with pytest.raises(ValueError, match="no backward pass"):
        efficiency_preset("loftup", passes=["forward", "backward"])
    with pytest.raises(ValueError, match="backbone"):
        run_efficiency(config, methods, out=tmp_path)
    network = upfeat.CallableBackbone(torch.nn.Conv2d(3, 4, 8, 8), dim=4, patch_size=8)
    result = run_efficiency(config, methods, backbone=network, out=tmp_path)[0]
    assert result.scores["parameters"].mean == pytest.approx((4 * 3 * 64 + 4) / 1e6)
    assert sorted(result.scores) == ["gflop_32", "ms_forward_32", "parameters"]


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    config = efficiency_preset("naf", **SMALL, memory=False)
    up = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=8)  # the features have 8
    result = run_efficiency(config, [Method("wide", up)], out=tmp_path)[0]
    assert sorted(result.scores) == ["parameters"]
    assert "feature_dim=16" in result.details["failures"]["forward_16"]


def test_command(tmp_path: Path) -> None:
    line = [
        "eval",
        "efficiency",
        "--upsampler",
        "bilinear,carafe",
        "--preset",
        "jafar_released",
        "--out",
    ]
    settings = ("cells=[[32, 4, 32]]", "channels=8", "repeats=2", "warmup=1", "memory=false")
    changes = [part for setting in settings for part in ("--set", setting)]
    outcome = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*line, str(tmp_path), *changes])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.count(" ms") == 4  # two methods, forward and backward
    failed = CliRunner().invoke(app, [*line, str(tmp_path), "--preset", "loftup"])
    assert failed.exit_code == 2
    assert "backbone" in failed.output
