"""SIGKILL at random moments of the long commands: a rerun ends where a run without kills does."""

import io
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from tests.faults.figures import Figures
from tests.faults.processes import Commands, Ended

UPSAMPLE = ("upsample", "in", "--out", "out", "--save", "png,safetensors", "--basis", "first")
TRAIN = (
    *("train", "jafar_small", "--data", "in", "--out", "out", "--panels", "1", "--resume"),
    *("--set", "data.crop=32", "--set", "data.resize=32", "--set", "batch_size=2"),
    *("--set", "steps=6", "--set", "checkpoint.every=2", "--set", "logging.every=1"),
    *("--set", "device=cpu", "--set", "schedule.warmup_steps=0"),
)
EXTRACT = ("extract", "in", "--out", "out", "--features", "pca64", "--shards", "2")
COMMANDS = {"upsample": UPSAMPLE, "train": TRAIN, "extract": EXTRACT}
NEVER_EQUAL = ("seconds", "images_per_second", "time")


def _pictures(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (40 + number, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{number}.png")


def outcome(out: Path) -> dict[str, Any]:
    """Return what a run left behind, without its times: by path, bytes or tensors."""
    return {
        str(path.relative_to(out)): _content(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".upfeat" not in path.relative_to(out).parts
    }


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.name.startswith("shard-"):  # beside the features it names the images' folder
        return _without_times(load(data))
    if path.suffix == ".pt":
        return _without_times(torch.load(io.BytesIO(data), weights_only=True))
    if path.suffix == ".csv":
        rows = [line.split(",") for line in data.decode().splitlines()]
        kept = [i for i, name in enumerate(rows[0]) if not name.startswith(NEVER_EQUAL)]
        return [[row[i] for i in kept] for row in rows]
    if path.name in ("README.md", "training.json", "store.json"):
        return None  # they tell how long it took, or where the images are
    return data


def _without_times(value: Any) -> Any:
    """Return nested dicts with tensors as bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, Mapping):
        return {k: _without_times(v) for k, v in value.items() if k not in (*NEVER_EQUAL, "means")}
    if isinstance(value, list | tuple):
        return [_without_times(v) for v in value]
    return value


def killed(run: Commands, command: str, count: int, folder: Path, seed: int = 0) -> Figures:
    """Kill a command at ``count`` random moments, rerun it each time, and compare."""
    figures, rng = Figures(f"kill -9 of {command}"), random.Random(seed)
    arguments = COMMANDS[command]
    _pictures(folder / "reference" / "in")
    reference = run(*arguments, cwd=folder / "reference")
    if reference.code != 0:
        figures.find(f"the run that nobody kills ends with {reference.code}: {reference.output}")
        return figures
    expected = outcome(folder / "reference" / "out")
    seconds, number = reference.seconds, 0
    while figures.counts["killed"] < count and number < 4 * count:
        number += 1
        place = folder / f"killed{number}"
        shutil.copytree(folder / "reference" / "in", place / "in")
        moment = rng.uniform(0.05, 1.0) * seconds
        ended = run(*arguments, cwd=place, kill_after=moment)
        label = f"after {moment:.2f} of {seconds:.2f} s"
        if not ended.killed:  # the machine is less busy than it was
            seconds = min(seconds, ended.seconds)
        figures.count("killed" if ended.killed else "done before")
        if list(place.rglob("*.part*")):
            figures.count("parts left by the kill")
        if rng.random() < 0.3 and ended.killed:
            again = run(*arguments, cwd=place, kill_after=rng.uniform(0.1, 0.9) * seconds)
            figures.count("killed again" if again.killed else "done at once")
        _judge_rerun(figures, label, run(*arguments, cwd=place), place, expected)
        shutil.rmtree(place)
    return figures


def _judge_rerun(
    figures: Figures, label: str, ended: Ended, place: Path, expected: dict[str, Any]
) -> None:
    if ended.code != 0:
        figures.find(f"{label}: the rerun ends with {ended.code}: {ended.output[-500:]}")
        return
    parts = [str(path.relative_to(place)) for path in place.rglob("*.part*")]
    if parts:
        figures.find(f"{label}: the rerun leaves {parts}")
    actual = outcome(place / "out")
    if actual.keys() != expected.keys():
        figures.find(f"{label}: other files: {sorted(actual.keys() ^ expected.keys())}")
    different = [k for k in expected if k in actual and actual[k] != expected[k]]
    if different:
        figures.find(f"{label}: not bit-equal: {different}")
