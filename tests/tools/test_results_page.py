"""The generated page docs/results.md."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools import results_page as tool
from upfeat.evaluation.tables import gather_results

ROOT = Path(__file__).parents[2]


def test_the_kept_page_is_up_to_date() -> None:
    assert not tool.stale(), "run: python tools/results_page.py"


def test_every_kept_result_and_remark_is_on_the_page() -> None:
    page = tool.page()
    for result in gather_results([ROOT / "docs" / "results"]):
        assert f"| `{result.label}`" in page
        assert f"upfeat eval {result.task}" in page
    for line in (ROOT / "docs" / "results" / "remarks.md").read_text(encoding="utf-8").split("\n"):
        assert line in page


def test_a_changed_result_makes_the_page_stale(tmp_path: Path) -> None:
    assert not (tmp_path / "docs").exists()
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    assert tool.stale(tmp_path)
    (tmp_path / "docs" / "results.md").write_text(tool.page(tmp_path), encoding="utf-8")
    assert not tool.stale(tmp_path)
    next((tmp_path / "docs" / "results").glob("*.json")).unlink()
    assert tool.stale(tmp_path)
