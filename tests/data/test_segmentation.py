"""CamVid and MSRC: tiny trees in their layouts, what is wrong with a tree, and the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upfeat.data import (
    ClassifiedFile,
    ClassifiedImages,
    KeypointData,
    KeypointFile,
    ObjectData,
    ObjectFile,
    SegmentationData,
    camvid,
    msrc,
)
from upfeat.data.keypoints import KeypointView
from upfeat.data.segmentation import read_label


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def make_camvid(root: Path, prefix: str = "") -> Path:
    for split, count in (("train", 2), ("val", 1)):
        lines = []
        for i in range(count):
            write(root / split / f"{split}{i}.png", np.full((4, 6, 3), 10 * i, np.uint8))
            label = np.full((4, 6), i, np.uint8)
            label[0] = 11
            write(root / f"{split}annot" / f"{split}{i}.png", label)
            image = f"{split}/{split}{i}.png"
            lines.append(f"{prefix}{image} {prefix}{image.replace('/', 'annot/', 1)}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def make_msrc(root: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            write(root / split / "images" / f"{i}_s.jpg", np.full((4, 6, 3), 10 * i, np.uint8))
            write(root / split / "labels" / f"{i}_s.png", np.full((4, 6), 255 - i * 233, np.uint8))
    return root


@pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/"])
def test_camvid(tmp_path: Path, prefix: str) -> None:
    data = camvid(make_camvid(tmp_path, prefix), "train")
    assert (data.name, len(data), len(data.classes), data.ignore_index) == (
        "camvid/train",
        2,
        11,
        11,
    )
    image, label = data[1]
    assert image.shape == (3, 4, 6)
    assert label.dtype == torch.int64
    assert label.unique().tolist() == [1, 11]
    assert [one.label[1, 0].item() for one in data] == [0, 1]


def test_msrc(tmp_path: Path) -> None:
    data = msrc(make_msrc(tmp_path), "train")
    assert (data.name, len(data), len(data.classes), data.ignore_index) == (
        "msrc/train",
        2,
        23,
        255,
    )
    assert [one.label.unique().tolist() for one in data] == [[255], [22]]


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("make", "loader", "damage", "problem"),
    [
        (make_camvid, camvid, remove("val.txt"), "no file val.txt"),
        (make_camvid, camvid, remove("valannot/val0.png"), "names valannot/val0.png"),
        (
            make_msrc,
            msrc,
            remove("val/labels/0_s.png"),
            "0_s.jpg has no label .*val/labels/0_s.png",
        ),
        (make_msrc, msrc, remove("val/images/0_s.jpg"), "no image in .*val/images"),
        (
            make_msrc,
            msrc,
            lambda root: (root / "val/images").rename(root / "val/pictures"),
            "no folder .*val/images",
        ),
    ],
)
def test_a_wrong_folder_shows_the_expected_tree(
    tmp_path: Path,
    make: Callable[[Path], Path],
    loader: Callable[[Path, str], SegmentationData],
    damage: Callable[[Path], None],
    problem: str,
) -> None:
    damage(make(tmp_path))
    with pytest.raises(FileNotFoundError, match=problem) as caught:
        loader(tmp_path, "val")
    assert "Expected:" in str(caught.value)
    assert "labels" in str(caught.value)


def test_malformed_list_and_unknown_split(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    (tmp_path / "val.txt").write_text("val/val0.png\n")
    with pytest.raises(ValueError, match="line 1: expected 'IMAGE ANNOTATION'"):
        camvid(tmp_path, "val")
    with pytest.raises(ValueError, match="splits train, val and test"):
        camvid(tmp_path, "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="splits train and val"):
        msrc(tmp_path, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (np.full((4, 6), 12, np.uint8), "holds class 12; camvid/val has classes 0 to 10 and 11"),
        (np.zeros((4, 5), np.uint8), "must have one size"),
        (np.zeros((4, 6, 3), np.uint8), "is RGB, expected one channel"),
    ],
)
def test_a_wrong_label_is_named(tmp_path: Path, label: np.ndarray, problem: str) -> None:
    data = camvid(make_camvid(tmp_path), "val")
    write(tmp_path / "valannot/val0.png", label)
    with pytest.raises(ValueError, match=problem) as caught:
        data[0]
    assert "val0.png" in str(caught.value)


def test_a_broken_label_is_named(tmp_path: Path) -> None:
    path = make_camvid(tmp_path) / "valannot/val0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"val0\.png cannot be read"):
        camvid(tmp_path, "val")[0]
    with pytest.raises(FileNotFoundError, match="no label file"):
        read_label(tmp_path / "none.png")


def test_a_palette_gives_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[3, 1]], np.uint8))
    image.putpalette([7] * 768)
    image.save(tmp_path / "p.png")
    assert read_label(tmp_path / "p.png").tolist() == [[3, 1]]


def test_fingerprint_changes_with_a_label(tmp_path: Path) -> None:
    data = camvid(make_camvid(tmp_path), "train")
    before, first = data.fingerprint(), data.file_hash(data.files[1])
    assert before == camvid(tmp_path, "train").fingerprint()
    assert before != data.select(every=2).fingerprint()
    write(tmp_path / "trainannot/train0.png", np.full((4, 6), 5, np.uint8))
    assert before != data.fingerprint()
    assert first == data.file_hash(data.files[1])


def test_real_sets(data_dir: Path) -> None:
    lengths = {
        (loader.__name__, split): len(loader(data_dir / loader.__name__, split))
        for loader in (camvid, msrc)
        for split in ("train", "val")
    }
    assert list(lengths.values()) == [367, 101, 354, 60]
    image, label = msrc(data_dir / "msrc", "val")[0]
    assert image.shape[1:] == label.shape
    assert camvid(data_dir / "camvid", "val")[0].label.max() == 11


def test_the_files_of_an_item_are_all_paths_in_its_entry() -> None:
    image, one, two = Path("a.jpg"), Path("a_0.png"), Path("a_1.png")
    objects = ObjectData("set", (ObjectFile("a", image, (one, two)),), len)
    assert objects.paths(objects.files[0]) == (image, one, two)
    plain = ClassifiedImages("set", ("cat",), (ClassifiedFile("a", image, 0),))
    assert plain.paths(plain.files[0]) == (image,)
    views = (KeypointView(path, ((1.0, 2.0), None)) for path in (image, one))
    pairs = KeypointData("set", ("cat",), (KeypointFile("a-b", "cat", *views),))
    assert pairs.paths(pairs.files[0]) == (image, one)
