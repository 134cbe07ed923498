"""The examples: each runs on a small picture, and does what it says there."""

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load, save_file

import upfeat

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py"))
HEIGHT, WIDTH = 96, 128


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def halves() -> NDArray[np.uint8]:
    """A picture (H, W, 3): brown stripes on the left, blue noise right of a slanted border."""
    generator = np.random.default_rng(0)
    rows, columns = np.indices((HEIGHT, WIDTH))
    left = np.stack([120 + 60 * (rows // 4 % 2), 80 + 0 * rows, 40 + 0 * rows], axis=-1)
    right = np.stack([30 + 0 * rows, 90 + 0 * rows, 190 + 0 * rows], axis=-1)
    right = right + generator.integers(-20, 20, right.shape)
    return np.where(border(rows, columns)[..., None], right, left).clip(0, 255).astype(np.uint8)


def border(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether pixels lie right of the border, which is no border of patches."""
    return columns > 58 + rows // 6


LABEL = border(*np.indices((HEIGHT, WIDTH))).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "halves.png"
    path.parent.mkdir()
    Image.fromarray(halves()).save(path)
    return path


@pytest.fixture(scope="module")
def pipe() -> upfeat.Pipeline:
    return upfeat.Pipeline("upfeat/vit_compact_patch16", "kin.upfeat")


def test_each_file_stands_in_the_list_and_explains_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}.py`" in listed
    for name in ("segmentation_head", "anomaly_memory_bank"):
        with pytest.raises(SystemExit) as caught:
            example(name).main(["--help"])
        assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_linear_probe(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(LABEL).save(tmp_path / "labels" / "halves.png")
    arguments = [
        photo.parent,
        tmp_path / "labels",
        "--classes",
        2,
        "--steps",
        30,
        "--device",
        "cpu",
    ]
    assert example("linear_probe_fabric").main(list(map(str, arguments))) > 0.97


def test_a_probe_behind_a_method_that_is_not_linear() -> None:
    module = example("linear_probe_fabric")
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    up = upfeat.create_upsampler("loftup.vit_compact_patch16")
    logits = module.Probe(backbone, up, 3)(torch.rand(1, 3, 32, 48), (32, 48))
    assert logits.shape == (1, 3, 32, 48)
    assert logits.requires_grad


def test_segmentation_head(photo: Path, tmp_path: Path, pipe: upfeat.Pipeline) -> None:
    module = example("segmentation_head")
    head = torch.nn.Conv2d(192, 2, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    encoded = pipe.encode(photo)
    after = head(pipe.upsample(encoded)[None]).argmax(1)[0]  # the head last, as it is defined
    first = module.class_map(pipe, head, photo)
    assert (after == first).float().mean() > 0.999
    if module.make_head(192, 2).__class__ is torch.nn.Conv2d:
        arguments = ["--classes", "2", "--weights", str(tmp_path / "head.pth")]
        out = tmp_path / "classes.png"
        classes = module.main([str(photo), *arguments, "--out", str(out)])
        assert torch.equal(classes, first)
        assert np.array_equal(np.asarray(Image.open(out)), first.numpy())


def test_a_head_of_segmentation_models_pytorch() -> None:
    pytest.importorskip(
        "segmentation_models_pytorch", reason="pip install segmentation-models-pytorch"
    )
    head = example("segmentation_head").make_head(192, 5)
    assert head(torch.rand(1, 192, 3, 4)).shape == (1, 5, 3, 4)


def test_anomaly_memory_bank(photo: Path, tmp_path: Path) -> None:
    module = example("anomaly_memory_bank")
    spoiled = halves()
    spoiled[40:60, 20:40] = (250, 240, 10)
    Image.fromarray(spoiled).save(tmp_path / "spoiled.png")
    call = [str(photo.parent), "--bank", "40", "--out", str(tmp_path / "map.png")]
    good = module.main([call[0], str(photo), *call[1:]])
    bad = module.main([call[0], str(tmp_path / "spoiled.png"), *call[1:]])
    assert bad > 1.2 * good
    grey = np.asarray(Image.open(tmp_path / "map.png")).astype(float)
    assert grey[44:56, 24:36].mean() > 1.3 * grey[:, 90:].mean()


def test_centres_cover_all_points() -> None:
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert sorted(example("anomaly_memory_bank").k_centres(points, 3).tolist()) == [0, 2, 4]


def test_strokes_become_a_map(photo: Path, tmp_path: Path) -> None:
    strokes = np.zeros((HEIGHT, WIDTH), np.uint8)
    strokes[30:34, 5:40], strokes[30:34, 85:120] = 1, 2
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    out = tmp_path / "painted.png"
    classes = example("convpaint_features").main(
        [str(photo), str(tmp_path / "strokes.png"), "--out", str(out)]
    )
    assert (classes == LABEL + 1).mean() > 0.95
    assert np.array_equal(np.asarray(Image.open(out)), classes)


def test_planes_of_one_channel_with_large_numbers(pipe: upfeat.Pipeline) -> None:
    plane = np.random.default_rng(0).integers(0, 60_000, (1, 32, 48), dtype=np.uint16)
    features = example("convpaint_features").plane_features(pipe, plane)
    assert features.shape == (192, 32, 48)
    assert np.isfinite(features).all()


def test_the_extractor_of_napari_convpaint(pipe: upfeat.Pipeline) -> None:
    pytest.importorskip(
        "napari_convpaint.feature_extractor",
        reason="pip install napari-convpaint",
        exc_type=ImportError,
    )
    extractor = example("convpaint_features").feature_extractor(pipe)()
    plane = np.random.default_rng(0).random((3, 32, 48), dtype=np.float32)
    assert extractor.extract_features_from_plane(plane).shape == (192, 32, 48)


def test_similarity_maps(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    maps = example("fiftyone_heatmaps").main(
        [str(photo.parent), "--at", "0.3,0.15", "--out", str(out)]
    )
    grey = np.asarray(Image.open(maps[photo])).astype(float)
    assert grey.shape == LABEL.shape
    assert ((grey < 0.8 * 255) == LABEL).mean() > 0.95


def test_heatmaps_of_a_data_set(photo: Path, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="pip install fiftyone")
    name = f"upfeat-{tmp_path.name}"
    main = example("fiftyone_heatmaps").main
    main([str(photo.parent), "--out", str(tmp_path / "maps"), "--dataset", name])
    dataset = fiftyone.load_dataset(name)
    assert dataset.first().similarity.map_path.endswith("halves.png")
    dataset.delete()


def test_the_service(photo: Path, pipe: upfeat.Pipeline) -> None:
    pytest.importorskip("fastapi", reason="pip install fastapi python-multipart uvicorn")
    pytest.importorskip("multipart", reason="pip install python-multipart")
    from fastapi.testclient import TestClient

    client = TestClient(example("fastapi_service").create_app(pipe))
    assert client.get("/").json()["upsampler"] == "kin"
    files = {"photo": ("halves.png", photo.read_bytes())}
    place = {"row": 30, "column": 20, "size": HEIGHT}
    answer = client.post("/similarity", params=place, files=files)
    grey = np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)
    assert ((grey < 0.8 * 255) == LABEL).mean() > 0.95
    answer = client.post("/features", params={"size": 48}, files=files)
    assert {k: tuple(v.shape) for k, v in load(answer.content).items()} == {
        "low": (192, 6, 8),
        "high": (192, 48, 64),
    }
    assert (
        client.post("/similarity", params=place | {"row": HEIGHT}, files=files).status_code == 422
    )
    broken = {"photo": ("a.png", b"no image")}
    assert client.post("/features", files=broken).status_code == 422


def test_words_find_their_pixels(photo: Path, pipe: upfeat.Pipeline) -> None:
    """Stand-ins for texts: features of a place, as words in the space of the features are."""
    module = example("text_query")
    low = pipe.low(photo)
    maps = module.word_maps(pipe, photo, torch.stack([low[:, 2, 1], low[:, 2, 6]]))
    assert (maps.argmax(0).numpy() == LABEL).mean() > 0.95
    with pytest.raises(ValueError, match="words have 512 channels and features 192"):
        module.word_maps(pipe, photo, torch.rand(1, 512))


def test_the_projection_of_talk2dino_is_read_from_its_tensors() -> None:
    module = example("text_query")
    original = torch.nn.ModuleDict(
        {"linear_layer": torch.nn.Linear(8, 12), "linear_layer2": torch.nn.Linear(12, 12)}
    )
    projection = module.text_projection(original.state_dict())
    words = torch.rand(2, 8)
    expected = original["linear_layer2"](original["linear_layer"](words).tanh())
    assert torch.allclose(projection(words), expected)
    with pytest.raises(ValueError, match="a projection has two layers"):
        module.text_projection({"weight": torch.rand(2, 2)})


def test_a_query_with_clip(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole example with a small CLIP of random weights, and a projection to our encoder."""
    pytest.importorskip("open_clip", reason="pip install 'upfeat[clip]'")
    module = example("text_query")
    create = upfeat.create_backbone

    def small(name: str, **options: object) -> upfeat.Backbone:
        random = {"weights": "random"} if name.startswith("clip/") else {}
        return create(name, **random, **options)

    monkeypatch.setattr(module.upfeat, "create_backbone", small)
    layers = {"linear_layer": torch.nn.Linear(512, 16), "linear_layer2": torch.nn.Linear(16, 192)}
    save_file(torch.nn.ModuleDict(layers).state_dict(), tmp_path / "projection.safetensors")
    maps = module.main(
        [
            *(str(photo), "--text", "stripes, noise", "--clip", "ViT-B-32"),
            *("--backbone", "upfeat/vit_compact_patch16"),
            *("--projection", str(tmp_path / "projection.safetensors")),
            *("--out", str(tmp_path / "words.png")),
        ]
    )
    assert maps.shape == (2, HEIGHT, WIDTH)
    assert np.asarray(Image.open(tmp_path / "words.png")).shape == (HEIGHT, WIDTH)


def test_sixteen_bands_follow_a_guide(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="pip install tifffile")
    module = example("geotiff_bands")
    guide = halves().transpose(2, 0, 1).astype(np.uint16) * 40  # as sensors count
    true = np.stack([LABEL * (k + 1.0) for k in range(16)]).astype(np.float32)
    coarse = true.reshape(16, HEIGHT // 8, 8, WIDTH // 8, 8).mean((2, 4))
    scale = (33550, 12, 3, (10.0, 10.0, 0.0))
    planes = {"planarconfig": "separate", "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "bands.tif", coarse, **planes)
    tifffile.imwrite(tmp_path / "guide.tif", guide, **planes, extratags=[scale])
    files = [str(tmp_path / "bands.tif"), str(tmp_path / "guide.tif")]

    module.main([*files, "--out", str(tmp_path / "whole.tif"), "--tile", "64"])
    module.main([*files, "--out", str(tmp_path / "tiled.tif"), "--tile", "6"])
    whole, tiled = (tifffile.imread(tmp_path / name) for name in ("whole.tif", "tiled.tif"))
    assert whole.shape == true.shape
    plain = np.repeat(np.repeat(coarse, 8, 1), 8, 2)
    assert np.abs(whole - true).mean() < 0.6 * np.abs(plain - true).mean()
    assert np.abs(tiled - whole).max() < 0.02 * true.max()
    with tifffile.TiffFile(tmp_path / "tiled.tif") as file:
        assert file.pages[0].tags[33550].value == (10.0, 10.0, 0.0)


def test_a_guide_of_another_shape_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="pip install tifffile")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((16, 12, 16), np.float32))
    tifffile.imwrite(tmp_path / "g.tif", np.zeros((24, 40, 3), np.uint8))  # interleaved
    with pytest.raises(SystemExit, match="one multiple of 12 x 16, got 3 bands of 24 x 40"):
        example("geotiff_bands").main([str(tmp_path / "b.tif"), str(tmp_path / "g.tif")])


def test_examples_need_nothing_that_is_imported_at_the_top_but_is_no_dependency() -> None:
    """What is optional is imported where it is used; the service is FastAPI's as a whole."""
    for name in set(NAMES) - {"fastapi_service", "geotiff_bands"}:
        before = set(sys.modules)
        example(name)
        new = {module.partition(".")[0] for module in set(sys.modules) - before}
        assert not new & {
            "fiftyone",
            "napari_convpaint",
            "segmentation_models_pytorch",
            "open_clip",
        }
