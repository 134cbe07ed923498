"""Sets of the user's own: layouts, cards, classes, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.trees import write, write_image, write_label
from upfeat.data import load_segmentation
from upfeat.data.card import CARD, read_card
from upfeat.data.own import (
    folder,
    folder_depth,
    folder_keypoints,
    folder_video,
    own_input_size,
    set_name,
)


def fill(place: Path, names: str, labels: Path | None = None) -> Path:
    """Images of two classes, with labels in ``labels`` or beside them."""
    for name in names:
        write_image(place / f"{name}.jpg")
        write_label((labels or place.parent / "labels") / f"{name}.png", [0, 1, 255])
    return place


def card(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / CARD).write_text(text, encoding="utf-8")
    return root


def names_of(root: Path, split: str) -> str:
    return "".join(Path(file.name).name for file in folder(root, split).files)


# -- layouts -------------------------------------------------------------------------------------


def test_splits_beside_each_other(tmp_path: Path) -> None:
    fill(tmp_path / "street" / "train" / "images", "ab")
    fill(tmp_path / "street" / "val" / "images", "c")
    assert (names_of(tmp_path / "street", "train"), names_of(tmp_path / "street", "val")) == (
        "ab",
        "c",
    )
    data = load_segmentation("folder", tmp_path / "street", "val")
    assert data.name == "street/val"
    assert data[0].label.flatten()[:4].tolist() == [0, 1, 255, 0]


def test_splits_below_images_and_labels(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        fill(tmp_path / "images" / split, names, tmp_path / "labels" / split)
    assert names_of(tmp_path, "train") == "ab"
    assert names_of(tmp_path, "val") == "c"


def test_every_fifth_image_is_held_back_where_there_are_no_splits(tmp_path: Path) -> None:
    fill(tmp_path / "images", "abcdefghijk")
    assert names_of(tmp_path, "train") == "abcdfghik"
    assert names_of(tmp_path, "val") == "ej"


def test_too_few_images_to_hold_some_back(tmp_path: Path) -> None:
    fill(tmp_path / "images", "abc")
    with pytest.raises(FileNotFoundError, match="holds 3 images, too few"):
        folder(tmp_path)


def test_a_missing_split_shows_the_tree(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "ab")
    with pytest.raises(FileNotFoundError, match=r"no folder .*val/images.*Expected:") as problem:
        folder(tmp_path, "val")
    assert "train/labels/NAME.png" in str(problem.value)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has the splits train and val, got 'test'"):
        folder(tmp_path, "test")


def test_an_image_without_label_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "ab")
    (tmp_path / "train" / "labels" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.jpg has no label"):
        folder(tmp_path)


# -- classes -------------------------------------------------------------------------------------


def test_classes_are_counted_over_both_splits(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "a")
    fill(tmp_path / "val" / "images", "b")
    write_label(tmp_path / "val" / "labels" / "b.png", [0, 3])
    expected = ("class 0", "class 1", "class 2", "class 3")
    assert folder(tmp_path).classes == folder(tmp_path, "val").classes == expected


def test_classes_from_a_text_file_a_json_file_and_a_card(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "a")
    meta = {"classes": ["x", "y"], "ignore_index": 254}
    write_label(tmp_path / "train" / "labels" / "a.png", [0, 1, 254])
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    data = folder(tmp_path)
    assert (data.classes, data.ignore_index) == (("x", "y"), 254)
    write_label(tmp_path / "train" / "labels" / "a.png", [0, 1, 255])
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    assert folder(tmp_path).classes == ("road", "car")
    card(tmp_path, "names: {0: sky, 1: sea}\nname: coast")
    assert folder(tmp_path).classes == ("sky", "sea")
    assert folder(tmp_path).name == "coast/train"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("road\n\ncar\n", "class 1 has an empty name"),
        ("road\ncar\nroad\n", r"names the class 'road' twice \(classes 0 and 2\)"),
        ("", "class 0 has an empty name"),
        ("road\n", "names 1 class; a segmentation needs at least two"),
    ],
)
def test_text_files_with_wrong_classes(tmp_path: Path, text: str, problem: str) -> None:
    fill(tmp_path / "train" / "images", "a")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{problem}"):
        folder(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"classes": [1, 2]}', '{"names": ["a", "b"]}'])
def test_json_files_without_classes(tmp_path: Path, text: str) -> None:
    fill(tmp_path / "train" / "images", "a")
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json"):
        folder(tmp_path)


def test_labels_that_hold_one_class_only(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split / "images", "a")
        write_label(tmp_path / split / "labels" / "a.png", [0, 255])
    with pytest.raises(ValueError, match=r"hold no class but 0 \(and 255, which is ignored\)"):
        folder(tmp_path)


# -- labels --------------------------------------------------------------------------------------


def test_an_unknown_class_is_named_before_anything_runs(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "ab")
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    write_label(tmp_path / "train" / "labels" / "b.png", [0, 7])
    sentence = r"b\.png holds class 7; classes\.txt names classes 0 to 1, and 255 is ignored"
    with pytest.raises(ValueError, match=sentence):
        folder(tmp_path)


def test_labels_of_another_size_and_with_colours(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", "abcdefgh")
    for name in "bcdefgh":
        write_label(tmp_path / "train" / "labels" / f"{name}.png", [0, 1], (8, 6))
    with pytest.raises(ValueError, match=r"b\.png is \(8, 6\).*\(4, 6\).*and 2 more files"):
        folder(tmp_path)
    fill(tmp_path / "colours" / "train" / "images", "a")
    write_image(tmp_path / "colours" / "train" / "labels" / "a.png")
    with pytest.raises(ValueError, match="convert colours to class numbers first"):
        folder(tmp_path / "colours")


# -- cards ---------------------------------------------------------------------------------------


def test_a_card_names_places_as_training_tools_do(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "images" / "first", "ab", tmp_path / "data" / "labels" / "first")
    fill(tmp_path / "data" / "other" / "images", "c")
    text = "path: data\ntrain: images/first\nval: other\nnc: 2\nnames: [road, car]\nname: my.set"
    root = card(tmp_path, text)
    assert (names_of(root, "train"), names_of(root / CARD, "val")) == ("ab", "c")
    assert folder(root).name == "my.set/train"
    assert set_name(root) == "my.set"


def test_lists_of_images(tmp_path: Path) -> None:
    fill(tmp_path / "images", "abc")
    for name, lines in (("train", "a.jpg b.jpg"), ("val", "c.jpg")):
        text = "".join(f"images/{line}\n" for line in lines.split())
        (tmp_path / f"{name}.txt").write_text(text)
    root = card(tmp_path, "train: train.txt\nval: val.txt")
    assert (names_of(root, "train"), names_of(root, "val")) == ("ab", "c")
    (tmp_path / "train.txt").write_text("images/a.jpg\nimages/a.jpg\n")
    with pytest.raises(ValueError, match=r"train\.txt names .*a\.jpg twice"):
        folder(root)
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt names no image"):
        folder(root)
    (tmp_path / "train.txt").write_text("images/z.jpg\n")
    with pytest.raises(FileNotFoundError, match=r"z\.jpg"):
        folder(root)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("naems: [a, b]", "unknown setting 'naems'; did you mean 'name"),
        ("names: [a, a]", "names the class 'a' twice"),
        ("names: [a, '']", "class 1 has an empty name"),
        ("names: {0: a, 2: b}", "the numbers 0, 1, … without a gap, got 0, 2"),
        ("units: -3", "units"),
        ("ignore: -1", "ignore"),
        ("name: a/b", "name must be letters"),
        ("- a", "must hold keys with values"),
        ("a: [", "is no readable YAML"),
    ],
)
def test_wrong_cards_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        read_card(card(tmp_path, text))
    assert CARD in str(error.value)
    assert "\n" not in str(error.value)


def test_a_card_that_names_a_missing_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder path: elsewhere"):
        read_card(card(tmp_path, "path: elsewhere"))
    with pytest.raises(FileNotFoundError, match="the card names no split val"):
        folder(card(tmp_path, "train: train"), "val")


# -- depth and video -----------------------------------------------------------------------------


def write_depth(path: Path, kind: type, value: int, size: tuple[int, int] = (4, 6)) -> Path:
    return write(path, np.full(size, value, kind))


def test_depth_in_millimetres_and_in_units_of_the_card(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / split / "images" / "a.jpg")
        write_depth(tmp_path / split / "depth" / "a.png", np.uint16, 2500)
    assert folder_depth(tmp_path)[0].depth.unique().tolist() == [2.5]
    card(tmp_path, "units: 500\nname: room")
    assert folder_depth(tmp_path, "val")[0].depth.unique().tolist() == [5.0]
    assert folder_depth(tmp_path, "val").name == "room/val"


def test_depth_that_cannot_be_read(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "images" / "a.jpg")
    write_depth(tmp_path / "train" / "depth" / "a.png", np.uint8, 100)
    with pytest.raises(ValueError, match=r"a\.png has 8 bit; say how many stored numbers"):
        folder_depth(tmp_path)
    write_depth(tmp_path / "train" / "depth" / "a.png", np.uint16, 100, (5, 6))
    with pytest.raises(ValueError, match=r"a\.png is \(5, 6\), its image .* \(4, 6\)"):
        folder_depth(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"val.*(?s:.*)train/depth/NAME\.png"):
        folder_depth(tmp_path, "val")


def video(root: Path, name: str = "dog", folders: tuple[str, str] = ("images", "labels")) -> None:
    for number in range(3):
        write_image(root / folders[0] / name / f"{number:05d}.jpg")
        write_label(root / folders[1] / name / f"{number:05d}.png", [0, 1, 2])


def test_videos(tmp_path: Path) -> None:
    video(tmp_path / "zoo")
    data = folder_video(tmp_path / "zoo")
    assert (data.name, [v.name for v in data], len(data[0].frames)) == ("zoo/all", ["dog"], 3)
    assert data.object_count(data[0]) == 2
    card(tmp_path / "zoo", "one_object: true")
    assert folder_video(tmp_path / "zoo").object_count(data[0]) == 1
    video(tmp_path / "davis" / "val", folders=("JPEGImages", "Annotations"))
    assert folder_video(tmp_path / "davis").name == "davis/val"
    with pytest.raises(FileNotFoundError, match=r"no folder .*train"):
        folder_video(tmp_path / "davis", "train")


def test_videos_with_missing_and_wrong_masks(tmp_path: Path) -> None:
    video(tmp_path)
    mask = tmp_path / "labels" / "dog" / "00001.png"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.jpg has no label"):
        folder_video(tmp_path)
    write_label(mask, [0, 1], (8, 6))
    with pytest.raises(ValueError, match=r"00001\.png is \(8, 6\), its frame"):
        folder_video(tmp_path)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no folder .*labels"):
        folder_video(tmp_path / "empty")


def test_key_points_carry_the_cards_name(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / "images" / f"{name}.png")
        content = json.dumps({"keypoints": {"nose": [3, 2]}})
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{name}.json").write_text(content)
    (tmp_path / "pairs.csv").write_text("source,target\na,b\n")
    data = folder_keypoints(card(tmp_path, "name: noses"))
    assert (data.name, len(data)) == ("noses/all", 1)
    (tmp_path / "annotations" / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json"):
        folder_keypoints(tmp_path)


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [((30, 40), (336, 448)), ((40, 30), (336, 448)), ((20, 20), (448, 448)), ((9, 16), (336, 560))],
)
def test_the_input_size_follows_the_images(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    for name in "abcde":
        write_image(tmp_path / "images" / f"{name}.jpg", size=size)
    assert own_input_size(tmp_path) == expected
    with pytest.raises(FileNotFoundError, match=r"no .*images"):
        own_input_size(card(tmp_path / "b", "train: nowhere"))
