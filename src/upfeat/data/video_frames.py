"""Videos as streams of images: a video file, a folder of frames, or a camera.

Frames come one at a time, as RGB (3, H, W) float32 in [0, 1], so that a video of any length needs
the memory of one frame. Video files and cameras are read by PyAV (``pip install upfeat[video]``).
"""

import hashlib
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from upfeat._files import OwnFiles, sha256_of, write_bytes
from upfeat.data.folders import image_files
from upfeat.data.images import encode_png, read_image
from upfeat.errors import check_file, import_optional

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["VIDEO_SUFFIXES", "Video", "open_video", "require_pyav", "write_frames"]

_KINDS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _KINDS.split())
FOLDER_RATE = Fraction(25)  # frames per second of a folder, which knows none


@dataclass(frozen=True)
class Video(ABC):
    """Frames in order, read when they are asked for.

    Attributes:
        source: the file or folder, or the number of the camera.
        name: of the results.
        rate: frames per second of what :meth:`frames` yields.
        every: of so many frames the first is kept.
        limit: at most so many frames; None for all.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data.video_frames import open_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (10, 9):
        ...         Image.new("RGB", (6, 4)).save(pathlib.Path(folder, f"frame_{number}.png"))
        ...     video = open_video(folder, rate=12)
        ...     [frame.shape for frame in video.frames()]
        [torch.Size([3, 4, 6]), torch.Size([3, 4, 6])]
        >>> video.rate, video.endless
        (Fraction(12, 1), False)
    """

    source: Path | int
    name: str
    rate: Fraction
    every: int = 1
    limit: int | None = None

    #: Whether frames come until somebody stops them.
    endless = False

    def frames(self, start: int = 0) -> Iterator[Tensor]:
        """Yield frames (3, H, W), float32 in [0, 1], from number ``start`` on."""
        left = None if self.limit is None else max(self.limit - start, 0)
        yield from islice(self._frames(self.every, start), left)

    @abstractmethod
    def _frames(self, every: int, start: int) -> Iterator[Tensor]:
        """Yield every ``every``-th frame, without its first ``start``."""

    @abstractmethod
    def sample(self, count: int) -> list[Tensor]:
        """Return at most ``count`` frames spread over the video, to fit a PCA basis to.

        Of a camera they are the first ones.
        """

    @abstractmethod
    def length(self) -> int | None:
        """Return how many frames there are; None if that is not known before the end."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """Return 64 hexadecimal digits of the content; None of a camera."""

    def describe(self) -> dict[str, Any]:
        """Return what decides which frames are read, as JSON."""
        return {
            "source": str(self.source),
            "sha256": self.fingerprint(),
            "rate": str(self.rate),
            "every": self.every,
            "limit": self.limit,
        }


def open_video(
    source: str | os.PathLike[str] | int,
    *,
    rate: float | Fraction | None = None,
    every: int = 1,
    limit: int | None = None,
) -> Video:
    """Open a video file, a folder of frames or a camera.

    Args:
        source: a file that PyAV reads, a folder of images in the order of the numbers in their
            names, or the number of a camera (``0``).
        rate: frames per second; default the file's own, 25 for a folder. With ``every=2`` half of
            it remains, so that the video keeps its pace.
        every: keep the first of so many frames.
        limit: read at most so many frames.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file holds no video, the folder no image, or a number is not positive.
        MissingPackageError: PyAV is not installed.
    """
    for name, number in (("rate", rate), ("every", every), ("limit", limit)):
        if number is not None and number <= 0:
            raise ValueError(f"{name} of a video must be positive, got {number}")
    wanted = None if rate is None else Fraction(rate).limit_denominator(1001)
    place: Path | int
    kind: type[VideoFile]
    if isinstance(source, int) or (str(source).isdigit() and not Path(source).exists()):
        place, kind = int(str(source)), Camera
        name = f"camera{place}"
    else:
        place, kind = Path(source).expanduser(), VideoFile
        name = place.stem
        if place.is_dir():
            own, name = wanted or FOLDER_RATE, place.resolve().name or "video"
            video = FrameFolder(place, name, own / every, every, limit)
            video.files()
            return video
        check_file(place, "video")
    with _opened(place) as container:
        own = wanted or container.streams.video[0].average_rate or FOLDER_RATE
    return kind(place, name, Fraction(own) / every, every, limit)


def write_frames(video: Video, folder: Path, maker: str) -> list[Path]:
    """Write the frames of a video as PNGs ``000000.png``, …; those that are there stay.

    Args:
        video: where the frames come from.
        folder: of the PNGs.
        maker: the command that writes, for what is known of its files.

    Returns:
        The files in order.
    """
    own, asked = OwnFiles(folder), json.dumps(video.describe())
    record = own.state / "video.json"
    same = record.is_file() and record.read_text() == asked and not video.endless
    files: list[Path] = []
    if same:
        while own.wrote(f"{len(files):06d}.png", maker):
            files.append(folder / f"{len(files):06d}.png")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(record, asked.encode())
    for frame in video.frames(len(files)):
        pixels = (frame * 255).round().byte().permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        picture = encode_png(pixels.numpy(), compress_level=1)
        files.append(own.write(f"{len(files):06d}.png", picture, maker))
    return files


# -- the three kinds -----------------------------------------------------------------------------


class FrameFolder(Video):
    """The images of a folder; ``frame_9`` comes before ``frame_10``."""

    def files(self) -> list[Path]:
        """Return the images in order."""
        found = [path for path, _ in image_files(str(self.source))]
        return sorted(found, key=lambda path: _natural(path.name))

    def _kept(self) -> list[Path]:
        return self.files()[:: self.every][: self.limit]

    def _frames(self, every: int, start: int) -> Iterator[Tensor]:
        yield from map(read_image, self.files()[::every][start:])

    def sample(self, count: int) -> list[Tensor]:
        """Return frames spread over the folder."""
        files = self._kept()
        step = max(1, -(-len(files) // count))
        return [read_image(path) for path in files[::step]]

    def length(self) -> int | None:
        """Return the number of images that are kept."""
        return len(self._kept())

    def fingerprint(self) -> str | None:
        """Return a digest of names and contents."""
        digest = hashlib.sha256()
        for path in self.files():
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
        return digest.hexdigest()


class VideoFile(Video):
    """A video file; its rotation is applied."""

    def _frames(self, every: int, start: int) -> Iterator[Tensor]:
        with _opened(self.source) as container:
            for frame in islice(_decoded(container, self.source), start * every, None, every):
                yield _pixels(frame)

    def sample(self, count: int) -> list[Tensor]:
        """Return frames near ``count`` times spread over the video."""
        length = self.length()
        if length is None or length <= count:
            return list(islice(self.frames(), count))
        with _opened(self.source) as container:
            stream = container.streams.video[0]
            if stream.duration is None or stream.time_base is None:
                return list(islice(self.frames(), count))
            seconds = min(float(stream.duration * stream.time_base), length / float(self.rate))
            first = stream.start_time or 0
            found = []
            for index in range(count):
                place = first + int(index * seconds / count / stream.time_base)
                container.seek(place, stream=stream)
                # A seek goes to the key frame before the place.
                decoded = container.decode(stream)
                frame = next((f for f in decoded if f.pts is None or f.pts >= place), None)
                found += [] if frame is None else [_pixels(frame)]
        return found

    def length(self) -> int | None:
        """Return the number of frames that the header tells, less those left out."""
        with _opened(self.source) as container:
            whole = container.streams.video[0].frames
        if not whole:
            return self.limit
        kept = -(-whole // self.every)
        return kept if self.limit is None else min(kept, self.limit)

    def fingerprint(self) -> str | None:
        """Return the digest of the file."""
        return sha256_of(str(self.source))


class Camera(VideoFile):
    """A camera of this machine; frames come until they are stopped."""

    endless = True

    def sample(self, count: int) -> list[Tensor]:
        """Return the first frames."""
        return list(islice(self.frames(), min(count, 8)))

    def length(self) -> int | None:
        """Return the limit, if there is one."""
        return self.limit

    def fingerprint(self) -> str | None:
        """Return None: no two recordings are one."""
        return None


# -- PyAV ----------------------------------------------------------------------------------------


def require_pyav() -> Any:
    """Return the module ``av``."""
    return import_optional("av", "av", "video", "video files and cameras")


@contextmanager
def _opened(source: Path | int) -> "Iterator[InputContainer]":
    """Yield the open container of a file or camera, which has at least one video stream."""
    av = require_pyav()
    try:
        if isinstance(source, int):
            place, kind = _camera_address(source)
            container = av.open(place, format=kind)
        else:
            container = av.open(os.fspath(source))
    except av.error.FFmpegError as error:
        hint = "; name a video file, or a folder of frames" if isinstance(source, Path) else ""
        what = source if isinstance(source, Path) else f"camera {source}"
        raise ValueError(f"cannot open {what} as a video: {error.strerror}{hint}") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{source} holds no video stream, only sound or subtitles")
        container.streams.video[0].thread_type = "AUTO"
        yield container


def _camera_address(number: int) -> tuple[str, str]:
    """Return the device and FFmpeg's input format of a camera of this system."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"


def _decoded(container: "InputContainer", source: Path | int) -> Iterator[Any]:
    """Yield frames; a broken part of the file names itself."""
    av, number = require_pyav(), 0
    try:
        for frame in container.decode(container.streams.video[0]):
            number += 1
            yield frame
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{source} cannot be decoded after frame {number}: {error.strerror}"
        ) from error


def _pixels(frame: Any) -> Tensor:
    """Return a decoded frame upright, (3, H, W) float32 in [0, 1]."""
    # (H, W, 3) -> (3, H, W)
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    # Degrees counterclockwise that bring the stored picture upright.
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return torch.rot90(picture, turns, (1, 2)).contiguous().float() / 255


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts the numbers in names by value."""
    return [
        (int(part), "") if part.isdigit() else (-1, part.lower())
        for part in re.split(r"(\d+)", name)
        if part
    ]
