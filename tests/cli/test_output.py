"""A picture and the JSON beside it are written together, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from upfeat.cli.output import check_pictures, save_picture
from upfeat.data import image_files
from upfeat.errors import ForeignFileError

PICTURE = torch.zeros(3, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.json"])
def test_either_file_of_others_refuses_both(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ForeignFileError, match=f"{name} is there already"):
        check_pictures([tmp_path / "a.png"], "a command")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_pictures_are_replaced_by_the_command_that_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "a.png"
    for record in ('{"run": 1}', '{"run": 2}'):
        check_pictures([path], "a command")
        save_picture(path, PICTURE, record, "a command")
    assert capsys.readouterr().out.split()[:2] == [str(path), str(path.with_suffix(".json"))]
    assert path.with_suffix(".json").read_text() == '{"run": 2}\n'
    with pytest.raises(ForeignFileError, match="written by a command"):
        check_pictures([path], "another command")
    with pytest.raises(ValueError, match="no image"):
        image_files(tmp_path)
