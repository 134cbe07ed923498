"""The shared checks: every message says what came, what was wanted and what to do."""

import os
from pathlib import Path

import pytest
import torch

from upfeat.errors import UnknownNameError, check_call, check_file, check_size


@pytest.mark.parametrize("size", [(3, 4), [3, 4], torch.Size([3, 4])])
def test_sizes(size: object) -> None:
    assert check_size(size) == (3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [5, (3,), (3, 4, 5), (0, 4), (-1, 4), (2.5, 4), "34"])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="output_size"):
        check_size(size)  # type: ignore[arg-type]


def test_default_output_is_the_images() -> None:
    assert check_call(torch.zeros(1, 3, 6, 8), torch.zeros(1, 5, 2, 2), None, None) == (6, 8)


def test_swapped_arguments_are_recognised() -> None:
    with pytest.raises(
        ValueError, match=r"look swapped: the order is upsampler\(image, features\)"
    ):
        check_call(torch.zeros(1, 5, 2, 2), torch.zeros(1, 3, 8, 8), None, None)


def test_unknown_name_without_close_match() -> None:
    assert "did you mean" not in str(UnknownNameError("upsampler", "zzz", ["a", "b"]))


def test_only_files_may_be_opened(tmp_path: Path) -> None:
    """Opening a named pipe waits until somebody writes to it, which may be never."""
    (tmp_path / "file").touch()
    check_file(tmp_path / "file", "label")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-pipe").symlink_to("pipe")
    for name, words in {"pipe": "named pipe", "to-pipe": "named pipe", ".": "is a folder"}.items():
        with pytest.raises(ValueError, match=f"{words}, wanted the label"):
            check_file(tmp_path / name, "label")
    for name in ("nowhere", "file/below", "loop", "x" * 300):
        with pytest.raises(FileNotFoundError, match=r"no label at .*check the path"):
            check_file(tmp_path / name, "label")
