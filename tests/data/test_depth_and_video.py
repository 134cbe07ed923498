"""Depth maps and videos: NYUv2 (its layout and the published MAT file) and DAVIS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.trees import write, write_image
from upfeat.data import DepthData, DepthFile, davis, nyuv2, nyuv2_depth, unpack_nyuv2
from upfeat.errors import ForeignFileError


def make_depth(root: Path, dtype: type = np.uint8) -> Path:
    for split in ("train", "val"):
        for name in ("0003", "0008"):
            write_image(root / split / "images" / f"{name}.jpg")
            depth = np.full((4, 6), 51, dtype)
            depth[0] = 0
            write(root / split / "depth" / f"{name}.png", depth)
    return root


@pytest.mark.parametrize(("dtype", "metres"), [(np.uint8, 2.0), (np.uint16, 0.051)])
def test_depth_is_in_metres(tmp_path: Path, dtype: type, metres: float) -> None:
    data = nyuv2_depth(make_depth(tmp_path, dtype), "val")
    assert (data.name, len(data)) == ("nyuv2-depth/val", 2)
    image, depth = data[0]
    assert image.shape == (3, 4, 6)
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth[1:], torch.full((3, 6), metres))
    assert depth[0].count_nonzero() == 0
    assert [file.name for file in data.select(limit=1).files] == ["0003"]
    before = data.fingerprint()
    assert before == nyuv2_depth(tmp_path, "val").fingerprint()
    write(data.files[1].depth, np.full((4, 6), 60, dtype))
    assert before != data.fingerprint()


@pytest.mark.parametrize(
    ("depth", "problem"),
    [
        (np.full((4, 5), 9, np.uint8), "must have one size"),
        (np.zeros((4, 6), np.uint8), "holds 0 to 0"),
        (np.zeros((4, 6, 3), np.uint8), "is RGB"),
    ],
)
def test_a_wrong_depth_map_is_named(tmp_path: Path, depth: np.ndarray, problem: str) -> None:
    data = nyuv2_depth(make_depth(tmp_path), "val")
    path = write(data.files[0].depth, depth)
    with pytest.raises(ValueError, match=problem) as caught:
        data[0]
    assert str(path) in str(caught.value)


def test_missing_and_broken_depth(tmp_path: Path) -> None:
    data = nyuv2_depth(make_depth(tmp_path), "val")
    path = data.files[1].depth
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"0008\.png cannot be read"):
        data[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"0008\.png"):
        data[1]
    with pytest.raises(FileNotFoundError, match="Expected:"):
        nyuv2_depth(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"no folder .*val/labels"):
        nyuv2(tmp_path, "val")
    data.files[0].depth.write_bytes(b"no image")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0003\.png cannot be read"):
        nyuv2_depth(tmp_path, "val")


def test_depth_data_of_ones_own(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg")
    depth = write(tmp_path / "a.png", np.full((4, 6), 5000, np.uint16))
    data = DepthData("room", (DepthFile("a", image, depth),), 5000.0)
    assert data[0].depth.unique().tolist() == [1.0]


def test_nyuv2_sample_depth(data_dir: Path) -> None:
    data = nyuv2_depth(data_dir / "nyuv2", "val")
    assert len(data) == 30
    depth = data[7].depth
    assert 0.7 <= depth[depth > 0].min() < depth.max() <= 10


# -- the published file --------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Path]:
    """Three images in the layout of the published files, with axes reversed as HDF5 has them."""
    h5py, scipy_io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    generator = np.random.default_rng(0)
    paths = {key: tmp_path / f"{key}.mat" for key in ("mat", "splits", "mapping")}
    with h5py.File(paths["mat"], "w") as file:
        file["images"] = generator.integers(0, 256, (3, 3, 640, 480)).astype(np.uint8)
        file["depths"] = generator.uniform(0.7, 9.9, (3, 640, 480)).astype(np.float32)
        file["labels"] = generator.integers(0, 6, (3, 640, 480)).astype(np.uint16)
    split = {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[2]])}
    scipy_io.savemat(paths["splits"], split)
    scipy_io.savemat(paths["mapping"], {"mapClass": np.array([[1.0, 40.0, 39.0, 12.0, 1.0]])})
    return paths


def test_unpack_nyuv2(tmp_path: Path, published: dict[str, Path]) -> None:
    h5py = pytest.importorskip("h5py")
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    unpack_nyuv2(**published, out=out, on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [file.name for file in nyuv2(out, "train").files] == ["0001", "0003"]
    data, labelled = nyuv2_depth(out, "val"), nyuv2(out, "val")
    image, depth = data[0]
    with h5py.File(published["mat"], "r") as file:
        # Axes (W, H) of the file; rows 45 to 470, columns 41 to 600.
        expected = torch.from_numpy(file["depths"][1])[41:601, 45:471].T
        pixels = torch.from_numpy(file["images"][1])[:, 41:601, 45:471].mT.float() / 255
        raw = torch.from_numpy(file["labels"][1].astype(np.int64))[41:601, 45:471].T
    torch.testing.assert_close(depth, expected, atol=5.1e-4, rtol=0)
    torch.testing.assert_close(image, pixels)
    expected = torch.tensor([255, 0, 255, 38, 11, 0])
    assert torch.equal(labelled[0].label, expected[raw])


def test_unpacking_goes_on_where_it_stopped(tmp_path: Path, published: dict[str, Path]) -> None:
    mat, splits, out = published["mat"], published["splits"], tmp_path / "out"
    unpack_nyuv2(mat, splits, out, crop=False)
    kept = write_image(out / "train/images/0001.png")
    (out / "train/depth/0003.png").unlink()
    before = kept.read_bytes()
    unpack_nyuv2(mat, splits, out, crop=False)
    assert kept.read_bytes() == before
    assert nyuv2_depth(out, "train")[1].depth.shape == (480, 640)
    assert not (out / "train/labels").exists()
    (out / "meta.json").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"meta\.json is there already"):
        unpack_nyuv2(mat, splits, out, crop=False)
    assert (out / "meta.json").read_text() == "mine"


def test_unpacking_wrong_files(tmp_path: Path, published: dict[str, Path]) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.mat"
    broken.write_bytes(b"MATLAB")
    mat, splits, mapping = (published[key] for key in ("mat", "splits", "mapping"))
    with pytest.raises(ValueError, match=r"broken\.mat is not HDF5"):
        unpack_nyuv2(broken, splits, out)
    with pytest.raises(ValueError, match=r"broken\.mat is no readable MAT file"):
        unpack_nyuv2(mat, broken, out)
    with pytest.raises(ValueError, match=r"mapping\.mat has no trainNdxs"):
        unpack_nyuv2(mat, mapping, out)
    with pytest.raises(ValueError, match=r"splits\.mat has no mapClass"):
        unpack_nyuv2(mat, splits, out, splits)
    with pytest.raises(FileNotFoundError, match=r"get it from http.*splits\.mat"):
        unpack_nyuv2(mat, tmp_path / "none.mat", out)
    assert not out.exists()


# -- DAVIS ---------------------------------------------------------------------------------------


def make_davis(root: Path, value: int = 1, level: str = "480p") -> Path:
    for name in ("camel", "dog", "goat"):
        for frame in range(3):
            write_image(root / "JPEGImages" / level / name / f"{frame:05d}.jpg", 40 * frame)
            mask = np.zeros((4, 6), np.uint8)
            mask[1, 1:4] = value
            mask[2, 2] = 2 if value == 1 else value
            mask[3, 3] = 255
            write(root / "Annotations" / level / name / f"{frame:05d}.png", mask)
    return root


def test_davis_2017(tmp_path: Path) -> None:
    make_davis(tmp_path)
    listing = tmp_path / "ImageSets/2017/val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("goat\ncamel\n")
    data = davis(tmp_path)
    assert (data.name, [video.name for video in data]) == ("davis2017/val", ["goat", "camel"])
    assert [path.name for path in data[0].frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    mask = data.read_mask(data[0], 1)
    assert mask.dtype == torch.int64
    assert mask.unique().tolist() == [0, 1, 2]  # 255 is void: background
    assert data.object_count(data[0]) == 2
    frame = data.read_frame(data[0], 2)
    assert frame.shape == (3, 4, 6)
    assert abs(frame.mean().item() - 80 / 255) < 0.01
    assert [video.name for video in data.select(1)] == ["goat"]
    assert data.fingerprint() == davis(tmp_path).fingerprint() != data.select(1).fingerprint()


@pytest.mark.parametrize("frames_listed", [True, False])
def test_davis_2016(tmp_path: Path, frames_listed: bool) -> None:
    make_davis(tmp_path, 255)
    lines, place = ["dog\n"], "2016"
    if frames_listed:
        place = "480p"
        lines = [
            f"/JPEGImages/480p/dog/{i:05d}.jpg /Annotations/480p/dog/{i:05d}.png\n"
            for i in range(3)
        ]
    listing = tmp_path / "ImageSets" / place / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(lines))
    data = davis(tmp_path, 2016)
    assert [video.name for video in data] == ["dog"]
    assert data.read_mask(data[0], 0).sum() == 5
    with pytest.raises(FileNotFoundError, match=r"no file ImageSets/2017/val\.txt"):
        davis(tmp_path, 2017)
    listing.write_text("a b c\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1"):
        davis(tmp_path, 2016)


def test_davis_without_lists(tmp_path: Path) -> None:
    make_davis(tmp_path, level="")
    data = davis(tmp_path)
    assert (data.name, len(data)) == ("davis2017/all", 3)


def test_what_is_wrong_with_a_video(tmp_path: Path) -> None:
    make_davis(tmp_path, 255)
    data = davis(tmp_path)
    with pytest.raises(ValueError, match="no object in the first frame") as caught:
        data.read_mask(data[0], 0)
    assert "year=2016" in str(caught.value)
    second = data[0].masks[1]
    assert second is not None
    write(second, np.zeros((5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"camel/00001\.png is \(5, 6\), its image"):
        data.read_mask(data[0], 1)
    second.write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"00001\.png cannot be read"):
        data.read_mask(data[0], 1)
    video = data[0]._replace(masks=(data[0].masks[0], None, None))
    with pytest.raises(ValueError, match="no mask for"):
        data.read_mask(video, 1)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.jpg has no mask"):
        davis(tmp_path)
    for wrong in (tmp_path / "none", tmp_path / "JPEGImages"):
        with pytest.raises(FileNotFoundError, match="DAVIS-2017-trainval-480p"):
            davis(wrong)
    with pytest.raises(ValueError, match="years 2016 and 2017"):
        davis(tmp_path, 2018)  # type: ignore[arg-type]


def test_davis_sample(data_dir: Path) -> None:
    one, several = davis(data_dir / "davis", 2016), davis(data_dir / "davis", 2017)
    assert len(one) == len(several) == 10
    assert {len(video.frames) for video in one} == {10}
    video = one[3]
    mask = one.read_mask(video, 0)
    assert mask.shape == one.read_frame(video, 0).shape[1:]
    assert torch.equal(mask, several.read_mask(video, 0))
    with Image.open(video.masks[0]) as stored:
        assert stored.mode == "P"
