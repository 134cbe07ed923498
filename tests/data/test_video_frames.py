"""Videos as streams: a file, a folder of frames, a camera."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from upfeat.data import open_video
from upfeat.data.video_frames import _decoded, _pixels
from upfeat.errors import MissingPackageError

av = pytest.importorskip("av")


def grey(number: int) -> int:
    """The grey of a frame, by which tests know it again after compression."""
    return 20 + 10 * number


def write_video(
    path: Path, count: int = 12, rate: int = 8, size: tuple[int, int] = (32, 48)
) -> Path:
    """A video whose frame ``n`` is one grey, with a white corner at the top left."""
    size = (32, 48)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "g": "4"}
        for number in range(count):
            frame = np.full((*size, 3), grey(number), np.uint8)
            frame[: size[0] // 4, : size[1] // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, count: int = 12, size: tuple[int, int] = (32, 48)) -> Path:
    folder.mkdir()
    for number in range(count):
        picture = Image.new("RGB", size[::-1], (grey(number),) * 3)
        picture.save(folder / f"frame_{number}.png")
    return folder


def numbers(frames: Any) -> list[int]:
    """Which frames these are, by the grey of their last row."""
    return [round((float(frame[:, -1].mean()) * 255 - 20) / 10) for frame in frames]


@pytest.fixture(params=["file", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "file":
        return write_video(tmp_path / "video.mp4")
    return write_frames(tmp_path / "frames")


def test_frames_come_in_order_and_from_any_number_on(source: Path) -> None:
    video = open_video(source)
    assert numbers(video.frames()) == list(range(12))
    assert numbers(video.frames(9)) == [9, 10, 11]
    assert video.length() == 12
    first = next(video.frames())
    assert first.shape == (3, 32, 48)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1


def test_every_and_limit(source: Path) -> None:
    video = open_video(source, rate=8, every=3, limit=3)
    assert numbers(video.frames()) == [0, 3, 6]
    assert numbers(video.frames(1)) == [3, 6]
    assert video.length() == 3
    assert video.rate == Fraction(8, 3)


def test_a_sample_is_spread_over_the_video(source: Path) -> None:
    found = numbers(open_video(source).sample(4))
    assert len(found) == 4
    assert found == sorted(set(found))
    assert found[0] <= 1
    assert found[-1] >= 8


def test_the_rate_is_the_files_own(tmp_path: Path) -> None:
    assert open_video(write_video(tmp_path / "a.mp4", rate=15)).rate == 15
    assert open_video(write_frames(tmp_path / "frames")).rate == 25


def test_the_fingerprint_is_of_the_content(source: Path) -> None:
    before = open_video(source).describe()
    assert before == open_video(source).describe()
    if source.is_dir():
        Image.new("RGB", (48, 32)).save(source / "frame_3.png")
    else:
        write_video(source, count=11)
    assert open_video(source).describe() != before


def test_a_recording_that_was_turned_comes_upright() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 2] = 255  # top right
    frame = SimpleNamespace(to_ndarray=lambda format: picture, rotation=90)
    upright = _pixels(frame)
    assert upright.shape == (3, 3, 2)
    assert upright[0, 0, 0] == 1  # a quarter counterclockwise: top left


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none.mp4", "none.mp4"),
        (lambda path: path, "holds no image; known suffixes"),
        (lambda path: _text(path / "a.mp4"), r"cannot open .*a\.mp4 as a video: .*; name a video"),
        (lambda path: _sound(path / "a.m4a"), "holds no video stream"),
    ],
)
def test_what_is_no_video_is_named(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_video(make(tmp_path))


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 1)
    for name in ("rate", "every", "limit"):
        with pytest.raises(ValueError, match=f"{name} of a video must be positive, got 0"):
            open_video(folder, **{name: 0})


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="cannot open camera 97 as a video"):
        open_video("97")


def test_a_broken_file_says_after_which_frame() -> None:
    def decode(stream: object) -> Any:
        yield from ("first", "second")
        raise av.error.InvalidDataError(1094995529, "Invalid data found")

    container = SimpleNamespace(decode=decode, streams=SimpleNamespace(video=[None]))
    frames = _decoded(container, Path("video.mp4"))  # type: ignore[arg-type]
    assert [next(frames), next(frames)] == ["first", "second"]
    with pytest.raises(ValueError, match=r"video\.mp4 cannot be decoded after frame 2"):
        next(frames)


def test_without_pyav_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video.mp4", count=1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"upfeat\[video\]"):
        open_video(path)


def _text(path: Path) -> Path:
    path.write_text("no video")
    return path


def _sound(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
