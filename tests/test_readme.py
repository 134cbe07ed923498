"""Every block of code in the README runs as it stands, from a folder with the files it names."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import upfeat
from tests.hub import TOKEN, point_to, running_hub
from upfeat.cli.app import app

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [content for name, content in BLOCK.findall(text) if name == kind]


def write_photo(path: Path, seed: int = 0) -> None:
    rows, cols = np.mgrid[0:64, 0:96]
    pixels = np.stack([4 * rows % 256, cols * 2, (rows * cols + 37 * seed) % 256], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: a photo, labelled photos, an official weight file; no network."""
    write_photo(tmp_path / "photo.jpg")
    generator = np.random.default_rng(0)
    for split in ("images", "labels"):
        (tmp_path / "my_photos" / split).mkdir(parents=True)
    for number in range(6):
        write_photo(tmp_path / "my_photos" / "images" / f"{number}.jpg", number)
        labels = generator.integers(0, 3, (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "my_photos" / "labels" / f"{number}.png")
    official = upfeat.create_upsampler("jafar", feature_dim=24, qk_dim=32)
    torch.save(official.state_dict(), tmp_path / "file.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UPFEAT_WEIGHTS", raising=False)
    return tmp_path


def test_the_python_blocks_run_one_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What stands for a reader's own head; sizes are brought down to the tiny photo's.
    names: dict[str, Any] = {"head": nn.Conv2d(192, 3, 1)}
    found = blocks("python")
    assert len(found) >= 3
    with running_hub() as hub:
        for block in found:
            if "push_to_hub" in block:  # the only one that asks a server
                point_to(hub.endpoint, folder, monkeypatch)
                monkeypatch.setenv("HF_TOKEN", TOKEN)
            code = block.replace("2048", "96").replace("448", "64")
            with torch.no_grad():
                exec(compile(code, "README.md", "exec"), names)
    assert "model.safetensors" in hub.repositories["me/name"]
    assert names["out"].high.shape == (192, 64, 96)
    assert names["sharp"].shape == (1, 192, 64, 64)


def test_the_first_block_is_three_lines() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) == 3


def shell_lines() -> list[str]:
    text = "\n".join(blocks("bash") + blocks("sh") + blocks("console"))
    joined = text.replace("\\\n", " ")
    lines = (line.partition(" #")[0].strip() for line in joined.splitlines())
    # Several commands stand beside each other, in columns.
    parts = (part for line in lines for part in re.split(r" {2,}(?=make |upfeat |pip )", line))
    return [part for part in parts if part and not part.startswith("#")]


def test_the_shell_blocks_hold_nothing_that_no_test_knows(folder: Path) -> None:
    commands = shell_lines()
    assert any(line.startswith("upfeat upsample") for line in commands)
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in commands:
        words = shlex.split(line)
        if words[0] == "upfeat":
            quick = ["--set", "steps=10", "--seeds", "0"] if words[1] == "eval" else []
            result = CliRunner().invoke(app, [*words[1:], *quick])
            assert result.exit_code == 0, f"{line}\n{result.output}"
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[:2] == ["pip", "install"]:
            named = re.findall(r"\[(.*?)\]", line)
            wanted = {extra for group in named for extra in group.split(",")}
            assert wanted <= extras["optional-dependencies"].keys(), line
            assert words[2].partition("[")[0] in (".", "upfeat", "torch"), line
        else:
            assert words[0] in ("source",), f"no test runs: {line}"


def test_the_picture_is_there_and_small() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = text.partition("\n## ")[0]
    (picture,) = re.findall(r"!\[[^]]{20,}\]\((.*?)\)", opening)
    path = ROOT / picture
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.width > 2 * image.height  # three pictures side by side


def test_links_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
