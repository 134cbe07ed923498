"""``upfeat show similarity`` and ``upfeat segment``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.ops.colors import class_palette
from upfeat.similarity import embed_words, segment_words, templates, text_encoder

CLIP = (
    "clip/ViT-B-16.openai(weights='random', vision={'layers': 2, 'width': 64}, "
    "text={'layers': 1, 'width': 32, 'heads': 2, 'context_length': 20})"
)
JOINT = "joint_bilateral"
SMALL = ("--input-size", "48", "--side", "96", "--upsampler", "bilinear,sharp=kin.upfeat")


def run(*arguments: object) -> Result:
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    return CliRunner(env=environment).invoke(app, [str(each) for each in arguments])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:, 40:] = (200, 30, 90)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_similarity_draws_a_panel_a_method(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    result = run(
        "show", "similarity", photo, "--at", "30,60", "--at", ".5,.1", "--out", out, *SMALL
    )
    assert result.exit_code == 0, result.output
    record = json.loads((out / "photo_similarity_30_60.json").read_text())
    assert record["pixel"] == [24, 48]  # of the output 48 x 64
    assert list(record["cosines"]) == ["low-res", "bilinear", "sharp"]
    assert all(-1 <= each["smallest"] < 1 for each in record["cosines"].values())
    assert Image.open(out / "photo_similarity_30_8.png").width > 2 * 96
    assert "cosine with pixel 30,60" in result.stdout


def test_out_may_name_the_picture(photo: Path, tmp_path: Path) -> None:
    place = tmp_path / "mine.png"
    for _ in range(2):  # its own picture may be replaced
        result = run("show", "similarity", photo, "--at", "30,60", "--out", place, *SMALL)
        assert result.exit_code == 0, result.output
    assert Image.open(place).format == "PNG"
    two = ("--at", "1,1", "--at", "2,2")
    result = run("show", "similarity", photo, *two, "--out", place, *SMALL)
    assert result.exit_code == 2
    assert "is one picture, but there are 2; name a folder" in result.stderr
    result = run("show", "similarity", photo, "--at", "30,60", "--out", photo, *SMALL)
    assert result.exit_code == 2
    assert "was not written by upfeat" in result.stderr


TYPED = {
    "similarity": ("show", "similarity", "--at", "30,60", *SMALL),
    "attention": ("show", "attention", "--at", "30,60", *SMALL[:4], "--upsampler", JOINT),
    "targets": ("show", "targets", "--targets", "doubled,mask_refined", "--input-size", "48"),
    "segment": ("segment", "--text", "dog, grass", "--backbone", CLIP, *SMALL),
    "report": ("report", "--input-size", "48", "--upsampler", "kin.upfeat"),
}


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_networks_compute_in_the_type_that_is_asked_for(
    photo: Path, tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "segment":
        pytest.importorskip("ftfy")
    asked = []
    autocast = torch.autocast

    def recording(device: str, kind: torch.dtype | None = None, **more: Any) -> torch.autocast:
        if kind is not None:
            asked.append(kind)
        return autocast(device, kind, **more)

    monkeypatch.setattr("upfeat.loading.torch.autocast", recording)
    place = ("--image", photo) if name == "report" else (photo,)
    result = run(*TYPED[name], *place, "--dtype", dtype, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert set(asked) == {getattr(torch, dtype)}
    if name != "report":  # whose page says what its tables are made of
        (record,) = (tmp_path / "out").glob("*.json")
        assert dtype in record.read_text()


def test_another_type_is_refused(photo: Path) -> None:
    result = run("show", "similarity", photo, "--at", "1,1", "--dtype", "int8")
    assert "--dtype must be one of float32, float16, bfloat16" in result.stderr


def test_a_pixel_outside_is_refused_before_any_work(photo: Path, tmp_path: Path) -> None:
    result = run("show", "similarity", photo, "--at", "60,1", "--out", tmp_path, *SMALL)
    assert result.exit_code == 2
    assert "--at must be ROW,COL within the photo of 60 rows and 80 columns" in result.stderr


def test_segment_writes_labels_overlay_and_legend(photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("ftfy")  # comes with open_clip
    out = tmp_path / "answers"
    torch.manual_seed(0)
    result = run(
        "segment", photo, "--text", "dog, green grass", "--backbone", CLIP, "--out", out, *SMALL
    )
    assert result.exit_code == 0, result.output
    labels = Image.open(out / "photo_labels_sharp.png")
    assert labels.mode == "P"
    assert labels.size == (64, 48)
    assert labels.getpalette()[:6] == [part for color in class_palette(2) for part in color]
    torch.manual_seed(0)
    clip = upfeat.create_backbone(CLIP)
    pipe = upfeat.Pipeline(clip, upfeat.load_upsampler("kin.upfeat", clip), fit="resize")
    text = embed_words(text_encoder(clip), ["dog", "green grass"], templates("clip7"))
    expected = segment_words(pipe, pipe.encode(photo, 48), (48, 64), text)
    assert (torch.tensor(np.array(labels)) == expected).float().mean() > 0.999
    record = json.loads((out / "photo_segment.json").read_text())
    assert record["words"] == ["dog", "green grass"]
    assert Image.open(out / "photo_segment.png").width > 2 * 96
    assert "green grass" in result.stdout


@pytest.mark.parametrize(
    ("backbone", "text", "message"),
    [
        ("upfeat/vit_compact_patch16", "dog", "has no text space"),
        ("clip/ViT-B-16.openai", "dog", "no weights found for clip/ViT-B-16.openai"),
        ("clip/ViT-B-16.openai", " , ", "no words in"),
        ("clip/ViT-B-16.openai", "dog, dog", "stands twice"),
    ],
)
def test_segment_says_what_is_wrong(
    photo: Path, tmp_path: Path, backbone: str, text: str, message: str
) -> None:
    pytest.importorskip("open_clip")
    result = run("segment", photo, "--text", text, "--backbone", backbone, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "o").exists()
