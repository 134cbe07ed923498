"""The depth teacher with a tiny random network in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tolerances import tolerance
from upfeat._compat import ensure_torchvision_operators
from upfeat.data import image_folder
from upfeat.data.depth import DepthTeacher, TeacherDepth
from upfeat.errors import CheckpointError, WeightsNotFoundError

PROCESSOR = {
    "size": {"height": 28, "width": 28},
    "ensure_multiple_of": 14,
    "keep_aspect_ratio": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}


def write_teacher(folder: Path) -> Path:
    """A network of a few thousand weights, written as transformers does it."""
    ensure_torchvision_operators()
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    torch.manual_seed(0)
    network = transformers.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():  # large weights, so that it answers to the image
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        network.head.conv3.bias.fill_(3.0)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher")


def test_it_is_the_network_behind_its_own_processor(folder: Path, tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    from transformers import DepthAnythingForDepthEstimation

    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    processor = module.DPTImageProcessorPil(**{**PROCESSOR, "do_resize": True})
    prepared = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    network = DepthAnythingForDepthEstimation.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        raw = network(prepared).predicted_depth
    expected = torch.nn.functional.interpolate(raw[:, None], (40, 56), mode="bilinear")[0, 0]
    teacher = DepthTeacher(folder, tmp_path / "cache")
    # A little above k / 255, so that rounding down gives k.
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 + 1e-4
    found = teacher(image.clamp(max=1))
    assert teacher.input_size((40, 56)) == tuple(prepared.shape[2:])
    assert found.shape == (40, 56)
    assert float(expected.max() - expected.min()) > 1e-3
    torch.testing.assert_close(found, expected, **tolerance(torch.float16))


def test_maps_are_kept(folder: Path, tmp_path: Path) -> None:
    image = torch.rand(3, 28, 28)
    first = DepthTeacher(folder, tmp_path / "cache")(image)
    again = DepthTeacher(folder, tmp_path / "cache")
    assert torch.equal(again(image), first)
    assert (again.cache.hits, again.cache.misses) == (1, 0)
    assert again._model is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [((448, 448), (518, 518)), ((480, 640), (518, 686)), ((640, 480), (686, 518))],
)
def test_input_sizes_of_the_published_processor(
    folder: Path, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    (folder / "preprocessor_config.json").unlink()
    teacher = DepthTeacher(folder, tmp_path / "cache")
    assert teacher.input_size(size) == expected


def test_names(folder: Path, tmp_path: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for width, layers, name in (
        (384, [3, 6, 9, 12], "Depth-Anything-V2-Small"),
        (768, [9, 10, 11, 12], "Depth-Anything-V1-Base"),
    ):
        config["backbone_config"] |= {"hidden_size": width, "out_indices": layers}
        path.write_text(json.dumps(config))
        assert DepthTeacher(folder, tmp_path).name == name


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="Depth-Anything-V2-Small-hf"):
        DepthTeacher(tmp_path / "nowhere", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"fusion_hidden_size": 4}))
    with pytest.raises(CheckpointError, match="teacher"):
        DepthTeacher(folder, tmp_path)(torch.rand(3, 28, 28))
    (folder / "config.json").write_text('{"model_type": "dpt"}')
    with pytest.raises(CheckpointError, match="'dpt', expected 'depth_anything'"):
        DepthTeacher(folder, tmp_path)


def test_a_teacher_gives_depth_of_training_images(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 42, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (record,) = image_folder(tmp_path)
    depth = TeacherDepth(folder, tmp_path / "cache")(record)
    assert depth.shape == (1, 28, 42)
    assert torch.equal(depth[0], DepthTeacher(folder, tmp_path / "cache")(record.read_image()))
