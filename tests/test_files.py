"""Files are written whole or not at all, and only over what upfeat wrote."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upfeat._files import OwnFiles, new_file, remove_stale_parts, write_bytes
from upfeat.errors import ForeignFileError


def test_a_block_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def write() -> None:
        with new_file(path) as stream:
            stream.write(b"half")
            assert path.read_bytes() == b"old"
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match=r"full: .*/a\.bin'$"):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 251 + ".png", "ü" * 125 + ".png"):
        write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


KILLED = """
import os, signal, sys
from pathlib import Path
from upfeat._files import new_file, part_folder
folder = Path(sys.argv[1])
with new_file(folder / "a.bin") as stream, part_folder(folder) as parts:
    stream.write(b"half")
    stream.flush()
    (parts / "b.bin").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_parts_of_a_killed_process_are_removed_and_of_a_living_one_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        for name in (".video.mp4.part", "b.part", ".upfeat-0.part"):
            (tmp_path / name).write_bytes(b"of another program")
        remove_stale_parts(tmp_path)
        assert len(list(tmp_path.glob("*.upfeat-????????.part"))) == 2
        process.kill()
        process.wait()
    write_bytes(tmp_path / "c.bin", b"the next run")
    assert sorted(os.listdir(tmp_path)) == [".upfeat-0.part", ".video.mp4.part", "b.part", "c.bin"]


def test_parts_are_removed_once_a_folder_is_written_to(tmp_path: Path) -> None:
    for name in (".a.bin.upfeat-0123abcd.part", ".a.bin.123-4.part"):
        (tmp_path / name).write_bytes(b"half")
    write_bytes(tmp_path / "a.bin", b"whole")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    own = OwnFiles(tmp_path)
    own.write("a.png", b"first", "one command")
    OwnFiles(tmp_path).write("a.png", b"second", "one command")  # another process
    with pytest.raises(ForeignFileError, match=r"a\.png .*written by one command"):
        own.write("a.png", b"third", "another command")
    (tmp_path / "a.png").write_bytes(b"edited by hand")
    (tmp_path / "b.png").write_bytes(b"a photo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("a.png", "b.png", "folder", "link"):
        with pytest.raises(ForeignFileError, match=f"{name} .*was not written by upfeat"):
            own.write(name, b"third", "one command")
        own.remove(name, "one command")
        assert os.path.lexists(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == b"edited by hand"
    assert not own.wrote("a.png")


def test_own_files_are_taken_from_parts_and_removed(tmp_path: Path) -> None:
    own = OwnFiles(tmp_path)
    with own.parts() as parts:
        (parts / "a.png").write_bytes(b"panel")
        own.take(parts / "a.png", "a.png", "a command")
    assert own.wrote("a.png")
    assert [path.name for path in own.state.iterdir()] == ["files.jsonl"]
    own.remove("a.png", "another command")
    assert own.wrote("a.png")
    own.remove("a.png", "a command")
    assert not (tmp_path / "a.png").exists()


def test_a_torn_or_foreign_line_is_no_claim(tmp_path: Path) -> None:
    own = OwnFiles(tmp_path)
    own.write("a.png", b"a", "a command")
    ledger = own.state / "files.jsonl"
    with ledger.open("ab") as stream:
        stream.write(
            json.dumps({"file": "b.png", "bytes": 1}).encode() + b'\n[1]\n{"upfeat": 1, "fi'
        )
    own.write("c.png", b"c", "a command")
    again = OwnFiles(tmp_path)
    assert again.wrote("a.png")
    assert again.wrote("c.png")
    (tmp_path / "b.png").write_bytes(b"b")
    assert not again.wrote("b.png")


def test_a_folder_is_claimed_only_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    for folder, expected in ((tmp_path, False), (tmp_path / "new", True)):
        OwnFiles(folder).claim_all("a command")
        assert OwnFiles(folder).all is expected
