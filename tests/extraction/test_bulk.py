"""Bulk runs: order, records, failures, estimates."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import upfeat
from upfeat.data import image_files, read_image
from upfeat.errors import ForeignFileError
from upfeat.extraction import Job, Outcome, Writer, bulk, estimate_bytes, run_bulk, tensor_writer


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
    records = out / "folder0" / ".upfeat" / "records"
    assert [path.name for path in records.iterdir()] == ["0.json"]
    assert sorted(os.listdir(out / "folder0")) == [".upfeat", "0.txt"]
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


# -- whose files are replaced ----------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def text_writer(text: str = "result") -> Writer:
    def write(pipe: upfeat.Pipeline, encoded: object, path: Path) -> None:
        path.write_text(text)

    return Writer(".txt", write, 1.0)


def test_a_result_never_takes_the_place_of_an_image(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    own_places = [Job(job.source, Path(job.source.stem)) for job in jobs]
    writer = Writer(".png", text_writer().write, 1.0)
    for out in (tmp_path, tmp_path / "x" / ".."):
        with pytest.raises(ForeignFileError, match=r"0\.png lies where the result .* belongs"):
            run_bulk(own_places, pipe, [writer], out, {})
    assert contents(tmp_path) == before


def test_files_of_others_stay_and_nothing_is_computed(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "folder1").mkdir(parents=True)
    (out / "folder1" / "3.txt").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"3\.txt would be overwritten"):
        run_bulk(jobs, pipe, [text_writer()], out, {})
    assert [path.name for path in out.rglob("*")] == ["folder1", "3.txt"]


def test_what_was_changed_since_it_was_written_stays(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_bulk(jobs, pipe, [text_writer()], out, {"a": 1})
    (out / "folder0" / "2.txt").write_text("edited")  # as long as what was written
    again = run_bulk(jobs, pipe, [text_writer("better")], out, {"a": 2})
    assert [outcome.state for outcome in again.outcomes] == ["done", "done", "failed", "done"]
    assert "was not written by upfeat" in (again.outcomes[2].error or "")
    assert (out / "folder0" / "2.txt").read_text() == "edited"
    assert (out / "folder0" / "0.txt").read_text() == "better"


def test_a_failed_recomputation_keeps_the_earlier_result(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    def fail(pipe: upfeat.Pipeline, encoded: object, path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("out of memory")

    out = tmp_path / "out"
    run_bulk(jobs, pipe, [text_writer()], out, {"a": 1})
    assert run_bulk(jobs, pipe, [Writer(".txt", fail, 1.0)], out, {"a": 2}).count("failed") == 4
    assert run_bulk(jobs, pipe, [text_writer()], out, {"a": 1}).count("skipped") == 4
    assert not list(out.rglob("*.part"))


def test_results_in_the_folder_of_the_images_are_no_images(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    writer = Writer(".bmp", text_writer().write, 1.0)
    for _ in range(3):
        found = [Job(path, name) for path, name in image_files(tmp_path)]
        assert len(found) == 4
        run_bulk(found, pipe, [writer], tmp_path, {})
    assert len(list(tmp_path.glob("*.bmp"))) == 4


def test_names_of_our_own_files_are_free_for_images(pipe: upfeat.Pipeline, tmp_path: Path) -> None:
    for name in ("basis", "failures", "files", "records", "a", "a_all"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = [Job(path, name) for path, name in image_files(tmp_path)]
    out = tmp_path / "out"
    writers = [tensor_writer("npz", 3), Writer(".json", text_writer().write, 1.0)]
    for state in ("done", "skipped"):
        summary = run_bulk(found, pipe, writers, out, {})
        assert summary.count(state) == 6
        assert summary.failures == out / "failures.jsonl"
    assert {path.read_text() for path in out.glob("*.json")} == {"result"}
    assert len(list(out.glob("*.json"))) == 6


def test_a_finished_run_writes_and_removes_nothing(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_bulk(jobs, pipe, [text_writer()], out, {})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "write_bytes", "write_text", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    for name in ("replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    assert run_bulk(jobs, pipe, [text_writer()], out, {}).count("skipped") == 4


def test_failures_of_an_earlier_run_go_and_those_of_others_stay(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    broken = Job(tmp_path / "broken.png", Path("broken"))
    broken.source.write_bytes(b"no image")
    out = tmp_path / "out"
    assert run_bulk([broken], pipe, [text_writer()], out, {}).failures == out / "failures.jsonl"
    assert run_bulk(jobs, pipe, [text_writer()], out, {}).failures is None
    assert not (out / "failures.jsonl").exists()
    (out / "failures.jsonl").write_text("mine")
    summary = run_bulk([broken, *jobs], pipe, [text_writer()], out, {})
    assert summary.failures is not None
    assert "broken.png" in summary.failures.read_text()
    run_bulk(jobs, pipe, [text_writer()], out, {})
    assert (out / "failures.jsonl").read_text() == "mine"
    assert not summary.failures.exists()


# -- what ends a run and what does not -------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_ends_the_run_at_once(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path, code: int
) -> None:
    calls = []

    def fail(pipe: upfeat.Pipeline, encoded: object, path: Path) -> None:
        calls.append(path.name)
        path.write_text("half")
        if len(calls) == 2:
            raise OSError(code, os.strerror(code), str(path))

    out = tmp_path / "out"
    place = str(out / "folder1" / "1.txt")  # not where the part was
    with pytest.raises(OSError, match=f"{os.strerror(code)}: '{place}'"):
        run_bulk(jobs, pipe, [Writer(".txt", fail, 1.0)], out, {})
    assert calls == ["0.txt", "1.txt"]
    assert [path.name for path in out.rglob("*.txt")] == ["0.txt"]
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    "error", [RuntimeError("plugin"), MemoryError(), KeyError("x"), EOFError()]
)
def test_whatever_a_reader_raises_is_its_files_failure(
    pipe: upfeat.Pipeline,
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def read(path: Path) -> torch.Tensor:
        if path == jobs[1].source:
            raise error
        return read_image(path)

    def size(path: Path) -> tuple[int, int]:
        raise error

    monkeypatch.setattr(bulk, "read_image", read)
    monkeypatch.setattr(bulk, "image_size", size)
    assert estimate_bytes(jobs, [text_writer()], None, tmp_path / "out", {}) == 0
    summary = run_bulk(jobs, pipe, [text_writer()], tmp_path / "out", {})
    assert [outcome.state for outcome in summary.outcomes] == ["done", "failed", "done", "done"]
    assert type(error).__name__ in (summary.outcomes[1].error or "")


def test_two_writers_with_one_suffix(
    pipe: upfeat.Pipeline, jobs: list[Job], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"two writers share the suffix \.txt"):
        run_bulk(jobs, pipe, [text_writer(), text_writer()], tmp_path / "out", {})
