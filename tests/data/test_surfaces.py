"""Sets with surface normals: normals from depth, crops, NAVI, RGB-D frames, NYU with normals."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import load_golden
from tests.data.trees import write, write_image
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.data import navi, nyuv2_surfaces, rgbd, shrink_navi, unpack_nyuv2_normals
from upfeat.data.sets import navi as navi_module
from upfeat.data.sets.nyuv2 import geonet_sample
from upfeat.data.surfaces import normals_from_depth, relative_depth, square_around
from upfeat.ops.images import normalize
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD

# -- functions -----------------------------------------------------------------------------------


@pytest.mark.golden
def test_golden_of_normals_and_crop(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "probe3d_normals.safetensors")
    depth = golden["depth"][0]
    normals = normals_from_depth(depth, float(golden["focal"]))
    rows, columns = square_around(depth)
    found = {
        "normals_from_depth": normals,
        "crop_depth_out": golden["depth"][:, rows, columns],
        "crop_image_out": golden["crop_image_in"][:, rows, columns],
    }
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences


@pytest.mark.golden
def test_golden_of_a_geonet_frame(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "nyu_sample.safetensors")
    sample = geonet_sample(*(golden[name].numpy() for name in ("img", "depth", "norm")))
    assert sample.normals is not None
    found = {
        "out_image": normalize(sample.image[None], IMAGENET_MEAN, IMAGENET_STD)[0],
        "out_depth": sample.depth[None],
        "out_snorm": sample.normals,
        "mask": (sample.depth > 0)[None].to(torch.uint8),
    }
    differences = {name: max_abs_difference(x, golden[name]) for name, x in found.items()}
    assert max(differences.values()) < GOLDEN_ATOL, differences


def test_normals_of_a_tilted_plane_with_principal_point() -> None:
    """Depth of the plane n.p = d as a camera with two focal lengths sees it."""
    normal = torch.tensor([0.3, -0.5, 0.8])
    normal = normal / normal.norm()
    x = (torch.arange(12) + 0.5 - 6.5) / 40.0
    y = (torch.arange(9) + 0.5 - 3.0)[:, None] / 50.0
    depth = 2.0 / (normal[0] * x + normal[1] * y + normal[2])
    found = normals_from_depth(depth, (40.0, 50.0), (6.5, 3.0))
    expected = normal[:, None, None].expand(3, 7, 10)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], expected, atol=1e-4, rtol=0)
    assert int(found[:, 0].count_nonzero()) == 0
    depth[4, 5] = 0
    assert int(normals_from_depth(depth, 40.0)[:, 4, 5].count_nonzero()) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((2, 4), (1, 7), ((0, 6), (1, 7))),  # two above, two below
        ((0, 2), (1, 7), ((0, 6), (1, 7))),  # no room above
        ((7, 9), (1, 7), ((3, 9), (1, 7))),  # no room below: all of the padding above
    ],
)
def test_square_around_pads_the_shorter_side(
    rows: tuple[int, int], columns: tuple[int, int], expected: tuple[tuple[int, int], ...]
) -> None:
    depth = torch.zeros(10, 10)
    depth[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 1
    assert square_around(depth) == tuple(slice(*pair) for pair in expected)
    with pytest.raises(ValueError, match="fewer than two rows"):
        square_around(torch.zeros(4, 4))


def test_relative_depth_of_a_flat_object() -> None:
    assert relative_depth(torch.tensor([[0.0, 3.0]])).tolist() == [[0.0, pytest.approx(0.01)]]
    assert relative_depth(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


# -- NAVI ----------------------------------------------------------------------------------------


def make_navi(root: Path, size: tuple[int, int] = (48, 64)) -> Path:
    """Two whole objects, and one that lacks a wild set; depth of 0.5 m in the middle."""
    height, width = size
    disparity = np.zeros(size, np.uint16)
    disparity[height // 4 : -height // 4, width // 4 : -width // 4] = round(655.35 / 0.5)
    for place in ("cup/wild_set", "cup/multiview_00_a", "cup/multiview_01_a", "dog/multiview_00_a"):
        folder, records = root / "navi_v1" / place, []
        for stem in ("000", "001", "002"):
            write_image(folder / "images" / f"{stem}.jpg", size=size)
            write(folder / "depth" / f"{stem}.png", disparity)
            camera = {"focal_length": 96.0, "q": [1, 0, 0, 0], "t": [0, 0, 500]}
            name = f"{stem}.jpg"
            records.append({"filename": name, "image_size": list(size), "camera": camera})
        (folder / "annotations.json").write_text(json.dumps(records))
    return root


@pytest.fixture
def small_navi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(navi_module, "SHORT_SIDE", 48)
    monkeypatch.setattr(navi_module, "FRAME", 32)


def test_navi_splits_and_samples(tmp_path: Path, small_navi: None) -> None:
    root = make_navi(tmp_path)
    seen: list[tuple[int, int]] = []
    shrink_navi(root / "navi_v1", on_image=lambda *at: seen.append(at))
    assert seen[-1] == (24, 24)
    shrink_navi(root / "navi_v1")
    assert [f.name for f in navi(root, "test", every=1).files] == [
        f"cup/wild_set/00{i}" for i in range(3)
    ]
    counts = {split: len(navi(root, split, every=1)) for split in ("trainval", "train", "val")}
    assert counts == {"trainval": 6, "train": 3, "val": 3}
    assert len(navi(root)) == 2  # every fourth
    data = navi(root / "navi_v1", "test")
    image, depth, normals = data[0]
    assert data.has_normals
    assert image.shape[0] == 3
    assert image.shape[1:] == depth.shape == (depth.shape[0],) * 2
    assert depth.max().item() == pytest.approx(0.5, rel=1e-3)
    assert normals is not None
    assert normals[:, 5, 5].tolist() == pytest.approx([0, 0, 1], abs=1e-2)
    assert data.frame(data.files[0]).focal == pytest.approx(96 * 32 / 48)
    assert data.fingerprint() == navi(root, "test").fingerprint()


def test_navi_says_what_it_lacks(tmp_path: Path, small_navi: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"navi_v1\.tar\.gz"):
        navi(tmp_path)
    with pytest.raises(FileNotFoundError, match="images"):
        shrink_navi(tmp_path)
    root = make_navi(tmp_path)
    with pytest.raises(ValueError, match="splits trainval, train, val and test"):
        navi(root, "all")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="shrink_navi"):
        navi(root, "test")[0]
    annotations = root / "navi_v1/cup/wild_set/annotations.json"
    records = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(records[1:]))
    with pytest.raises(ValueError, match="no record of"):
        navi(root, "test")
    del records[0]["camera"]["q"]
    annotations.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="not what NAVI's annotations are"):
        navi(root, "test")


# -- RGB-D ---------------------------------------------------------------------------------------


def make_rgbd(root: Path, frames: int = 5) -> Path:
    for number in range(frames):
        write_image(root / "room" / f"{number}_color.jpg", size=(240, 320))
        depth = np.full((240, 320), 2000, np.uint16)
        write(root / "room" / f"{number}_depth.png", depth)
    intrinsics = {"fx": 100.0, "fy": -100.0, "cx": 160.0, "cy": 120.0}
    meta = {"room": {"depth_scale": 1000, "intrinsics": intrinsics}}
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def test_rgbd_crops(tmp_path: Path) -> None:
    root = make_rgbd(tmp_path)
    train, test = rgbd(root, "train", "room"), rgbd(root, "test", "room")
    assert (len(train), len(test)) == (3 * 2, 2 * 1)
    assert {file.image.name[0] for file in test.files} == {"2", "4"}
    image, depth, normals = train[1]
    assert image.shape == (3, 240, 240)
    assert normals is not None
    assert depth.unique().tolist() == [2.0]
    # Only the crop's sides on the frame's border lack normals; a wall looks at the camera.
    assert normals[:, 120, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-4)
    assert train.fingerprint() != test.fingerprint()


def test_rgbd_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="K_color"):
        rgbd(tmp_path, "train")
    root = make_rgbd(tmp_path, frames=2)
    with pytest.raises(FileNotFoundError, match="no frame for test"):
        rgbd(root, "test", "room")
    (root / "meta.json").write_text(json.dumps({"room": {"depth_scale": 1000}}))
    with pytest.raises(ValueError, match="no complete camera"):
        rgbd(root, "train", "room")


# -- NYU with normals ----------------------------------------------------------------------------


def test_nyu_with_normals(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    (tmp_path / "geonet").mkdir()
    for i in range(21):
        frame = {
            "img": np.zeros((480, 640, 3), np.float32),
            "depth": np.full((480, 640), 11.0 if i else 3.0),
            "norm": np.ones((480, 640, 3)),
        }
        if i in (0, 1, 20):
            savemat(tmp_path / "geonet" / f"room-{i:02}.mat", frame)
        else:
            (tmp_path / "geonet" / f"room-{i:02}.mat").touch()
    data = nyuv2_surfaces(tmp_path, "val")
    assert [file.name for file in data.files] == ["room-00", "room-20"]
    assert len(nyuv2_surfaces(tmp_path, "train")) == 19
    first, last = data[0], data[1]
    assert first.image.shape == (3, 480, 480)
    assert first.image[:, 0, 0].mul(255).tolist() == [244, 232, 207]
    assert (first.depth.unique().tolist(), last.depth.unique().tolist()) == ([3.0], [0.0])
    with pytest.raises(ValueError, match="no readable MAT"):
        nyuv2_surfaces(tmp_path, "train")[1]
    with pytest.raises(FileNotFoundError, match="no test/"):
        nyuv2_surfaces(tmp_path, "test")


def make_normals(root: Path, shape: tuple[int, ...] = (2, 480, 640, 3)) -> dict[str, Path]:
    h5py = pytest.importorskip("h5py")
    paths = {"mat": root / "all.mat", "normals": root / "n.pklz", "indices": root / "t.json"}
    with h5py.File(paths["mat"], "w") as stream:
        stream["images"] = np.full((2, 3, 640, 480), 51, np.uint8)
        stream["rawDepths"] = np.full((2, 640, 480), 4.0, np.float32)
    with gzip.open(paths["normals"], "wb") as stream:
        pickle.dump({"all_normals": np.ones(shape, np.float32)}, stream)
    paths["indices"].write_text(json.dumps([{"img": "2_x.png"}]))
    return paths


def test_nyu_test_images_are_unpacked(tmp_path: Path) -> None:
    paths = make_normals(tmp_path)
    unpack_nyuv2_normals(**paths, out=tmp_path)
    unpack_nyuv2_normals(**paths, out=tmp_path)
    data = nyuv2_surfaces(tmp_path, "test")
    assert [file.name for file in data.files] == ["0002"]
    image, depth, normals = data[0]
    assert normals is not None
    assert (image.shape, depth.shape) == ((3, 480, 480), (480, 480))
    assert image.unique().tolist() == [pytest.approx(0.2)]
    assert normals.unique().tolist() == [1.0]


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make_normals(tmp_path, (1, 4, 4, 3))
    with pytest.raises(ValueError, match="do not belong together"):
        unpack_nyuv2_normals(**paths, out=tmp_path / "out")
    with gzip.open(paths["normals"], "wb") as stream:
        pickle.dump({"all_normals": _Runs()}, stream)
    with pytest.raises(ValueError, match=r"asks for builtins\.print"):
        unpack_nyuv2_normals(**paths, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_nyu_with_depth_alone_has_no_normals(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / split / "images" / "0001.png", size=(8, 12))
        write(tmp_path / split / "depth" / "0001.png", np.full((8, 12), 51, np.uint8))
    data = nyuv2_surfaces(tmp_path, "test")
    assert not data.has_normals
    image, depth, normals = data[0]
    assert (image.shape, depth.shape, normals) == ((3, 8, 8), (8, 8), None)
    assert depth.unique().tolist() == [2.0]


def test_copies_are_upright(tmp_path: Path, small_navi: None) -> None:
    path = tmp_path / "cup/wild_set/images/000.jpg"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (96, 192)).save(path, exif=exif)
    shrink_navi(tmp_path)
    with Image.open(path.with_name("downsampled_000.jpg")) as copy:
        assert copy.size == (96, 48)
        assert 0x0112 not in copy.getexif()
