"""A run replaces what runs wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_engine import fit
from tests.training.tiny import tiny_config
from upfeat._files import OwnFiles
from upfeat.errors import ForeignFileError
from upfeat.training import TrainConfig
from upfeat.training.run_folder import check_run_folder, write_config

FOREIGN = (
    "config.json",
    "log.csv",
    "checkpoints/best.pt",
    "model/config.json",
    "model/model.safetensors",
)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_others_end_a_run_before_it_begins(
    tmp_path: Path, name: str, resume: bool
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ForeignFileError, match=f"{path.name} is there already"):
        fit(tiny_config(), tmp_path, resume=resume)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "mine"


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fit(tiny_config(steps=1), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(seed=1))
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n")
    fit(tiny_config(steps=1), tmp_path)
    assert TrainConfig.load(tmp_path / "config.json") == tiny_config(steps=1)


def test_a_configuration_by_hand_is_kept_unless_checkpoints_show_a_run(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    config = tmp_path / "config.json"
    config.write_text(tiny_config(steps=5).to_json().replace("\n", "\n "))
    with pytest.raises(ForeignFileError, match="no run of upfeat wrote it"):
        check_run_folder(tmp_path)
    config.unlink()
    fit(tiny_config(steps=2), tmp_path)
    config.write_text(tiny_config(steps=3).to_json().replace("\n", "\n "))
    result = fit(TrainConfig.load(config), tmp_path, resume=True)
    assert len(result.curve) == 3
    assert config.read_text() == tiny_config(steps=3).to_json()


def test_runs_of_earlier_versions_go_on(tmp_path: Path) -> None:
    fit(tiny_config(steps=2), tmp_path)
    (OwnFiles(tmp_path).state / "files.jsonl").unlink()
    check_run_folder(tmp_path)
    assert len(fit(tiny_config(steps=3), tmp_path, resume=True).curve) == 3
