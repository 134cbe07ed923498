"""The segmentation probe on a tiny set: what it learns, keeps, skips and refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from typer.testing import Result as Outcome

import upfeat
from upfeat.cli.app import app
from upfeat.cli.options import parse_seeds, parse_settings
from upfeat.data import msrc
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import LowRes, Method, load_methods
from upfeat.evaluation.probes.pixels import sample_pixels
from upfeat.evaluation.protocols.seg_probe import (
    PixelProbe,
    SegProbeConfig,
    run_seg_probe,
    seg_probe_preset,
    train_head,
)
from upfeat.evaluation.registry import silent
from upfeat.evaluation.results import Result
from upfeat.evaluation.tables.panels import load_panel, panel_files
from upfeat.upsamplers import Abilities, UpsamplerInfo, WholeMapUpsampler

COLORS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
PATCH = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose patches are of one of three colours each; the colour is the class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            shape = (6, 4) if i == 1 else (4, 6)  # one is higher than wide
            cells = generator.integers(0, 3, shape)
            label = cells.repeat(PATCH, 0).repeat(PATCH, 1).astype(np.uint8)
            pixels = COLORS[label]
            label[0] = 255
            for folder, array in (("images", pixels), ("labels", label)):
                path = tmp_path / "set" / split / folder / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "set"


@pytest.fixture
def backbone() -> upfeat.Backbone:
    return upfeat.CallableBackbone(torch.nn.AvgPool2d(PATCH), dim=3, patch_size=PATCH)


def tiny(**changes: object) -> SegProbeConfig:
    settings: dict[str, object] = {
        "input_size": (4 * PATCH, 6 * PATCH),
        "steps": 60,
        "batch_pixels": 64,
        "pixels_per_image": 100,
        "learning_rate": 0.1,
        "boundary_radius": 2,
        "seeds": (0, 1),
    }
    return seg_probe_preset("pixel-sample", "msrc", **settings | changes)


def method(name: str, *, head_first: bool = True) -> Method:
    upsampler = upfeat.create_upsampler(name)
    if not head_first:
        upsampler.info = upsampler.info.with_abilities(linear=False)
    return Method(name, upsampler)


def probe(
    root: Path, backbone: upfeat.Backbone, *names: str, config: SegProbeConfig | None = None
) -> list[Result]:
    return run_seg_probe(
        config or tiny(),
        msrc(root, "train"),
        msrc(root, "val"),
        backbone,
        [method(name) for name in names],
        out=root.parent / "results",
        cache=root.parent / "cache",
    )


def test_nearest_solves_a_task_of_whole_patches(root: Path, backbone: upfeat.Backbone) -> None:
    nearest, bilinear = probe(root, backbone, "nearest", "bilinear")
    assert nearest.scores["miou"].mean == 100
    assert nearest.scores["band_accuracy"].per_seed == (100, 100)
    assert nearest.scores["miou"].deviation == 0
    assert 50 < bilinear.scores["band_miou"].mean < bilinear.scores["miou"].mean < 100
    assert nearest.details["iou_per_class"]["building"] == 100
    assert nearest.details["iou_per_class"]["boat"] is None
    assert nearest.details["pool_pixels"] == 4 * 100


def test_scores_along_boundaries_are_options(root: Path, backbone: upfeat.Backbone) -> None:
    options = tiny(trimap=(1, 2), boundary_iou=0.02, boundary_f="davis", seeds=(0,))
    (result,) = probe(root, backbone, "nearest", config=options)
    scores = result.scores
    assert scores["trimap_miou_2"] == scores["band_miou"]  # of the radius 2, too
    assert {"trimap_accuracy_1", "boundary_iou", "boundary_f"} < set(scores)
    assert result.settings["trimap"] == [1, 2]


def test_result_holds_its_settings(root: Path, backbone: upfeat.Backbone) -> None:
    (result,) = probe(root, backbone, "bilinear")
    (path,) = (root.parent / "results").glob("*.json")
    assert path.name == result.file_name("msrc")
    assert Result.load(path) == result
    content = json.loads(path.read_text())
    settings = content["settings"]
    assert (settings["steps"], settings["seeds"], settings["preset"]) == (
        60,
        [0, 1],
        "pixel-sample",
    )
    assert settings["upsampler"]["name"] == "bilinear"
    splits = {name: split["images"] for name, split in settings["splits"].items()}
    assert splits == {"msrc/train": 4, "msrc/val": 2}
    assert content["environment"]["torch"] == torch.__version__
    assert str(root) not in path.read_text()
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a result"):
        Result.load(path)


def test_finished_methods_are_skipped(root: Path, backbone: upfeat.Backbone) -> None:
    (first,) = probe(root, backbone, "nearest")
    (again,) = probe(root, backbone, "nearest")
    assert again.environment["date"] == first.environment["date"]
    assert again == first
    probe(root, backbone, "nearest", config=tiny(steps=61))
    Image.new("L", (6 * PATCH, 4 * PATCH), 1).save(root / "val/labels/0.png")
    (other,) = probe(root, backbone, "nearest")
    assert other.scores != first.scores
    assert len(list((root.parent / "results").glob("*.json"))) == 3


class StopError(Exception):
    pass


def test_an_interrupted_run_goes_on(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of finished images are kept; the result is that of an uninterrupted run."""
    calls = {"at": 0}
    original = upfeat.Pipeline.at

    def at(self: upfeat.Pipeline, *arguments: object) -> torch.Tensor:
        calls["at"] += 1
        if calls["at"] == 3:
            raise StopError
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(upfeat.Pipeline, "at", at)
    with pytest.raises(StopError):
        probe(root, backbone, "bilinear")
    assert not (root.parent / "results").exists()
    (resumed,) = probe(root, backbone, "bilinear")
    assert calls["at"] == 5  # two kept, one failed, two computed
    assert not list((root.parent / "cache/pixels").iterdir())
    (root.parent / "results" / resumed.file_name("msrc")).unlink()
    (whole,) = probe(root, backbone, "bilinear")
    assert calls["at"] == 9
    assert whole.scores == resumed.scores


def test_head_before_upsampling_is_the_same(root: Path, backbone: upfeat.Backbone) -> None:
    """Logits to 1e-5, and so the classes, for the heads of several seeds together."""
    config = tiny()
    data, cache = (msrc(root, "train"), msrc(root, "val")), root.parent / "cache"
    found = PixelProbe(config, root, silent, *data, backbone, cache)
    weight, bias = torch.randn(2 * 23, 3, 1, 1), torch.randn(2 * 23)
    heads = [torch.nn.Linear(3, 23).requires_grad_(False) for _ in range(2)]
    for number, one in enumerate(heads):
        one.weight.copy_(weight.unflatten(0, (2, 23))[number, :, :, 0, 0])
        one.bias.copy_(bias.unflatten(0, (2, 23))[number])
    encoded = found.pipe.encode(found.val[0].image)
    head = partial(torch.nn.functional.conv2d, weight=weight, bias=bias)
    for name in ("nearest", "bilinear"):
        first, later = method(name), method(name, head_first=False)
        size = (33, 47)
        low, high = (way.on(found.pipe).upsample(encoded, size, head) for way in (first, later))
        torch.testing.assert_close(low, high, atol=1e-5, rtol=0)
        predicted = [found.predict(way, encoded, size, heads) for way in (first, later)]
        assert predicted[0].shape == (2, 33, 47)
        assert (predicted[0] == predicted[1]).float().mean() > 0.999


def test_guidance_is_normalised_for_the_upsampler(tmp_path: Path) -> None:
    """The image goes to each network with that network's own statistics."""
    seen: dict[str, torch.Tensor] = {}

    class Seeing(WholeMapUpsampler):
        info = UpsamplerInfo(
            name="seeing",
            summary="",
            abilities=Abilities(),
            image_mean=(0.5,) * 3,
            image_std=(0.25,) * 3,
        )

        def upsample(self, image, features, output_size, values):  # type: ignore[no-untyped-def]
            seen["guidance"] = image
            return values.mean((2, 3), keepdim=True).expand(-1, -1, *output_size)

    def network(image: torch.Tensor) -> torch.Tensor:
        seen["input"] = image
        return torch.nn.functional.avg_pool2d(image, PATCH)

    net = upfeat.CallableBackbone(
        network, 3, PATCH, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.5, 0.5)
    )
    pipe = upfeat.Pipeline(net, Seeing(), input_size=(16, 24), fit="exact", cache=tmp_path)
    pipe(torch.full((3, 20, 30), 0.75))
    assert seen["guidance"].shape == seen["input"].shape == (1, 3, 16, 24)
    torch.testing.assert_close(seen["guidance"], torch.ones(1, 3, 16, 24))
    torch.testing.assert_close(seen["input"][0, :, 0, 0], torch.tensor([1.3, 1.1, 0.9]))


def test_training_repeats_and_depends_on_its_seed() -> None:
    pixels, labels = torch.randn(200, 4).half(), torch.randint(0, 3, (200,))
    heads = [train_head(pixels, labels, 3, tiny(), seed) for seed in (0, 0, 1)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert not heads[0].weight.requires_grad


def test_sampled_pixels_are_labelled_and_fixed() -> None:
    label = torch.randint(0, 3, (10, 12))
    label[5:] = 255
    chosen = sample_pixels(label != 255, 20, "a")
    assert len(chosen.unique()) == 20
    assert int(chosen.max()) < 60
    assert torch.equal(chosen, sample_pixels(label != 255, 20, "a"))
    assert not torch.equal(chosen, sample_pixels(label != 255, 20, "b"))
    assert len(sample_pixels(torch.zeros(2, 2) > 0, 20, "a")) == 0


def test_errors(root: Path, backbone: upfeat.Backbone) -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        seg_probe_preset("pixel-samples", "msrc")
    with pytest.raises(UnknownNameError, match="data set"):
        seg_probe_preset("pixel-sample", "mscr")
    with pytest.raises(ValueError, match="step"):
        seg_probe_preset("pixel-sample", "msrc", stepz=3)
    for path in (root / "train/labels").iterdir():
        with Image.open(path) as opened:
            size = opened.size
        Image.new("L", size, 255).save(path)
    with pytest.raises(ValueError, match="labelled pixel"):
        probe(root, backbone, "nearest")


# -- the command ---------------------------------------------------------------------------------


def command(root: Path, *arguments: object, code: int = 0) -> Outcome:
    fixed = ("eval", "seg-probe", "--backbone", "upfeat/vit_compact_patch16", "--data", "msrc")
    folders = ("--out", root.parent / "results", "--cache", root.parent / "cache")
    line = [str(part) for part in (*fixed, "--root", root, *folders, *arguments)]
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == code, outcome.output
    return outcome


def test_pictures_for_the_report(root: Path, backbone: upfeat.Backbone) -> None:
    out = root.parent / "out"
    run_seg_probe(
        tiny(steps=2, limit=2), msrc(root, "train"), msrc(root, "val"), backbone,
        [method("nearest"), method("bilinear")], out=out, cache=root.parent / "cache",
    )  # fmt: skip
    panels = [load_panel(path) for path in panel_files(out)]
    kinds = sorted((panel.image, panel.label, panel.kind) for panel in panels)
    assert kinds == sorted(
        (image, label, kind)
        for image in ("0", "1")
        for label, kind in (
            ("image", "image"),
            ("target", "target"),
            ("nearest", "prediction"),
            ("bilinear", "prediction"),
        )
    )
    label = next(panel for panel in panels if panel.kind == "target" and panel.image == "1")
    assert torch.equal(label.values.long(), msrc(root, "val")[1].label)


def test_command(root: Path) -> None:
    upfeat.create_upsampler("anyup", qk_dim=32).save_pretrained(root.parent / "mine")
    methods = f"nearest,ours={root.parent / 'mine'}"
    options = ("--set", "steps=5", "--limit", "1", "--seeds", "3,4", "--set", "train_every=2")
    text = command(root, "--upsampler", methods, *options).stdout
    assert "quick look: 1 images of each split" in text
    assert "2 seeds" in text
    assert "±" in text
    names = sorted(path.name for path in (root.parent / "results").glob("*.json"))
    assert [name.rpartition("--")[0] for name in names] == [
        "seg-probe--msrc--nearest",
        "seg-probe--msrc--ours",
    ]
    settings = Result.load(root.parent / "results" / names[1]).settings
    assert settings["upsampler"]["config"]["qk_dim"] == 32
    assert (settings["train_every"], settings["limit"], settings["seeds"]) == (2, 1, [3, 4])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--upsampler", "jafar"), "must be trained first"),
        (("--upsampler", "runs/no/model"), "no folder at runs/no/model"),
        (("--upsampler", "biliner"), "did you mean 'bilinear'"),
        (("--upsampler", "nearest", "--preset", "pixels"), "unknown preset"),
        (("--upsampler", "nearest", "--root", "nowhere"), "Expected:"),
        (("--upsampler", "nearest", "--seeds", "0,0"), "different whole numbers"),
        (("--upsampler", "nearest", "--set", "steps"), "name=value"),
        (("--upsampler", "nearest", "--set", "stepps=3"), "stepps"),
        (("--upsampler", "nearest,nearest"), "twice"),
    ],
)
def test_command_errors(root: Path, arguments: tuple[str, ...], problem: str) -> None:
    outcome = command(root, *arguments, code=2)
    assert problem in " ".join(outcome.output.split())
    assert not (root.parent / "results").exists()


def test_entries_of_the_command(tmp_path: Path) -> None:
    assert load_methods("bilinear", 8)[0].label == "bilinear"
    upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8).save_pretrained(tmp_path / "jafar-a")
    (loaded, low) = load_methods(f"{tmp_path / 'jafar-a'}, low-res", 8)
    assert isinstance(low, LowRes)
    assert loaded.label == "jafar-a"
    assert not loaded.upsampler.training
    assert parse_seeds("5") == (5,)
    assert parse_settings(None) == {}
