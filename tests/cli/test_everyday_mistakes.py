"""Everyday mistakes and accidents end every command in one sentence; faults of ours do not.

The tests walk over all commands of the application, so that a new one is held to the same.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from upfeat.cli.app import app
from upfeat.cli.options import (
    checked_device,
    checked_file,
    checked_folder,
    checked_picture_place,
)
from upfeat.errors import UpfeatError

ROOT: Any = typer.main.get_command(app)


def leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from leaves(child, *path, name)
        else:
            yield (*path, name), child


COMMANDS = dict(leaves(ROOT))


def required(command: Any) -> list[str]:
    """Return arguments that the command's required parameters take."""
    words = []
    for parameter in command.params:
        if parameter.required:
            words += ["x"] if parameter.param_type_name == "argument" else [parameter.opts[0], "x"]
    return words


def taking(*checks: Callable[..., Any]) -> list[Any]:
    """Return (words, option) of every option whose values one of the checks looks at."""
    found = []
    for words, command in COMMANDS.items():
        for parameter in command.params:
            check = getattr(parameter.callback, "__wrapped__", None)
            if check in checks:
                found.append(pytest.param(words, parameter.opts[0], id=" ".join(words)))
    return found


def invoke(words: tuple[str, ...], *options: str) -> Result:
    arguments = [*words, *required(COMMANDS[words]), *options]
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)


def assert_one_sentence(result: Result, *parts: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def raising(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: BaseException
) -> Result:
    """Run a command whose work raises ``error``."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(type(COMMANDS[words]), "invoke", fail)
    monkeypatch.setattr("upfeat.cli.options.check_folder", lambda *_: None)
    return invoke(words)


def test_the_walk_finds_the_commands() -> None:
    assert {("upsample",), ("train",), ("bench",), ("report",), ("list",)} <= set(COMMANDS)
    assert {("eval", "vos"), ("eval", "seg-probe"), ("show", "targets"), ("show", "pca")} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_options_of_these_names_are_checked(words: tuple[str, ...]) -> None:
    """A new command must not forget it."""
    checks = {
        "device": (checked_device,),
        "out": (checked_folder, checked_file, checked_picture_place),
        "cache": (checked_folder,),
        "markdown": (checked_file,),
    }
    for parameter in COMMANDS[words].params:
        if parameter.name in checks:
            check = getattr(parameter.callback, "__wrapped__", None)
            assert check in checks[parameter.name], parameter.name


@pytest.mark.parametrize(("words", "option"), taking(checked_device))
@pytest.mark.parametrize("device", ["gpu", "xyz", "", "cuda:99", "meta"])
def test_a_device_that_is_not_there(words: tuple[str, ...], option: str, device: str) -> None:
    assert_one_sentence(invoke(words, option, device), "--device", device)


@pytest.mark.parametrize(("words", "option"), taking(checked_folder))
def test_a_folder_that_is_a_file(tmp_path: Path, words: tuple[str, ...], option: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"mine")
    for place in (file, file / "x", file / "x" / "y"):
        assert_one_sentence(invoke(words, option, str(place)), str(file), "is a file")
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize(("words", "option"), taking(checked_file))
def test_a_file_that_is_a_folder(tmp_path: Path, words: tuple[str, ...], option: str) -> None:
    assert_one_sentence(invoke(words, option, str(tmp_path)), "is a folder")
    (tmp_path / "f").touch()
    assert_one_sentence(invoke(words, option, str(tmp_path / "f" / "x")), "is a file")


@pytest.mark.parametrize(("words", "option"), taking(checked_folder, checked_file))
def test_a_read_only_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], option: str
) -> None:
    # Not by chmod: root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert_one_sentence(invoke(words, option, str(tmp_path / "new")), "read-only")
    assert not (tmp_path / "new").exists()


ACCIDENTS = [
    (FileExistsError(errno.EEXIST, "File exists", "out"), "File exists: out"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), "Not a directory: f/x"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), "Is a directory: out"),
    (PermissionError(errno.EACCES, "Permission denied", "out"), "Permission denied: out"),
    (OSError(errno.EROFS, "Read-only file system", "out/a"), "Read-only file system: out/a"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "shorten the name"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (OSError(errno.ENOSPC, "No space left on device", "runs/a.pt"), "written in runs"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    (OSError(errno.EFBIG, "File too large"), "File too large"),
    (RuntimeError("[enforce fail at x.cc] PytorchStreamWriter failed\nmore"), "no more can be"),
    (SafetensorError("Error while serializing: IoError(StorageFull)"), "no more can be written"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "out of memory"),
    (MemoryError(), "out of memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    (TimeoutError("timed out"), "timed out"),
    (ValueError("size must be positive, got 0"), "size must be positive, got 0"),
    (UpfeatError("a reason"), "a reason"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_accidents_get_one_sentence(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    for error, part in ACCIDENTS:
        with monkeypatch.context() as patch:
            assert_one_sentence(raising(patch, words, error), "error: ", part)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_ctrl_c_and_a_closed_pipe(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    with monkeypatch.context() as patch:
        assert_one_sentence(raising(patch, words, KeyboardInterrupt()), "interrupted", code=130)
    result = raising(monkeypatch, words, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (result.exit_code, result.output) == (141, "")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_fault_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    faults = (KeyError("k"), TypeError("t"), AttributeError("a"), IndexError("i"))
    for error in (*faults, RuntimeError("shapes do not fit"), AssertionError()):
        with monkeypatch.context() as patch:
            assert raising(patch, words, error).exception is error


def test_the_reader_of_the_output_goes_away() -> None:
    command = [sys.executable, "-m", "upfeat", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_disk_of_the_output_is_full() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "upfeat", "list", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: no more can be written (No space left on device)")
    assert "Traceback" not in result.stderr


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    parameter: Any = None
    for found, wanted in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert checked_device(parameter, "auto") == wanted
