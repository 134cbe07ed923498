from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upfeat.data import image_files


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
