"""Videos of features: one basis, segments that are gone on with, MP4 and GIF."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import upfeat
from upfeat._files import OwnFiles
from upfeat.data import open_video, video_frames
from upfeat.errors import ForeignFileError
from upfeat.viz import PCABasis, make_video, videos

av = pytest.importorskip("av")


@pytest.fixture
def pipe() -> upfeat.Pipeline:
    weight = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    backbone = upfeat.CallableBackbone(
        lambda x: F.conv2d(x, weight.to(x), stride=8), dim=8, patch_size=8, name="test/conv"
    )
    return upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    generator = np.random.default_rng(0)
    scene = generator.integers(0, 255, (40, 80, 3), dtype=np.uint8)
    for number in range(7):
        Image.fromarray(np.roll(scene, 2 * number, 1)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "SEGMENT", 3)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def make(pipe: upfeat.Pipeline, source: Path, out: Path, **options: Any) -> videos.VideoResult:
    out.mkdir(exist_ok=True)
    return make_video(open_video(source), pipe, out, {"test": 1}, **options)


def test_each_view_is_a_video_of_all_frames(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path
) -> None:
    result = make(pipe, frames, tmp_path / "out", views=("panel", "pca", "overlay"))
    names = ["frames.mp4", "frames_pca.mp4", "frames_overlay.mp4"]
    assert [file.name for file in result.files] == names
    assert result.frames == 7
    for file in result.files:
        assert len(decode(file)) == 7
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert float(stream.duration * stream.time_base) == pytest.approx(7 / 25)
    assert decode(result.files[1])[0].shape == (40, 80, 3)


def test_all_frames_share_one_basis(pipe: upfeat.Pipeline, frames: Path, tmp_path: Path) -> None:
    """Colours of one scene stay where it stands still: frames are compared with their own basis."""
    video = open_video(frames)
    lows = [pipe.encode(frame).low for frame in video.sample(32)]
    basis = PCABasis.fit(lows)
    result = make(pipe, frames, tmp_path / "out", views=("pca",))
    for shown, frame in zip(decode(result.files[0]), video.frames(), strict=True):
        encoded = pipe.encode(frame)
        expected = basis.colors(pipe.upsample(encoded, head=basis.project))
        difference = shown.astype(float) - expected.permute(1, 2, 0).numpy()
        assert np.abs(difference).mean() < 6  # chroma is halved


def test_a_given_basis_is_used(pipe: upfeat.Pipeline, frames: Path, tmp_path: Path) -> None:
    low = pipe.encode(next(open_video(frames).frames())).low
    one = PCABasis.fit(low)
    other = PCABasis(
        one.mean, one.components.flip(0), one.low.flip(0), one.high.flip(0), one.explained
    )
    first = decode(make(pipe, frames, tmp_path / "a", views=("pca",), basis=one).files[0])[0]
    second = decode(make(pipe, frames, tmp_path / "b", views=("pca",), basis=other).files[0])[0]
    difference = first.astype(float) - second[..., ::-1].astype(float)
    assert np.abs(difference).mean() < 6
    assert np.abs(first.astype(float) - second).mean() > 20


def test_a_stopped_run_goes_on_after_the_last_whole_segment(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(pipe, frames, tmp_path / "whole", views=("pca",)).files[0]

    def stop(number: int, encoded: object) -> None:
        if number == 5:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(pipe, frames, out, views=("pca",), on_frame=stop)
    assert not list(out.glob("*.mp4"))
    seen: list[int] = []
    result = make(
        pipe, frames, out, views=("pca",), on_frame=lambda number, encoded: seen.append(number)
    )
    assert seen == [4, 5, 6, 7]
    for mine, other in zip(decode(result.files[0]), decode(whole), strict=True):
        assert np.array_equal(mine, other)
    assert not (out / ".upfeat" / "videos" / "frames.parts").exists()


def test_a_finished_video_is_not_made_again_unless_something_changed(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert make(pipe, frames, out).state == "done"
    assert make(pipe, frames, out).state == "skipped"
    Image.new("RGB", (80, 40)).save(frames / "3.png")
    assert make(pipe, frames, out).state == "done"
    (out / "frames.mp4").unlink()
    assert make(pipe, frames, out).state == "done"


def test_somebody_elses_video_stays(pipe: upfeat.Pipeline, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "frames.mp4").write_bytes(b"mine")
    with pytest.raises(ForeignFileError, match="was not written by upfeat"):
        make(pipe, frames, out)
    assert (out / "frames.mp4").read_bytes() == b"mine"
    assert not OwnFiles(out).state.exists()


def test_a_gif_has_one_palette_and_all_frames(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path
) -> None:
    result = make(pipe, frames, tmp_path / "out", views=("pca",), kind="gif")
    video = open_video(frames)
    basis = PCABasis.fit([pipe.encode(frame).low for frame in video.sample(32)])
    with Image.open(result.files[0]) as picture:
        assert picture.n_frames == 7
        assert picture.info["duration"] == 40
        for number, frame in enumerate(video.frames()):
            picture.seek(number)
            shown = np.asarray(picture.convert("RGB"), float)
            high = basis.colors(pipe.upsample(pipe.encode(frame), head=basis.project))
            assert np.abs(shown - high.permute(1, 2, 0).numpy()).mean() < 12


def test_ctrl_c_ends_the_video_of_a_camera(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path
) -> None:
    shown = list(open_video(frames).frames())[:5]

    class Recording(video_frames.Camera):
        def _frames(self, every: int, start: int) -> Iterator[Tensor]:
            yield from shown
            raise KeyboardInterrupt

    video = Recording(0, "camera0", Fraction(25))
    (tmp_path / "out").mkdir()
    basis = PCABasis.fit([pipe.encode(frame).low for frame in shown])
    result = make_video(video, pipe, tmp_path / "out", {}, basis=basis)
    assert result.frames == 5
    assert len(decode(result.files[0])) == 5


def test_frames_of_several_sizes_are_refused(
    pipe: upfeat.Pipeline, frames: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(frames / "5.png")
    with pytest.raises(ValueError, match="frames of one size make a video"):
        make(pipe, frames, tmp_path / "out", views=("pca",))
    assert not list((tmp_path / "out").glob("*.mp4"))
