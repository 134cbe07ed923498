"""Videos of features: every frame in one PCA basis, as MP4 or GIF.

One basis and one range, fitted to frames spread over the video, serve all frames, so that a colour
means the same from the first to the last. The video is made in segments; a run that was stopped
goes on after the last whole one.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.video_frames import Video, require_pyav
from upfeat.errors import UnknownNameError
from upfeat.viz.panel import photo_pixels, to_pil
from upfeat.viz.pca import PCABasis, PCAPicture, pca_picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from upfeat.pipeline import Encoded, Pipeline

__all__ = ["VIEWS", "VideoFormat", "VideoResult", "draw_view", "make_video"]

VideoFormat = Literal["mp4", "gif"]
VIEWS = ("panel", "pca", "overlay")
BASIS_FRAMES = 32  # that the basis is fitted to
SEGMENT = 100  # frames that a stopped run loses at most
MAKER = "upfeat upsample"
_PALETTE_FRAMES = 8  # whose colours become a GIF's
_FORMATS = ("mp4", "gif")


def draw_view(
    picture: PCAPicture, image: "Tensor", view: str, opacity: float = 0.6
) -> "Image.Image":
    """Draw one of the views of a picture of features.

    Args:
        picture: of :func:`pca_picture`.
        image: (3, H, W) in [0, 1], of which it was made.
        view: ``"panel"`` is image, low-resolution and upsampled features side by side; ``"pca"``
            the upsampled features at their full size; ``"overlay"`` these over the image.
        opacity: of the features in an overlay.

    Raises:
        UnknownNameError: another view.
    """
    from PIL import Image

    if view == "panel":
        return picture.panel
    colors = to_pil(picture.high)
    if view == "pca":
        return colors
    if view != "overlay":
        raise UnknownNameError("view", view, VIEWS)
    below = to_pil(photo_pixels(image))
    if below.size != colors.size:
        below = below.resize(colors.size, Image.Resampling.LANCZOS)
    return Image.blend(below, colors, opacity)


@dataclass(frozen=True)
class VideoResult:
    """What :func:`make_video` returns.

    Attributes:
        files: one a view.
        frames: how many each has.
        state: ``"skipped"`` where all files were there already.
    """

    files: tuple[Path, ...]
    frames: int
    state: Literal["done", "skipped"]


def make_video(
    video: Video,
    pipe: "Pipeline",
    out: Path,
    settings: Mapping[str, Any],
    *,
    views: Sequence[str] = ("panel",),
    kind: VideoFormat = "mp4",
    basis: PCABasis | None = None,
    max_side: int = 768,
    on_frame: "Callable[[int, Encoded], None] | None" = None,
) -> VideoResult:
    """Make a video of the upsampled features of another, one file a view.

    Args:
        video: where the frames come from.
        pipe: backbone and upsampler.
        out: folder of the results: ``NAME.mp4`` of the panel, ``NAME_pca.mp4`` and
            ``NAME_overlay.mp4`` of the other views.
        settings: everything that decides the result, as JSON; with others all is made anew.
        views: of :func:`draw_view`.
        kind: a GIF has one palette for all frames, and starts anew when it was stopped.
        basis: the colours; default one fitted to frames spread over the video.
        max_side: longer side of each picture of a panel, in pixels.
        on_frame: called after each frame with its number and what the pipeline encoded.

    Returns:
        The files. A video that is there with the same settings is not made again.

    Raises:
        ForeignFileError: a file that upfeat did not write has the name of a result.
        KeyboardInterrupt: passed on; finished segments stay. The video of a camera ends there and
            is whole.
        ValueError: the video has no frames, or a frame cannot be read.
        MissingPackageError: PyAV is not installed.
    """
    require_pyav()
    for view in views:
        if view not in VIEWS:
            raise UnknownNameError("view", view, VIEWS)
    if kind not in _FORMATS:
        raise UnknownNameError("video format", kind, _FORMATS)
    names = {view: f"{video.name}{'' if view == 'panel' else f'_{view}'}.{kind}" for view in views}
    own = OwnFiles(out)
    for name in names.values():
        own.check(name, MAKER)
    asked = json.loads(json.dumps({**settings, **video.describe(), "views": sorted(views)}))
    record = own.state / "videos" / f"{video.name}.json"
    if not video.endless and (done := _finished(record, asked, own, names)) is not None:
        return done
    work = own.state / "videos" / f"{video.name}.parts"
    run = _Run(video, pipe, work, asked, tuple(views), kind, max_side)
    run.prepare(basis)
    frames = run.draw(on_frame)
    files = []
    with own.parts() as parts:
        for view, name in names.items():
            run.join(view, parts / name)
            files.append(own.take(parts / name, name, MAKER))
    content = {"settings": asked, "frames": frames}
    content["bytes"] = {file.name: file.stat().st_size for file in files}
    write_bytes(record, f"{json.dumps(content, indent=2)}\n".encode())
    shutil.rmtree(work)
    return VideoResult(tuple(files), frames, "done")


def _finished(
    record: Path, asked: Mapping[str, Any], own: OwnFiles, names: Mapping[str, str]
) -> VideoResult | None:
    """Return the result that an earlier run with these settings left, if it is still there."""
    try:
        content = json.loads(record.read_bytes())
        files = tuple(own.folder / name for name in names.values())
        same = content["settings"] == asked
        if same and content["bytes"] == {file.name: file.stat().st_size for file in files}:
            return VideoResult(files, content["frames"], "skipped")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


@dataclass
class _Run:
    """The segments of one video, in a hidden folder until they are joined."""

    video: Video
    pipe: "Pipeline"
    work: Path
    asked: Mapping[str, Any]
    views: tuple[str, ...]
    kind: str
    max_side: int
    basis: PCABasis | None = None
    done: int = 0  # whole segments that are there

    def prepare(self, basis: PCABasis | None) -> None:
        """Take up what a stopped run left, or begin: settings, basis, number of segments."""
        state, colors = self.work / "settings.json", self.work / "basis.json"
        try:
            kept = json.loads(state.read_bytes()) == self.asked and not self.video.endless
            self.basis = PCABasis.load(colors) if kept else None
        except (OSError, ValueError):
            kept = False
        if kept and self.basis is not None:
            counts = [len(list(self.work.glob(f"{view}-*.mp4"))) for view in self.views]
            self.done = min(counts)
            return
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.basis = basis or self._fit()
        self.basis.save(colors)
        write_bytes(state, json.dumps(self.asked).encode())

    def _fit(self) -> PCABasis:
        lows = [self.pipe.encode(frame).low for frame in self.video.sample(BASIS_FRAMES)]
        if not lows:
            raise ValueError(f"{self.video.source} holds no frame that can be read")
        return PCABasis.fit(lows)

    def draw(self, on_frame: "Callable[[int, Encoded], None] | None") -> int:
        """Draw the frames that are missing, segment by segment, and return how many there are."""
        number = self.done * SEGMENT
        frames = self.video.frames(number)
        while True:
            started = number
            with ExitStack() as stack:
                writers = {
                    view: stack.enter_context(
                        _Segment(self._part(view), self.video.rate, self.kind)
                    )
                    for view in self.views
                }
                stopped = False
                try:
                    for frame in islice(frames, SEGMENT):
                        encoded = self._draw_one(frame, writers)
                        number += 1
                        if on_frame is not None:
                            on_frame(number, encoded)
                except KeyboardInterrupt:
                    if not self.video.endless:
                        raise
                    stopped = True
            if number > started:
                for view in self.views:
                    self._part(view).rename(self._segment(view, self.done))
                self.done += 1
            if stopped or number - started < SEGMENT:
                break
        if not number:
            raise ValueError(f"{self.video.source} holds no frame that can be read")
        return number

    def _draw_one(self, frame: "Tensor", writers: "Mapping[str, _Segment]") -> "Encoded":
        encoded = self.pipe.encode(frame)
        picture = pca_picture(self.pipe, encoded, basis=self.basis, max_side=self.max_side)
        for view, writer in writers.items():
            writer.add(draw_view(picture, frame, view))
        return encoded

    def _part(self, view: str) -> Path:
        return self.work / f"part-{view}.mp4"

    def _segment(self, view: str, number: int) -> Path:
        return self.work / f"{view}-{number:06d}.mp4"

    def join(self, view: str, target: Path) -> None:
        """Join the segments of a view into one file."""
        segments = [self._segment(view, number) for number in range(self.done)]
        if self.kind == "mp4":
            _join(segments, target)
        else:
            _write_gif(segments, target, self.video.rate)


# -- files ---------------------------------------------------------------------------------------


class _Segment:
    """A short video that pictures are added to: H.264, without loss where a GIF is made of it."""

    def __init__(self, path: Path, rate: Fraction, kind: str) -> None:
        self.av = require_pyav()
        self.container = self.av.open(str(path), "w", format="mp4")
        self.rate, self.kind = rate, kind
        self.stream: Any = None

    def __enter__(self) -> "_Segment":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()

    def add(self, picture: "Image.Image") -> None:
        """Encode a picture; all have one size."""
        even = picture.crop((0, 0, picture.width // 2 * 2, picture.height // 2 * 2))
        if self.stream is None:
            self.stream = self._open(even.width, even.height)
        size = (self.stream.width, self.stream.height)
        if even.size != size:
            raise ValueError(
                f"a frame of the video became {even.width}x{even.height}, the first one "
                f"{size[0]}x{size[1]}; frames of one size make a video"
            )
        self.container.mux(self.stream.encode(self.av.VideoFrame.from_image(even)))

    def _open(self, width: int, height: int) -> Any:
        # Without B-frames every segment begins at zero, so that segments join without gaps.
        lossless = self.kind == "gif"
        names = ("libx264rgb", "libx264") if lossless else ("libx264", "libopenh264", "mpeg4")
        codec = next((name for name in names if name in self.av.codecs_available), None)
        if codec is None:
            raise ValueError(
                f"this build of PyAV has none of the encoders {', '.join(names)}; install the "
                "wheel of PyAV"
            )
        stream = self.container.add_stream(codec, rate=self.rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        if codec.startswith("libx264"):
            quality = "0" if lossless else "18"
            stream.options = {"crf": quality, "preset": "veryfast", "bf": "0"}
        else:
            stream.bit_rate = 8 * width * height
        return stream


def _join(segments: Sequence[Path], target: Path) -> None:
    """Copy the packets of segments one after the other into one file."""
    av = require_pyav()
    with av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream, offset = None, 0
        for path in segments:
            with av.open(str(path)) as segment:
                source = segment.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(source)
                for packet in segment.demux(source):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    container.mux(packet)
                offset += source.duration


def _write_gif(segments: Sequence[Path], target: Path, rate: Fraction) -> None:
    """Write segments as a GIF with one palette, so that colours stay as they are."""
    palette = _palette(segments)
    from PIL import Image

    pictures = (
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in _pictures(segments)
    )
    first = next(pictures)
    # A GIF counts hundredths of a second, and players slow down what is shorter than two of them.
    duration = max(20, round(float(100 / rate)) * 10)
    first.save(
        target, "GIF", save_all=True, append_images=pictures, duration=duration, loop=0, disposal=1
    )


def _pictures(segments: Sequence[Path]) -> "Iterator[Image.Image]":
    av = require_pyav()
    for path in segments:
        with av.open(str(path)) as segment:
            for frame in segment.decode(segment.streams.video[0]):
                yield frame.to_image()


def _palette(segments: Sequence[Path]) -> "Image.Image":
    """Return a palette of 256 colours for frames spread over the video."""
    from PIL import Image

    chosen = segments[:: max(1, -(-len(segments) // _PALETTE_FRAMES))]
    frames = [next(_pictures([path])) for path in chosen]
    small = [
        frame.resize((max(1, frame.width // 2), max(1, frame.height // 2))) for frame in frames
    ]
    sheet = Image.new("RGB", (max(f.width for f in small), sum(f.height for f in small)))
    top = 0
    for frame in small:
        sheet.paste(frame, (0, top))
        top += frame.height
    return sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
