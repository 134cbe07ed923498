"""Images of one class each: ImageNet's layouts, the COCO objects, and regions of BSDS500."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.trees import write, write_image, write_label
from upfeat.data import LabelMaskSource, bsds500, coco_objects, image_folder, imagenet

KIT = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def make_flat(root: Path) -> Path:
    for number in (1, 2, 3):
        write_image(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


def labels_of(root: Path, **options: Path) -> list[int]:
    return [file.label for file in imagenet(root, **options).files]


@pytest.mark.parametrize("below", ["", "val"])
def test_a_folder_a_class(tmp_path: Path, below: str) -> None:
    for name in ("n01443537/b", "n15075141/c", "n01440764/a"):
        write_image(tmp_path / "val" / f"{name}.JPEG")
    data = imagenet(tmp_path / below)
    assert data.name == "imagenet/val"
    assert [(file.name, file.label) for file in data.files] == [
        ("n01440764/a", 0),
        ("n01443537/b", 1),
        ("n15075141/c", 999),  # its own number, not its place among the folders
    ]
    assert len(data.classes) == 1000
    image, label, mask = data[1]
    assert (image.shape, label, mask) == ((3, 4, 6), 1, None)
    assert [file.label for file in data.select(every=2).files] == [0, 999]
    assert data.fingerprint() == imagenet(tmp_path).fingerprint()
    write_image(tmp_path / "val" / "n00000000" / "d.JPEG")
    with pytest.raises(ValueError, match="'n00000000' is no class of ImageNet-1k"):
        imagenet(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val.txt", "ILSVRC2012_val_00000002.JPEG 65\n{0}1.JPEG 970\n{0}3.JPEG 0\n"),
        ("val.txt", "{0}1 n09246464\n{0}3 n01440764\nILSVRC2012_val_00000002 n01751748\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000002,n01751748 111 108\n"
            "{0}1,n09246464 1 2 3 4\n{0}3,n01440764 0 0 9 9\n",
        ),
    ],
)
def test_flat_with_a_list(tmp_path: Path, name: str, content: str) -> None:
    make_flat(tmp_path)
    with pytest.raises(FileNotFoundError, match="no list of its classes") as caught:
        imagenet(tmp_path)
    assert "image-net.org" in str(caught.value)
    numbers = {"n09246464": 972, "970": 970}
    first = next(number for text, number in numbers.items() if text in content)
    (tmp_path / name).write_text(content.format("ILSVRC2012_val_0000000"))
    assert labels_of(tmp_path) == [first, 65, 0]
    (tmp_path / name).rename(tmp_path / "other.txt")
    assert labels_of(tmp_path, labels=tmp_path / "other.txt") == [first, 65, 0]


def test_flat_with_the_development_kit(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    make_flat(tmp_path)
    listing = tmp_path / KIT
    listing.parent.mkdir(parents=True)
    listing.write_text("2\n1\n2\n")
    with pytest.raises(FileNotFoundError, match=r"meta\.mat"):
        imagenet(tmp_path)
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.array([(1, "n02119789", "kit fox"), (2, "n01440764", "tench")], dtype=kind)
    scipy_io.savemat(listing.with_name("meta.mat"), {"synsets": synsets})
    assert labels_of(tmp_path) == [0, 278, 0]
    listing.write_text("2\n1\n3\n")
    with pytest.raises(ValueError, match="no class of ImageNet-1k"):
        imagenet(tmp_path)
    listing.write_text("2\n1\n")
    with pytest.raises(ValueError, match="2 lines and there are 3 images"):
        imagenet(tmp_path)


def test_wrong_lists(tmp_path: Path) -> None:
    make_flat(tmp_path)
    listing = tmp_path / "val.txt"
    for content, problem in (
        ("ILSVRC2012_val_00000001.JPEG\n", "line 1: expected NAME and class"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "'1000' is no class"),
        ("ILSVRC2012_val_00000001.JPEG 3\n", "has no class for .*00000002"),
    ):
        listing.write_text(content)
        with pytest.raises(ValueError, match=problem):
            imagenet(tmp_path)
    with pytest.raises(FileNotFoundError, match="no list of classes at"):
        imagenet(tmp_path, labels=tmp_path / "none.txt")
    for empty in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match="Expected:"):
            imagenet(empty)


def test_a_sample_with_a_table(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "n01443537_goldfish.jpg")
    table = tmp_path / "classes.csv"
    table.write_text("file,synset,index,name\nn01443537_goldfish.jpg,n01443537,1,goldfish\n")
    assert labels_of(tmp_path) == [1]
    table.write_text("file,synset,index,name\nn01443537_goldfish.jpg,n01443537,2,goldfish\n")
    with pytest.raises(ValueError, match="class 1, not 2"):
        imagenet(tmp_path)
    table.write_text("file,synset,index,name\nnone.jpg,n01443537,1,goldfish\n")
    with pytest.raises(FileNotFoundError, match=r"names none\.jpg"):
        imagenet(tmp_path)
    table.write_text("name,class\na,b\n")
    with pytest.raises(ValueError, match="columns file, synset and index"):
        imagenet(tmp_path)


def make_objects(root: Path) -> Path:
    for name, value in (("zebra0", 1), ("bird0", 0)):
        write_image(root / "images" / f"{name}.jpg")
        write_label(root / "masks" / f"{name}.png", [value, 1, 0])
    (root / "classes.csv").write_text("name,class\nzebra0,zebra\nbird0,bird\n")
    return root


def test_coco_objects(tmp_path: Path) -> None:
    data = coco_objects(make_objects(tmp_path))
    assert data.classes == ("bird", "zebra")
    assert [file.label for file in data.files] == [1, 0]
    image, label, mask = data[1]
    assert (image.shape, label) == ((3, 4, 6), 0)
    assert mask is not None
    assert (mask.dtype, mask.sum().item()) == (torch.bool, 1)
    path = data.files[1].mask
    assert path is not None
    before = data.fingerprint()
    write_label(path, [2])
    assert before != data.fingerprint()
    with pytest.raises(ValueError, match=r"bird0\.png holds 2"):
        data[1]
    write_label(path, [1], (5, 6))
    with pytest.raises(ValueError, match="must have one size"):
        data[1]
    path.write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"bird0\.png cannot be read"):
        data[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="names bird0, but there is no"):
        coco_objects(tmp_path)
    (tmp_path / "classes.csv").write_text("name\nbird0\n")
    with pytest.raises(ValueError, match="columns name and class"):
        coco_objects(tmp_path)


def test_samples(data_dir: Path) -> None:
    objects = coco_objects(data_dir / "coco_objects")
    assert (len(objects), len(objects.classes)) == (160, 80)
    mask = objects[5].mask
    assert mask is not None
    assert 0 < mask.float().mean() < 1
    images = imagenet(data_dir / "imagenet_sample")
    assert (images.name, len(images)) == ("imagenet-sample", 900)
    assert images.classes[images.files[5].label].startswith("electric ray")


# -- BSDS500 -------------------------------------------------------------------------------------


def test_bsds500_png(tmp_path: Path) -> None:
    write_image(tmp_path / "images/val/12003.jpg")
    for annotator in range(11):
        write_label(tmp_path / f"segmentations/val/12003_{annotator}.png", [1, annotator + 1])
    data = bsds500(tmp_path, "val")
    image, regions = data[0]
    assert image.shape == (3, 4, 6)
    assert [int(one.max()) for one in regions] == list(range(1, 12))
    path = data.files[0].regions[4]
    write_label(path, [1], (4, 4))
    with pytest.raises(ValueError, match=r"12003_4\.png is \(4, 4\), its image"):
        data[0]


def test_bsds500_mat(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    base = tmp_path / "BSDS500/data"
    write_image(base / "images/test/100007.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*groundTruth/test") as caught:
        bsds500(tmp_path, "test")
    assert "github.com/BIDS/BSDS500" in str(caught.value)
    path = base / "groundTruth/test/100007.mat"
    path.parent.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"100007\.jpg has no regions"):
        bsds500(tmp_path, "test")
    cells = np.empty((1, 2), object)
    for k in range(2):
        cells[0, k] = {"Segmentation": np.full((4, 6), k + 1, np.uint16), "Boundaries": 0}
    scipy_io.savemat(path, {"groundTruth": cells})
    data = bsds500(tmp_path, "test")
    regions = data[0].regions
    assert [one.unique().tolist() for one in regions] == [[1], [2]]
    assert regions[0].dtype == torch.int64
    assert len(data.fingerprint()) == 16
    path.write_bytes(b"MATLAB 5")
    with pytest.raises(ValueError, match=r"100007\.mat is no ground truth"):
        data[0]


def test_bsds500_sample(data_dir: Path) -> None:
    root = data_dir / "bsds500"
    data = bsds500(root, "val")
    assert len(data) == 100
    assert [file.name for file in data.files] == sorted(
        (root / "val.txt").read_text().split(), key=lambda name: f"{name}.jpg"
    )
    image, regions = data[0]
    assert 4 <= len(regions) <= 9
    assert all(one.shape == image.shape[1:] and one.min() == 1 for one in regions)
    # The masks that training draws are the same files.
    source = LabelMaskSource(root / "segmentations/val", "{stem}_*.png")
    record = image_folder(root / "images/val")[0]
    assert tuple(part.path for part in source.files(record)) == data.files[0].regions


def test_a_region_file_with_colours_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "images/val/1.jpg")
    write(tmp_path / "segmentations/val/1_0.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r"1_0\.png is RGB"):
        bsds500(tmp_path, "val")[0]
