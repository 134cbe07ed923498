"""The papers' tables and figures as data."""

import pytest

from upfeat.errors import UnknownNameError
from upfeat.evaluation.papers import (
    PublishedTable,
    find_published,
    published_figures,
    published_tables,
)
from upfeat.evaluation.papers.plan import not_ready
from upfeat.evaluation.papers.records import PublishedRow, row
from upfeat.evaluation.papers.sources import METHODS, paper_method
from upfeat.evaluation.registry import get_protocol
from upfeat.upsamplers import list_upsamplers

TABLES = published_tables()


def test_every_table_and_figure_of_both_papers_is_there() -> None:
    known = {each.id for each in (*TABLES, *published_figures())}
    wanted = {f"jafar:table-{number}" for number in range(1, 12)}
    wanted |= {f"jafar:figure-{number}" for number in range(3, 9)}
    wanted |= {f"loftup:table-{number}" for number in (*range(2, 8), "b.1", "b.2", "b.3")}
    wanted |= {f"loftup:figure-{number}" for number in (2, 5, 6, 7, 8)}
    assert wanted <= known
    assert {"naf", "anyup"} < {name.partition(":")[0] for name in known}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.id)
def test_columns_are_what_their_protocol_knows(table: PublishedTable) -> None:
    for column in table.columns:
        if not_ready(column.task, column.preset) is not None:
            continue
        protocol = get_protocol(column.task)
        assert protocol.kind(column.score).higher_is_better is not None, column.score
        for each in table.rows:
            protocol.settings(column.preset, column.data[0], **(column.changes | each.changes))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.id)
def test_rows_are_methods_that_are_known(table: PublishedTable) -> None:
    assert {each.uses for each in table.rows} <= set(METHODS)


def test_methods_are_upsamplers_of_the_registry() -> None:
    for method in METHODS.values():
        backbone_itself = method.spec.partition(":")[0] in ("low-res", "large", "strided")
        assert backbone_itself or method.arch in list_upsamplers()


def test_tables_are_found_by_name_or_by_paper() -> None:
    assert [each.id for each in find_published(["loftup:table-b.3"])] == ["loftup:table-b.3"]
    assert len(find_published(["jafar"])) == 17
    assert len(find_published([])) == len(TABLES) + len(published_figures())
    with pytest.raises(UnknownNameError, match="jafar:table-1"):
        find_published(["jafar:table-111"])
    with pytest.raises(UnknownNameError, match="loftup"):
        paper_method("loftupp")


def test_a_table_is_rectangular_and_its_keys_differ() -> None:
    first = TABLES[0]
    short = first.model_dump() | {"rows": (row("jafar", "JAFAR", "1.0"),)}
    with pytest.raises(ValueError, match="has 1 numbers"):
        PublishedTable(**short)
    twice: tuple[PublishedRow, ...] = (first.rows[0], first.rows[0])
    with pytest.raises(ValueError, match="two rows of one key"):
        PublishedTable(**(first.model_dump() | {"rows": twice}))
