"""`make demo`: from the packaged photo to a picture, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the demo's photo comes with scikit-image")


def run_demo(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # No weight folder and an empty cache: what a fresh machine has.
    environment = {key: value for key, value in os.environ.items() if key != "UPFEAT_WEIGHTS"}
    return subprocess.run(
        [sys.executable, str(repository / "tools" / "demo.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


@pytest.mark.slow
def test_demo_says_where_the_picture_is(repository: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path / "cache"))
    result = run_demo(repository, "--out", str(tmp_path / "out"), "--", "--input-size", "224")
    assert result.returncode == 0, result.stderr
    picture = Path(result.stdout.strip().splitlines()[-1].strip())
    assert picture.is_file()
    with Image.open(picture) as panel:
        width, height = panel.size
    assert width > 2 * height  # three pictures side by side


def test_demo_names_a_missing_photo(repository: Path, tmp_path: Path):
    missing = tmp_path / "missing.jpg"
    result = run_demo(repository, "--photo", str(missing), "--out", str(tmp_path / "out"))
    assert result.returncode != 0
    assert "missing.jpg" in result.stdout + result.stderr
