"""Every protocol registers itself, and one registration is all that a new one needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

import upfeat
from tools import protocol_list
from upfeat.cli.errors import Commands
from upfeat.cli.eval import kept_protocols, protocol_command
from upfeat.errors import UnknownNameError
from upfeat.evaluation import protocols, registry
from upfeat.evaluation.methods import CallableUpsampler, Method
from upfeat.evaluation.papers import published_tables
from upfeat.evaluation.registry import (
    Option,
    Protocol,
    Request,
    get_protocol,
    higher,
    list_protocols,
    lower,
)
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.tables import build_tables
from upfeat.evaluation.tables.markdown import table_command

KEPT = Path(__file__).parents[2] / "docs" / "results"


def test_a_file_is_a_protocol_of_its_name() -> None:
    files = {path.stem for path in Path(protocols.__file__).parent.glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in list_protocols()} == files


def test_the_command_line_knows_every_protocol() -> None:
    assert kept_protocols() == json.loads(protocol_list.listing()), (
        "run: python tools/protocol_list.py"
    )


def test_every_score_of_the_kept_results_is_declared() -> None:
    seen: dict[str, set[str]] = {}
    for path in sorted(KEPT.glob("*.json")):
        result = Result.load(path)
        seen.setdefault(result.task, set()).update(result.scores)
    assert set(seen) >= {"cam", "depth-probe", "faithfulness", "seg-probe", "vos"}
    for task, names in seen.items():
        declared = set(get_protocol(task).scores)
        sized = {n for n in names if n.rstrip("0123456789").rstrip("_") in declared}
        assert names <= declared | sized


@pytest.mark.parametrize("name", list_protocols())
def test_the_settings_of_every_preset(name: str) -> None:
    protocol = get_protocol(name)
    assert not protocol.headline or protocol.ranked_by(list(protocol.scores)) in protocol.headline
    data = (
        "nyuv2" if name == "depth-probe" else next(iter([*protocol.data[2:], *protocol.data]), None)
    )
    for preset in protocol.presets or ("",):
        kept = protocol.settings(preset, data).model_dump()
        assert not protocol.presets or kept["preset"] == preset
    with pytest.raises(ValueError, match="no_such_field"):
        protocol.settings(next(iter(protocol.presets), ""), data, no_such_field=1)


def test_tables_have_no_titles_of_their_own() -> None:
    """A heading of a task or a score stands in the protocol that gives it, and nowhere else."""
    columns = [column for table in published_tables() for column in table.columns]
    tasks = {column.task for column in columns}
    assert tasks <= set(registry.list_protocols())
    for column in columns:
        kind = registry.get_protocol(column.task).kind(column.score)
        assert kind.higher_is_better is not None, (column.task, column.score)
    for task in ("depth", "mIoU"):
        settings: dict[str, Any] = {"data": "msrc", "upsampler": {"name": "bilinear"}}
        (table,) = build_tables(
            [Result(task=task, label="bilinear", settings=settings, scores={"x": Score.of([1.0])})]
        )
        assert (table.protocol.title, table.protocol.scores) == (task, {})


def test_wrong_registrations_are_refused() -> None:
    vos = get_protocol("vos")
    with pytest.raises(ValueError, match="already"):
        registry.register_protocol(vos)
    with pytest.raises(UnknownNameError, match="did you mean 'vos'"):
        get_protocol("vs")
    with pytest.raises(ValueError, match="declares no score sharpness"):
        toy(headline=("sharpness",))


# -- a newcomer's protocol -----------------------------------------------------------------------


class ToyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    preset: str = "small"
    side: int = 8
    limit: int | None = None


def configure(preset: str, **changes: Any) -> ToyConfig:
    return ToyConfig(preset=preset, **changes)


def run_toy(
    config: ToyConfig,
    backbone: upfeat.Backbone | None,
    methods: list[Method],
    *,
    out: Path,
    on_progress: Callable[..., None],
    loud: bool,
) -> list[Result]:
    """Largest value of the upsampled map, from features of ones."""
    assert backbone is None
    results = []
    for method in methods:
        on_progress(method.label, "looking", 0, 1)
        size = (config.side, config.side)
        high = method.upsampler(torch.rand(1, 3, *size), torch.ones(1, 4, 2, 2), size)
        scores = {"largest": Score.of([float(high.amax())]), "error": Score.of([float(loud)])}
        settings = config.model_dump() | {"upsampler": method.identity}
        result = Result(task="toy", label=method.label, settings=settings, scores=scores)
        result.save(out / result.file_name("toy"))
        results.append(result)
    return results


def inputs(request: Request) -> dict[str, Any]:
    return {"loud": request.options["loud"]}


def toy(headline: tuple[str, ...] = ("largest",)) -> Protocol:
    protocol = Protocol(
        name="toy",
        title="A toy",
        summary="Look for the largest value.",
        scores={"largest": higher("largest", "m"), "error": lower("error", "")},
        headline=headline,
        configure=configure,
        presets=("small", "tiny"),
        inputs=inputs,
        run=run_toy,
        width=lambda config: 4,
        items="images",
        options=(Option("loud", "Shout.", "flag", False),),
    )
    registry.register_protocol(protocol)
    return protocol


def test_one_registration_gives_command_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_protocols()
    monkeypatch.setattr(registry, "_PROTOCOLS", dict(registry._PROTOCOLS))
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    app.command("toy")(protocol_command("toy", toy().command_facts()))
    line = ["toy", "--upsampler", "bilinear,b=nearest", "--out", str(tmp_path), "--loud"]
    line += ["--preset", "tiny", "--set", "side=6", "--limit", "3"]
    outcome = CliRunner(env={"COLUMNS": "200"}).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    for part in ("largest, m ↑", "error ↓", "a quick look: 3 images"):
        assert part in outcome.stdout
    (table,) = build_tables(map(Result.load, tmp_path.glob("*.json")))
    assert (table.protocol.title, table.headline, len(table.rows)) == ("A toy", "largest", 2)
    assert "upfeat eval toy --preset tiny" in table_command(table)
    assert "--set side=6" in table_command(table)
    assert "--root" not in CliRunner().invoke(app, ["toy", "--help"]).stdout
    wrong = CliRunner().invoke(app, [*line, "--set", "sied=6"])
    assert wrong.exit_code == 2
    assert "unknown setting 'sied'; did you mean 'side'?" in wrong.stderr


def test_any_function_is_a_method() -> None:
    def average(image: torch.Tensor, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return features.mean((2, 3), keepdim=True).expand(-1, -1, *size)

    method = Method("mean", average)
    assert isinstance(method.upsampler, CallableUpsampler)
    assert method.identity == Method("mean", average).identity
    assert method.identity["config"] == {}
    out = method.upsampler(torch.rand(1, 3, 8, 8), torch.ones(1, 4, 2, 2))
    assert out.shape == (1, 4, 8, 8)
    module = Method("convolution", torch.nn.Identity())
    assert module.identity["name"] == "Identity"
