"""The packaged encoder: its file, its shapes, and that it learned what its card says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

from upfeat import create_backbone, list_backbones
from upfeat.backbones.upfeat_vit import bundled_weights
from upfeat.errors import CheckpointError, UnknownNameError

SPEC = "upfeat/vit_compact_patch16"
TEACHER = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(SPEC)


def test_file_is_small_and_half_precision():
    with bundled_weights() as path:
        assert path.stat().st_size <= 5_000_000
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_contract(backbone):
    assert (backbone.dim, backbone.patch_size, backbone.size_multiple, backbone.layer) == (
        192,
        16,
        16,
        4,
    )
    assert backbone.image_mean == backbone.image_std == (0.5, 0.5, 0.5)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert SPEC in list_backbones("upfeat/*")
    assert SPEC in list_backbones("upfeat/*", pretrained=True)


@pytest.mark.parametrize("size", [(16, 16), (224, 224), (48, 160), (320, 32)])
def test_any_multiple_of_the_patch(backbone, size):
    features = backbone(torch.rand(2, 3, *size) * 2 - 1)
    assert features.shape == (2, 192, size[0] // 16, size[1] // 16)
    assert features.isfinite().all()


def test_half_precision_stays_close(backbone):
    image = torch.rand(1, 3, 96, 64) * 2 - 1
    low = create_backbone(SPEC).to(torch.bfloat16)(image).float()
    assert F.cosine_similarity(low, backbone(image), dim=1).min() > 0.98


def test_gradient_reaches_the_image(backbone):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    backbone(image).square().mean().backward()
    assert image.grad.abs().sum() > 0


def test_layers_differ(backbone):
    image = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(create_backbone(SPEC, layer=1)(image), backbone(image), atol=1e-2)
    with pytest.raises(ValueError, match="valid layers are 0 to 4"):
        create_backbone(SPEC, layer=5)


def test_random_and_own_weights(backbone, tmp_path):
    random = create_backbone(SPEC, weights="random")
    assert not torch.equal(random.model.pos_embed, backbone.model.pos_embed)
    torch.save(random.model.state_dict(), tmp_path / "own.pth")
    own = create_backbone(SPEC, weights=tmp_path / "own.pth")
    assert torch.equal(own.model.pos_embed, random.model.pos_embed)


def test_bad_names_and_files_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="vit_compact_patch16"):
        create_backbone("upfeat/vit_compact_patch14")
    torch.save({"pos_embed": torch.zeros(1, 197, 192)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="missing keys"):
        create_backbone(SPEC, weights=tmp_path / "bad.pth")


def photo(path, size: tuple[int, int]) -> torch.Tensor:
    with Image.open(path) as opened:
        pixels = np.array(opened.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    # (H, W, 3) -> (1, 3, H, W) in [-1, 1]
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("name", "least"), [("camvid/val", 0.6), ("msrc/val/images", 0.48)])
def test_agrees_with_its_teacher_on_unseen_images(backbone, data_dir, weights_dir, name, least):
    teacher = create_backbone(
        f"timm/{TEACHER}", weights=weights_dir / f"{TEACHER}.fp16.safetensors"
    )
    files = sorted((data_dir / name).glob("*.jpg"))[::20]
    images = torch.cat([photo(file, (224, 288)) for file in files])
    expected = teacher(images)
    mean = expected.mean(dim=(0, 2, 3), keepdim=True)
    trained, untrained = (
        F.cosine_similarity(b(images) - mean, expected - mean, dim=1).mean()
        for b in (backbone, create_backbone(SPEC, weights="random"))
    )
    assert trained > least
    assert untrained < 0.1


def test_works_without_network_and_weights_folder():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "import torch, upfeat\n"
        f"print(tuple(upfeat.create_backbone('{SPEC}')(torch.zeros(1, 3, 32, 32)).shape))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("UPFEAT_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 192, 2, 2)"
