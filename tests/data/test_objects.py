"""Sets of objects for interactive segmentation: layouts, labels, what is wrong with a tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.trees import write, write_image, write_label
from upfeat.data import load_objects, object_sets
from upfeat.errors import UnknownNameError

SIZE = (4, 6)


def test_grabcut_in_both_layouts(tmp_path: Path) -> None:
    """Official: 128 does not count and 255 is the object; small copy: 255 does not count."""
    official, copy = tmp_path / "official", tmp_path / "copy"
    write_image(official / "data_GT" / "bush.jpg")
    write_label(official / "boundary_GT" / "bush.bmp", [0, 128, 255])
    write_image(copy / "images" / "bush.jpg")
    write_label(copy / "masks" / "bush.png", [0, 255, 1])
    for root in (official, copy):
        data = load_objects("grabcut", root, "val")
        assert (data.name, [file.name for file in data.files]) == ("grabcut", ["bush"])
        image, objects = data[0]
        assert image.shape == (3, *SIZE)
        assert objects.flatten()[:4].tolist() == [0, -1, 1, 0]


def test_berkeley_and_davis(tmp_path: Path) -> None:
    for name in ("12", "12_second"):
        write_image(tmp_path / "Berkeley" / "images" / f"{name}.jpg")
        write_label(tmp_path / "Berkeley" / "masks" / f"{name}.png", [0, 255, 128])
    data = load_objects("berkeley", tmp_path, "val")
    assert [file.name for file in data.files] == ["12", "12_second"]
    assert data[1].objects.flatten()[:3].tolist() == [0, 1, -1]
    write_image(tmp_path / "DAVIS" / "img" / "dog_0.jpg")
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[0, 1], colours[2, 3] = (0, 128, 0), (5, 0, 0)
    write(tmp_path / "DAVIS" / "gt" / "dog_0.png", colours)
    (item,) = load_objects("davis_interactive", tmp_path, "val")
    assert item.objects.nonzero().tolist() == [[0, 1], [2, 3]]


def test_sbd(tmp_path: Path) -> None:
    """Two objects, the second of which hardly fills its bounding box."""
    savemat = pytest.importorskip("scipy.io").savemat
    base = tmp_path / "benchmark_RELEASE" / "dataset"
    numbers = np.zeros((20, 30), np.uint8)
    numbers[2:8, 2:8] = 1
    numbers[10:20, 10:30][[0, -1], [0, -1]] = 2
    write_image(base / "img" / "2008_000001.jpg", size=(20, 30))
    (base / "inst").mkdir()
    inst = {"Segmentation": numbers, "Categories": np.array([[1], [2]])}
    savemat(base / "inst" / "2008_000001.mat", {"GTinst": inst})
    (base / "val.txt").write_text("2008_000001\n")
    (item,) = load_objects("sbd", tmp_path, "val")
    assert item.objects.unique().tolist() == [0, 1]
    assert int((item.objects == 1).sum()) == 36
    with pytest.raises(FileNotFoundError, match=r"no file .*train\.txt[\s\S]*Get it from"):
        load_objects("sbd", tmp_path, "train")
    with pytest.raises(ValueError, match="splits train and val"):
        load_objects("sbd", tmp_path, "test")
    (base / "inst" / "2008_000001.mat").write_bytes(b"none")
    with pytest.raises(ValueError, match="holds no objects of SBD"):
        load_objects("sbd", tmp_path, "val")[0]
    (base / "inst" / "2008_000001.mat").unlink()
    with pytest.raises(FileNotFoundError, match="names 2008_000001"):
        load_objects("sbd", tmp_path, "val")


def test_regions_of_bsds500_as_objects(tmp_path: Path) -> None:
    """The annotator with the fewest regions counts; tiny and huge regions are background."""
    write_image(tmp_path / "images" / "train" / "12.jpg", size=(20, 20))
    fine, coarse = np.arange(400, dtype=np.uint8).reshape(20, 20), np.ones((20, 20), np.uint8)
    coarse[:5, :10], coarse[10:12, 0], coarse[15:, 15:] = 7, 3, 4
    for number, regions in enumerate((fine, coarse)):
        write(tmp_path / "segmentations" / "train" / f"12_{number}.png", regions)
    (item,) = load_objects("bsds500", tmp_path, "train")
    expected = torch.zeros(20, 20, dtype=torch.int64)
    expected[:5, :10], expected[15:, 15:] = 2, 1
    assert torch.equal(item.objects, expected)


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("grabcut", "boundary_GT/NAME.png"),
        ("berkeley", "masks/NAME.png"),
        ("davis_interactive", "gt/NAME.png"),
        ("sbd", "inst/ID.mat"),
        ("bsds500", "groundTruth"),
        ("coco_objects", "classes.csv"),
    ],
)
def test_a_folder_that_is_another_set(tmp_path: Path, name: str, tree: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected:[\s\S]*Get it from") as error:
        load_objects(name, tmp_path, "train")
    assert tree in str(error.value)


def test_broken_trees(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'grabcut'"):
        load_objects("grabcot", tmp_path, "val")
    assert {"grabcut", "berkeley", "davis_interactive", "sbd"} < set(object_sets())
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="no mask in"):
        load_objects("grabcut", tmp_path, "val")
    write_label(tmp_path / "masks" / "a.png", [0, 7])
    with pytest.raises(FileNotFoundError, match=r"a\.png has no image"):
        load_objects("grabcut", tmp_path, "val")
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(ValueError, match="holds 7; expected 0"):
        load_objects("grabcut", tmp_path, "val")[0]
    write_label(tmp_path / "masks" / "a.png", [0, 1], size=(5, 5))
    with pytest.raises(ValueError, match="one size"):
        load_objects("grabcut", tmp_path, "val")[0]


def test_real_sets(data_dir: Path) -> None:
    data = load_objects("grabcut", data_dir / "grabcut", "val")
    assert len(data) == 25
    assert data[0].objects.unique().tolist() == [0, 1]
    train = load_objects("bsds500", data_dir / "bsds500", "train")
    assert len(train) - len(train.without([file.name for file in data.files])) == 3
    assert len(load_objects("coco_objects", data_dir / "coco_objects", "train")) == 160
    assert int(train[0].objects.max()) >= 1
