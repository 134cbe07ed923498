"""``upfeat train`` and the images of a run, with real files and the bundled encoder."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import upfeat
from tests.data.test_masks import tiny_sam
from tests.training.tiny import tiny_config
from upfeat.cli.app import app
from upfeat.training import (
    Callback,
    DataConfig,
    MaskConfig,
    TrainConfig,
    Trainer,
    open_source,
    pick_device,
    read_log,
)

SMALL = (
    *("batch_size=2", "steps=2", "schedule.warmup_steps=0"),
    *("data.crop=64", "data.resize=64", "device=cpu"),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(3):
        pixels = generator.integers(0, 255, (64 + i, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{i}.png")
    return folder


def train(*arguments: object, code: int = 0) -> Result:
    settings = [text for setting in SMALL for text in ("--set", setting)]
    command = ["train", *map(str, arguments[:1]), *settings, *map(str, arguments[1:])]
    result = CliRunner(env={"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}).invoke(app, command)
    assert result.exit_code == code, result.output
    return result


def test_dry_run_says_what_would_run_and_its_cost_and_writes_nothing(
    tmp_path: Path, images: Path
) -> None:
    out = tmp_path / "run"
    text = train("jafar_small", "--data", images, "--out", out, "--dry-run").stdout
    assert len(text.splitlines()) < 8
    assert "2 steps of 2 images" in text
    assert "two real steps on cpu" in text
    assert "peak memory of the process" in text
    assert not out.exists()


@pytest.mark.parametrize("slow", [False, True])
def test_slow_half_precision_is_announced(
    slow: bool, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not slow)
    call = ("jafar_small", "--data", images, "--out", tmp_path / "run", "--dry-run")
    told = "precision=fp32 takes less time"
    assert (told in train(*call, "--dtype", "bfloat16").stdout) == slow
    assert told not in train(*call).stdout


def test_all_settings_are_printed_where_asked_for(images: Path) -> None:
    options = ("--backbone", "upfeat/vit_compact_patch16", "--dtype", "bfloat16", "--device", "cpu")
    text = train("anyup_small", "--data", images, *options, *options[:2], "--print-config").stdout
    config = TrainConfig.from_json(text)
    assert config.data.paths == (str(images),)
    assert [backbone.name for backbone in config.backbones] == ["upfeat/vit_compact_patch16"] * 2
    assert (config.steps, config.precision, config.device) == (2, "bf16", "cpu")
    assert "--dtype must be one of" in train("jafar_small", "--dtype", "half", code=2).stderr
    two = ("--backbone", "a/b", "--backbone", "a/c", "--backbone-weights", "w.pth")
    assert "a file of one backbone" in train("jafar_small", *two, code=2).stderr


def test_a_run_for_another_backbone(tmp_path: Path, images: Path) -> None:
    weights = tmp_path / "weights.pth"
    backbone = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random")
    torch.save(backbone.model.state_dict(), weights)  # type: ignore[union-attr]
    named = ("--backbone", "timm/vit_tiny_patch16_224", "--backbone-weights", weights)
    out = tmp_path / "run"
    train("jafar_small", "--data", images, "--out", out, *named, "--panels", 0)
    card = (out / "model" / "README.md").read_text()
    assert "timm/vit_tiny_patch16_224" in card
    # The run's folder stands for its model.
    assert upfeat.load_upsampler(out, backbone).config["feature_dim"] == backbone.dim


def test_a_warm_up_longer_than_the_run_is_refused(images: Path) -> None:
    longer = ("--set", "schedule.warmup_steps=3")
    errors = train("jafar_small", "--data", images, *longer, code=2).stderr
    assert "schedule.warmup_steps=3 is longer than the run, steps=2" in errors


def test_the_loss_on_held_out_images_and_a_probe_are_logged(tmp_path: Path, images: Path) -> None:
    for i in range(3, 12):  # enough to hold one out
        shutil.copy(images / f"image{i % 3}.png", images / f"image{i}.png")
    labelled, out = tmp_path / "labelled", tmp_path / "run"
    (labelled / "labels").mkdir(parents=True)
    shutil.copytree(images, labelled / "images")
    generator = np.random.default_rng(0)
    for path in (labelled / "images").iterdir():
        with Image.open(path) as image:
            size = (image.height, image.width)
        label = generator.integers(0, 2, size, dtype=np.uint8)
        Image.fromarray(label).save(labelled / "labels" / path.name)
    run = ("jafar_small", "--data", images, "--out", out, "--panels", 0, "--probe", labelled)
    every = ("--set", "validation.every=1")
    result = train(*run, *every)
    rows = read_log(out / "validation.csv")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] > 0
    assert f"(validation {rows[-1]['loss']:.5g})" in result.stdout
    assert f"step 1: validation loss {rows[0]['loss']:.4g}" in result.stderr
    (probe,) = read_log(out / "probe.csv")
    assert probe["step"] == 2
    assert 0 <= probe["miou"] <= 100
    assert 0 <= probe["miou_bilinear"] <= 100
    assert "images 11" in (out / "model" / "README.md").read_text()
    other = ("--val", images, "--set", "validation.images=2")
    plain = train(*run[:3], "--out", tmp_path / "b", "--panels", 0, *other)
    assert "(validation " in plain.stdout
    assert "images 12" in (tmp_path / "b" / "model" / "README.md").read_text()


def test_a_finished_run_answers_at_once(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run = ("jafar_small", "--data", images, "--out", out, "--panels", 1)
    train(*run)

    def not_again(*_: object) -> None:
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr("upfeat.training.measure_cost", not_again)
    monkeypatch.setattr(Trainer, "fit", not_again)
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    text = train(*run, "--resume").stdout
    assert "this run is finished: 2 steps" in text
    assert f"--resume --out {out} steps=4" in text
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_trains_pictures_resumes_and_exports(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "run"
    text = train("jafar_small", "--data", images, "--out", out, "--panels", 1).stdout
    assert f"model in {out / 'model'}" in text
    assert [path.name for path in (out / "panels").glob("*.png")] == ["image0-step00000002.png"]
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    model = upfeat.Upsampler.from_pretrained(out / "model")
    assert model.config["feature_dim"] == backbone.dim
    longer = ("steps=3", "--resume", "--out", out, "--panels", 0)
    result = CliRunner().invoke(app, ["train", *map(str, longer)])
    assert result.exit_code == 0, result.output
    assert read_log(out / "log.csv")[-1]["step"] == 3
    card = (out / "model" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "jafar_small" in card


def test_a_run_below_its_own_images_does_not_read_its_panels(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    train("jafar_small", "--data", ".", "--panels", 1)
    out = images / "runs" / "jafar_small"
    assert [path.suffix for path in (out / "panels").iterdir() if path.is_file()] == [".png"]
    longer = ["train", "--resume", "--out", str(out), "--set", "steps=3", "--panels", "1"]
    result = CliRunner().invoke(app, longer)
    assert result.exit_code == 0, result.output
    card = (out / "model" / "README.md").read_text()
    assert "images 3" in card


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def interrupt(self: Callback, trainer: Trainer, step: int, path: Path) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Callback, "on_checkpoint", interrupt)
    run = ("jafar_small", "--data", images, "--out", out, "--panels", 0)
    every = ("--set", "checkpoint.every=1")
    stopped = train(*run, *every, code=130)
    assert "stopped after step 2" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert not (out / "model").exists()
    monkeypatch.undo()
    train(*run, *every, "--resume")
    assert (out / "model" / "config.json").is_file()


def test_a_kill_before_the_picture_of_a_checkpoint_loses_none(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "run"
    run = ("jafar_small", "--data", images, "--out", out, "--panels", 1)
    train(*run)
    picture = out / "panels" / "image0-step00000002.png"
    before = picture.read_bytes()
    picture.unlink()
    train(*run, "--resume")
    assert picture.read_bytes() == before


def test_the_list_and_user_errors(tmp_path: Path, images: Path) -> None:
    short, everything = train("--list").stdout, train("--all").stdout
    assert "jafar_small" in short
    assert "start here" in short
    assert "jafar_maskclip_paper" not in short
    assert "jafar_maskclip_paper" in everything
    assert "jafar_small" in train("jafar_smal", "--data", images, code=2).stderr
    assert "--data" in train("jafar_small", code=2).stderr
    assert "optimizer.lr" in train(
        "jafar_small", "--data", images, "--set", "optimizer.lrate=1", code=2
    ).stderr  # fmt: skip
    assert "name a recipe" in train(code=2).stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("upsampler.config.qkdim=1", "did you mean 'upsampler.config.qk_dim'"),
        (
            "upsampler.config.qk_dim=big",
            "upsampler.config.qk_dim must be a whole number, got 'big'",
        ),
        ("upsampler.name=jafr", "upsampler.name: unknown upsampler 'jafr'; did you mean 'jafar'"),
        ("backbones.0.options.foo=1", "backbones.options={'foo': 1} does not fit"),
        ('data.masks=[{"kind": "superpixels", "options": {"a": 1}}]', "data.masks.0.options.a"),
        ("objective.scal=[0.3, 0.5]", "did you mean 'objective.scale'"),
        ("objective.scale=half", "objective.scale must be a list such as [1, 2], got 'half'"),
        ("objective.scale=[0.5, 0.3]", "objective: scale must be a range"),
        ("objective.name=crop", "did you mean 'crops'"),
        ("device=gpu", "device must be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("device=cuda", "device=cuda, but PyTorch finds no GPU"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    options = ("--data", images, "--out", out, "--panels", 0)
    command = ["train", "jafar_small", setting, *map(str, options)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not out.exists()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="PyTorch finds 1 GPUs"):
        pick_device(tiny_config(device="cuda", devices=2))


def test_images_of_which_none_can_be_used(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no image")
    errors = train("jafar_small", "--data", folder, "--out", out, code=2).stderr
    assert "16 images in a row could not be used (" in errors
    assert "check the training images" in errors
    assert not out.exists()


def test_a_full_disk_says_what_to_do(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files gives the same error as a full disk, at a chosen moment."""
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self: Callback, trainer: Trainer, step: int, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    monkeypatch.setattr(Callback, "on_checkpoint", fill)
    run = ("jafar_small", "--data", images, "--out", out, "--panels", 0)
    every = ("--set", "checkpoint.every=1")
    try:
        errors = train(*run, *every, code=2).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"error: no more can be written in {out / 'checkpoints'} (File too large)" in errors
    assert "--resume" in errors
    monkeypatch.undo()
    train(*run, *every, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["anyup_small", "naf_small", "loftup_stage1_small"])
def test_small_recipes_train(tmp_path: Path, images: Path, recipe: str) -> None:
    side = {"naf_small": 224}.get(recipe, 64)
    sizes = ("--set", f"data.crop={side}", "--set", f"data.resize={side}")
    settings = [text for setting in SMALL for text in ("--set", setting)]
    command = ["train", recipe, "--data", str(images), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*command, *settings, *sizes, "--panels", "0"])
    assert result.exit_code == 0, result.output
    assert read_log(tmp_path / "run" / "log.csv")[-1]["loss"] > 0


@pytest.mark.slow
def test_stage_two_starts_from_stage_one(tmp_path: Path, images: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train("loftup_stage1_small", "--data", images, "--out", first, "--panels", 0)
    start = f"upsampler.start_from={first / 'model'}"
    inputs = ("--set", "objective.input_sizes=[32]", "--set", "optimizer.lr=1e-12")
    output = ("--set", "objective.output_scale=1.0", "--set", start)
    data = ("--data", images, "--out", second, "--panels", 0)
    train("loftup_stage2_small", *data, *inputs, *output)
    ours, theirs = (
        list(upfeat.Upsampler.from_pretrained(folder / "model").parameters())
        for folder in (first, second)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


# -- the images ------------------------------------------------------------------------------------


def source_config(images: Path, **data: object) -> TrainConfig:
    content = {"paths": (str(images),), "crop": 32} | data
    return tiny_config(data=DataConfig(**content))  # type: ignore[arg-type]


def test_positions_do_not_depend_on_how_they_are_read(images: Path) -> None:
    config = source_config(images, position="random", flip=0.5)
    whole = open_source(config).batch(0, 7)
    pieces = open_source(config)
    late, early = pieces.batch(5, 2), pieces.batch(0, 5)
    assert torch.equal(whole["image"], torch.cat([early["image"], late["image"]]))
    assert whole["paths"] == early["paths"] + late["paths"]
    assert sorted(whole["name"][:3]) == ["image0", "image1", "image2"]


def test_broken_images_are_skipped_and_reported(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "broken.png").write_bytes(b"not a picture")
    source = open_source(source_config(images))
    batch = source.batch(0, 4)
    assert "broken" not in batch["name"]
    assert list(source.skipped) == ["broken"]
    assert "skipped broken" in caplog.text


def test_masks_come_with_the_images(images: Path, tmp_path: Path) -> None:
    masks = (
        MaskConfig(
            kind="superpixels",
            options={"method": "slic", "segments": 4},
            cache=str(tmp_path / "masks"),
        ),
    )
    source = open_source(source_config(images, masks=masks))
    batch = source.batch(0, 2)
    assert batch["masks"].shape[2:] == (32, 32)
    assert (batch["masks"].sum(1) == 1).all()
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 2


def test_masks_of_a_segmentation_network(images: Path, tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path / "sam")
    options = {"weights": str(tmp_path / "sam"), "points_per_side": 2, "dtype": "float32"}
    everything = {"iou_threshold": -1e9, "stability_threshold": -1, "stability_offset": 0.0}
    with pytest.raises(ValueError, match="name a folder that keeps them"):
        MaskConfig(kind="sam", options=options)
    sam = MaskConfig(kind="sam", options=options | everything, cache=str(tmp_path / "masks"))
    source = open_source(source_config(images, masks=(sam,)))
    assert source.batch(0, 2)["masks"].shape[2:] == (32, 32)
    assert any((tmp_path / "masks").rglob("*.json*"))
    wrong = MaskConfig(kind="sam", options=options | {"dtype": "float61"}, cache="masks")
    with pytest.raises(ValueError, match="float61"):
        open_source(source_config(images, masks=(wrong,)))


def test_cached_features_train_alike(images: Path, tmp_path: Path) -> None:
    cache = ("--set", f"data.feature_cache={tmp_path / 'features'}")
    fixed = ("--set", "data.position=center", "--set", "data.flip=0")
    for folder, further in (("plain", ()), ("cold", cache), ("warm", cache)):
        out = tmp_path / folder
        train("jafar_small", "--data", images, "--out", out, "--panels", 0, *fixed, *further)
    # Two steps of two images, three images in all.
    assert len(list((tmp_path / "features").rglob("*.npy"))) == 3
    plain, cold, warm = (
        read_log(tmp_path / name / "log.csv")[-1]["loss"] for name in ("plain", "cold", "warm")
    )
    assert cold == warm
    assert cold == pytest.approx(plain, rel=1e-3)


def test_a_cache_of_random_crops_is_refused(images: Path) -> None:
    with pytest.raises(ValueError, match="position=center"):
        source_config(images, feature_cache="somewhere", position="random")


def test_small_images_are_left_out(images: Path) -> None:
    source = open_source(source_config(images, min_side=66))
    assert set(source.batch(0, 4)["name"]) == {"image2"}


def test_no_images_and_unknown_masks_are_clear_errors(images: Path) -> None:
    with pytest.raises(ValueError, match="--data DIR"):
        open_source(source_config(images, paths=()))
    with pytest.raises(ValueError, match="did you mean 'superpixels'"):
        open_source(source_config(images, masks=(MaskConfig(kind="superpixel"),)))
