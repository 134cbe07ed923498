"""``upfeat extract`` as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import upfeat
from upfeat.cli.app import app

TINY = ("--input-size", "48", "--shards", "2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = random.integers(0, 255, (50 + number, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"image{number}.png")
    return tmp_path / "photos"


def extract(photos: Path, *options: object) -> Result:
    arguments = ["extract", str(photos), *map(str, options)]
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)


def test_features_are_kept_low_and_read_high(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for line in ("3 done, 0 already there", "0 done, 3 already there"):
        result = extract(photos, "--out", out, *TINY, "--save-dtype", "float32", "--size", "40")
        assert result.exit_code == 0, result.output
        assert f"{line}, 0 failed" in result.stdout
        assert f"; 2 shards in {out}" in result.stdout
        assert ("images/s" in result.stdout) == line.startswith("3 done")
    assert result.stderr == "", "nothing is written the second time"
    store = upfeat.open_store(out)
    pipe = upfeat.Pipeline(
        "upfeat/vit_compact_patch16", "kin.upfeat", input_size=48, output_size=40
    )
    expected = pipe(photos / "image1.png")
    features = store["image1"]
    torch.testing.assert_close(features.tensor(), expected.low, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.upsample(), expected.high, atol=1e-4, rtol=1e-4)
    assert features.upsample(30).shape[1] == 30


def test_a_finer_grid_of_the_backbone_is_read_with_the_backbone(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    extract(photos, "--out", out, *TINY, "--upsampler", "large:2", "--save-dtype", "float32")
    pipe = upfeat.Pipeline("upfeat/vit_compact_patch16", "large:2", input_size=48)
    high = upfeat.open_store(out)["image0"].upsample()
    torch.testing.assert_close(high, pipe(photos / "image0.png").high, atol=1e-4, rtol=1e-4)


def test_the_bytes_are_said_first_and_limited(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = extract(photos, "--out", out, "--max-gb", "1e-6", *TINY)
    assert result.exit_code == 2
    assert "about 13.8 kB, and --max-gb allows 1e-06; choose --features low" in result.stderr
    assert not out.exists()
    result = extract(photos, "--out", out, "--features", "pca64", *TINY)
    assert "will write about 4.61 kB" in result.stderr
    assert upfeat.open_store(out)[0].shape == (64, 3, 4)


def test_failures_are_named_and_other_settings_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    (photos / "image1.png").write_bytes(b"no image")
    result = extract(photos, "--out", out, *TINY)
    assert result.exit_code == 1
    assert "2 done, 0 already there, 1 failed" in result.stdout
    (line,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert line["file"].endswith("image1.png")
    result = extract(photos, "--out", out, *TINY, "--upsampler", "bilinear")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "upsampler.spec 'kin.upfeat', now 'bilinear'" in result.stderr
    assert "choose another folder, or use the settings that it was started with" in result.stderr
