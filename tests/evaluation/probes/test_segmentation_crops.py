"""The papers' segmentation probes on a tiny set: what they learn, share, keep and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import upfeat
from tests.tolerances import tolerance
from upfeat.cli.app import app
from upfeat.data import SegmentationData, msrc
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import JointMethod, LowRes, Method
from upfeat.evaluation.metrics import SegmentationMetric
from upfeat.evaluation.probes import crops
from upfeat.evaluation.probes.crops import CropProbe, _Trainee, kept_weights
from upfeat.evaluation.probes.parts import (
    Heads,
    epoch_batches,
    learning_rate_factor,
)
from upfeat.evaluation.probes.segmentation_crops import (
    ImageProbe,
    ImageProbeConfig,
)
from upfeat.evaluation.protocols.seg_probe import run_seg_probe, seg_probe_preset
from upfeat.evaluation.registry import silent
from upfeat.evaluation.results import Result

COLORS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
PATCH = 8
SIDE = 4 * PATCH


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose patches are of one of three colours each; the colour is the class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for i in range(count):
            cells = generator.integers(0, 3, (4, 6) if i % 2 else (6, 4))
            label = cells.repeat(PATCH, 0).repeat(PATCH, 1).astype(np.uint8)
            pixels = COLORS[label]
            label[:, 0] = 255
            for folder, array in (("images", pixels), ("labels", label)):
                path = tmp_path / "set" / split / folder / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "set"


@pytest.fixture
def backbone() -> upfeat.Backbone:
    return upfeat.CallableBackbone(torch.nn.AvgPool2d(PATCH), dim=3, patch_size=PATCH)


def tiny(preset: str = "jafar", **changes: Any) -> ImageProbeConfig:
    settings = {"crop_size": SIDE, "epochs": 3, "learning_rate": 0.1, "seeds": (0, 1)}
    config = seg_probe_preset(preset, "msrc", **settings | changes)
    assert isinstance(config, ImageProbeConfig)
    return config


def method(name: str) -> Method:
    return Method(name, upfeat.create_upsampler(name))


def probe(
    root: Path,
    backbone: upfeat.Backbone,
    *methods: Method,
    config: ImageProbeConfig | None = None,
    cache: str = "cache",
    out: str = "results",
) -> list[Result]:
    return run_seg_probe(
        config or tiny(),
        msrc(root, "train"),
        msrc(root, "val"),
        backbone,
        methods,
        out=root.parent / out,
        cache=root.parent / cache,
    )


def engine(root: Path, backbone: upfeat.Backbone, config: ImageProbeConfig) -> ImageProbe:
    train, val = msrc(root, "train"), msrc(root, "val")
    folder = root.parent
    return ImageProbe(config, folder / "results", silent, train, val, backbone, folder / "cache")


def test_nearest_solves_a_task_of_whole_patches(root: Path, backbone: upfeat.Backbone) -> None:
    config = tiny(epochs=10, boundary_radius=2)
    nearest, bilinear = probe(root, backbone, method("nearest"), method("bilinear"), config=config)
    assert nearest.scores["miou"].mean == 100
    assert nearest.scores["band_accuracy"].per_seed == (100, 100)
    assert 50 < bilinear.scores["miou"].mean < 100
    assert nearest.details["head_before_upsampling"] == {"training": True, "validation": True}
    assert nearest.details["iou_per_class"]["boat"] is None
    settings = json.loads((root.parent / "results" / nearest.file_name("msrc")).read_text())[
        "settings"
    ]
    assert settings["schedule"] == "per_iteration_bug"
    assert settings["splits"]["msrc/train"]["images"] == 5
    assert settings["upsampler"]["name"] == "nearest"


def test_low_res_is_probed_on_the_grid_of_the_features(
    root: Path, backbone: upfeat.Backbone
) -> None:
    """The same as ``nearest`` with ``target_size`` set to the side of the grid."""
    (low,) = probe(root, backbone, LowRes(), config=tiny("loftup", epochs=20))
    config = tiny("loftup", epochs=20, target_size=SIDE // PATCH)
    (grid,) = probe(root, backbone, method("nearest"), config=config)
    assert low.scores == grid.scores
    assert low.scores["accuracy"].mean > 50
    assert low.settings["upsampler"] == {"name": "low-res"}


def test_presets_are_the_papers() -> None:
    fields = ("crop_size", "optimizer", "learning_rate", "weight_decay", "schedule", "epochs")
    fields += ("batch", "flip")
    found = {
        preset: [getattr(seg_probe_preset(preset, "voc"), name) for name in fields]
        for preset in ("jafar", "anyup", "naf", "loftup")
    }
    assert found == {
        "jafar": [448, "adamw", 5e-4, 1e-5, "per_iteration_bug", 20, 2, 0.5],
        "anyup": [448, "adamw", 5e-4, 1e-5, "per_epoch", 20, 4, 0.5],
        "naf": [448, "adamw", 5e-4, 1e-5, "per_step", 20, 2, 0.5],
        "loftup": [224, "nadam", 1e-4, 0, "constant", 10, 8, 0],
    }


# -- heads in front of upsamplers ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["nearest", "bilinear", "joint_bilateral", "jafar", "anyup"])
def test_head_before_upsampling_is_the_same(
    root: Path, backbone: upfeat.Backbone, name: str
) -> None:
    """Logits, losses and the heads' gradients to 1e-5, for several seeds together."""
    options: dict[str, dict[str, int]] = {
        "jafar": {"feature_dim": 3, "qk_dim": 32},
        "anyup": {"qk_dim": 32},
    }
    fixed = Method(name, upfeat.create_upsampler(name, **options.get(name, {})))
    outputs, gradients = [], []
    for way in ("always", "never"):
        found = engine(root, backbone, tiny(head_before_upsampling=way))
        assert found.head_first(fixed.upsampler, training=True) == (way == "always")
        trainee = _Trainee(fixed, Heads(3, 23, (0, 1)), found.config, found.pipe.device)
        batch = found.load("train", [0, 1], flipped=True)
        ((seeds, logits),) = found.forward(trainee, batch)
        assert (seeds, logits.shape) == (slice(0, 2), (2, 2, 23, SIDE, SIDE))
        loss = found.loss(logits, batch.target, 0)
        assert loss is not None
        loss.backward()
        outputs.append(logits.detach())
        gradients.append([parameter.grad for parameter in trainee.heads.parameters()])
        assert all(p.grad is None for p in fixed.upsampler.parameters())
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0][:2], gradients[1][:2], atol=1e-5, rtol=0)
    assert float(gradients[0][0].abs().max()) > 1e-3


@pytest.mark.parametrize("fit", ["logits_bilinear", "labels_nearest"])
@pytest.mark.parametrize("name", ["jafar", "anyup", "kin"])
def test_gradients_by_rows_are_those_of_the_whole(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch, name: str, fit: str
) -> None:
    options = {"jafar": {"feature_dim": 3, "qk_dim": 32}, "anyup": {"qk_dim": 32}}
    fixed = Method(name, upfeat.create_upsampler(name, **options.get(name, {})))
    size = SIDE if fit == "logits_bilinear" else SIDE // 2
    config = tiny(head_before_upsampling="always", fit=fit, target_size=size)
    found = engine(root, backbone, config)
    batch = found.load("train", [0, 1])
    results = []
    for budget in (None, 1, 2**18):
        trainee = _Trainee(fixed, Heads(3, 23, (0, 1)), found.config, found.pipe.device)
        assert found.in_rows(trainee.upsamplers[0])
        if budget is None:
            losses = found._gradients(trainee, batch, 0)
        else:
            monkeypatch.setattr(crops, "TILE_BYTES", 2 * budget)
            losses = found._gradients_by_rows(trainee, batch)
        results.append([*losses, *(p.grad for p in list(trainee.heads.parameters())[:2])])
    for by_rows in results[1:]:
        torch.testing.assert_close(by_rows, results[0], atol=1e-5, rtol=1e-5)
    assert float(results[0][1].abs().max()) > 1e-3


def test_pixels_without_a_label_train_nothing(root: Path, backbone: upfeat.Backbone) -> None:
    upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=32)
    found = engine(root, backbone, tiny(head_before_upsampling="always"))
    heads = Heads(3, 23, (0, 1))
    trainee = _Trainee(Method("jafar", upsampler), heads, found.config, found.pipe.device)
    batch = found.load("train", [0])
    batch.target.fill_(found.ignored)
    before = heads.weight.detach().clone()
    found.step(trainee, batch, 0.1, 0)
    assert torch.equal(heads.weight, before)


@pytest.mark.parametrize("name", ["bilinear", "anyup"])
def test_heads_go_first_where_that_is_cheaper(
    root: Path, backbone: upfeat.Backbone, name: str
) -> None:
    found, upsampler = engine(root, backbone, tiny()), upfeat.create_upsampler(name)
    assert found.head_first(upsampler, training=False)
    assert found.head_first(upsampler, training=True) == (name == "bilinear")
    # With few outputs beside the channels rows of learned weights pay too, where the loss allows.
    found.backbone.dim = 4 * 2 * 23
    assert found.head_first(upsampler, training=True) == (name == "bilinear")
    upsampler.requires_grad_(False)
    assert found.head_first(upsampler, training=True)
    found.pixelwise = lambda size: False
    assert found.head_first(upsampler, training=True) == (name == "bilinear")


def test_seeds_together_are_seeds_alone(root: Path, backbone: upfeat.Backbone) -> None:
    (both,) = probe(root, backbone, method("bilinear"), config=tiny(epochs=2))
    for index in range(2):
        (one,) = probe(root, backbone, method("bilinear"), config=tiny(epochs=2, seeds=(index,)))
        expected = both.scores["miou"].per_seed[index]
        assert one.scores["miou"].mean == pytest.approx(expected, abs=0.2)


def test_token_of_heads_is_a_concatenation() -> None:
    heads = Heads(4, 3, (0, 1), token_channels=2)
    features, token = torch.randn(2, 4, 5, 6), torch.randn(2, 2)
    both = torch.cat([features, token[:, :, None, None].expand(-1, -1, 5, 6)], 1)
    assert heads.token_weight is not None
    weight = torch.cat([heads.weight, heads.token_weight], 1)[:, :, None, None]
    expected = torch.nn.functional.conv2d(both, weight, heads.bias)
    found = heads(features, token, slice(0, 2))
    torch.testing.assert_close(found, expected, **tolerance(torch.float32))
    torch.testing.assert_close(heads(features, token, slice(1, 2)), found[:, 3:])


# -- the pass over the data ----------------------------------------------------------------------


def test_methods_share_reading_and_encoding(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, encoded = [], []
    read, extract = SegmentationData.read, type(backbone)._extract

    def count_read(self: SegmentationData, file: Any) -> Any:
        reads.append(file.name)
        return read(self, file)

    def count_extract(self: Any, image: torch.Tensor) -> torch.Tensor:
        encoded.append(len(image))
        return extract(self, image)

    monkeypatch.setattr(SegmentationData, "read", count_read)
    monkeypatch.setattr(type(backbone), "_extract", count_extract)
    config = tiny(epochs=2, flip=1.0)
    probe(root, backbone, method("nearest"), method("bilinear"), config=config)
    assert len(reads) == 2 * 5 + 2
    assert len(encoded) == 5 + 2  # flipped ones are kept, too
    probe(root, backbone, method("bicubic"), config=config)
    assert len(encoded) == 7


def test_a_flipped_batch_is_flipped_as_a_whole(root: Path, backbone: upfeat.Backbone) -> None:
    found = engine(root, backbone, tiny())
    plain, flipped = (found.load("train", [0, 1], flipped=way) for way in (False, True))
    for name in ("image", "features", "target"):
        assert torch.equal(getattr(plain, name).flip(-1), getattr(flipped, name)), name
    assert plain.image.shape == (2, 3, SIDE, SIDE)


def test_order_repeats_and_changes() -> None:
    epochs = [epoch_batches(9, 2, 0.5, 0, epoch) for epoch in (0, 1)]
    assert epochs[0] == epoch_batches(9, 2, 0.5, 0, 0)
    assert epochs[0] != epochs[1]
    assert sorted(index for indices, _ in epochs[0] for index in indices) == list(range(9))
    assert not any(flipped for _, flipped in epoch_batches(99, 2, 0.0, 0, 0))
    flips = [flipped for _, flipped in epoch_batches(400, 2, 0.5, 0, 0)]
    assert 60 < sum(flips) < 140


@pytest.mark.parametrize("schedule", ["per_iteration_bug", "per_epoch", "per_step"])
def test_schedules_are_those_of_torch(schedule: Any) -> None:
    epochs, iterations = 3, 4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    period = epochs * iterations if schedule == "per_step" else epochs
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period)
    for epoch in range(epochs):
        for number in range(iterations):
            factor = learning_rate_factor(schedule, epoch * iterations + number, epochs, iterations)
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            if schedule != "per_epoch":
                cosine.step()
        if schedule == "per_epoch":
            cosine.step()


# -- stopping and going on -----------------------------------------------------------------------


class StopError(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_bits(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads and a jointly trained upsampler, stopped within the last epoch."""
    methods = [method("bilinear"), joint("resize_conv")]
    config = tiny("naf", validate_every=1, learning_rate=0.02)
    whole = probe(root, backbone, *methods, config=config, cache="other", out="whole")
    steps = {"done": 0}
    original = CropProbe.step

    def step(self: Any, *arguments: Any) -> None:
        steps["done"] += 1
        if steps["done"] == 2 * 2 * 3 + 2:
            raise StopError
        original(self, *arguments)

    monkeypatch.setattr(CropProbe, "step", step)
    with pytest.raises(StopError):
        probe(root, backbone, *methods, config=config)
    kept = sorted(path.name for path in (root.parent / "cache/probes").iterdir())
    assert len(kept) == 2
    assert not (root.parent / "results").exists()
    steps["done"] = -100
    resumed = probe(root, backbone, *methods, config=config)
    assert steps["done"] == -100 + 2 * 3  # one epoch of two methods
    for one, other in zip(whole, resumed, strict=True):
        assert one.scores == other.scores
        assert one.details == other.details
        assert sorted(one.details["mean_by_epoch"]) == ["1", "2"]
    assert not list((root.parent / "cache/probes").iterdir())


def test_finished_methods_are_skipped_and_late_ones_catch_up(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = probe(root, backbone, method("nearest"))
    seen: list[str] = []
    original = CropProbe.step

    def step(self: Any, trainee: Any, *arguments: Any) -> None:
        seen.append(trainee.method.label)
        original(self, trainee, *arguments)

    monkeypatch.setattr(CropProbe, "step", step)
    again, bilinear = probe(root, backbone, method("nearest"), method("bilinear"))
    assert again == first
    assert set(seen) == {"bilinear"}
    assert bilinear.label == "bilinear"


def test_a_broken_checkpoint_counts_as_absent(
    root: Path, backbone: upfeat.Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(epochs=1)
    found = engine(root, backbone, config)
    (result,) = probe(root, backbone, method("nearest"), config=config)
    path = root.parent / "cache/probes/broken.pt"
    path.write_bytes(b"half")
    trainee = _Trainee(method("nearest"), Heads(3, 23, (0, 1)), config, found.pipe.device)
    trainee.load(path)
    assert trainee.epoch == 0
    assert "from the start" in caplog.text
    assert result.scores["miou"].mean > 0


# -- methods that are trained with the task ------------------------------------------------------


def joint(name: str, **options: Any) -> JointMethod:
    return JointMethod(name, upfeat.create_upsampler(name, feature_dim=3, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("carafe", {}),
        ("sapa", {}),
        ("dysample", {"groups": 1}),
        ("resfu", {}),
        ("liif", {"hidden_dim": 8}),
        ("resize_conv", {}),
    ],
)
def test_task_dependent_methods_are_trained_once_a_seed(
    root: Path, backbone: upfeat.Backbone, name: str, options: dict[str, Any]
) -> None:
    found = engine(root, backbone, tiny("naf", learning_rate=0.01))
    trained = joint(name, **options)
    trainee = _Trainee(trained, Heads(3, 23, (0, 1)), found.config, found.pipe.device)
    before = [
        [parameter.clone() for parameter in upsampler.parameters()]
        for upsampler in trainee.upsamplers
    ]
    assert any(not torch.equal(*pair) for pair in zip(*before, strict=True))
    batch = found.load("train", [0, 1])
    losses = []
    for iteration in range(4):
        with torch.no_grad():
            values = [found.loss(x, batch.target, 0) for _, x in found.forward(trainee, batch)]
            losses.append(float(sum(value for value in values if value is not None)))
        found.step(trainee, batch, 0.01, iteration)
    assert losses[-1] < losses[0]
    for old, upsampler in zip(before, trainee.upsamplers, strict=True):
        pairs = zip(old, upsampler.parameters(), strict=True)
        assert any(not torch.equal(*pair) for pair in pairs)
    assert found.settings(trained)["upsampler"]["weights"].startswith("trained with the heads")


def test_what_was_trained_with_the_heads_is_kept_for_other_protocols(
    root: Path, backbone: upfeat.Backbone
) -> None:
    trained = joint("resize_conv")

    def run(keep_weights: bool) -> Result:
        (result,) = run_seg_probe(
            tiny(epochs=1),
            msrc(root, "train"),
            msrc(root, "val"),
            backbone,
            [trained],
            out=root.parent / "results",
            cache=root.parent / "cache",
            keep_weights=keep_weights,
        )
        return result

    plain = run(keep_weights=False)
    path = root.parent / "results" / plain.file_name("msrc")
    folders = kept_weights(path, plain.settings["seeds"])
    assert not any(folder.exists() for folder in folders)
    kept = run(keep_weights=True)  # the result is there, its weights are not
    assert kept.scores == plain.scores
    first, second = (upfeat.load_upsampler(folder, backbone) for folder in folders)
    assert type(first) is type(trained.upsampler)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
    written = path.stat().st_mtime_ns
    assert run(keep_weights=True).scores == kept.scores
    assert path.stat().st_mtime_ns == written


def test_frozen_methods_stay_as_they_are(root: Path, backbone: upfeat.Backbone) -> None:
    jafar = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=32)
    before = [parameter.clone() for parameter in jafar.parameters()]
    probe(root, backbone, Method("mine", jafar), config=tiny(epochs=1))
    for old, new in zip(before, jafar.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.requires_grad
        assert new.grad is None


def test_joint_methods_need_a_protocol_that_trains(root: Path, backbone: upfeat.Backbone) -> None:
    config = seg_probe_preset("pixel-sample", "msrc", input_size=(SIDE, SIDE))
    with pytest.raises(UnsupportedError, match="jafar"):
        run_seg_probe(
            config,
            msrc(root, "train"),
            msrc(root, "val"),
            backbone,
            [joint("carafe")],
            out=root.parent,
            cache=root.parent,
        )


# -- LoftUp's way --------------------------------------------------------------------------------


def test_labels_are_shrunk_and_classes_enlarged(root: Path, backbone: upfeat.Backbone) -> None:
    found = engine(root, backbone, tiny("loftup", target_size=4))
    target = torch.randint(0, 3, (2, SIDE, SIDE))
    target[:, ::PATCH, ::PATCH] = torch.arange(16).reshape(4, 4) % 3
    logits = 20.0 * torch.nn.functional.one_hot(target[:, ::PATCH, ::PATCH], 23)
    # (B, h, w, K) -> (B, S, K, h, w)
    outputs = logits.permute(0, 3, 1, 2)[:, None].expand(-1, 2, -1, -1, -1)
    loss = found.loss(outputs, target, 0)
    assert loss is not None
    assert loss.item() < 1e-6
    metric = SegmentationMetric(23)
    blocky = target[:1, ::PATCH, ::PATCH].repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    found.score([metric], outputs[:1, :1], blocky)
    assert metric.compute()["accuracy"] == 1
    other = engine(root, backbone, tiny("loftup", target_size=4, fit="logits_nearest"))
    enlarged = other.loss(outputs, blocky.expand(2, -1, -1), 0)
    assert enlarged is not None
    assert enlarged.item() < 1e-6


def test_loftups_low_resolution_row(root: Path, backbone: upfeat.Backbone) -> None:
    config = tiny("loftup", target_size=4, learning_rate=0.1, epochs=12, optimizer="adamw")
    (nearest,) = probe(root, backbone, method("nearest"), config=config)
    assert nearest.scores["miou"].mean == 100


def test_logits_of_another_size_are_resized(root: Path, backbone: upfeat.Backbone) -> None:
    found = engine(root, backbone, tiny(target_size=2 * PATCH))
    target = torch.randint(0, 3, (2, SIDE, SIDE))
    outputs = torch.randn(2, 2, 23, 2 * PATCH, 2 * PATCH)
    large = torch.nn.functional.interpolate(outputs.flatten(0, 1), (SIDE, SIDE), mode="bilinear")
    expected = found.loss(large.unflatten(0, (2, 2)), target, 0)
    torch.testing.assert_close(found.loss(outputs, target, 0), expected)
    assert found.loss(outputs, torch.full_like(target, 255), 0) is None


def test_guidance_as_the_protocol_wants_it(root: Path) -> None:
    net = upfeat.CallableBackbone(
        torch.nn.AvgPool2d(PATCH), 3, PATCH, image_mean=(0.5,) * 3, image_std=(0.25,) * 3
    )
    image = torch.full((1, 3, SIDE, SIDE), 0.75)
    bilinear = upfeat.create_upsampler("bilinear")
    own = engine(root, net, tiny("jafar")).guidance(bilinear, image)
    torch.testing.assert_close(own, torch.ones(1, 3, SIDE, SIDE))
    imagenet = engine(root, net, tiny("naf")).guidance(bilinear, image)
    assert imagenet[0, 0, 0, 0].item() == pytest.approx((0.75 - 0.485) / 0.229)
    small = engine(root, net, tiny("loftup", target_size=8)).guidance(bilinear, image)
    assert small.shape == (1, 3, 8, 8)


# -- errors and the command ----------------------------------------------------------------------


def test_errors(root: Path, backbone: upfeat.Backbone) -> None:
    with pytest.raises(UnknownNameError, match="jafar"):
        seg_probe_preset("jafr", "voc")
    with pytest.raises(ValueError, match="flip"):
        tiny(flip=2)
    broken = upfeat.CallableBackbone(
        lambda image: torch.nn.functional.avg_pool2d(image, PATCH) * 6e4, dim=3, patch_size=PATCH
    )
    with pytest.raises(ValueError, match="loss of bilinear is"):
        probe(root, broken, method("bilinear"), config=tiny(learning_rate=1e36))


def command(root: Path, *arguments: object, code: int = 0) -> str:
    fixed = ("eval", "seg-probe", "--backbone", "upfeat/vit_compact_patch16", "--data", "msrc")
    folders = ("--out", root.parent / "results", "--cache", root.parent / "cache")
    quick = ("--limit", 1, "--set", f"crop_size={SIDE}", "--set", "epochs=1")
    line = [str(part) for part in (*fixed, "--root", root, *folders, *quick, *arguments)]
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == code, outcome.output
    return " ".join(outcome.output.split())


def test_command(root: Path) -> None:
    text = command(root, "--preset", "naf", "--upsampler", "nearest,carafe", "--seeds", "3,4")
    assert "naf, msrc" in text
    assert "quick look" in text
    results = [Result.load(path) for path in sorted((root.parent / "results").iterdir())]
    assert [result.label for result in results] == ["carafe", "nearest"]
    assert results[0].settings["upsampler"]["weights"].startswith("trained")
    assert results[1].settings["guidance"] == "imagenet"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--set", "epoch=3"), "unknown setting 'epoch'; did you mean 'epochs'"),
        (("--set", "batch=0"), "batch must be greater than 0, got 0"),
        (("--set", "schedule=cosine"), "schedule must be 'constant', 'per_iteration_bug'"),
        (("--upsampler", "jafar"), "must be trained first"),
        (("--data", "mscr"), "did you mean 'msrc'"),
    ],
)
def test_command_errors(root: Path, arguments: tuple[str, ...], problem: str) -> None:
    first = ("--preset", "jafar", "--upsampler", "nearest")
    assert problem in command(root, *first, *arguments, code=2)
    assert not (root.parent / "results").exists()
