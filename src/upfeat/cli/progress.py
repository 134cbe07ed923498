"""What the commands of many images say before they write, and the bar they show while they do."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from upfeat.extraction import Outcome, Summary

__all__ = ["announce_bytes", "run_with_progress", "size_text"]

_WORTH_SAYING = 10**9  # bytes below which a run that was not asked says nothing


def announce_bytes(
    expected: int, out: Path, max_gb: float, smaller: str, *, always: bool = False
) -> None:
    """Say how many bytes a run will write, and refuse too many.

    Args:
        expected: bytes that are still to be written.
        out: folder of the results.
        max_gb: the most that may be written, in GB of 10**9 bytes.
        smaller: what writes less, for the message.
        always: whether small amounts are said, too.

    Raises:
        ValueError: more than ``max_gb``, or more than is free on the disk.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.progress import announce_bytes
        >>> try:
        ...     announce_bytes(12 * 10**9, Path("out"), 10, "a smaller --size")
        ... except ValueError as error:
        ...     print(error)
        this would write about 12 GB, and --max-gb allows 10; choose a smaller --size, or raise \
--max-gb
    """
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if expected > max_gb * 10**9:
        raise ValueError(
            f"this would write about {size_text(expected)}, and --max-gb allows {max_gb:g}; choose "
            f"{smaller}, or raise --max-gb"
        )
    if expected > free:
        raise ValueError(
            f"this would write about {size_text(expected)}, and {folder} has {size_text(free)} "
            f"free; choose {smaller}"
        )
    if expected > (0 if always else _WORTH_SAYING):
        text = f"will write about {size_text(expected)} to {out}; {size_text(free)} are free"
        Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def size_text(count: float) -> str:
    """Return a number of bytes with three digits.

    Example:
        >>> from upfeat.cli.progress import size_text
        >>> size_text(78_643_200)
        '78.6 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Return the rate over the images that were computed."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} images/s", style="cyan")


def run_with_progress(
    description: str, count: int, run: Callable[[Callable[["Outcome"], None]], "Summary"]
) -> "Summary":
    """Show a bar while ``run`` works, and every failure as it happens.

    Args:
        description: a word beside the bar.
        count: of the images.
        run: takes the function to call after each image.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=count)

        def show(outcome: "Outcome") -> None:
            progress.advance(task)
            if outcome.state == "failed":
                progress.console.print(
                    f"failed: {outcome.job.source}: {outcome.error}", markup=False
                )

        return run(show)
