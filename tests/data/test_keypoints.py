"""Sets of key points: what is read of each layout, and what a wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upfeat.data import keypoint_folder, pf_pascal, pf_willow, spair71k
from upfeat.data.keypoints import draw_homography, transfer, warp, write_homographies


def picture(path: Path, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, points in (("a", {"nose": [3, 2], "tail": [9, 5]}), ("b", {"tail": None})):
        picture(tmp_path / f"images/{name}.png")
        put(tmp_path / f"annotations/{name}.json", {"keypoints": {"nose": [1, 1.5]} | points})
    put(tmp_path / "pairs.csv", "source,target,category\na,b,cat\nb,a,cat\n")
    return tmp_path


def test_a_folder_of_ones_own(own: Path) -> None:
    data = keypoint_folder(own)
    assert (len(data), data.categories) == (2, ("cat",))
    pair = data[0]
    assert pair.source.shape == (3, 8, 12)
    assert pair.source_points.tolist() == [[3, 2], [9, 5]]
    assert pair.target_points[0].tolist() == [1, 1.5]
    assert pair.target_points[1].isnan().all()
    before = data.fingerprint()
    put(own / "annotations/b.json", {"keypoints": {"nose": [1, 2], "tail": None}})
    assert keypoint_folder(own).fingerprint() != before


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("annotations/b.json", {"keypoints": {"nose": [1, 1]}}, "has no key point 'tail'"),
        (
            "annotations/b.json",
            {"keypoints": {"nose": [12, 1], "tail": None}},
            r"at \(12, 1\), outside its image of 12 x 8",
        ),
        ("annotations/b.json", {"keypoints": {"nose": None, "tail": None}}, "share no visible"),
        ("annotations/b.json", {"keypoints": {"nose": [1], "tail": None}}, r"\[x, y\] or null"),
        ("annotations/b.json", {"keypoints": {"nose": "1,1", "tail": None}}, r"\[x, y\] or null"),
        ("annotations/b.json", {"points": {}}, "must hold"),
        ("annotations/b.json", "{", "no readable JSON"),
        ("annotations/b.json", {"keypoints": {"nose": [1, 1]}, "box": [4, 4, 1, 9]}, "is empty"),
        ("pairs.csv", "source,target\na,c\n", "line 2, names c, but no image has it"),
        ("pairs.csv", "source,target\na\n", "line 2: a pair needs source and target"),
        ("pairs.csv", "first,second\na,b\n", "columns source and target"),
        ("pairs.csv", "source,target\n", "columns source and target"),
    ],
)
def test_a_wrong_file_is_one_sentence(own: Path, file: str, content: object, problem: str) -> None:
    put(own / file, content)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        keypoint_folder(own)


def test_an_image_without_key_points_and_a_missing_folder(own: Path) -> None:
    (own / "annotations/b.json").unlink()
    with pytest.raises(FileNotFoundError, match="in a pair, but has no key points at"):
        keypoint_folder(own)
    with pytest.raises(FileNotFoundError, match="Expected:"):
        keypoint_folder(own / "nowhere")


@pytest.mark.parametrize("separator", [":", "_"])
def test_spair(tmp_path: Path, separator: str) -> None:
    for name, point in (("2007_1", [4, 3]), ("2007_2", None)):
        picture(tmp_path / f"SPair-71k/JPEGImages/cat/{name}.jpg")
        content = {"kps": {"0": [1, 2], "3": point}, "bndbox": [1, 2, 9, 7]}
        put(tmp_path / f"SPair-71k/ImageAnnotation/cat/{name}.json", content)
    pair = {"category": "cat", "src_imname": "2007_1.jpg", "trg_imname": "2007_2.jpg"}
    path = tmp_path / f"SPair-71k/PairAnnotation/test/000001-2007_1-2007_2{separator}cat.json"
    put(path, pair | {"viewpoint_variation": 2})
    data = spair71k(tmp_path)
    (file,) = data.files
    assert (len(data.categories), file.category, file.view) == (18, "cat", 2)
    assert file.target.box == (1, 2, 9, 7)
    assert data[0].source_points.shape == (30, 2)
    assert data[0].source_points[3].tolist() == [4, 3]
    assert data[0].target_points[3].isnan().all()
    assert (2, 3) in file.groups
    with pytest.raises(FileNotFoundError, match="cvlab"):
        spair71k(tmp_path, "val")
    put(path, {"category": "cat"})
    with pytest.raises(ValueError, match="no pair of SPair-71k"):
        spair71k(tmp_path)


def test_pf_pascal(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    base = tmp_path / "PF-dataset-PASCAL"
    for name, second in (("2008_1", 5.0), ("2008_2", np.nan)):
        picture(base / f"JPEGImages/{name}.jpg")
        (base / "Annotations/bicycle").mkdir(parents=True, exist_ok=True)
        points = np.array([[1.0, 2.0], [second, second]])
        savemat(base / f"Annotations/bicycle/{name}.mat", {"kps": points})
    head = "source_image,target_image,class\n"
    line = "PF-dataset-PASCAL/JPEGImages/2008_1.jpg,PF-dataset-PASCAL/JPEGImages/2008_2.jpg,"
    put(base / "test_pairs.csv", f"{head}{line}2\n")
    data = pf_pascal(tmp_path)
    assert data.files[0].category == "bicycle"
    assert data[0].source_points.tolist() == [[1, 2], [5, 5]]
    assert data[0].target_points[1].isnan().all()
    put(base / "test_pairs.csv", f"{head}{line}21\n")
    with pytest.raises(ValueError, match="line 2: expected SOURCE,TARGET,CLASS"):
        pf_pascal(tmp_path)
    with pytest.raises(FileNotFoundError, match="proposalflow"):
        pf_pascal(tmp_path, "val")


def test_pf_willow(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"car(G)/{name}.png")
    numbers = ",".join(map(str, range(40)))
    put(tmp_path / "test_pairs.csv", f"head\nPF/car(G)/a.png,PF/car(G)/b.png,{numbers}\n")
    data = pf_willow(tmp_path)
    assert data.categories == ("car(G)",)
    assert data[0].source_points[1].tolist() == [1, 11]
    assert data[0].target_points[9].tolist() == [29, 39]
    put(tmp_path / "test_pairs.csv", "head\nPF/car(G)/a.png,PF/car(G)/b.png,1,2\n")
    with pytest.raises(ValueError, match="two images and 40 numbers"):
        pf_willow(tmp_path)


def test_a_homography_moves_points_with_the_pixels(tmp_path: Path) -> None:
    matrix = draw_homography((48, 64), 0.2, torch.Generator().manual_seed(0))
    image = torch.zeros(3, 48, 64)
    image[:, 19:22, 29:32] = 1
    column, row = transfer(torch.tensor([[30.0, 20.0]]).double(), matrix)[0].tolist()
    weights = warp(image, matrix)[0]
    rows, cols = (torch.arange(side).float() for side in (48, 64))
    total = weights.sum()
    assert float(weights.sum(1) @ rows / total) == pytest.approx(row, abs=0.3)
    assert float(weights.sum(0) @ cols / total) == pytest.approx(column, abs=0.3)


def test_written_homographies_are_the_same_each_time(tmp_path: Path) -> None:
    Image.effect_noise((70, 50), 90).save(tmp_path / "a.png")
    for name in ("first", "second"):
        assert write_homographies(tmp_path / "a.png", tmp_path / name, side=64, fields=3) == 1
    first, second = (keypoint_folder(tmp_path / name) for name in ("first", "second"))
    assert first.fingerprint() == second.fingerprint()
    assert first[0].source.shape == (3, 46, 64)
    assert first.files[0].target.box == (0, 0, 64, 46)
    shown = ~first[0].target_points.isnan().any(1)
    assert 3 < int(shown.sum()) <= 9
