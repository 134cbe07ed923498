"""The depth probes on a tiny set: what they learn, how heads go first, what they refuse."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import upfeat
from tests.data.test_depth_teacher import write_teacher
from tests.tolerances import tolerance
from upfeat.cli.app import app
from upfeat.data import nyuv2, nyuv2_depth
from upfeat.data.depth import DepthTeacher
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import JointMethod, Method
from upfeat.evaluation.probes import depth_pixels
from upfeat.evaluation.probes.crops import _Trainee
from upfeat.evaluation.probes.depth_pixels import DepthPixelConfig, DepthPixelProbe
from upfeat.evaluation.probes.losses import bin_depth
from upfeat.evaluation.probes.parts import Heads
from upfeat.evaluation.probes.pixels import encode_turned
from upfeat.evaluation.protocols.depth_probe import (
    DepthProbeConfig,
    _DepthProbe,
    depth_probe_preset,
    run_depth_probe,
)
from upfeat.evaluation.registry import silent
from upfeat.evaluation.results import Result

PATCH = 8
SIDE = 4 * PATCH


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose brightness, patch by patch, is their depth; the upper row has no depth."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            cells = generator.integers(30, 250, (4, 6)).astype(np.uint8)
            depth = cells.repeat(PATCH, 0).repeat(PATCH, 1)
            pixels = np.stack([depth, 255 - depth, np.full_like(depth, 128)], -1)
            depth[0] = 0
            label = np.zeros_like(depth)
            for folder, array in (("images", pixels), ("depth", depth), ("labels", label)):
                path = tmp_path / "set" / split / folder / f"{i:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "set"


class TokenBackbone(upfeat.CallableBackbone):
    """Pools patches; its class token is the mean colour."""

    def __init__(self) -> None:
        super().__init__(torch.nn.AvgPool2d(PATCH), dim=3, patch_size=PATCH, name="pooling")

    def _class_token(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


@pytest.fixture
def backbone() -> upfeat.Backbone:
    return TokenBackbone()


def crops(preset: str = "nyu", **changes: Any) -> DepthProbeConfig:
    settings = {"crop_size": SIDE, "epochs": 2, "batch": 2, "seeds": (0, 1), "bins": 16}
    config = depth_probe_preset(preset, "nyuv2", **settings | changes)
    assert isinstance(config, DepthProbeConfig)
    return config


def pixels(**changes: Any) -> DepthPixelConfig:
    settings = {
        "input_size": (SIDE, 6 * PATCH),
        "steps": 300,
        "batch_pixels": 128,
        "pixels_per_image": 200,
        "learning_rate": 0.03,
        "warm_up_steps": 5,
        "bins": 16,
        "seeds": (0, 1),
    }
    config = depth_probe_preset("pixel-sample", "nyuv2", **settings | changes)
    assert isinstance(config, DepthPixelConfig)
    return config


def method(name: str, **options: Any) -> Method:
    return Method(name, upfeat.create_upsampler(name, **options))


def probe(
    root: Path,
    backbone: upfeat.Backbone,
    *methods: Method,
    config: DepthProbeConfig | DepthPixelConfig,
    teacher: DepthTeacher | None = None,
    read: Any = nyuv2_depth,
) -> list[Result]:
    return run_depth_probe(
        config,
        read(root, "train"),
        read(root, "val"),
        backbone,
        methods,
        out=root.parent / "results",
        cache=root.parent / "cache",
        teacher=teacher,
    )


def engine(root: Path, backbone: upfeat.Backbone, config: DepthProbeConfig) -> _DepthProbe:
    train, val = nyuv2_depth(root, "train"), nyuv2_depth(root, "val")
    folder = root.parent
    return _DepthProbe(config, folder / "results", silent, train, val, backbone, folder / "cache")


def test_presets_are_the_papers() -> None:
    jafar, nyu = (depth_probe_preset(name, "nyuv2") for name in ("jafar", "nyu"))
    assert isinstance(jafar, DepthProbeConfig)
    assert isinstance(nyu, DepthProbeConfig)
    assert (jafar.bins, jafar.max_depth, jafar.class_token) == (256, 10, True)
    assert (jafar.schedule, jafar.epochs, jafar.batch) == ("per_iteration_bug", 5, 4)
    assert (jafar.gradient, jafar.warm_up_iterations, jafar.normalise) == ("spatial", 100, True)
    assert (nyu.loss, nyu.schedule, nyu.epochs, nyu.batch) == ("probe3d", "probe3d", 10, 8)
    assert (nyu.weight_decay, nyu.flip) == (0.01, 0)


# -- pixel-sample --------------------------------------------------------------------------------


def test_pixels_learn_depth_that_is_in_the_features(root: Path, backbone: upfeat.Backbone) -> None:
    nearest, bilinear = probe(
        root, backbone, method("nearest"), method("bilinear"), config=pixels()
    )
    assert nearest.scores["d1"].mean > 90
    assert nearest.scores["rmse"].mean < 0.7 * bilinear.scores["rmse"].mean
    assert nearest.scores["si_rmse"].mean <= nearest.scores["rmse"].mean + 1e-3
    assert nearest.unit == "m"
    assert nearest.settings["splits"]["nyuv2-depth/train"]["images"] == 4
    assert nearest.details["pool_pixels"] == 4 * 200
    assert not list((root.parent / "cache/pixels").iterdir())
    again, _ = probe(root, backbone, method("nearest"), method("bilinear"), config=pixels())
    assert again == nearest


@pytest.mark.parametrize("token", [True, False])
def test_pixels_are_decoded_the_same_before_and_behind(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch, token: bool
) -> None:
    found = []
    config = pixels(class_token=token)
    for way in (True, False):
        monkeypatch.setattr(depth_pixels, "head_first_is_cheaper", lambda *_, way=way: way)
        train, val = nyuv2_depth(root, "train"), nyuv2_depth(root, "val")
        folder = root.parent
        quick = DepthPixelProbe(config, folder, silent, train, val, backbone, folder / "cache")
        heads = [Heads(3, 16, (seed,), 3 * token) for seed in (0, 1)]
        for head in heads:
            head.weight.data *= 10
        image = val[0].image
        encoded = encode_turned(quick.pipe, image)
        with torch.no_grad():
            found.append(quick.predict(method("bilinear"), encoded, (33, 47), heads))
    assert found[0].shape == (2, 33, 47)
    torch.testing.assert_close(*found, **tolerance(torch.float32))
    # and both are the plain head on features beside a broadcast token
    up = method("bilinear").upsampler(encoded.prepared, encoded.features, (33, 47))
    if token:
        mean = torch.nn.functional.normalize(encoded.prepared.mean((2, 3)).half().float(), dim=1)
        up = torch.cat([up, mean[:, :, None, None].expand(-1, -1, 33, 47)], 1)
    own = heads[1].weight if heads[1].token_weight is None else None
    weight = own if own is not None else torch.cat([heads[1].weight, heads[1].token_weight], 1)
    plain = torch.nn.functional.conv2d(up, weight[:, :, None, None], heads[1].bias)
    torch.testing.assert_close(found[0][1], bin_depth(plain)[0], **tolerance(torch.float32))


# -- crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bilinear", "jafar", "resfu"])
def test_head_before_upsampling_is_the_same(
    root: Path, backbone: upfeat.Backbone, name: str
) -> None:
    """Depths, losses and gradients, with the token; also where the upsampler is trained."""
    options = {"jafar": {"feature_dim": 3, "qk_dim": 32}, "resfu": {"feature_dim": 3}}
    upsampler = upfeat.create_upsampler(name, **options.get(name, {}))
    found: list[list[torch.Tensor]] = []
    for way in ("always", "never"):
        task = engine(root, backbone, crops(head_before_upsampling=way))
        fixed = JointMethod(name, upsampler) if name == "resfu" else Method(name, upsampler)
        trainee = _Trainee(fixed, Heads(3, 16, (0, 1), 3), task.config, task.pipe.device)
        trainee.train(False)
        assert task.head_first(upsampler, training=True) == (way == "always")
        batch = task.load("train", [0, 1])
        assert batch.token is not None
        seen = []
        for seeds, outputs in task.forward(trainee, batch):
            assert outputs.shape == (2, 1, 16, SIDE, SIDE)
            loss = task.loss(outputs, batch.target, 500)
            assert loss is not None
            loss.backward()
            seen += [task.depth(outputs, batch.target).detach(), loss.detach()]
            assert seeds.stop - seeds.start == 1
        parameters = [*trainee.heads.parameters()]
        found.append(seen + [p.grad for p in parameters if p.grad is not None])
    assert len(found[0]) == 4 + 3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_crops_learn(root: Path, backbone: upfeat.Backbone) -> None:
    config = crops(epochs=20, learning_rate=0.1, seeds=(0,))
    nearest, bilinear = probe(root, backbone, method("nearest"), method("bilinear"), config=config)
    assert nearest.scores["d1"].mean > 80
    assert nearest.scores["rmse"].mean < bilinear.scores["rmse"].mean
    assert nearest.details["images"] == 2
    assert nearest.settings["teacher"] is None


def test_losses_of_the_presets(root: Path, backbone: upfeat.Backbone) -> None:
    """JAFAR's warm-up and its released gradient term change the loss; missing depth gives none."""
    outputs, target = torch.randn(4, 1, 16, SIDE, SIDE), torch.rand(4, SIDE, SIDE) * 9 + 0.5

    def loss(iteration: int, **changes: Any) -> float:
        value = engine(root, backbone, crops("jafar", **changes)).loss(outputs, target, iteration)
        assert value is not None
        return value.item()

    assert loss(0) < loss(100)
    assert loss(100) == loss(101)
    assert loss(0, warm_up_iterations=0) == loss(100)
    assert loss(100, gradient="released") != loss(100)
    assert loss(100, loss="probe3d") > loss(100)
    task = engine(root, backbone, crops("jafar"))
    assert task.loss(outputs, torch.zeros_like(target), 0) is None
    both = task.loss(outputs.expand(-1, 2, -1, -1, -1), target, 0)
    assert both is not None
    assert both.item() == pytest.approx(2 * loss(0), rel=1e-5)
    small = task.depth(outputs[..., ::2, ::2], target)
    assert small.shape == (4, 1, SIDE, SIDE)


def test_images_as_they_are(root: Path) -> None:
    backbone = TokenBackbone()
    backbone.image_mean, backbone.image_std = (0.5,) * 3, (0.25,) * 3
    image = torch.full((1, 3, SIDE, SIDE), 0.75)
    anyup = upfeat.create_upsampler("anyup", qk_dim=32)
    usual, raw = (engine(root, backbone, crops(normalise=way)) for way in (True, False))
    assert usual.pixels(image).mean().item() == pytest.approx(1)
    assert torch.equal(raw.pixels(image), image)
    assert torch.equal(raw.guidance(anyup, image), image)
    assert not torch.equal(usual.guidance(anyup, image), image)
    photo = torch.rand(1, 3, SIDE, SIDE)
    with warnings.catch_warnings():  # raw images are meant here
        warnings.simplefilter("error")
        features = backbone(raw.pixels(photo))
        anyup.eval()(raw.guidance(anyup, photo), features)


def test_a_teacher_gives_depth_to_any_images(root: Path, backbone: upfeat.Backbone) -> None:
    teacher = DepthTeacher(write_teacher(root.parent / "teacher"), root.parent / "cache")
    config = crops("jafar", epochs=1, seeds=(0,), flip=1.0)
    (result,) = probe(
        root, backbone, method("bilinear"), config=config, teacher=teacher, read=nyuv2
    )
    assert result.unit == "teacher's"
    assert result.settings["teacher"] == "Depth-Anything-V1-16"
    assert result.settings["teacher_weights"] == teacher.weights
    assert teacher.cache.misses == 4 + 2
    data, cache = (nyuv2(root, "train"), nyuv2(root, "val")), root.parent / "cache"
    task = _DepthProbe(config, root, silent, *data, backbone, cache, teacher=teacher)
    plain, flipped = (task.load("train", [1], flipped=way) for way in (False, True))
    assert torch.equal(plain.target.flip(-1), flipped.target)
    assert torch.equal(plain.target[0], teacher(plain.image[0]))


def test_what_was_trained_with_the_heads_goes_on_to_others(root: Path) -> None:
    tiny = ("--preset", "nyu", "--set", f"crop_size={SIDE}", "--set", "epochs=1", "--set", "bins=8")
    command(root, "--upsampler", "resfu", "--seeds", "3", "--keep-weights", *tiny)
    (folder,) = (root.parent / "results/weights").iterdir()
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    kept = upfeat.load_upsampler(folder, backbone)
    assert isinstance(kept, type(upfeat.create_upsampler("resfu", feature_dim=backbone.dim)))
    quick = ("--set", "steps=3", "--set", "bins=8", "--set", "input_size=[32, 48]")
    text = command(root, "--upsampler", f"trained={folder}", *quick)
    assert "trained" in text


# -- errors and the command ----------------------------------------------------------------------


def test_errors(root: Path, backbone: upfeat.Backbone) -> None:
    with pytest.raises(UnknownNameError, match="pixel-sample"):
        depth_probe_preset("nyuv2", "nyuv2")
    with pytest.raises(UnknownNameError, match="data set"):
        depth_probe_preset("pixel-sample", "nyu")
    with pytest.raises(ValueError, match="has no depth; give a teacher"):
        probe(root, backbone, method("nearest"), config=crops(), read=nyuv2)
    with pytest.raises(ValueError, match="measured depth"):
        probe(root, backbone, method("nearest"), config=pixels(), read=nyuv2)
    carafe = JointMethod("carafe", upfeat.create_upsampler("carafe", feature_dim=3))
    with pytest.raises(UnsupportedError, match="nyu or jafar"):
        probe(root, backbone, carafe, config=pixels())
    plain = upfeat.CallableBackbone(torch.nn.AvgPool2d(PATCH), dim=3, patch_size=PATCH)
    with pytest.raises(UnsupportedError, match="no class token"):
        probe(root, plain, method("nearest"), config=crops())
    (result,) = probe(root, plain, method("nearest"), config=pixels(steps=2, class_token=False))
    assert result.scores["rmse"].mean > 0


def command(root: Path, *arguments: object, code: int = 0) -> str:
    fixed = ("eval", "depth-probe", "--backbone", "upfeat/vit_compact_patch16", "--data", "nyuv2")
    folders = ("--out", root.parent / "results", "--cache", root.parent / "cache")
    line = [str(part) for part in (*fixed, "--root", root, *folders, "--limit", 1, *arguments)]
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == code, outcome.output
    return " ".join(outcome.output.split())


def test_command(root: Path) -> None:
    quick = ("--set", "steps=3", "--set", "bins=8", "--set", "input_size=[32, 48]")
    text = command(root, "--upsampler", "nearest,bilinear", "--seeds", "3,4", *quick)
    assert "RMSE, m ↓" in text
    assert "quick look" in text
    tiny = ("--set", f"crop_size={SIDE}", "--set", "epochs=1", "--set", "bins=8")
    command(root, "--upsampler", "nearest", "--preset", "nyu", *tiny)
    teacher = write_teacher(root.parent / "teacher")
    command(root, "--upsampler", "nearest", "--preset", "jafar", "--teacher", teacher, *tiny)
    results = [Result.load(path) for path in (root.parent / "results").glob("*.json")]
    assert sorted(result.settings["preset"] for result in results) == [
        "jafar",
        "nyu",
        "pixel-sample",
        "pixel-sample",
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--set", "bin=3"), "unknown setting 'bin'; did you mean 'bins'"),
        (("--set", "bins=1"), "bins must be at least 2, got 1"),
        (("--preset", "nyuv"), "unknown preset 'nyuv'; did you mean 'nyu'"),
        (("--preset", "nyu", "--data", "msrc"), "data set with depth (without --teacher)"),
        (("--preset", "jafar", "--teacher", "nowhere"), "no depth teacher in nowhere"),
        (("--root", "nowhere"), "Expected:"),
    ],
)
def test_command_errors(root: Path, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in command(root, "--upsampler", "nearest", *arguments, code=2)
    assert not (root.parent / "results").exists()
