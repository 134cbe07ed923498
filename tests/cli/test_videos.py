"""Videos as inputs of ``upfeat upsample``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from upfeat.cli.app import app

av = pytest.importorskip("av")

TINY = ("--input-size", "48", "--size", "48", "--upsampler", "bilinear")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def video(tmp_path: Path, frames: Path) -> Path:
    path = tmp_path / "walk.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for file in sorted(frames.iterdir()):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.open(file))))
        container.mux(stream.encode())
    return path


def upsample(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["upsample", *map(str, arguments), *TINY])


def length(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_file_becomes_videos(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = upsample(video, "--out", out, "--save", "panel,pca,overlay")
    assert result.exit_code == 0, result.output
    assert "walk: 3 frames" in result.output
    for name in ("walk.mp4", "walk_pca.mp4", "walk_overlay.mp4"):
        assert length(out / name) == 3
    assert "already there" in upsample(video, "--out", out, "--save", "panel,pca,overlay").output


def test_a_folder_is_images_unless_it_is_said_to_be_a_video(frames: Path, tmp_path: Path) -> None:
    result = upsample(frames, "--out", tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == [
        f"{number}.png" for number in range(3)
    ], result.output
    out = tmp_path / "video"
    result = upsample(frames, "--video", "--out", out, "--video-format", "gif", "--frames", 2)
    assert result.exit_code == 0, result.output
    with Image.open(out / "frames.gif") as picture:
        assert picture.n_frames == 2


def test_images_and_videos_in_one_call(video: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = upsample(video, frames / "1.png", "--out", out, "--save", "pca")
    assert result.exit_code == 0, result.output
    assert length(out / "walk_pca.mp4") == 3
    with Image.open(out / "1_pca.png") as picture:
        assert picture.size == (64, 48)


def test_pictures_of_an_image_at_full_size(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = upsample(frames / "0.png", "--out", out, "--save", "panel,pca,overlay,safetensors")
    assert result.exit_code == 0, result.output
    colors = np.asarray(Image.open(out / "0_pca.png"), float)
    overlay = np.asarray(Image.open(out / "0_overlay.png"), float)
    photo = np.asarray(Image.open(frames / "0.png"), float)
    assert np.abs(0.6 * colors + 0.4 * photo - overlay).max() < 2
    assert (out / "0.png").is_file()
    assert (out / "0.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{video}", "--save", "npz"], "a video is pictures; choose from panel, pca, overlay"),
        (["{video}", "--save", "pcb"], "did you mean 'pca'"),
        (["{video}", "--save", ","], "--save names nothing to write"),
        (["97"], "cannot open camera 97 as a video"),
        (["{text}"], "cannot open"),
    ],
)
def test_wrong_calls(arguments: list[str], message: str, video: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    filled = [part.format(video=video, text=text) for part in arguments]
    result = upsample(*filled, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


def test_frames_of_a_video_become_a_store(video: Path, tmp_path: Path) -> None:
    import upfeat

    out = tmp_path / "features"
    arguments = ["extract", str(video), "--every", "2", "--out", str(out), "--input-size", "48"]
    result = CliRunner().invoke(app, [*arguments, "--upsampler", "bilinear"])
    assert result.exit_code == 0, result.output
    store = upfeat.open_store(out)
    assert list(store) == ["walk/000000", "walk/000001"]
    assert store["walk/000001"].upsample((48, 64)).shape == (192, 48, 64)
    assert sorted(path.name for path in (tmp_path / "features_frames" / "walk").glob("*.png")) == [
        "000000.png",
        "000001.png",
    ]
    (tmp_path / "features_frames" / "walk" / "000001.png").unlink()
    again = CliRunner().invoke(app, [*arguments, "--upsampler", "bilinear"])
    assert "2 already there" in again.output
    endless = CliRunner().invoke(app, ["extract", "97", "--out", str(out)])
    assert "cannot open camera 97" in endless.output
