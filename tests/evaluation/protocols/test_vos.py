"""Video object segmentation on tiny videos: what it writes, scores, skips and refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from typer.testing import Result as Outcome

import upfeat
from upfeat.cli.app import app
from upfeat.data import VideoData, davis, image_files
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols import vos
from upfeat.evaluation.protocols.vos import VosConfig, _nearest, run_vos, vos_preset
from upfeat.evaluation.results import Result
from upfeat.upsamplers import Abilities, UpsamplerInfo, WholeMapUpsampler

SIZE = (36, 48)
COLORS = np.array([[40, 40, 40], [230, 30, 30], [30, 30, 230]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos of two squares, each of its own colour, that move one way and the other."""
    for name, speed in (("left", -2), ("right", 2)):
        for index in range(4):
            mask = np.zeros(SIZE, np.uint8)
            mask[6:18, 18 + speed * index : 30 + speed * index] = 1
            mask[22:32, 20 - speed * index : 30 - speed * index] = 2
            for folder, array in (("JPEGImages", COLORS[mask]), ("Annotations", mask)):
                suffix = ".jpg" if folder == "JPEGImages" else ".png"
                path = tmp_path / "davis" / folder / "480p" / name / f"{index:05d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path, **({"quality": 95} if suffix == ".jpg" else {}))
    listing = tmp_path / "davis" / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("right\nleft\n")
    return tmp_path / "davis"


@pytest.fixture
def backbone() -> upfeat.Backbone:
    def centred(image: torch.Tensor) -> torch.Tensor:
        # Colours point in different directions from grey, so that their cosine tells them apart.
        return torch.nn.functional.avg_pool2d(image, 4) - 0.3

    return upfeat.CallableBackbone(centred, dim=3, patch_size=4)


def tiny(preset: str = "loftup", **changes: object) -> VosConfig:
    settings: dict[str, object] = {"radius": 6}
    settings |= {"input_size": (48, 48)} if preset == "loftup" else {}
    return vos_preset(preset, "davis2017", **settings | changes)


def row(name: str) -> Method:
    return LowRes() if name == "low-res" else Method(name, upfeat.create_upsampler(name))


def run(
    root: Path, backbone: upfeat.Backbone, *names: str, config: VosConfig | None = None
) -> list[Result]:
    return run_vos(
        config or tiny(),
        davis(root, 2017, "val"),
        backbone,
        [row(name) for name in names],
        out=root.parent / "results",
        cache=root.parent / "cache",
    )


def masks(root: Path, result: Result, sequence: str) -> list[Path]:
    return sorted((root.parent / "results" / result.details["masks"] / sequence).iterdir())


def test_moving_squares_are_followed(root: Path, backbone: upfeat.Backbone) -> None:
    low, bilinear = run(root, backbone, "low-res", "bilinear")
    for result in (low, bilinear):
        scores = {name: score.mean for name, score in result.scores.items()}
        assert scores["j"] > 60
        assert scores["jf"] == pytest.approx((scores["j"] + scores["f"]) / 2, abs=1e-3)
        assert set(result.details["objects"]) == {"left/1", "left/2", "right/1", "right/2"}
    assert low.settings["output_size"] == [12, 12]
    assert bilinear.settings["output_size"] == [24, 24]
    assert low.settings["upsampler"] == {"name": "low-res"}
    assert bilinear.settings["splits"]["davis2017/val"]["videos"] == 2
    files = {path.name for path in (root.parent / "results").iterdir()}
    assert {low.file_name("davis2017"), bilinear.file_name("davis2017")} < files


def test_numbers_of_objects_may_have_gaps(root: Path, backbone: upfeat.Backbone) -> None:
    """Objects 1 and 2 called 3 and 200 are followed and scored as before, and nothing else is."""
    (plain,) = run(root, backbone, "bilinear")
    names = np.zeros(256, np.uint8)
    names[[1, 2]] = 3, 200
    for path in (root / "Annotations").rglob("*.png"):
        Image.fromarray(names[np.array(Image.open(path))]).save(path)
    assert davis(root, 2017, "val").object_count(davis(root, 2017, "val")[0]) == 2
    (gaps,) = run(root, backbone, "bilinear")
    assert gaps.scores == plain.scores
    assert set(gaps.details["objects"]) == {"left/3", "left/200", "right/3", "right/200"}


def test_masks_are_palette_pngs_of_the_frames_size(root: Path, backbone: upfeat.Backbone) -> None:
    (result,) = run(root, backbone, "bilinear")
    paths = masks(root, result, "right")
    assert [path.name for path in paths] == [f"{index:05d}.png" for index in range(4)]
    with Image.open(paths[0]) as first, Image.open(paths[2]) as later:
        assert (first.mode, first.size, later.size) == ("P", SIZE[::-1], SIZE[::-1])
        palette = first.getpalette()
        given = np.array(Image.open(root / "Annotations/480p/right/00000.png"))
        assert np.array_equal(np.array(first), given)
        assert set(np.unique(np.array(later))) == {0, 1, 2}
    assert palette is not None
    assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert palette[-3:] == [224, 224, 192]


def test_scores_are_of_the_written_files(root: Path, backbone: upfeat.Backbone) -> None:
    """With the masks there and the result gone, nothing is propagated, and the files count."""
    (first,) = run(root, backbone, "low-res")
    for sequence in ("left", "right"):
        for path in masks(root, first, sequence):
            path.write_bytes((root / "Annotations/480p" / sequence / path.name).read_bytes())
    (root.parent / "results" / first.file_name("davis2017")).unlink()
    (again,) = run(root, backbone, "low-res")
    assert again.scores["jf"].mean == 100


class StopError(Exception):
    pass


def test_an_interrupted_run_goes_on_with_the_next_video(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = vos._Propagation.propagate

    def propagate(self: vos._Propagation, way: Method, sequence: vos.VideoSequence) -> torch.Tensor:
        seen.append(sequence.name)
        if len(seen) == 2:
            raise StopError
        return original(self, way, sequence)

    monkeypatch.setattr(vos._Propagation, "propagate", propagate)
    with pytest.raises(StopError):
        run(root, backbone, "bilinear")
    assert not list((root.parent / "results").glob("*.json"))
    (resumed,) = run(root, backbone, "bilinear")
    assert seen == ["right", "left", "left"]
    assert not list((root.parent / "results").rglob("*.part"))
    (known,) = run(root, backbone, "bilinear")
    assert known == resumed
    masks(root, resumed, "left")[1].unlink()
    (root.parent / "results" / resumed.file_name("davis2017")).unlink()
    (whole,) = run(root, backbone, "bilinear")
    assert seen[3:] == ["left"]
    assert whole.scores == resumed.scores


def test_only_missing_masks_are_written_and_none_is_an_image(
    root: Path, backbone: upfeat.Backbone
) -> None:
    (result,) = run(root, backbone, "low-res")
    files = masks(root, result, "left")
    other = files[0].with_name("notes.txt")
    other.write_text("mine")
    kept = files[0].read_bytes()
    files[1].unlink()
    (root.parent / "results" / result.file_name("davis2017")).unlink()
    run(root, backbone, "low-res")
    assert files[1].is_file()
    assert (other.read_text(), files[0].read_bytes()) == ("mine", kept)
    with pytest.raises(ValueError, match="no image"):
        image_files(root.parent / "results")


def test_naf_keeps_the_frames_size(root: Path, backbone: upfeat.Backbone) -> None:
    """36x48 is lowered to multiples of 4, the grid is 9x12 times the factor."""
    seen = []

    class Seeing(WholeMapUpsampler):
        info = UpsamplerInfo(name="seeing", summary="", abilities=Abilities())

        def upsample(self, image, features, output_size, values):  # type: ignore[no-untyped-def]
            seen.append((image.shape[2:], features.shape[2:], output_size))
            return torch.nn.functional.interpolate(values, output_size)

    for config, guidance, low in (
        (tiny("naf", factor=2), (18, 24), (9, 12)),
        (tiny(input_size=(32, 48)), (16, 24), (8, 12)),
    ):
        seen.clear()
        (result,) = run_vos(
            config,
            davis(root, 2017, "val").select(1),
            backbone,
            [Method("seeing", Seeing())],
            out=root.parent / "results",
            cache=root.parent / "cache",
        )
        assert set(seen) == {(guidance, low, guidance)}
        assert result.scores["j"].mean > 60


def test_sizes_are_those_of_pillow() -> None:
    label = torch.randint(0, 9, (11, 7), dtype=torch.uint8)
    for size in ((4, 5), (23, 30), (11, 7)):
        expected = Image.fromarray(label.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(_nearest(label, size).numpy(), np.array(expected))


def test_errors(root: Path, backbone: upfeat.Backbone) -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        vos_preset("loftop", "davis2017")
    with pytest.raises(UnknownNameError, match="data set"):
        vos_preset("loftup", "davis")
    large = upfeat.CallableBackbone(torch.nn.AvgPool2d(64), dim=3, patch_size=64)
    with pytest.raises(UnsupportedError, match="smaller than 64"):
        run(root, large, "bilinear", config=tiny("naf"))
    data = davis(root, 2017, "val")
    short = data.sequences[0]
    short = short._replace(frames=short.frames[:2], masks=short.masks[:2])
    data = dataclasses.replace(data, sequences=(short,))
    with pytest.raises(ValueError, match="at least 3"):
        _run(data, root, backbone)
    path = root / "JPEGImages/480p/right/00002.jpg"
    Image.new("RGB", (24, 12)).save(path)
    with pytest.raises(ValueError, match="one size"):
        _run(davis(root, 2017, "val"), root, backbone)
    assert not list((root.parent / "results").glob("*.json"))


def _run(data: VideoData, root: Path, backbone: upfeat.Backbone) -> list[Result]:
    folders = {"out": root.parent / "results", "cache": root.parent / "cache"}
    return run_vos(tiny(), data, backbone, [row("bilinear")], **folders)


# -- the command ---------------------------------------------------------------------------------


def command(root: Path, *arguments: object, code: int = 0) -> Outcome:
    fixed = ("eval", "vos", "--data", "davis2017", "--backbone", "upfeat/vit_compact_patch16")
    folders = ("--out", root.parent / "results", "--cache", root.parent / "cache")
    line = [str(part) for part in (*fixed, "--root", root, *folders, *arguments)]
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == code, outcome.output
    return outcome


def test_command(root: Path) -> None:
    options = ("--limit", "1", "--set", "input_size=[64, 64]", "--set", "radius=2")
    text = command(root, "--upsampler", "low-res,linear=bilinear", *options).stdout
    assert "quick look: 1 videos" in text
    assert "J&F" in text
    names = sorted(path.name for path in (root.parent / "results").glob("*.json"))
    assert [name.rpartition("--")[0] for name in names] == [
        "vos--davis2017--linear",
        "vos--davis2017--low-res",
    ]
    settings = Result.load(root.parent / "results" / names[0]).settings
    assert (settings["limit"], settings["radius"], settings["output_size"]) == (1, 2, [32, 32])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--upsampler", "low-res,low-res"), "twice"),
        (("--upsampler", "biliner"), "did you mean 'bilinear'"),
        (("--upsampler", "nearest", "--data", "davis2018"), "unknown data set"),
        (("--upsampler", "nearest", "--root", "nowhere"), "Expected:"),
        (("--upsampler", "nearest", "--set", "radios=3"), "radios"),
    ],
)
def test_command_errors(root: Path, arguments: tuple[str, ...], problem: str) -> None:
    outcome = command(root, *arguments, code=2)
    assert problem in " ".join(outcome.output.split())
    assert not (root.parent / "results").exists()
