"""Tables in terminals of any width, and where there is none."""

import io

import pytest
from rich.console import Console

from upfeat.cli.listing import _print_methods, _print_weights, _read_methods, _weights_of
from upfeat.cli.output import TableColumn, print_table
from upfeat.upsamplers import list_upsamplers

COLUMNS = [TableColumn("name"), TableColumn("two words"), TableColumn("summary", prose=True)]
ROWS = [["a_rather_long_name", "yes", "many words " * 8], ["b", "-", "few words"]]


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def printed(console: Console) -> list[str]:
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [12, 20, 24, 30, 80, 200])
def test_names_stay_whole_and_lines_fit(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal(width)
    print_table(COLUMNS, ROWS, console=console)
    *echoed, missing = capsys.readouterr().out.splitlines() or [""]
    lines = printed(console) + echoed
    assert any(line.split()[:1] == ["a_rather_long_name"] for line in lines)
    assert not any("…" in line for line in lines)
    if width > 20:
        assert max(map(len, lines)) <= width
    assert ("summary" in missing) == (width < 60)
    assert ("many words" in "".join(lines)) == (width >= 60)
    assert ("two words" in missing) == (width < 26)


def test_no_terminal_gets_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS, title="things", console=Console(file=io.StringIO(), width=20))
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "things"
    assert head.split("  ")[0] == "name"
    assert first.endswith("many words " * 7 + "many words")
    assert second.index("-") == head.index("two words") == first.index("yes")


@pytest.mark.parametrize("show", [_print_methods, _print_weights])
def test_the_lists_in_80_columns(show, monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal(80)
    monkeypatch.setattr("upfeat.cli.output.Console", lambda: console)
    methods = _read_methods()
    names = list_upsamplers(pretrained=show is _print_weights)
    show(_weights_of(methods) if show is _print_weights else methods)
    lines = printed(console)
    assert max(map(len, lines)) <= 80
    assert set(names) <= {word for line in lines for word in line.split()[:1]}
    assert len(lines) < 2.5 * len(names) + 8  # three lines at most
