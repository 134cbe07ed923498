"""The frame of the protocols: what is read, kept, removed, and which presets there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

import upfeat
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.registry import Presets, ProtocolConfig, silent
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, seed_scores


class LengthConfig(ProtocolConfig):
    preset: Literal["short", "long"] = "short"
    unit: int = 1


lengths = Presets(
    LengthConfig,
    {"short": {}, "long": {"unit": 100}},
    ("words", "lines", "folder"),
    {"lines": {"unit": 10}, ("long", "words"): {"unit": 7}},
)


class Item(NamedTuple):
    name: str


@dataclass(eq=False)
class Lengths(ProtocolRun):
    """Counts letters; is interrupted at an item named stop."""

    task = "lengths"

    files: list[Item]
    cache: Path
    seen: list[str] = field(default_factory=list)

    def measure(self, pending: Pending) -> Measured:
        rows = self.rows(pending, self.cache, "counting", self.files, self.count)
        return seed_scores([{"letters": sum(rows.values())}], percent=lambda name: False), {}

    def count(self, method: Method, file: Item) -> int:
        if file.name == "stop":
            raise KeyboardInterrupt
        self.seen.append(file.name)
        return len(file.name)


def test_an_interrupted_run_keeps_its_rows_until_the_result_is_there(tmp_path: Path) -> None:
    method = Method("any", upfeat.create_upsampler("bilinear"))
    out, cache, config = tmp_path / "out", tmp_path / "cache", lengths("short", "words")
    broken = Lengths(config, out, silent, [Item("one"), Item("stop")], cache)
    with pytest.raises(KeyboardInterrupt):
        broken.run([method])
    assert len(list(cache.iterdir())) == 1
    whole = Lengths(config, out, silent, [Item("one"), Item("three")], cache)
    (result,) = whole.run([method])
    assert whole.seen == ["three"]
    assert result.scores["letters"].mean == 8
    assert set(result.seconds) == {"all"}
    assert not list(cache.iterdir())
    again = Lengths(config, out, silent, [Item("stop")], cache)
    assert again.run([method]) == [result]


def test_presets_and_what_sets_change() -> None:
    found = [
        lengths(preset, data).unit for preset in ("short", "long") for data in ("words", "lines")
    ]
    assert found == [1, 10, 7, 10]
    assert lengths("long", "lines", unit=3).unit == 3
    assert lengths("long", "my photos", reader="folder").data == "my photos"
    with pytest.raises(UnknownNameError, match="unknown data set 'my photos'"):
        lengths("long", "my photos")
    with pytest.raises(UnknownNameError, match="unknown preset 'longer'; did you mean 'long'"):
        lengths("longer", "words")
    with pytest.raises(ValueError, match="unit"):
        lengths("long", "words", unit="many")
