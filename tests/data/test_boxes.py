"""Sets with boxes: what is read of each layout, and what a wrong folder is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upfeat.data import coco20k, mask_folder, voc_boxes

OBJECT = (
    "<object><difficult>1</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(path)


def test_voc(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit/VOC2007"
    put(base / "ImageSets/Main/trainval.txt", "000005\n")
    with pytest.raises(FileNotFoundError, match=r"JPEGImages/000005\.jpg"):
        voc_boxes(tmp_path)
    picture(base / "JPEGImages/000005.jpg")
    boxes = OBJECT.format(1, 2, 5, 6) + OBJECT.format("3.0", 1, 12, 8)
    put(base / "Annotations/000005.xml", f"<annotation>{boxes}</annotation>")
    data = voc_boxes(tmp_path)
    assert data[0].boxes.tolist() == [[0, 1, 5, 6], [2, 0, 12, 8]]
    put(base / "Annotations/000005.xml", "<annotation><object></object></annotation>")
    with pytest.raises(ValueError, match="no annotation of VOC"):
        voc_boxes(tmp_path)
    with pytest.raises(FileNotFoundError, match="Get it from"):
        voc_boxes(tmp_path, 2012)


def test_coco20k(tmp_path: Path) -> None:
    name = "COCO_train2014_000000000009.jpg"
    picture(tmp_path / f"images/train2014/{name}")
    put(tmp_path / "coco_20k_filenames.txt", f"train2014/{name}\n")
    annotations = [
        {"image_id": 9, "bbox": [1.4, 2.0, 3.2, 4.0], "iscrowd": 0},
        {"image_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ]
    content = {"images": [{"file_name": name, "id": 9}], "annotations": annotations}
    put(tmp_path / "annotations/instances_train2014.json", content)
    assert coco20k(tmp_path).files[0].boxes == ((1, 2, 5, 6),)
    put(tmp_path / "annotations/instances_train2014.json", {"images": []})
    with pytest.raises(ValueError, match="no annotations of COCO"):
        coco20k(tmp_path)
    with pytest.raises(FileNotFoundError, match="LOST"):
        coco20k(tmp_path / "nowhere")


def test_masks(tmp_path: Path) -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:7], mask[6, 1:3], mask[0, 0] = 1, 7, 255
    for name in ("a", "b"):
        picture(tmp_path / f"images/{name}.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    with pytest.raises(FileNotFoundError, match="has no label"):
        mask_folder(tmp_path)
    Image.fromarray(mask * 0).save(tmp_path / "masks/b.png")
    data = mask_folder(tmp_path)
    assert [file.boxes for file in data.files] == [((3, 2, 7, 5), (1, 6, 3, 7)), ()]
    assert data.select(limit=1).fingerprint() != data.fingerprint()


def test_coco_objects(data_dir: Path) -> None:
    data = mask_folder(data_dir / "coco_objects")
    assert len(data) == 160
    assert all(len(file.boxes) == 1 for file in data.files)
