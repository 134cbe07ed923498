"""Stores made by the workers of a Ray cluster on this machine."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import upfeat
from upfeat.data import image_files
from upfeat.errors import MissingPackageError
from upfeat.extraction import Job, StorePlan, plan_store, write_store


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        pixels = random.integers(0, 255, (24 + number, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "5.png").write_bytes(b"no image")
    return [Job(path, name) for path, name in image_files(tmp_path / "photos")]


def pipeline(mark: Path | None) -> upfeat.Pipeline:
    """A pipeline whose first worker is killed when it computes, if there is no file ``mark``."""

    class Network(torch.nn.Module):
        """Local, so that it travels to the workers as a value."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches = torch.nn.Conv2d(3, 16, 8, 8)
            self.home = os.getpid()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if mark is not None and os.getpid() != self.home and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.patches(image)

    backbone = upfeat.CallableBackbone(Network(), dim=16, patch_size=8)
    return upfeat.Pipeline(backbone, "bilinear", batch_size=2)


def files(plan: StorePlan) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in plan.root.iterdir() if path.is_file()}


@pytest.mark.slow
def test_two_workers_one_of_them_killed_make_the_same_bytes(
    jobs: list[Job], tmp_path: Path
) -> None:
    pytest.importorskip("ray.data")
    import ray

    alone, mark = pipeline(None), tmp_path / "killed"
    local = plan_store(jobs, alone, tmp_path / "local", upsampler="bilinear", shards=4)
    write_store(local, alone, threads=1)
    both = pipeline(mark)
    shared = plan_store(jobs, both, tmp_path / "shared", upsampler="bilinear", shards=4)
    seen = []
    summary = write_store(shared, both, engine="ray", workers=2, threads=1, on_outcome=seen.append)
    assert mark.exists(), "no worker was killed"
    assert [outcome.job for outcome in summary.outcomes] == jobs
    assert len(seen) == 8
    assert (summary.count("done"), summary.count("failed")) == (7, 1)
    assert "cannot be read" in (summary.outcomes[5].error or "")
    assert files(shared) == files(local)
    assert len(upfeat.open_store(shared.root)) == 7
    assert not ray.is_initialized()


def test_a_finished_store_needs_no_cluster(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(None)
    plan = plan_store(jobs, pipe, tmp_path / "store", upsampler="bilinear", shards=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"'ray\[data\]'; .*'upfeat\[ray\]'"):
        write_store(plan, pipe, engine="ray")
    write_store(plan, pipe)
    assert write_store(plan, pipe, engine="ray").count("skipped") == 7
