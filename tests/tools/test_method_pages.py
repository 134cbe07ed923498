"""The generated pages of docs/methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools import method_pages as tool
from upfeat.cli.app import app
from upfeat.cli.listing import baseline_notes, needs_of
from upfeat.upsamplers import list_upsamplers
from upfeat.upsamplers.registry import get_class


def test_the_kept_pages_are_up_to_date() -> None:
    assert tool.differences() == [], "run: python tools/method_pages.py"


def test_every_method_has_its_facts() -> None:
    for name in list_upsamplers():
        assert needs_of(name)
        assert get_class(name).info.claim, name
        assert get_class(name).info.when.endswith("."), name
        assert set(get_class(name).info.as_baseline) <= set(baseline_notes(name)), name


def test_a_page_holds_what_was_measured_and_the_licences() -> None:
    text = tool.pages()["jafar.md"]
    assert "| 448 | float32 |" in text
    assert "cpu-float32-448.json" in text
    assert "timm/vit_small_patch14_dinov2.lvd142m" in text
    assert "weights trained for the backbone" in text
    unmeasured = tool.page("jafar", [])
    assert "upfeat bench jafar" in unmeasured


def test_a_method_has_one_set_of_weights_in_all_columns() -> None:
    """`kin.upfeat_v1` is better on MSRC, `kin.upfeat` in video: a row does not mix them."""
    for head, scores in tool.score_columns(tool.ROOT):
        kept = [
            json.loads(path.read_text())
            for path in (tool.ROOT / "docs" / "results").glob("*--kin.upfeat--*.json")
            if head.startswith(path.name.split("--")[1] + ",")
        ]
        means = {s["mean"] for one in kept for s in one["scores"].values()}
        assert scores["kin"] in {f"{v:.1f}" for v in means} | {f"{v:.2f}" for v in means}


def test_left_over_and_changed_pages_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "methods"
    folder.mkdir(parents=True)
    for name, text in tool.pages(tmp_path).items():
        (folder / name).write_text(text, encoding="utf-8")
    listing = tmp_path / tool.LISTING
    listing.parent.mkdir(parents=True)
    listing.write_text(tool.listing(), encoding="utf-8")
    assert tool.differences(tmp_path) == []
    (folder / "gone.md").write_text("old")
    (folder / "naf.md").write_text("changed")
    listing.write_text("{}")
    assert tool.differences(tmp_path) == ["gone.md", "methods.json", "naf.md"]


def test_the_readme_keeps_what_stands_around_its_table(tmp_path: Path) -> None:
    text = f"before\n{tool.TABLE_START}old{tool.TABLE_END}\nafter\n"
    written = tool.readme(text)
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert all(f"`{name}`" in written for name in list_upsamplers())
    assert tool.readme(written) == written


def test_pages_by_hand_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docs" / "methods"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "differences", lambda: ["kin.md", "mine.md", "naf.md", "old.md"])
    monkeypatch.setattr("sys.argv", ["method_pages.py"])
    before = {"kin.md": "mine", "mine.md": "mine", "naf.md": f"{tool.NOTE}old", "old.md": tool.NOTE}
    for name, text in before.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(tool, "pages", lambda: {"naf.md": f"{tool.NOTE}new", "kin.md": "new"})
    assert tool.main() == 1
    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert after == {"kin.md": "mine", "mine.md": "mine", "naf.md": f"{tool.NOTE}new"}


@pytest.mark.parametrize("name", ["lift", "lift.dino_vits16", "carafe"])
def test_info_shows_the_same_facts(name: str) -> None:
    shown = json.loads(CliRunner().invoke(app, ["info", name, "--json"]).stdout)
    arch = name.partition(".")[0]
    assert shown["claim"] == get_class(arch).info.claim
    assert shown["needs"] == needs_of(arch)
    assert shown["as a baseline in JAFAR"] == baseline_notes(arch)["JAFAR"]
    assert shown["as a baseline in LoftUp"] == baseline_notes(arch)["LoftUp"]
    assert shown["licence of the backbone"] == ("Apache-2.0" if arch == "lift" else "none")
    assert shown["licence of the weights"] == ("not stated" if arch == "lift" else "none")
