from __future__ import annotations

import glob
import logging
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from upfeat._files import OwnFiles
from upfeat.data import IMAGE_SUFFIXES, find_images, image_files
from upfeat.data.folders import match_glob
from upfeat.data.tar_shards import find_shards


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(paths: object) -> list[str]:
    return [name.as_posix() for _, name in image_files(paths)]  # type: ignore[arg-type]


def test_folder_is_recursive_sorted_and_filtered(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.JPEG", "a/c/d.webp", "notes.txt", ".hidden.png", ".git/x.png")
    touch(tmp_path, "archive.zip", "noext")
    found = image_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path, _ in found] == [
        "a/c/d.webp",
        "a/z.JPEG",
        "b.png",
    ]
    assert names(str(tmp_path)) == ["a/c/d", "a/z", "b"]


def test_a_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan.raw", "x/photo.v2.jpg")
    assert names([tmp_path / "scan.raw", tmp_path / "x/photo.v2.jpg"]) == ["scan", "photo.v2"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "set1/a.jpg", "set1/b.png", "set2/a.jpg", "set2/deep/c.jpg", "set2/n.txt")
    assert names(tmp_path / "set?/*.jpg") == ["set1/a", "set2/a"]
    assert names(f"{tmp_path}/**/*.jpg") == ["set1/a", "set2/a", "set2/deep/c"]
    assert names(tmp_path / "set2/*") == ["a", "deep/c"]  # a matched folder is searched
    assert names(tmp_path / "set[12]") == ["set1/a", "set1/b", "set2/a", "set2/deep/c"]


def test_glob_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    assert image_files("*.png") == [(Path("a.png"), Path("a")), (Path("b.png"), Path("b"))]


def test_a_file_named_like_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert names(tmp_path / "a[1].png") == ["a[1]"]


def test_suffix_stays_where_stems_clash(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.jpg", "b.png")
    assert names(tmp_path) == ["a.jpg", "a.png", "b"]


def test_folders_in_front_where_names_clash(tmp_path: Path) -> None:
    touch(tmp_path, "left/x.png", "right/x.png", "right/y.png")
    assert names([tmp_path / "left", tmp_path / "right"]) == ["left/x.png", "right/x.png", "y"]


def test_order_of_arguments_and_duplicates(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    assert names([tmp_path / "b.png", tmp_path]) == ["b", "a"]
    assert names([tmp_path, tmp_path]) == ["a", "b"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    os.symlink(tmp_path, tmp_path / "in" / "loop", target_is_directory=True)
    assert names(tmp_path) == ["in/a"]


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "p", "q", "p/q"]),
            st.sampled_from("ab"),
            st.sampled_from([".png", ".jpg", ".PNG", ".tif"]),
        ),
        min_size=1,
    ),
)
def test_names_always_differ(tmp_path_factory: pytest.TempPathFactory, files: set) -> None:
    root = tmp_path_factory.mktemp("files")
    touch(root, *(f"{folder}/{stem}{suffix}".lstrip("/") for folder, stem, suffix in files))
    everything = [path for path in root.rglob("*") if path.is_file()]
    found = image_files([*everything, root])
    assert len(found) == len(files)
    assert len({name for _, name in found}) == len(files)
    assert not any(name.is_absolute() or ".." in name.parts for _, name in found)


def test_errors(tmp_path: Path) -> None:
    touch(tmp_path, "empty/readme.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        image_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"empty holds no image.*\.jpg"):
        image_files(tmp_path / "empty")
    with pytest.raises(ValueError, match="no image matches"):
        image_files(tmp_path / "empty" / "*")


# -- what is left out is said ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".tga", ".JPX", ".qoi", ".dds", ".pnm"])
def test_every_kind_that_pillow_reads_is_taken(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", "b.png")
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "*") == ["a", "b"]


def test_every_suffix_has_a_reader() -> None:
    Image.init()
    own = IMAGE_SUFFIXES - {
        ".mpo"
    }  # a JPEG with further pictures behind it; JPEG's reader takes it
    assert [suffix for suffix in own if Image.EXTENSION[suffix] not in Image.OPEN] == []


def test_kinds_that_are_not_read_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.png", "b.heic", "x/c.HEIC", "x/d.jxl", "e.NEF", "notes.txt", ".f.heic")
    for asked in (tmp_path, tmp_path / "**"):
        caplog.clear()
        assert names(asked) == ["a"]
        assert "2 .heic and 1 .jxl and 1 .nef files" in caplog.text
        assert len(caplog.records) == 1
    assert "txt" not in caplog.text
    caplog.clear()
    assert len(find_images(tmp_path)) == 1
    assert "2 .heic" in caplog.text


def test_a_folder_of_other_kinds_only_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "b.heic")
    with pytest.raises(ValueError, match=r"1 \.heic file, a kind not read here; convert"):
        image_files(tmp_path)
    with pytest.raises(ValueError, match=r"1 \.heic file"):
        image_files(tmp_path / "*.heic")


def test_a_loaded_plugin_of_pillow_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "b.heic")
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    assert names(tmp_path) == ["b"]
    assert not caplog.records


def test_what_is_no_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket has at most 108 characters
        bound.bind("socket.png")
        os.chdir(here)
        for asked in (tmp_path, tmp_path / "*"):
            caplog.clear()
            assert names(asked) == ["a"]
            for words in ("pipe.png, a named pipe", "socket.png, a socket", "null.jpg, a device"):
                assert words in caplog.text
    with pytest.raises(ValueError, match=r"pipe\.png is a named pipe"):
        image_files(tmp_path / "pipe.png")


def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def guarded(path: object) -> object:  # the superuser may read everything
        if Path(path).name == "closed":  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", guarded)
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == ["a"]
    assert "closed (Permission denied)" in caplog.text


# -- links ---------------------------------------------------------------------------------------


def test_links_that_lead_nowhere_or_back_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "round").symlink_to("round")
    for asked in (tmp_path, tmp_path / "*", f"{tmp_path}/**/*.png"):
        assert names(asked) == ["a", "gone", "loop"]
    for name in ("loop.png", "gone.png", "round"):
        with pytest.raises(FileNotFoundError, match=f"{name}.*link that leads to no file"):
            image_files(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"loop\.png"):
        image_files([tmp_path / "a.png", tmp_path / "loop.png" / "x.png"])


@pytest.mark.parametrize("pattern", ["**/*.png", "**", "**/*", "**/**/*.png", "*/**/*.png", "a/*"])
def test_a_glob_ends_where_links_lead_back_up(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a/x.png")
    for number in range(3):
        (tmp_path / "a" / f"up{number}").symlink_to("..")
        (tmp_path / "a" / f"own{number}").symlink_to(".")
    assert [path.name for path, _ in image_files(tmp_path / pattern)] == ["x.png"]


def test_shards_behind_links_that_lead_back_up(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.tar")
    for number in range(3):
        (tmp_path / "a" / f"up{number}").symlink_to("..")
    assert find_shards(tmp_path / "**" / "*.tar") == [tmp_path / "a/x.tar"]


@given(
    st.lists(st.sampled_from(["a", "b", ".h", "a/b", "a/.h", "b/a/b"]), min_size=1),
    st.lists(st.sampled_from(["*", "**", "a", "?", "[ab]", ".*", "*.png"]), min_size=1, max_size=3),
)
def test_globs_find_what_the_standard_library_finds(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str], parts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("glob")
    touch(root, *(f"{folder}/{name}" for folder in folders for name in ("x.png", ".y.png", "z")))
    pattern = root.joinpath(*parts, "*")
    expected = {Path(match) for match in glob.glob(str(pattern), recursive=True)}
    assert match_glob(pattern) == sorted(expected)


def test_results_below_the_folder_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/mine.png", "masks/0.png")
    OwnFiles(tmp_path / "out").write("a.png", b"panel", "a command")
    OwnFiles(tmp_path / "cache").claim_all("a command")
    OwnFiles(tmp_path / "masks").claim_all("a command")  # not empty, so not claimed
    touch(tmp_path, "cache/deep/0.png")
    expected = ["a", "masks/0", "out/mine"]
    assert names(tmp_path) == expected
    assert names(f"{tmp_path}/**/*.png") == expected
    assert names(f"{tmp_path}/*") == expected
    assert names(tmp_path / "out") == ["mine"]
    assert sorted(names(list(tmp_path.iterdir()))) == ["0", "a", "mine"]  # as by a shell's *
    assert names([tmp_path / "a.png", tmp_path / "out" / "a.png"]) == ["a"]
    assert names(tmp_path / "out" / "a.png") == ["a"]  # named alone it is taken
    for what in (tmp_path / "cache", tmp_path / "cache" / "**", [tmp_path / "cache"]):
        with pytest.raises(ValueError, match="but what upfeat wrote"):
            names(what)
    (tmp_path / "out" / "a.png").write_bytes(b"a photo of that name")
    assert names(tmp_path / "out") == ["a", "mine"]
