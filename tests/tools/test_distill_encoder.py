"""The distillation script: resuming, schedule, held-out images and exported weights."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

trains = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came after PyTorch 2.6")


@pytest.fixture(scope="module")
def tool(repository: Path) -> Iterator[ModuleType]:
    name = "distill_encoder"
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 56), (64, 48), (36, 36), (50, 80)]
    return [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


@pytest.fixture
def teacher(tool: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    model = tool.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=4, num_heads=2, dynamic_img_size=True
    )
    for block in model.blocks:  # fresh blocks barely change their input; these matter
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def small_config(tool: ModuleType, **changes: object) -> object:
    base = tool.DistillConfig(
        knots=((0, 0.5), (1, 1.0), (3, 1.0), (6, 0.0)),
        tokens_per_step=12,
        blocks=(0, 3),
        middle=(0, 1, 0.3),
        views=((32, 32, 0.5), (32, 48, 0.5)),
        bf16=False,
    )
    return dataclasses.replace(base, **changes)


def losses(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "loss.csv").open(newline="") as opened:
        return [(r["step"], r["lr"], r["loss"], r["middle"]) for r in csv.DictReader(opened)]


@trains
def test_resumed_run_repeats_the_loss_curve(tool, teacher, images, tmp_path):
    config = small_config(tool)
    tool.Distillation(config, teacher, images, tmp_path / "whole").run()
    tool.Distillation(config, teacher, images, tmp_path / "pieces").run(until=3)

    # A run that dies between checkpoints leaves rows that are done again.
    died = tool.Distillation(config, teacher, images, tmp_path / "pieces")
    assert died.step == 3
    with died.log_file.open("a", newline="") as stream:
        stream.write(tool.csv_text([died.train_step()]))
    tool.Distillation(config, teacher, images, tmp_path / "pieces").run()

    whole = losses(tmp_path / "whole")
    assert len(whole) == 6
    assert losses(tmp_path / "pieces") == whole
    first, second = (
        load_file(tmp_path / name / "student.fp16.safetensors") for name in ("whole", "pieces")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(value.dtype == torch.float16 for value in first.values())


@trains
def test_other_settings_do_not_resume(tool, teacher, images, tmp_path):
    tool.Distillation(small_config(tool), teacher, images, tmp_path).run(until=2)
    with pytest.raises(ValueError, match="pass the same settings or another --run-dir"):
        tool.Distillation(small_config(tool, lr=0.5), teacher, images, tmp_path)


@trains
def test_rates_may_change_for_steps_to_come(tool, teacher, images, tmp_path):
    tool.Distillation(small_config(tool), teacher, images, tmp_path).run(until=3)
    longer = small_config(tool, knots=((0, 0.5), (1, 1.0), (5, 1.0), (8, 0.0)))
    tool.Distillation(longer, teacher, images, tmp_path).run(until=7)
    with pytest.raises(ValueError, match="stands at step 7"):
        tool.Distillation(small_config(tool), teacher, images, tmp_path)


@trains
def test_training_lowers_the_loss(tool, teacher, images, tmp_path):
    config = small_config(tool, lr=5e-3, knots=((0, 1.0), (20, 1.0), (40, 0.0)))
    tool.Distillation(config, teacher, images, tmp_path).run()
    curve = [float(loss) for _, _, loss, _ in losses(tmp_path)]
    assert np.mean(curve[-8:]) < 0.8 * np.mean(curve[:8])


def test_rate_is_linear_between_knots(tool):
    knots = tool.parse_knots("0:0.5,1:1,3:1,7:0")
    factors = [tool.schedule(knots, step) for step in range(8)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ValueError, match="must rise"):
        tool.parse_knots("0:1,0:2")


def test_student_with_all_blocks_is_the_teacher(tool, teacher):
    student = tool.build_student(teacher, range(4)).eval()
    batch = torch.randn(2, 3, 48, 32)
    expected, _ = tool.patch_tokens(teacher, batch, 0, bf16=False)
    actual, _ = tool.patch_tokens(student, batch, 0, bf16=False)
    assert expected.shape == (2, 6, 32)
    torch.testing.assert_close(actual, expected)


def test_unseen_images_depend_on_names_only(tool):
    files = [Path(f"{n:03d}.jpg") for n in range(100)]
    seen, unseen = tool.split_unseen(files, count=10)
    assert tool.split_unseen(files[::-1], count=10) == (seen, unseen)
    assert len(unseen) == 10
    assert sorted(seen + unseen) == files


def test_no_validation_image_is_trained_on(tool, data_dir):
    files = tool.training_files(data_dir)
    parts = {part for file in files for part in file.relative_to(data_dir).parts}
    assert "val" not in parts
    assert "test" not in parts
    _, unseen = tool.split_unseen(list((data_dir / "imagenet_sample/images").glob("*.jpg")))
    assert not set(unseen) & set(files)


@pytest.mark.parametrize("size", [(40, 56), (300, 20), (16, 16)])
def test_crops_stay_inside_the_image(tool, size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = tool.crop_box(rng, size, 1.5, 0.3)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
