"""Files of a run: logs, snapshots; and the guard."""

from __future__ import annotations

from pathlib import Path

import pytest

from upfeat.errors import CheckpointError, MissingPackageError
from upfeat.training import (
    CsvLog,
    LossGuard,
    SnapshotFolder,
    StopConfig,
    TensorBoardLog,
    read_log,
)


def test_a_resumed_log_drops_later_and_torn_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    for step in range(1, 5):
        log.write({"step": step, "loss": step / 8})
    with path.open("a") as stream:
        stream.write("5,0.6")  # no line end: the process died here
    CsvLog(path, 3).write({"step": 4, "loss": 1.0})
    assert read_log(path) == [
        {"step": 1.0, "loss": 0.125},
        {"step": 2.0, "loss": 0.25},
        {"step": 3.0, "loss": 0.375},
        {"step": 4.0, "loss": 1.0},
    ]


def test_a_new_number_becomes_a_column(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", 0)
    log.write({"step": 1, "loss": 1.0})
    log.write({"step": 2, "loss": 2.0, "extra": 3.0})
    assert read_log(tmp_path / "log.csv") == [
        {"step": 1.0, "loss": 1.0},
        {"step": 2.0, "loss": 2.0, "extra": 3.0},
    ]


def test_tensorboard_writes_or_says_what_to_install(tmp_path: Path) -> None:
    try:
        import tensorboard  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match=r"upfeat\[tensorboard\]"):
            TensorBoardLog(tmp_path, 0)
        return
    log = TensorBoardLog(tmp_path, 0)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    (events,) = tmp_path.glob("events*")
    assert b"loss" in events.read_bytes()


def test_a_broken_snapshot_is_passed_over(tmp_path: Path) -> None:
    snapshots = SnapshotFolder(tmp_path, keep_last=3)
    snapshots.save(1, {"step": 1})
    path = snapshots.save(2, {"step": 2})
    path.write_bytes(path.read_bytes()[:100])
    content = snapshots.load()
    assert content is not None
    assert content["step"] == 1
    snapshots.files()[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        snapshots.load()


def test_half_written_files_are_no_snapshots_and_are_removed(tmp_path: Path) -> None:
    snapshots = SnapshotFolder(tmp_path, keep_last=1)
    (tmp_path / ".step-00000009.pt.123-4.part").write_bytes(b"half")
    assert snapshots.load() is None
    snapshots.save(1, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_parts_of_other_programs_stay(tmp_path: Path) -> None:
    (tmp_path / ".weights.bin.part").write_bytes(b"a download")
    SnapshotFolder(tmp_path, keep_last=1).save(1, {"step": 1})
    assert (tmp_path / ".weights.bin.part").exists()


def test_the_guard_notices_divergence() -> None:
    guard = LossGuard(StopConfig(divergence_factor=10))
    assert all(guard.failure_reason(1.0, 1.0) is None for _ in range(60))
    reasons = [guard.failure_reason(100.0, 1.0) for _ in range(60)]
    assert reasons[0] is None
    assert "10 times its lowest value" in str(reasons[-1])


def test_the_guard_allows_a_few_infinite_gradients() -> None:
    guard = LossGuard(StopConfig(skipped_steps=3))
    infinite = float("inf")
    assert guard.failure_reason(1.0, infinite) is guard.failure_reason(1.0, infinite) is None
    assert guard.failure_reason(1.0, 1.0) is None
    messages = [guard.failure_reason(1.0, infinite) for _ in range(3)]
    assert messages[:2] == [None, None]
    assert "3 steps in a row" in str(messages[2])


def test_the_guard_continues_from_its_state() -> None:
    ours, theirs = LossGuard(StopConfig()), LossGuard(StopConfig())
    for loss in (1.0, 2.0, 0.5):
        ours.failure_reason(loss, 1.0)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict() == ours.state_dict()


def test_a_snapshot_that_is_not_accepted_gives_way_to_an_older_one(tmp_path: Path) -> None:
    snapshots = SnapshotFolder(tmp_path, keep_last=3)
    for step in (1, 2):
        snapshots.save(step, {"step": step})

    def refuse_later(content: dict[str, int]) -> None:
        if content["step"] > last:
            raise CheckpointError("it lacks weights")

    last = 1
    assert snapshots.load(refuse_later) == {"step": 1}
    last = 0
    with pytest.raises(CheckpointError, match=r"step-00000002\.pt: it lacks weights"):
        snapshots.load(refuse_later)
