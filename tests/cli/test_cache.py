"""``upfeat cache``: what is kept is listed, and nothing is removed that nobody asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from upfeat.cli.app import app


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a weight file, a folder of them, features of a probe and somebody's notes."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UPFEAT_CACHE", str(folder))
    for name, size in {
        "anyup.pth": 2000,
        "loftup-dinov2s/pytorch_model.bin": 1000,
        "eval/features/a.npy": 500,
        "notes/read.txt": 5,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return folder


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["cache", *words])
    assert result.exit_code == code, result.output
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_list_names_everything_with_its_size(cache: Path) -> None:
    text = run("list").stdout
    for words in ("anyup.pth", "loftup-dinov2s", "2 kB", "1 kB", "500 B", f"3.5 kB in {cache}"):
        assert words in text
    assert "not upfeat's" in text


def test_clean_keeps_weights_unless_they_are_meant(cache: Path) -> None:
    text = run("clean").stdout
    assert f"1 removed from {cache}, 500 B free again" in text
    assert "2 with weights kept; --all removes them, too" in text
    assert names(cache) == ["anyup.pth", "loftup-dinov2s", "notes"]
    assert "1 removed" in run("clean", "anyup.pth").stdout
    assert names(cache) == ["loftup-dinov2s", "notes"]
    run("clean", "--all")
    assert names(cache) == ["notes"]
    assert "not put there by upfeat" in run("clean", "notes", code=2).stderr
    assert "unknown entry of the cache" in run("clean", "anyup", code=2).stderr
    assert names(cache) == ["notes"]


def test_an_empty_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path / "nothing"))
    assert "is empty" in run("list").stdout
    assert "0 removed" in run("clean").stdout
