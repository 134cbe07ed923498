"""Settings: unknown names and wrong values are refused in one sentence that names the setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, PositiveInt, model_validator

from upfeat._settings import Settings, Sides, check_arguments
from upfeat.errors import UnknownNameError
from upfeat.evaluation.results import Result
from upfeat.upsamplers import list_upsamplers
from upfeat.upsamplers.registry import get_class


class Inner(Settings):
    steps: PositiveInt = 3
    side: PositiveInt | Sides = 4

    @model_validator(mode="after")
    def _few(self) -> Inner:
        if self.steps > 10:
            raise ValueError(f"too many steps: {self.steps}")
        return self


class Outer(Settings):
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iner": {}}, "unknown setting 'iner'; did you mean 'inner'? Known: inner, rows"),
        (
            {"inner": {"stpes": 1}},
            "unknown setting 'inner.stpes'; did you mean 'inner.steps'? Known: side, steps",
        ),
        (
            {"rows": [{}, {"stpes": 1}]},
            "unknown setting 'rows.1.stpes'; did you mean 'rows.1.steps'? Known: side, steps",
        ),
        ({"inner": {"steps": 0}}, "inner.steps must be greater than 0, got 0"),
        ({"inner": {"steps": 11}}, "inner: too many steps: 11"),
        (
            {"inner": {"steps": 0}, "rows": 1},
            "inner.steps must be greater than 0, got 0; rows must be a list such as [1, 2], got 1",
        ),
        (
            {"inner": {"side": 0.5}},
            "inner.side must be a whole number, got 0.5; "
            "inner.side must be a list such as [1, 2], got 0.5",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        Outer(**values)
    assert str(error.value) == message


def test_arguments_take_the_types_of_the_signature() -> None:
    def network(width: int, sizes: tuple[int, ...] = (), **others: object) -> None: ...

    checked = check_arguments(network, {"sizes": [2, 3], "depth": "x"})
    assert checked == {"sizes": (2, 3), "depth": "x"}
    with pytest.raises(ValueError, match=r"width must be a whole number, got 'many'"):
        check_arguments(network, {"width": "many"})


@pytest.mark.parametrize("name", list_upsamplers())
def test_every_method_has_types_that_can_be_checked(name: str) -> None:
    cls = get_class(name)
    with pytest.raises(UnknownNameError, match="unknown setting 'no_such_option'"):
        check_arguments(cls, {"no_such_option": 1})
    config = cls.__init__.__kwdefaults__ or {}
    assert check_arguments(cls, config).keys() == config.keys()


def test_nothing_is_said_in_the_words_of_the_library_underneath() -> None:
    class Every(Settings):
        number: float = 1.0
        flag: bool = True
        word: str = ""
        mode: Literal["a", "b"] = "a"
        pair: tuple[int, int] = (1, 2)
        few: tuple[int, ...] = Field(default=(1,), min_length=1)
        share: float = Field(default=0.5, ge=0, lt=1)

    wrong: dict[str, list[Any]] = {
        "number": ["x", None, []],
        "flag": ["perhaps", 3],
        "word": [3, None],
        "mode": ["c"],
        "pair": [3, [1], [1, 2, 3], ["x", 2]],
        "few": [()],
        "share": [-1, 1],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}(\.\d)? (must be|is missing)") as error:
                Every(**{name: value})
            assert not re.search("valid|input should|parse", str(error.value)), error.value


def test_files_that_are_no_results_are_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, words in (("no", "no valid JSON"), ('{"schema_version": 1}', "task is missing")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"is not a result of upfeat eval: .*{words}") as error:
            Result.load(path)
        assert "pydantic" not in str(error.value)
