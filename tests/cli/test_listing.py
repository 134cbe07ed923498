"""``upfeat list`` and ``info`` of what tables name; ``upfeat cache`` removes nothing unasked."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from upfeat.cli.app import app
from upfeat.upsamplers import list_upsamplers
from upfeat.upsamplers.registry import get_class


def inside(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_table_shows_what_every_method_can_do() -> None:
    lines = [cells(line) for line in inside("list").splitlines()]
    head = lines[0]
    for column in (
        *("name", "task-agnostic", "any size", "universal", "per image"),
        *("commutes with a head", "weights available"),
    ):
        assert column in head
    rows = {line[0]: dict(zip(head, line, strict=False)) for line in lines[1:]}
    for name in list_upsamplers():
        info, row = get_class(name).info, rows[name]
        assert row["task-agnostic"] == ("yes" if info.task_agnostic else "-")
        assert row["any size"] == ("yes" if info.abilities.any_size else "-")
        assert row["universal"] == ("yes" if info.abilities.universal else "-")
        assert row["per image"] == ("yes" if info.abilities.per_image else "-")
        assert row["commutes with a head"] == ("yes" if info.abilities.linear else "-")
        published = len(list_upsamplers(f"{name}.*", pretrained=True))
        assert row["weights available"] == (str(published) if published else "-")


def test_wrappers_of_backbones_have_their_own_table() -> None:
    text = inside("list")
    before, after = text.split("backbone-side")
    for name in ("large_image", "shift_and_interleave", "strided"):
        assert name not in before
        assert f"upfeat.{name}(backbone" in after
    alone = inside("list", "strided")
    assert "backbone-side" in alone
    assert "large_image" not in alone
    assert "backbone-side" not in inside("list", "jafar*")


def test_wrappers_are_no_upsamplers() -> None:
    assert not {"large_image", "strided"} & set(json.loads(inside("list", "--json")))
    result = CliRunner().invoke(app, ["list", "strided", "--json"])
    assert result.exit_code == 2
    facts = json.loads(inside("info", "large_image", "--json"))
    assert facts["kind"].startswith("backbone-side")
    assert "large_image(backbone, factor)" in facts["call"]
    assert "JAFAR" in inside("info", "strided")


def test_the_calls_that_are_named_exist() -> None:
    import upfeat
    from upfeat.cli.listing import _BACKBONE_SIDE

    for name, facts in _BACKBONE_SIDE.items():
        assert callable(getattr(upfeat, name))
        assert facts["call"].startswith(f"upfeat.{name}(")


def test_a_misspelt_name_is_answered_by_the_right_one() -> None:
    for words, meant in (
        (["jafr"], "jafar"),
        (["KIN.upfeat", "--pretrained"], "kin.upfeat"),
        (["resnet18", "--backbones"], "timm/resnet18"),
    ):
        result = CliRunner().invoke(app, ["list", *words])
        assert result.exit_code == 2
        assert f"did you mean '{meant}'" in result.stderr
        assert result.stdout.strip() == ""


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
