"""Class activation maps on tiny images: the maps, what is kept, skipped and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from typer.testing import Result as Outcome

import upfeat
from upfeat.backbones import create_backbone
from upfeat.cli.app import app
from upfeat.data import ClassifiedFile, ClassifiedImages
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation import registry
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import gradcam_map
from upfeat.evaluation.probes.cam_classifier import CamClassifier, create_classifier
from upfeat.evaluation.protocols.cam import CamConfig, _Scoring, cam_preset, run_cam
from upfeat.evaluation.registry import get_protocol, silent
from upfeat.evaluation.results import Result
from upfeat.upsamplers.interpolation import Bilinear

SIZE = (48, 64)
CLASSES = 5
TINY = {"depth": 3, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def backbone() -> upfeat.Backbone:
    name = "timm/vit_tiny_patch16_224"
    return create_backbone(name, weights="random", num_classes=CLASSES, **TINY)


@pytest.fixture
def data(tmp_path: Path, backbone: upfeat.Backbone) -> ClassifiedImages:
    """Six images; the classifier gets all but the first one right."""
    generator = np.random.default_rng(0)
    files = []
    for number in range(6):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cells = generator.integers(0, 256, (7, 9, 3), np.uint8)
        Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(path)
        files.append(ClassifiedFile(str(number), path, 0))
    guess = ClassifiedImages("set", tuple("abcde"), tuple(files))
    classifier, config = CamClassifier(backbone), tiny(choose="all")
    scoring = _Scoring(config, tmp_path, silent, guess, classifier, tmp_path / "none")
    said = [
        int(CamClassifier(backbone).logits(scoring.normalized(scoring.prepare(file))).argmax())
        for file in files
    ]
    said[0] = (said[0] + 1) % CLASSES
    labelled = [file._replace(label=label) for file, label in zip(files, said, strict=True)]
    return dataclasses.replace(guess, files=tuple(labelled))


def tiny(**changes: object) -> CamConfig:
    return cam_preset("jafar", "imagenet", **{"input_size": SIZE} | changes)


def method(name: str, *, head_first: bool = True) -> Method:
    upsampler = upfeat.create_upsampler(name)
    if not head_first:
        upsampler.info = upsampler.info.with_abilities(linear=False)
    return Method(name, upsampler)


def run(
    data: ClassifiedImages,
    backbone: upfeat.Backbone,
    folder: Path,
    *methods: Method,
    config: CamConfig | None = None,
) -> list[Result]:
    folders = {"out": folder / "results", "cache": folder / "cache"}
    return run_cam(config or tiny(), data, backbone, methods, **folders)


def test_gradients_are_autograds(backbone: upfeat.Backbone) -> None:
    """Weights against a derivative by differences, and the activations are what the block gets."""
    model = backbone.double().model
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    found = CamClassifier(backbone).explain(pixels, target=3)
    with torch.no_grad():
        tokens = backbone.get_submodule("model.blocks.2").register_forward_pre_hook(
            lambda module, inputs: kept.append(inputs[0])
        )
        kept: list[torch.Tensor] = []
        model(pixels)
        tokens.remove()
        # (1, 1 + h w, C) -> (1, C, h, w)
        expected = kept[0][:, 1:].transpose(1, 2).unflatten(2, (3, 4))
        torch.testing.assert_close(found.activations, expected)
        for channel in (0, 7):
            # The same step on a channel of all patches changes the logit by h w times the weight.
            step = torch.zeros_like(kept[0])
            step[:, 1:, channel] = 1e-6
            logits = [
                model.forward_head(model.norm(model.blocks[2](kept[0] + sign * step)))[0, 3]
                for sign in (1, -1)
            ]
            slope = float(logits[0] - logits[1]) / 2e-6 / 12
            assert float(found.weights[0, channel]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    torch.testing.assert_close(found.probability, model(pixels).softmax(1)[:, 3])
    assert CamClassifier(backbone).explain(pixels).target == int(model(pixels).argmax())


def test_values_before_upsampling_are_the_same(
    data: ClassifiedImages, backbone: upfeat.Backbone, tmp_path: Path
) -> None:
    classifier = CamClassifier(backbone)
    scoring = _Scoring(tiny(), tmp_path, silent, data, classifier, tmp_path / "cache")
    image = scoring.prepare(data.files[1])
    found = scoring.classifier.explain(scoring.normalized(image))
    first = scoring.map(method("bilinear"), image, found)
    later = scoring.map(method("bilinear", head_first=False), image, found)
    torch.testing.assert_close(first, later, atol=1e-5, rtol=0)
    low = scoring.map(LowRes(), image, found)
    small = gradcam_map(found.activations, found.weights)
    expected = small.repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert torch.equal(low, expected)


def test_results(data: ClassifiedImages, backbone: upfeat.Backbone, tmp_path: Path) -> None:
    low, bilinear = run(data, backbone, tmp_path, LowRes(), method("bilinear"))
    assert sorted(bilinear.details["images"]) == ["1", "2", "3", "4", "5"]
    assert bilinear.details["images_tried"] == 6
    scores = {name: score.mean for name, score in bilinear.scores.items()}
    assert set(scores) >= {
        "average_drop", "average_increase", "average_gain", "coherency", "complexity", "adcc",
        "complexity_l1", "adcc_l1", "adcc_per_image", "adcc_l1_per_image",
    }  # fmt: skip
    parts = (scores["coherency"], 100 - scores["complexity"], 100 - scores["average_drop"])
    assert scores["adcc"] == pytest.approx(3 / sum(1 / part for part in parts), abs=1e-3)
    settings = bilinear.settings
    assert (settings["layer"], settings["side"]) == ("blocks.2", "input")
    assert (settings["seed"], settings["choose"], settings["mask"]) == (0, "correct", "binary")
    assert settings["splits"]["set"]["images"] == 5
    assert low.settings["upsampler"] == {"name": "low-res"}
    assert low.scores != bilinear.scores
    # once more: read, not computed
    assert run(data, backbone, tmp_path, method("bilinear")) == [bilinear]
    (alone,) = run(data, backbone, tmp_path / "alone", method("bilinear"))
    assert alone.scores == bilinear.scores
    assert not list((tmp_path / "cache" / "cam").glob("rows-*"))


def test_settings_change_the_result(
    data: ClassifiedImages, backbone: upfeat.Backbone, tmp_path: Path
) -> None:
    bilinear = method("bilinear")
    (binary,) = run(data, backbone, tmp_path, bilinear)
    changed = {
        "mask": tiny(mask="soft"),
        "layer": tiny(layer="blocks.-2", side="input"),
        "crop_fraction": tiny(crop_fraction=1.0),
        "side": tiny(layer="blocks.1.norm1"),  # its output
    }
    for name, config in changed.items():
        (other,) = run(data, backbone, tmp_path, bilinear, config=config)
        assert other.scores["average_drop"] != binary.scores["average_drop"], name
    assert other.settings["side"] == "output"
    (some,) = run(data, backbone, tmp_path, bilinear, config=tiny(limit=2))
    (others,) = run(data, backbone, tmp_path, bilinear, config=tiny(limit=2, seed=3))
    assert some.details["images"] == binary.details["images"][:2]
    assert others.details["images"] != some.details["images"]
    (every,) = run(data, backbone, tmp_path, bilinear, config=tiny(choose="all", images=6))
    assert len(every.details["images"]) == 6


class StopError(Exception):
    pass


def test_an_interrupted_run_goes_on(
    data: ClassifiedImages,
    backbone: upfeat.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    original = _Scoring.score

    def score(self: _Scoring, way: Method, *arguments: object) -> list[float]:
        seen.append(way.label)
        if len(seen) == 4:
            raise StopError
        return original(self, way, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_Scoring, "score", score)
    ways = (method("nearest"), method("bilinear"))
    with pytest.raises(StopError):
        run(data, backbone, tmp_path, *ways)
    assert not list((tmp_path / "results").glob("*.json"))
    resumed = run(data, backbone, tmp_path, *ways)
    assert len(seen) == 4 + 10 - 3
    assert [result.scores for result in run(data, backbone, tmp_path / "whole", *ways)] == [
        result.scores for result in resumed
    ]


def test_the_masked_image_is_grey_where_the_map_is_zero(
    data: ClassifiedImages,
    backbone: upfeat.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What guides is the masked image in [0, 1], what is classified the masked normalised one."""
    guided: list[torch.Tensor] = []

    class Seeing(Bilinear):
        def encode(self, image, features, output_size):  # type: ignore[no-untyped-def]
            guided.append(image)
            return super().encode(image, features, output_size)

    classified: list[torch.Tensor] = []
    original = CamClassifier.explain

    def explain(self: CamClassifier, pixels: torch.Tensor, target: int | None = None) -> object:
        classified.append(pixels)
        return original(self, pixels, target)

    monkeypatch.setattr(CamClassifier, "explain", explain)
    run(data, backbone, tmp_path, Method("seeing", Seeing()), config=tiny(limit=1))
    assert len(guided) == len(classified) == 2
    for image, pixels in zip(guided, classified, strict=True):
        torch.testing.assert_close(image, pixels, atol=1e-5, rtol=0)
    masked = (classified[1] == 0).all(1)
    assert 0 < float(masked.float().mean()) < 1
    assert torch.equal(classified[1][:, :, ~masked[0]], classified[0][:, :, ~masked[0]])


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_other_networks(name: str) -> None:
    small = {"embed_dim": 12, "num_heads": (1, 2, 3, 6)} if name.startswith("swin") else {}
    network = create_backbone(f"timm/{name}", weights="random", num_classes=CLASSES, **small)
    classifier = CamClassifier(network)
    found = classifier.explain(torch.randn(1, 3, 64, 96))
    assert classifier.side == "output"
    assert found.activations.shape[2:] == (2, 3)
    assert found.weights.shape == found.activations.shape[:2]


def test_errors(data: ClassifiedImages, backbone: upfeat.Backbone, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        cam_preset("jafr", "imagenet")
    with pytest.raises(UnknownNameError, match="data set"):
        cam_preset("jafar", "imgnet")
    with pytest.raises(ValueError, match=r"no layer 'blocks\.7'"):
        run(data, backbone, tmp_path, LowRes(), config=tiny(layer="blocks.7"))
    with pytest.raises(UnsupportedError, match="earlier layer"):
        run(data, backbone, tmp_path, LowRes(), config=tiny(layer="norm"))
    with pytest.raises(UnsupportedError, match="neither a map nor"):
        run(data, backbone, tmp_path, LowRes(), config=tiny(layer="head"))
    with pytest.raises(UnsupportedError, match="no classifier"):
        create_classifier("timm/vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(UnsupportedError, match="timm/NAME"):
        create_classifier("upfeat/vit_compact_patch16")
    headless = create_backbone("timm/vit_tiny_patch16_224", weights="random", **TINY)
    with pytest.raises(UnsupportedError, match="has no classifier"):
        CamClassifier(headless)
    fewer = dataclasses.replace(data, classes=("a", "b"))
    with pytest.raises(ValueError, match="choose=all"):
        run(fewer, backbone, tmp_path, LowRes())
    wrong = tuple(file._replace(label=(file.label + 1) % CLASSES) for file in data.files[1:])
    with pytest.raises(ValueError, match="none of 5 images"):
        run(dataclasses.replace(data, files=wrong), backbone, tmp_path, LowRes())
    assert not list((tmp_path / "results").glob("*.json"))


# -- the command ---------------------------------------------------------------------------------


def command(root: Path, *arguments: object, code: int = 0) -> Outcome:
    folders = ("--out", root / "results", "--cache", root / "cache")
    fixed = ("eval", "cam", "--data", "imagenet", "--root", root / "imagenet", *folders)
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    line = [str(part) for part in (*fixed, *arguments)]
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == code, outcome.output
    return outcome


def test_command(tmp_path: Path, data: ClassifiedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random network stands in for weights; it is right about hardly anything, so all images."""
    for file in data.files[:2]:
        path = tmp_path / "imagenet" / "val" / "n01440764" / f"{file.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.image.read_bytes())

    def build(spec: str, weights: object) -> upfeat.Backbone:
        return create_backbone(spec, weights="random", num_classes=1000, **TINY)

    protocol = dataclasses.replace(get_protocol("cam"), backbone=build)
    monkeypatch.setitem(registry._PROTOCOLS, "cam", protocol)
    options = ("--set", "input_size=[32, 32]", "--set", "choose=all", "--set", "mask=soft")
    text = command(
        tmp_path, "--backbone", "timm/vit_tiny_patch16_224", "--upsampler", "low-res,bilinear",
        *options, "--limit", 1,
    ).stdout  # fmt: skip
    assert "quick look: 1 images" in text
    assert "ADCC" in text
    (path, _) = sorted((tmp_path / "results").glob("*.json"))
    assert path.name.startswith("cam--imagenet--bilinear--")
    settings = json.loads(path.read_text())["settings"]
    assert (settings["mask"], settings["layer"], settings["limit"]) == ("soft", "blocks.2", 1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--backbone", "upfeat/vit_compact_patch16"), "timm/NAME"),
        (("--backbone", "timm/vit_tiny", "--set", "mask=hard"), "mask"),
        (("--backbone", "timm/vit_tiny_patch16"), "did you mean"),
        (("--backbone", "timm/vit_tiny", "--data", "coco"), "unknown data set"),
    ],
)
def test_command_errors(tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    outcome = command(tmp_path, "--upsampler", "bilinear", *arguments, code=2)
    assert problem in " ".join(outcome.output.split())
    assert not list((tmp_path / "results").glob("*.json"))
