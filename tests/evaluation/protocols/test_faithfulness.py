"""How far upsampled features leave the backbone's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import upfeat
from tests.evaluation.protocols.test_seg_probe import backbone, method, root, tiny
from upfeat.cli.app import app
from upfeat.data import msrc
from upfeat.evaluation.protocols.faithfulness import (
    FaithfulnessConfig,
    faithfulness_preset,
    run_faithfulness,
)
from upfeat.evaluation.results import Result

__all__ = ["backbone", "root"]  # fixtures


def measure(
    root: Path, backbone: upfeat.Backbone, names: list[str], **changes: object
) -> dict[str, Result]:
    config = FaithfulnessConfig(probe=tiny(steps=100), **changes)  # type: ignore[arg-type]
    results = run_faithfulness(
        config,
        msrc(root, "train"),
        msrc(root, "val"),
        backbone,
        [method(name) for name in names],
        out=root.parent / "out",
        cache=root.parent / "cache",
    )
    return dict(zip(names, results, strict=True))


def test_nearest_is_perfect_when_pooled_back(root: Path, backbone: upfeat.Backbone) -> None:
    results = measure(root, backbone, ["nearest", "bilinear"], transfer=False)
    near, linear = results["nearest"].scores, results["bilinear"].scores
    assert near["pooled_cosine"].mean == pytest.approx(100, abs=1e-3)
    assert near["pooled_mse"].mean == pytest.approx(0, abs=1e-6)
    assert linear["pooled_cosine"].mean < 99.9
    assert linear["pooled_mse"].mean > 1e-4
    # One colour a patch: the features of the doubled image are the enlarged ones.
    assert near["agreement_cosine"].mean > linear["agreement_cosine"].mean
    assert not any(name.startswith(("own", "transfer")) for name in near)
    assert near["pooled_cosine"].deviation is not None  # over the two images


def test_probes_are_moved(root: Path, backbone: upfeat.Backbone) -> None:
    scores = measure(root, backbone, ["nearest"])["nearest"].scores
    # Low-resolution features ARE the nearest ones: both probes are one.
    assert scores["transfer_miou_labelled"] == scores["own_miou_labelled"]
    assert scores["own_accuracy"].mean > 90
    kinds = {path.name.split("--")[0] for path in (root.parent / "out").glob("*.json")}
    assert kinds == {"faithfulness", "seg-probe"}
    (probe,) = (root.parent / "out").glob("seg-probe--*.json")
    assert Result.load(probe).settings["limit"] is None
    again = measure(root, backbone, ["nearest"])["nearest"]
    assert again.scores == scores


def test_settings_are_checked() -> None:
    config = faithfulness_preset("msrc", factor=3, steps=7)
    assert (config.factor, config.probe.steps) == (3, 7)
    with pytest.raises(ValueError, match="factor"):
        faithfulness_preset("msrc", factor=0)


def test_command(root: Path) -> None:
    line = ["eval", "faithfulness", "--backbone", "upfeat/vit_compact_patch16", "--data", "msrc"]
    line += ["--root", str(root), "--upsampler", "bilinear", "--out", str(root.parent / "r")]
    line += ["--cache", str(root.parent / "c"), "--seeds", "0", "--limit", "1", "--set", "steps=5"]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert "bilinear" in outcome.stdout
    assert "quick look" in outcome.stdout
    # The probe beside it must not pass for one of the whole set.
    limits = {Result.load(path).settings["limit"] for path in (root.parent / "r").glob("*.json")}
    assert limits == {1}
