"""The benchmark of training steps: the plain step is the same training."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from upfeat.training import create_recipe

RECIPE = "jafar_small"


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with recipes of small images."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    module = importlib.import_module("training_step")
    small = create_recipe(RECIPE)
    data = small.data.model_copy(update={"crop": 64})
    config = small.model_copy(update={"data": data, "batch_size": 1})
    monkeypatch.setattr(module, "create_recipe", lambda _: config)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)  # --threads is for the whole process


def test_the_plain_step_is_the_same_training(benchmark: ModuleType) -> None:
    ours, plain = (benchmark.training_step(RECIPE, plain) for plain in (False, True))
    first = ours()
    assert plain() == pytest.approx(first, rel=1e-5)
    # The plain attention has projections of its own, which the optimiser does not know.
    fallen, plain_fallen = first - ours(), first - plain()
    assert fallen > 0.005
    assert plain_fallen == pytest.approx(fallen, rel=0.1)


def test_a_report_of_ours_alone(benchmark: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "_peak", lambda *_: 1)
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda _: Inline())
    out = tmp_path / "steps.json"
    options = ["--no-plain", "--repeats", "1", "--threads", "1", "--out", str(out)]
    benchmark.main([RECIPE, *options])
    (record,) = json.loads(out.read_text())["records"]
    assert record["implementation"] == "upfeat"
    assert record["seconds"][0] > 0


class Inline:
    """A context of processes that runs what it is given at once."""

    def Pool(self, _: int) -> Inline:
        return self

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def apply(self, function, arguments):
        return function(*arguments)
