"""Times, peaks and operations in the settings of the published tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.evaluation.methods import Method, load_methods
from upfeat.evaluation.protocols.efficiency import (
    PRESETS,
    efficiency_preset,
    run_efficiency,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.tables import build_tables
from upfeat.evaluation.tables.markdown import results_page

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


def test_the_value_path_that_does_nothing_is_said_beside(tmp_path: Path) -> None:
    config = efficiency_preset("naf", cells=((32, 4, 16),), warmup=1, repeats=1, memory=False)
    for name, published, unused in (("jafar", 628_480, 66_176), ("anyup", 878_080, 33_024)):
        width = {"feature_dim": 384} if name == "jafar" else {}
        method = Method(name, upfeat.create_upsampler(name, **width))
        result = run_efficiency(config, [method], out=tmp_path / name)[0]
        assert result.scores["parameters"].mean == pytest.approx((published - unused) / 1e6)
        assert f"{published:,} parameters; {unused:,} of them" in result.details["note"]
        (table,) = build_tables([result])
        assert f"{name}: {result.details['note']}." in results_page([table])


def test_memory_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    cells = {"cells": ((32, 4, 512),), "channels": 64, "warmup": 1, "repeats": 1}
    config = efficiency_preset("naf", **cells, passes=("forward",), operations=False)
    methods = [Method("bilinear", upfeat.create_upsampler("bilinear"))]
    result = run_efficiency(config, methods, out=tmp_path)[0]
    output = 4 * 64 * 512 * 512 / 2**20
    assert output < result.scores["mb_forward_512"].mean < 3 * output


def operations(name: str, tmp_path: Path, **config: object) -> float:
    """What is counted for an image of 32, a grid of 4, 8 channels and an output of 16."""
    small = {**SMALL, "cells": ((32, 4, 16),)}
    settings = efficiency_preset("naf", **small, memory=False, passes=["forward"])
    method = Method(name, upfeat.create_upsampler(name, **config))
    result = run_efficiency(settings, [method], out=tmp_path)[0]
    assert result.details["failures"] == {}
    return result.scores["gflop_16"].mean * 1e9


PIXELS, CELLS, OUTPUTS, CHANNELS = 32 * 32, 4 * 4, 16 * 16, 8


def guidance_operations(d: int, convolutions_of_keys: int) -> int:
    """Image, query and key encoder at the image's size, and what follows the pooling."""
    block = 2 * d * d  # two 1x1 convolutions
    encoders = PIXELS * (3 * d + 2 * block + 2 * (d * d + 2 * block))
    queries = OUTPUTS * (9 * d * d + d * d)  # 3x3 convolution, projection
    return encoders + queries + CELLS * convolutions_of_keys


def test_operations_of_jafar_by_hand(tmp_path: Path) -> None:
    d = 16
    # key features: first convolution and two blocks; gamma and beta; projection
    keys = CHANNELS * d + 4 * d * d + 2 * d * d + d * d
    attention = OUTPUTS * CELLS * (d + CHANNELS)
    by_hand = 2 * (guidance_operations(d, keys) + attention)
    assert operations("jafar", tmp_path, feature_dim=8, qk_dim=d) == pytest.approx(by_hand)


def test_operations_of_anyup_by_hand(tmp_path: Path) -> None:
    """Only the cells within the windows count."""
    d, side, ratio = 16, 4, 0.1
    counted = operations("anyup", tmp_path, qk_dim=d, window_ratio=ratio)
    # Along an axis an output pixel sees the cells of its window: of centre (i + 0.5) / 16 and
    # half width 0.1 on the axis from 0 to 1, rounded outwards to cells.
    seen = sum(
        min(math.ceil(((i + 0.5) / 16 + ratio) * side), side)
        - max(math.floor(((i + 0.5) / 16 - ratio) * side), 0)
        for i in range(16)
    )
    attention = seen**2 * (d + CHANNELS)
    # Unification: 25 taps of each channel for each of d filters, two blocks. Keys: 3x3 convolution
    # of 2 d channels to d, two blocks, projection.
    unify = CHANNELS * d * 25 + 4 * d * d
    keys = 9 * 2 * d * d + 4 * d * d + d * d
    by_hand = 2 * (guidance_operations(d, unify + keys) + attention)
    assert counted == pytest.approx(by_hand, rel=1e-3)  # beside it, the count of valid taps


def test_operations_of_loftup_by_hand(tmp_path: Path) -> None:
    heads, layers, codes, place = 4, 2, 203, 20
    width = CHANNELS + place
    convolutions = OUTPUTS * 9 * (codes * width + width * width)
    queries = OUTPUTS * 2 * width * width  # projections of queries and of outputs
    tokens = CELLS * 2 * width * width  # of keys and values
    attention = OUTPUTS * CELLS * 2 * width
    forward = OUTPUTS * 2 * width * CHANNELS
    last = OUTPUTS * width * CHANNELS
    by_hand = 2 * (convolutions + layers * (queries + tokens + attention + forward) + last)
    config = {"feature_dim": 8, "num_heads": heads, "num_layers": layers}
    assert operations("loftup", tmp_path, **config) == pytest.approx(by_hand)


def test_operations_do_not_depend_on_threads_or_paths(tmp_path: Path) -> None:
    """A bounded path computes some things in place, in threads, twice or not at all."""
    up = upfeat.create_upsampler("lift", feature_dim=8)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        up.train()(torch.randn(1, 3, 32, 32), torch.randn(1, 8, 4, 4), (16, 16))
    assert operations("lift", tmp_path, feature_dim=8) == counter.get_total_flops()


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


def test_the_backbones_width_counts_in_every_preset(tmp_path: Path) -> None:
    network = upfeat.CallableBackbone(torch.nn.Conv2d(3, 4, 8, 8), dim=4, patch_size=8)
    config = efficiency_preset("naf", cells=[[32, 4, 32]], warmup=1, repeats=1, memory=False)
    methods = [Method("liif", upfeat.create_upsampler("liif", feature_dim=4, hidden_dim=8))]
    result = run_efficiency(config, methods, backbone=network, out=tmp_path)[0]
    assert result.details["failures"] == {}
    assert result.settings["channels"] == 4


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    config = efficiency_preset("naf", **SMALL, memory=False)
    up = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=8)  # the features have 8
    result = run_efficiency(config, [Method("wide", up)], out=tmp_path)[0]
    assert result.scores == {}
    assert "feature_dim=16" in result.details["failures"]["forward_16"]
    assert not list(tmp_path.iterdir())  # the next run tries again


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
    headings = ("forward time at 32, ms ↓", "operations at 32, GFLOP ↓")
    for heading in (*headings, "forward and backward time at 32, ms ↓"):
        assert heading in " ".join(outcome.stdout.replace("┃", " ").split())
    (first, second) = (Result.load(path) for path in tmp_path.glob("*.json"))
    assert set(first.scores) == set(second.scores) >= {"ms_forward_32", "ms_backward_32"}
    wrong = [*line, str(tmp_path), *changes, "--set", "dtype=float64x"]
    assert CliRunner().invoke(app, wrong).exit_code == 2
    nothing = [*line, str(tmp_path), *changes, "--set", "cells=[[32, 0, 32]]"]
    assert CliRunner().invoke(app, nothing).exit_code == 2
    nothing = [*line[:3], "featup_implicit", *line[4:], str(tmp_path), *changes]
    outcome = CliRunner().invoke(app, nothing)
    assert outcome.exit_code == 1
    assert "no score could be computed for featup_implicit" in outcome.stderr
    failed = CliRunner().invoke(app, [*line, str(tmp_path), "--preset", "loftup"])
    assert failed.exit_code == 2
    assert "backbone" in failed.output


def test_rows_without_an_upsampler_cost_the_backbone(tmp_path: Path) -> None:
    backbone = upfeat.CallableBackbone(torch.nn.Conv2d(3, 8, 8, 8), dim=8, patch_size=8)
    rows = load_methods("low-res, large:2, bilinear", backbone, weights="untrained")
    small = {"cells": ((32, 4, 32),), "warmup": 1, "repeats": 1, "memory": False}
    together = efficiency_preset("loftup", **small)
    low, large, bilinear = run_efficiency(together, rows, backbone=backbone, out=tmp_path)
    flops = 2 * 8 * (3 * 8 * 8) * 4 * 4  # of the backbone's only convolution
    assert low.scores["gflop_32"].mean == bilinear.scores["gflop_32"].mean == flops / 1e9
    assert large.scores["gflop_32"].mean == 4 * flops / 1e9
    weights = (3 * 8 * 8 + 1) * 8
    assert [r.scores["parameters"].mean * 1e6 for r in (low, large)] == [weights, weights]
    alone = efficiency_preset("naf", **small)
    low, large, _ = run_efficiency(alone, rows, backbone=backbone, out=tmp_path)
    assert "no upsampler to measure" in low.details["failures"]["forward_32"]
    assert large.scores["gflop_32"].mean == 4 * flops / 1e9
    assert "frozen backbone" in large.details["failures"]["backward_32"]
