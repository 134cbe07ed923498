"""The wheel: what it holds, and that it works where nothing else of upfeat is."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tools.check_dist import LARGEST, faults_of, main, make_environment, try_it, wheel_in

pytest.importorskip("hatchling", reason="builds the wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    repository = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=repository, check=True, capture_output=True)
    return wheel_in(folder)


def test_it_holds_the_package_and_its_licences_only(wheel: Path) -> None:
    assert faults_of(wheel) == []


def test_weights_that_few_need_are_not_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert "kin.upfeat.safetensors" in names
    assert not [name for name in names if "_stage1" in name]


@pytest.mark.slow
def test_a_photo_becomes_a_picture_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    programs = make_environment(tmp_path / "venv", wheel, install=False)
    (tmp_path / "user").mkdir()
    version, line = try_it(programs, tmp_path / "user")
    assert version == wheel.name.split("-")[1]
    assert "out/photo.png" in line


def test_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "upfeat-9-py3-none-any.whl", "w") as archive:
        archive.writestr("upfeat/__init__.py", "")
        archive.writestr("tests/test_a.py", "")
        archive.writestr("upfeat/weights.bin", b"0" * (LARGEST + 1))
        archive.writestr("upfeat-9.dist-info/METADATA", "License-Expression: MIT\n\n")
        archive.writestr("upfeat-9.dist-info/licenses/LICENSE", "")
    assert main([str(tmp_path)]) == 1
    text = capsys.readouterr().err
    for part in ("more than 15,000,000", "tests/test_a.py", "NOTICE is missing", "is MIT"):
        assert part in text, text


def test_a_folder_without_a_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds 0 wheels"):
        main([str(tmp_path)])


# -- continuous integration ----------------------------------------------------------------------


def workflow(repository: Path) -> dict:
    return yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())


def make_targets(repository: Path) -> set[str]:
    lines = (repository / "Makefile").read_text().splitlines()
    return {line.partition(":")[0] for line in lines if ":" in line and line[:1].isalpha()}


def test_the_workflow_calls_targets_that_exist(repository: Path) -> None:
    jobs = workflow(repository)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {
        word
        for command in commands
        for line in re.sub(r"\$\{\{.*?\}\}", "X", command).splitlines()
        if line.split()[:1] == ["make"]
        for word in line.split()[1:]
        if "=" not in word
    }
    assert {"lint", "test", "dist"} <= called
    assert called <= make_targets(repository)


def test_the_workflow_tests_the_oldest_and_the_newest_torch(repository: Path) -> None:
    loaded = workflow(repository)
    assert {"push", "pull_request"} <= set(loaded[True])  # YAML reads the key `on` as true
    torches = loaded["jobs"]["test"]["strategy"]["matrix"]["torch"]
    lock = (repository / "requirements.lock").read_text()
    project = (repository / "pyproject.toml").read_text()
    oldest, locked, newest = torches
    assert f'"torch>={oldest.removesuffix(".0")}"' in project
    assert f"\ntorch=={locked}\n" in lock
    assert newest == "newest"
