"""The loop: state, resuming, failing."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import upfeat
from tests.training.tiny import JAFAR, LOFTUP, Images, tiny_config, tiny_parts
from upfeat.errors import CheckpointError
from upfeat.training import (
    Callback,
    StepReport,
    TrainConfig,
    Trainer,
    TrainingFailedError,
    TrainResult,
    read_log,
)
from upfeat.training.engine import STATE

EMA = {"decay": 0.5}


def fit(config: TrainConfig, out: Path, resume: bool = False, **options: Any) -> TrainResult:
    parts = options.pop("parts", None) or tiny_parts(config)
    return Trainer(config, out, parts=parts, **options).fit(resume=resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return upfeat.Upsampler.from_pretrained(folder / "model").state_dict()


def assert_equal(one: Path, two: Path) -> None:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(folder: Path) -> list[dict[str, float]]:
    timing = ("images_per_second",)
    rows = read_log(folder / "log.csv")
    return [{name: value for name, value in row.items() if name not in timing} for row in rows]


class Stop(Callback):
    """Ends a run as Ctrl-C would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Crash(Callback):
    """Ends a run without any chance to save, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            raise ConnectionError("power cut")


def test_a_run_writes_what_it_promises(tmp_path: Path) -> None:
    config = tiny_config()
    result = fit(config, tmp_path)
    assert TrainConfig.load(tmp_path / "config.json") == config
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "main", "regulariser", "lr", "gradient_norm"} <= set(rows[0])
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000002.pt", "step-00000004.pt"]
    assert result.loss == rows[-1]["loss"]
    told = json.loads((result.model / "config.json").read_text())["backbone"]
    assert told["name"] == "callable", "the tiny network of these tests"
    assert told["image_std"] is not None
    card = (result.model / "README.md").read_text()
    for text in ("multi_resolution", "seed 0", "images 7", "hours", "Loss curve", "Licences"):
        assert text in card


def test_the_weights_are_trained_and_the_backbone_is_not(tmp_path: Path) -> None:
    config = tiny_config()
    parts = tiny_parts(config)
    before = {name: value.clone() for name, value in parts.upsampler.state_dict().items()}
    fit(config, tmp_path, parts=parts)
    after = weights(tmp_path)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(before)


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_may_keep_their_averages(tmp_path: Path, frozen: bool) -> None:
    """Scale and shift learn all the same."""
    config = tiny_config(upsampler=LOFTUP | {"freeze_batch_norm": frozen})
    parts = tiny_parts(config)
    before = {name: value.clone() for name, value in parts.upsampler.state_dict().items()}
    fit(config, tmp_path, parts=parts)
    after = parts.upsampler.state_dict()
    assert torch.equal(before["batch_norm1.running_mean"], after["batch_norm1.running_mean"]) is (
        frozen
    )
    assert not torch.equal(before["batch_norm1.weight"], after["batch_norm1.weight"])


def test_overfitting_one_image_lowers_the_loss(tmp_path: Path) -> None:
    settings = {"scale": [0.5, 0.5], "regulariser_weight": 0.0}
    config = tiny_config(
        steps=60,
        objective={"name": "multi_resolution"} | settings,
        optimizer={"lr": 3e-3},
    )
    fit(config, tmp_path, parts=tiny_parts(config, Images(1)))
    losses = [row["loss"] for row in curve(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("ema", [{}, EMA], ids=["plain", "ema"])
@pytest.mark.parametrize("stop", [Stop, Crash])
def test_resuming_is_bit_equal(tmp_path: Path, stop: type, ema: dict[str, float]) -> None:
    config = tiny_config(steps=7, ema=ema, logging={"every": 2}, schedule={"name": "cosine"})
    fit(config, tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, ConnectionError)):
        fit(config, tmp_path / "parts", callbacks=[stop(5)])
    fit(config, tmp_path / "parts", resume=True)
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_resuming_a_self_distillation_keeps_its_teacher(tmp_path: Path) -> None:
    settings = {"scale": 2.0, "refine": False, "every": 2, "crop_multiple": 1, "border": 0.0}
    config = tiny_config(steps=6, objective={"name": "self_distillation"} | settings)
    fit(config, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        fit(config, tmp_path / "parts", callbacks=[Crash(5)])
    fit(config, tmp_path / "parts", resume=True)
    assert_equal(tmp_path / "whole", tmp_path / "parts")


def test_resume_refuses_other_settings_and_other_images(tmp_path: Path) -> None:
    config = tiny_config()
    fit(config, tmp_path)
    with pytest.raises(ValueError, match="holds a run already"):
        fit(config, tmp_path)
    with pytest.raises(ValueError, match="optimizer was"):
        fit(tiny_config(optimizer={"lr": 0.5}), tmp_path, resume=True)
    with pytest.raises(ValueError, match="images changed"):
        fit(config, tmp_path, resume=True, parts=tiny_parts(config, Images(3)))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("other", ["settings", "images", "objective"])
def test_a_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path, other: str) -> None:
    fit(tiny_config(steps=3), tmp_path)
    before = contents(tmp_path)
    config = tiny_config(steps=4, **{"seed": 7} if other == "settings" else {})
    parts = tiny_parts(config, Images(3) if other == "images" else None)
    if other == "objective":  # it cannot train what has no weights
        parts.upsampler = upfeat.create_upsampler("bilinear")
    with pytest.raises(ValueError, match=r"seed was|images changed|bilinear"):
        fit(config, tmp_path, resume=True, parts=parts)
    assert contents(tmp_path) == before
    assert fit(tiny_config(steps=4), tmp_path, resume=True).loss > 0


def weight(state: dict[str, Any]) -> str:
    return next(name for name, value in state["upsampler"].items() if value.dim() == 4)


def drop(name: str) -> Any:
    return lambda state: state.pop(name)


def other_width(state: dict[str, Any]) -> None:
    state["upsampler"][weight(state)] = torch.zeros(1, 2, 3, 3)


def other_moment(state: dict[str, Any]) -> None:
    next(iter(state["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(2, 2)


def no_moment(state: dict[str, Any]) -> None:
    del next(iter(state["optimizer"]["state"].values()))["exp_avg_sq"]


def more_parameters(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"][0]["params"].append(99)


DAMAGES = {
    **{f"no {name}": drop(name) for name in STATE},
    "a weight is missing": lambda state: state["upsampler"].pop(weight(state)),
    "a weight of another shape": other_width,
    "a weight that is none": lambda state: state["upsampler"].update({weight(state): "x"}),
    "weights that are a list": lambda state: state.update(upsampler=[1]),
    "a moment of another shape": other_moment,
    "a moment is missing": no_moment,
    "another number of parameters": more_parameters,
    "settings that are no settings": lambda state: state.update(config="{}"),
    "a step that is none": lambda state: state.update(step="x"),
    "means without sums": lambda state: state["means"].pop("sums"),
    "a guard without steps": lambda state: state["guard"].pop("steps"),
}


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
        return
    state = torch.load(path, weights_only=True)
    DAMAGES[how](state)
    torch.save(state, path)


@pytest.mark.parametrize("how", ["truncated", *DAMAGES])
def test_a_damaged_snapshot_gives_way_to_the_older_one(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(steps=4)
    fit(config, tmp_path)
    before = {name: value.clone() for name, value in weights(tmp_path).items()}
    older, newer = sorted((tmp_path / "checkpoints").glob("step-*.pt"))
    damage(newer, how)
    fit(config, tmp_path, resume=True)
    assert f"{newer} is damaged and is passed over" in caplog.text
    after = weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for path in (older, newer):
        damage(path, how)
    left = contents(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(str(newer))):
        fit(config, tmp_path, resume=True)
    assert contents(tmp_path) == left


def test_a_full_disk_stops_at_once_and_keeps_the_last_snapshot(tmp_path: Path) -> None:
    """A limit on the size of files gives the same error as a full disk, at a chosen moment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen: list[int] = []

    class Fill(Callback):
        def on_step(self, trainer: Trainer, report: StepReport) -> None:
            seen.append(report.step)

        def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    config = tiny_config(steps=8)
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fit(config, tmp_path / "parts", callbacks=[Fill()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert seen == [1, 2, 3]
    assert Path(caught.value.filename).parent == tmp_path / "parts" / "checkpoints"
    names = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000002.pt"]
    fit(config, tmp_path / "parts", resume=True)
    fit(config, tmp_path / "whole")
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    fit(tiny_config(steps=3), tmp_path / "parts")
    fit(tiny_config(steps=5), tmp_path / "parts", resume=True)
    fit(tiny_config(steps=5), tmp_path / "whole")
    assert_equal(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Without draws in the objective the cut of the batch must not matter.

    Plain descent: Adam makes whole steps of what rounding leaves of a zero gradient.
    """
    settings = {"scale": [0.5, 0.5], "regulariser_weight": 0.0}
    objective = {"name": "multi_resolution"} | settings
    optimizer = {"name": "sgd", "lr": 0.1}
    shared = {"objective": objective, "batch_size": 4, "optimizer": optimizer}
    fit(tiny_config(**shared), tmp_path / "one")
    fit(tiny_config(**shared, accumulate=4), tmp_path / "four")
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


def test_keep_last_and_best(tmp_path: Path) -> None:
    config = tiny_config(steps=6, checkpoint={"every": 1, "keep_last": 3})
    fit(config, tmp_path)
    folder = tmp_path / "checkpoints"
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    assert steps == [4, 5, 6]
    losses = [row["loss"] for row in curve(tmp_path)]
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["step"] == 1 + losses.index(min(losses))


def test_nan_stops_with_step_files_and_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(steps=6)
    # NaN passes the range check of the first batch only; positions 6 and 7 are step 4.
    with pytest.raises(TrainingFailedError) as caught:
        fit(config, tmp_path, parts=tiny_parts(config, Images(broken=(6,))))
    assert caught.value.step == 4
    assert caught.value.files == ["image6.jpg", "image0.jpg"]
    assert caught.value.checkpoint == tmp_path / "checkpoints" / "step-00000002.pt"
    assert "the loss is nan" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_clipping_limits_the_first_steps(tmp_path: Path) -> None:
    config = tiny_config(
        optimizer={"name": "sgd", "lr": 1.0, "betas": (0.0, 0.0), "weight_decay": 0.0},
        clip={"max_norm": 1e-3, "first_steps": 2},
        steps=3,
    )
    states: list[torch.Tensor] = []

    class Keep(Callback):
        def on_start(self, trainer: Trainer, step: int) -> None:
            self.keep(trainer)

        def on_step(self, trainer: Trainer, report: StepReport) -> None:
            self.keep(trainer)

        def keep(self, trainer: Trainer) -> None:
            vector = torch.nn.utils.parameters_to_vector(trainer.current_model().parameters())
            states.append(vector.detach())

    fit(config, tmp_path, callbacks=[Keep()])
    moves = [float((b - a).norm()) for a, b in itertools.pairwise(states)]
    assert moves[:2] == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert moves[2] > 2e-3


def test_bfloat16_runs(tmp_path: Path) -> None:
    result = fit(tiny_config(precision="bf16", steps=2), tmp_path)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    assert result.loss > 0


def test_half_precision_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a GPU"):
        fit(tiny_config(precision="fp16"), tmp_path)


def test_the_objective_refuses_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_config()
    parts = tiny_parts(config)
    parts.upsampler = upfeat.create_upsampler("bilinear")
    with pytest.raises(ValueError, match="bilinear"):
        fit(config, tmp_path / "run", parts=parts)
    assert not (tmp_path / "run" / "log.csv").exists()


# -- other processes -------------------------------------------------------------------------------

SCRIPT = """
    import sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from tests.training.tiny import JAFAR, LOFTUP, tiny_config, tiny_parts
    from upfeat.training import Callback, Trainer
    out, devices, upsampler, steps, pause = sys.argv[1:]

    class Slow(Callback):
        def on_step(self, trainer, report):
            time.sleep(float(pause))

    config = tiny_config(
        steps=int(steps), devices=int(devices),
        upsampler=LOFTUP if upsampler == "loftup" else JAFAR,
        optimizer={"lr": 1e-3, "eps": 1e-4}, ema={"decay": 0.9},
    )
    Trainer(config, Path(out), parts=tiny_parts(config), callbacks=[Slow()]).fit(resume=True)
"""


def script(folder: Path) -> Path:
    path = folder / "run.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_kill_9_and_resume_is_bit_equal(tmp_path: Path) -> None:
    path = script(tmp_path)
    out = tmp_path / "killed"
    command = [sys.executable, str(path), str(out), "1", "jafar", "8"]
    process = subprocess.Popen([*command, "0.3"], env=environment())
    deadline = time.monotonic() + 240
    while len(curve(out)) < 5:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()
    run([*command, "0"])
    config = tiny_config(steps=8, optimizer={"lr": 1e-3, "eps": 1e-4}, ema={"decay": 0.9})
    fit(config, tmp_path / "whole")
    assert_equal(tmp_path / "whole", out)
    assert curve(tmp_path / "whole") == curve(out)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "upsampler"), [("torchrun", LOFTUP), ("devices", JAFAR)])
def test_two_processes_equal_one(tmp_path: Path, launcher: str, upsampler: dict[str, Any]) -> None:
    """LoftUp has batch normalisation, whose running statistics must agree too."""
    path = script(tmp_path)
    two = tmp_path / "two"
    arguments = [str(path), str(two), "2" if launcher == "devices" else "1"]
    arguments += [upsampler["name"], "20", "0"]
    start = [sys.executable]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*start, *arguments])
    config = tiny_config(
        steps=20,
        accumulate=2,
        upsampler=upsampler,
        optimizer={"lr": 1e-3, "eps": 1e-4},
        ema={"decay": 0.9},
    )
    fit(config, tmp_path / "one")
    ours, theirs = weights(two), weights(tmp_path / "one")
    for name in ours:
        if "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
    losses = [[row["loss"] for row in curve(folder)] for folder in (two, tmp_path / "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert json.loads((two / "config.json").read_text())["batch_size"] == 2
