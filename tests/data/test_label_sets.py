"""The published labelled sets: tiny trees in their layouts, what is wrong with a tree, samples."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import load_golden
from tests.data.trees import write_image, write_label
from upfeat.data import (
    SegmentationData,
    ade20k,
    cityscapes,
    coco_stuff,
    kitti360,
    load_segmentation,
    nyuv2,
    read_image,
    segmentation_sets,
    voc,
)
from upfeat.data.segmentation import class_table, load_table, map_labels, read_label

SPLITS = ("train", "val")


def make_voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for split in SPLITS:
        write_image(base / "JPEGImages" / f"2007_{split}.jpg")
        write_label(base / "SegmentationClass" / f"2007_{split}.png", [0, 15, 20, 255])
        listing = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(f"2007_{split}\n")


def make_context(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2010"
    for split in SPLITS:
        write_image(base / "JPEGImages" / f"2008_{split}.jpg")
        write_label(base / "SegmentationClassContext" / f"2008_{split}.png", [0, 1, 59, 255])
        listing = base / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(f"2008_{split}\n")


def make_ade20k(root: Path) -> None:
    base = root / "ADEChallengeData2016"
    for split, part in (("train", "training"), ("val", "validation")):
        for number in (1, 2):
            name = f"ADE_{split}_0000000{number}"
            write_image(base / "images" / part / f"{name}.jpg")
            write_label(base / "annotations" / part / f"{name}.png", [0, 1, 150])


def make_cityscapes(root: Path) -> None:
    for split in SPLITS:
        for city in ("bochum", "aachen"):
            stem = f"{city}_000000_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            folder = root / "gtFine" / split / city
            write_label(folder / f"{stem}_gtFine_labelIds.png", [0, 7, 9, 33])
            write_label(folder / f"{stem}_gtFine_instanceIds.png", [0])
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")


def make_coco_stuff(root: Path, level: str = "dataset", suffix: str = "") -> None:
    base = root / level
    for part in ("train2017", "val2017"):
        for number in (9, 25, 30):
            write_image(base / "images" / part / f"{number:012d}.jpg")
            values = [0, 170, 255] if suffix else [0, 181, 255]
            write_label(base / "annotations" / part / f"{number:012d}{suffix}.png", values)
        listing = root / "curated" / part / "Coco164kFull_Stuff_Coarse.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("000000000030\n000000000009\n")


def make_kitti360(root: Path) -> None:
    for drive in ("2013_05_28_drive_0002_sync", "2013_05_28_drive_0000_sync"):
        for frame in range(5):
            name = f"{frame:010d}.png"
            write_image(root / "data_2d_raw" / drive / "image_00" / "data_rect" / name)
            labels = root / "data_2d_semantics" / "train" / drive / "image_00" / "semantic"
            write_label(labels / name, [0, 7, 34, 44])


def make_nyuv2(root: Path) -> None:
    for split in SPLITS:
        write_image(root / split / "images" / "0003.jpg")
        write_label(root / split / "labels" / "0003.png", [0, 38, 255])


MAKERS: dict[str, Callable[[Path], None]] = {
    "voc": make_voc,
    "voc_20": make_voc,
    "ade20k": make_ade20k,
    "ade20k_151": make_ade20k,
    "cityscapes": make_cityscapes,
    "cityscapes_27": make_cityscapes,
    "coco_stuff_27": make_coco_stuff,
    "coco_stuff_171": make_coco_stuff,
    "coco_object": make_coco_stuff,
    "context_60": make_context,
    "context_59": make_context,
    "kitti360": make_kitti360,
    "nyuv2": make_nyuv2,
    "nyuv2_13": make_nyuv2,
}
# Name, images of the validation split, classes, and the labels that are read there.
EXPECTED = [
    ("voc", 1, 21, [0, 15, 20, 255]),
    ("voc_20", 1, 20, [14, 19, 255]),
    ("ade20k", 2, 150, [0, 149, 255]),
    ("ade20k_151", 2, 151, [0, 1, 150]),
    ("cityscapes", 2, 19, [0, 18, 255]),
    ("cityscapes_27", 2, 27, [0, 2, 26, 255]),
    ("coco_stuff_27", 2, 27, [9, 24, 255]),
    ("coco_stuff_171", 3, 171, [0, 170, 255]),
    ("coco_object", 3, 81, [0, 1]),
    ("context_60", 1, 60, [0, 1, 59, 255]),
    ("context_59", 1, 59, [0, 58, 255]),
    ("kitti360", 2, 19, [0, 2, 255]),
    ("nyuv2", 1, 39, [0, 38, 255]),
    ("nyuv2_13", 1, 13, [5, 11, 255]),
]


@pytest.mark.parametrize(("name", "count", "classes", "labels"), EXPECTED)
def test_layout(tmp_path: Path, name: str, count: int, classes: int, labels: list[int]) -> None:
    MAKERS[name](tmp_path)
    data = load_segmentation(name, tmp_path, "val")
    assert data.name == f"{name}/val"
    assert (len(data), len(data.classes), data.ignore_index) == (count, classes, 255)
    assert len({file.name for file in data.files}) == count
    image, label = data[0]
    assert image.shape == (3, 4, 6)
    assert label.dtype == torch.int64
    assert label.unique().tolist() == labels
    assert load_segmentation(name, tmp_path, "train").name == f"{name}/train"
    assert data.fingerprint() == load_segmentation(name, tmp_path, "val").fingerprint()


def test_every_set_has_a_name_and_names_are_checked() -> None:
    assert set(MAKERS) | {"camvid", "msrc", "folder"} == set(segmentation_sets())
    with pytest.raises(ValueError, match="did you mean 'voc'"):
        load_segmentation("vox", "data")


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_wrong_folder_shows_tree_and_address(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no (folder|file)") as caught:
        load_segmentation(name, tmp_path / "nowhere", "val")
    message = str(caught.value)
    assert "Expected:\n" in message
    assert "Get it from" in message
    assert "http" in message
    with pytest.raises(ValueError, match="has the splits train"):
        load_segmentation(name, tmp_path, "valid")


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes", "coco_stuff_27", "nyuv2"])
def test_unknown_number_of_classes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="classes"):
        segmentation_sets()[name](tmp_path, "val", classes=5)


# KITTI-360 is what has labels; all of COCO-Stuff is what has images.
@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_missing_file_is_named(tmp_path: Path, name: str, kind: str) -> None:
    MAKERS[name](tmp_path)
    file = load_segmentation(name, tmp_path, "val").files[0]
    path = getattr(file, kind)
    path.unlink()
    if (name, kind) in {
        ("kitti360", "label"),
        ("coco_stuff_171", "image"),
        ("coco_object", "image"),
    }:
        assert file not in load_segmentation(name, tmp_path, "val").files
        return
    # Where it was the only image, its folder is named.
    named = f"{path.stem}|no image in {path.parent}"
    with pytest.raises(FileNotFoundError, match=named) as caught:
        load_segmentation(name, tmp_path, "val")
    assert "Expected:\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("voc", 21),
        ("voc_20", 21),
        ("ade20k", 151),
        ("ade20k_151", 151),
        ("cityscapes", 34),
        ("cityscapes_27", 34),
        ("coco_stuff_27", 182),
        ("coco_stuff_171", 182),
        ("kitti360", 45),
        ("nyuv2", 39),
        ("nyuv2_13", 39),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, name: str, value: int) -> None:
    MAKERS[name](tmp_path)
    data = load_segmentation(name, tmp_path, "val")
    path = data.files[0].label
    whole = path.read_bytes()
    write_label(path, [value])
    with pytest.raises(ValueError, match=str(value)) as caught:
        data[0]
    assert str(path) in str(caught.value)
    write_label(path, [1], (4, 5))
    with pytest.raises(ValueError, match="must have one size") as caught:
        data[0]
    assert str(path) in str(caught.value)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="may be broken") as caught:
        data[0]
    assert str(path) in str(caught.value)


def test_an_orphaned_label_is_named(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    folder = tmp_path / "ADEChallengeData2016/annotations/validation"
    write_label(folder / "ADE_val_00000007.png", [1])
    with pytest.raises(FileNotFoundError, match=r"ADE_val_00000007\.png has no image"):
        ade20k(tmp_path, "val")


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_takes_any_level(tmp_path: Path, below: str) -> None:
    make_voc(tmp_path)
    assert len(voc(tmp_path / below, "val")) == 1


# -- COCO-Stuff ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["", "dataset"])
def test_coco_stuff_lists(tmp_path: Path, level: str, caplog: pytest.LogCaptureFixture) -> None:
    make_coco_stuff(tmp_path, level)
    with caplog.at_level(logging.WARNING, "upfeat.data.coco_stuff"):
        data = coco_stuff(tmp_path, "val")
    assert [file.name for file in data.files] == ["000000000030", "000000000009"]
    assert "2 images of the curated val split" in caplog.text
    assert "4172" in caplog.text
    everything = coco_stuff(tmp_path, "val", curated=False)
    assert (len(everything), everything.name) == (3, "coco_stuff_27-all/val")
    assert coco_stuff(tmp_path, "val", 171, curated=True).name == "coco_stuff_171-curated/val"
    (tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Coarse") as caught:
        coco_stuff(tmp_path, "val")
    assert "xuji" in str(caught.value)


def test_coco_stuff_train_ids_mean_the_same(tmp_path: Path) -> None:
    make_coco_stuff(tmp_path / "ids")
    make_coco_stuff(tmp_path / "trained", suffix="_labelTrainIds")
    for classes in (27, 171):
        ids, trained = (
            coco_stuff(tmp_path / name, "val", classes)[0].label for name in ("ids", "trained")
        )
        assert torch.equal(ids, trained)


# -- KITTI-360 -----------------------------------------------------------------------------------


def test_kitti360_split_is_the_shuffled_sorted_listing(tmp_path: Path) -> None:
    make_kitti360(tmp_path)
    names = [f"2013_05_28_drive_000{d}_sync/{f:010d}" for d in (0, 2) for f in range(5)]
    random.seed(42)
    random.shuffle(names)
    assert [file.name for file in kitti360(tmp_path, "train").files] == names[:8]
    val = kitti360(tmp_path, "val")
    assert [file.name for file in val.files] == names[8:]
    listing = tmp_path / "split.txt"
    listing.write_text("\n".join(names[3:5]))
    assert [file.name for file in kitti360(tmp_path, listing=listing).files] == names[3:5]
    listing.write_text("0000000000\n")
    with pytest.raises(ValueError, match="expected DRIVE/FRAME"):
        kitti360(tmp_path, listing=listing)


# -- tables --------------------------------------------------------------------------------------


def test_tables_are_whole() -> None:
    stuff = load_table("coco_stuff")
    assert [len(stuff[key]) for key in ("names", "to_171", "to_27")] == [182, 182, 182]
    assert sorted(set(stuff["to_27"])) == list(range(27))
    assert sorted(set(stuff["to_171"])) == [*range(171), 255]
    assert sorted(set(load_table("nyuv2")["to_13"])) == list(range(13))
    assert (
        class_table("cityscapes", "train_id").classes == class_table("kitti360", "train_id").classes
    )


@pytest.mark.golden
def test_golden_mappings(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "metrics" / "label_mappings.safetensors")
    ids = tensors["cityscapes_label_id"]
    for key, expected in (("train_id", "cityscapes_train_id"), ("index27", "cityscapes_27")):
        assert torch.equal(map_labels(ids, class_table("cityscapes", key).table), tensors[expected])
    stuff = dict(enumerate(load_table("coco_stuff")["to_27"])) | {255: 255}
    assert torch.equal(map_labels(tensors["coco_raw"], stuff), tensors["coco_coarse27"])


def test_map_labels_names_the_unknown() -> None:
    with pytest.raises(ValueError, match="number 9 in the label"):
        map_labels(torch.tensor([0, 9]), {-1: 255, 0: 0, 8: 1})
    with pytest.raises(ValueError, match="number 3 in the label"):
        map_labels(torch.tensor([[0, 3]]), {0: 0, 8: 1})


# -- real files ----------------------------------------------------------------------------------


def test_voc_sample(tmp_path: Path, data_dir: Path) -> None:
    base = tmp_path / "VOCdevkit/VOC2012"
    names = sorted(path.stem for path in (data_dir / "samples/voc").glob("*.jpg"))
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (base / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(data_dir / f"samples/voc/{name}.{suffix}", base / kind)
    listing = base / "ImageSets/Segmentation/val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(names))
    data = voc(tmp_path, "val")
    assert len(data) == len(names) == 3
    for file, (image, label) in zip(data.files, data, strict=True):
        assert image.shape[1:] == label.shape
        assert set(label.unique().tolist()) <= {*range(21), 255}
        with Image.open(file.label) as stored:
            assert stored.mode == "P"
            assert np.array_equal(np.array(stored), label.numpy())
    ignored = voc(tmp_path, "val", 20)[0].label
    assert torch.equal(ignored == 255, (data[0].label == 255) | (data[0].label == 0))


def test_ade20k_sample(tmp_path: Path, data_dir: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = tmp_path / kind / "validation"
        folder.mkdir(parents=True)
        for path in (data_dir / "samples/ade20k").glob(f"*.{suffix}"):
            shutil.copy(path, folder)
    known, all_of_them = ade20k(tmp_path, "val"), ade20k(tmp_path, "val", 151)
    assert len(known) == 3
    names = (data_dir / "samples/ade20k/classes.txt").read_text().splitlines()
    assert len(names) == len(known.classes)
    # Two lists of the same classes in the same order; one is called differently.
    assert sum(ours == theirs for ours, theirs in zip(known.classes, names, strict=True)) >= 149
    for one, other in zip(known, all_of_them, strict=True):
        assert torch.equal(one.label == 255, other.label == 0)
        assert torch.equal(one.label[other.label > 0] + 1, other.label[other.label > 0])


def test_nyuv2_sample(data_dir: Path) -> None:
    assert [len(nyuv2(data_dir / "nyuv2", split)) for split in SPLITS] == [120, 30]
    fine, coarse = (nyuv2(data_dir / "nyuv2", "val", classes) for classes in (39, 13))
    label, groups = fine[3].label, coarse[3].label
    assert torch.equal(label == 255, groups == 255)
    for value in label.unique().tolist():
        assert len(groups[label == value].unique()) == 1
    assert read_image(fine.files[3].image).shape[1:] == read_label(fine.files[3].label).shape


def test_tables_agree_with_the_samples(data_dir: Path) -> None:
    meta, table = json.loads((data_dir / "nyuv2/meta.json").read_text()), load_table("nyuv2")
    assert [meta[key] for key in ("classes", "classes13", "to13")] == [
        table[key] for key in ("names", "names_13", "to_13")
    ]


def test_registry_gives_segmentation_data(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    data = cityscapes(tmp_path, "val")
    assert isinstance(data, SegmentationData)
    assert [file.name for file in data.files] == ["aachen_000000_000019", "bochum_000000_000019"]
