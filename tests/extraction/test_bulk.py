"""Bulk runs: order, records, failures, estimates."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import upfeat
from upfeat.extraction import Job, Outcome, Writer, estimate_bytes, run_bulk, tensor_writer


@pytest.fixture
def pipe() -> upfeat.Pipeline:
    backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
    return upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"))


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    made = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (24, 16 + i), (i * 20, 0, 0)).save(path)
        made.append(Job(path, Path(f"folder{i % 2}") / str(i)))
    return made


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_outcomes_are_in_order(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path, workers: int
) -> None:
    seen: list[Outcome] = []
    writers = [tensor_writer("npz", 3)]
    summary = run_bulk(
        jobs, pipe, writers, tmp_path / "out", {}, workers=workers, on_outcome=seen.append
    )
    assert [outcome.job for outcome in summary.outcomes] == jobs
    assert seen == summary.outcomes
    assert summary.count("done") == 4
    assert all(file.is_file() for outcome in summary.outcomes for file in outcome.files)


def test_a_writer_that_fails_leaves_no_record(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    def fail(pipe: upfeat.Pipeline, encoded: object, path: Path) -> None:
        if path.stem == "2":
            raise RuntimeError("out of memory")
        path.write_text("x")

    out = tmp_path / "out"
    summary = run_bulk(jobs, pipe, [Writer(".txt", fail, 1.0)], out, {"a": 1})
    assert [outcome.state for outcome in summary.outcomes] == ["done", "done", "failed", "done"]
    assert not (out / "folder0" / "2.json").exists()
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "RuntimeError: out of memory"
    again = run_bulk(jobs, pipe, [Writer(".txt", fail, 1.0)], out, {"a": 1})
    assert again.count("skipped") == 3
    assert again.count("failed") == 1


def test_an_interrupt_is_passed_on(pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path) -> None:
    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bulk(jobs, pipe, [tensor_writer("npz", 3)], tmp_path / "out", {}, on_outcome=interrupt)


def test_the_estimate_counts_what_is_left(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    out, writers = tmp_path / "out", [tensor_writer("npz", 3, torch.float32)]
    whole = estimate_bytes(jobs, writers, None, out, {})
    assert whole == sum(24 * (16 + i) * 12 for i in range(4))
    run_bulk(jobs[:2], pipe, writers, out, {})
    assert estimate_bytes(jobs, writers, None, out, {}) == sum(24 * (16 + i) * 12 for i in (2, 3))
    assert estimate_bytes(jobs, writers, 8, out, {"other": 1}) > 0


def test_two_jobs_with_one_name(pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share the output name"):
        run_bulk([jobs[0], jobs[0]], pipe, [], tmp_path, {})
    with pytest.raises(ValueError, match="workers"):
        run_bulk(jobs, pipe, [], tmp_path, {}, workers=0)


def test_formats_and_their_limits() -> None:
    with pytest.raises(ValueError, match="unknown format 'csv'"):
        tensor_writer("csv", 3)
    with pytest.raises(ValueError, match="no bfloat16"):
        tensor_writer("npz", 3, torch.bfloat16)
