"""The page of the papers' tables is in step with the records and names every table."""

from __future__ import annotations

from tools import reproduce_page as tool
from upfeat.evaluation.papers import published_figures, published_tables


def test_the_kept_page_is_up_to_date() -> None:
    assert not tool.stale(), "run: python tools/reproduce_page.py"


def test_every_table_and_figure_has_its_command() -> None:
    text = tool.page()
    for each in (*published_tables(), *published_figures()):
        assert f"upfeat reproduce {each.id} " in text
    assert "not supported" not in text
