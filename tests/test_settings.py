"""Settings: unknown names and wrong values are refused in one sentence that names the setting."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import PositiveInt, model_validator

from upfeat._settings import Settings, Sides, check_arguments
from upfeat.errors import UnknownNameError
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
            "inner.steps must be greater than 0, got 0; rows must be a valid tuple, got 1",
        ),
        (
            {"inner": {"side": 0.5}},
            "inner.side must be a valid integer, got a number with a fractional part, got 0.5; "
            "inner.side must be a valid tuple, got 0.5",
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
    with pytest.raises(ValueError, match=r"width must be a valid integer, .* got 'many'"):
        check_arguments(network, {"width": "many"})


@pytest.mark.parametrize("name", list_upsamplers())
def test_every_method_has_types_that_can_be_checked(name: str) -> None:
    cls = get_class(name)
    with pytest.raises(UnknownNameError, match="unknown setting 'no_such_option'"):
        check_arguments(cls, {"no_such_option": 1})
    config = cls.__init__.__kwdefaults__ or {}
    assert check_arguments(cls, config).keys() == config.keys()
