"""docs/bulk.md: its commands and its Python, in order, as a reader would run them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from upfeat.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bulk.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("zarr", "safetensors"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    random = np.random.default_rng(0)
    for name in ("bird", "cat", "dog"):
        pixels = random.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    names: dict[str, object] = {}
    kinds = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        for line in text.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "upfeat"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
    assert (kinds.count("bash"), kinds.count("python")) == (2, 4)
    shown = capsys.readouterr().out
    assert "Store('features': 3 images, low features of upfeat/vit_compact_patch16" in shown
    assert "of the variance" in shown
