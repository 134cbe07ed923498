"""Videos among the inputs of ``upfeat upsample`` and ``extract``: options, and the bar of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import TextColumn, TimeRemainingColumn

from upfeat.cli.output import progress_bar

if TYPE_CHECKING:
    from upfeat.data import Video
    from upfeat.pipeline import Encoded, Pipeline
    from upfeat.viz import PCABasis


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """Which inputs are videos, and which of their frames are used; see ``options.with_fields``."""

    video: Annotated[
        bool, typer.Option("--video", help="Treat a folder of frames, or a GIF, as one video.")
    ] = False
    every: Annotated[int, typer.Option(min=1, help="Use every N-th frame of a video.")] = 1
    frames: Annotated[int | None, typer.Option(min=1, help="Use at most N frames of a video.")] = (
        None
    )

    def split(self, paths: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the inputs that are images, and those that are videos."""
        videos = [path for path in paths if self._is_video(path)]
        return [path for path in paths if path not in videos], videos

    def _is_video(self, path: str) -> bool:
        from upfeat.data import VIDEO_SUFFIXES

        place = Path(path)
        if path.isdigit() and not place.exists():  # a camera
            return True
        if self.video:
            return place.is_dir() or place.is_file()
        return place.suffix.lower() in VIDEO_SUFFIXES

    def open(self, path: str) -> "Video":
        """Open a video."""
        from upfeat.data import open_video

        return open_video(path, every=self.every, limit=self.frames)


@dataclass(frozen=True, kw_only=True)
class VideoOptions(FrameOptions):
    """The options of videos that are written, in addition."""

    video_format: Annotated[
        Literal["mp4", "gif"], typer.Option(help="File format of the output videos.")
    ] = "mp4"
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, help="Frames per second. Default: the video's; 25 for a folder."),
    ] = None

    def open(self, path: str) -> "Video":
        """Open a video."""
        from upfeat.data import open_video

        rate = None if self.fps is None else Fraction(self.fps).limit_denominator(1001)
        return open_video(path, rate=rate, every=self.every, limit=self.frames)


def upsample_video(
    video: "Video",
    pipe: "Pipeline",
    out: Path,
    settings: Mapping[str, Any],
    views: Sequence[str],
    options: VideoOptions,
    basis: "PCABasis | None",
) -> None:
    """Make the videos of one input, with a progress bar, and print where they are."""
    from upfeat.viz import make_video

    with progress_bar(TextColumn("{task.completed} frames"), TimeRemainingColumn()) as progress:
        task = progress.add_task(video.name, total=video.length())

        def show(number: int, encoded: "Encoded") -> None:
            progress.update(task, completed=number)

        if video.endless and video.limit is None:
            progress.console.print("recording; Ctrl-C ends the video", highlight=False)
        result = make_video(
            video,
            pipe,
            out,
            settings,
            views=views,
            kind=options.video_format,
            basis=basis,
            on_frame=show,
        )
    what = "frames" if result.state == "done" else "frames, already there"
    typer.echo(f"{video.name}: {result.frames} {what}")
    typer.echo("\n".join(str(file) for file in result.files))
