"""The page of the papers' tables is in step with the records and names every table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from upfeat.evaluation.papers import published_figures, published_tables


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "reproduce_page.py"
    spec = importlib.util.spec_from_file_location("reproduce_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kept_page_is_up_to_date(tool: ModuleType) -> None:
    assert not tool.stale(), "run: python tools/reproduce_page.py"


def test_every_table_and_figure_has_its_command(tool: ModuleType) -> None:
    text = tool.page()
    for each in (*published_tables(), *published_figures()):
        assert f"upfeat reproduce {each.id} " in text
    assert "not supported" not in text
