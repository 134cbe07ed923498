"""The fault campaign in its small form; ``make faults`` runs the large one and prints figures."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.damage import DAMAGES
from tests.faults.disks import full_disk, read_only_disk
from tests.faults.figures import Figures
from tests.faults.images import read_damaged, upsample_damaged
from tests.faults.kills import killed, outcome
from tests.faults.pickles import attacks, malicious_pickles
from tests.faults.processes import Commands, commands
from tests.faults.weights import damaged_configs, damaged_weights, foreign_weights

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    with commands() as server:
        yield server


def sound(figures: Figures) -> None:
    assert figures.counts.total()
    assert not figures.findings, str(figures)


@pytest.mark.filterwarnings("ignore::Warning")
def test_damaged_images_are_read_or_refused(tmp_path: Path) -> None:
    sound(read_damaged(400, tmp_path))


def test_damaged_images_fail_for_themselves_alone(run: Commands, tmp_path: Path) -> None:
    sound(upsample_damaged(run, 24, tmp_path))


def test_damaged_weights(tmp_path: Path) -> None:
    sound(damaged_weights(300, tmp_path))


def test_foreign_weights(tmp_path: Path) -> None:
    sound(foreign_weights(tmp_path))


def test_damaged_folders(tmp_path: Path) -> None:
    sound(damaged_configs(100, tmp_path))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_malicious_pickle_runs(tmp_path: Path) -> None:
    sound(malicious_pickles(tmp_path))


def test_kills_of_upsample(run: Commands, tmp_path: Path) -> None:
    sound(killed(run, "upsample", 2, tmp_path))


def test_kills_of_extract(run: Commands, tmp_path: Path) -> None:
    sound(killed(run, "extract", 2, tmp_path))


def test_kills_of_train(run: Commands, tmp_path: Path) -> None:
    sound(killed(run, "train", 2, tmp_path))


def test_full_disk(run: Commands, tmp_path: Path) -> None:
    sound(full_disk(run, tmp_path, ("npz",)))


def test_output_that_cannot_be_written(run: Commands, tmp_path: Path) -> None:
    sound(read_only_disk(run, tmp_path))


# -- the harness itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.exec", "os.mkdir", "GLOBAL", "INST", "OBJ", "dict entry"]
)
def test_attacks_run_where_nobody_stops_them(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(attacks(canary)[name])
    assert canary.exists()


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_change_the_bytes(name: str) -> None:
    data = bytes(range(1, 255)) * 3
    changed = [DAMAGES[name](data, random.Random(seed)) != data for seed in range(5)]
    assert sum(changed) >= 4


def test_processes_end_as_they_are_told(run: Commands, tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).code == 0
    wrong = run("upsample", "no_such_file.png", cwd=tmp_path)
    assert wrong.code == 2
    assert "no_such_file.png" in wrong.output
    early = run("train", "--list", cwd=tmp_path, kill_after=0.0)
    assert early.killed


def test_outcomes_differ_where_bits_differ(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "log.csv").write_text("step,seconds\n1,0.5\n")
    before = outcome(tmp_path)
    (tmp_path / "log.csv").write_text("step,seconds\n1,0.7\n")
    assert outcome(tmp_path) == before
    (tmp_path / "a.png").write_bytes(b"2")
    assert outcome(tmp_path) != before
