"""Run a pipeline over many files: resumable, interruptible, complete or absent.

Beside the outputs of an image lies a small record ``NAME.json`` with the settings and the
fingerprint of the input, written last. A file whose record fits is done and is skipped; with other
settings, another input or a missing output it is computed again. Images that fail are named in
``failures.jsonl``, one JSON object a line, and the others go on.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data import image_size, read_image
from upfeat.data.sizes import resolve_size
from upfeat.extraction.writers import Writer
from upfeat.pipeline import Pipeline

__all__ = ["Job", "Outcome", "Summary", "estimate_bytes", "run_bulk"]

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Job:
    """One image and the name of its outputs.

    Attributes:
        source: the image file.
        name: relative path of the outputs, without suffix.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.extraction import Job
        >>> Job(Path("photos/a.jpg"), Path("a")).name.name
        'a'
    """

    source: Path
    name: Path


@dataclass(frozen=True)
class Outcome:
    """What happened to one image.

    Attributes:
        job: the image.
        state: computed now, found done, or failed.
        files: the output files.
        seconds: time of the computation and writing.
        error: why it failed.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.extraction import Job, Outcome
        >>> Outcome(Job(Path("a.jpg"), Path("a")), "skipped").seconds
        0.0
    """

    job: Job
    state: Literal["done", "skipped", "failed"]
    files: tuple[Path, ...] = ()
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Summary:
    """All outcomes of a run, in order.

    Example:
        >>> from upfeat.extraction import Summary
        >>> Summary().count("failed")
        0
    """

    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, state: str) -> int:
        """Return how many images ended in a state."""
        return sum(outcome.state == state for outcome in self.outcomes)


def run_bulk(
    jobs: Sequence[Job],
    pipe: Pipeline,
    writers: Sequence[Writer],
    out: Path,
    settings: Mapping[str, Any],
    *,
    workers: int = 1,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Summary:
    """Compute and write the outputs of every job that is not done yet.

    Args:
        jobs: what to do, in order.
        pipe: backbone and upsampler.
        writers: one output file each.
        out: folder of the outputs; created if need be.
        settings: everything that decides the result, as JSON; a change means to compute again.
        workers: images that are read ahead while one is computed.
        on_outcome: called after each image, for a progress bar.

    Returns:
        The outcomes in the order of ``jobs``.

    Raises:
        ValueError: two jobs share a name, or ``workers`` is not positive.
        KeyboardInterrupt: passed on; finished images stay, no half-written file does.

    Example:
        >>> import pathlib, tempfile, torch, upfeat
        >>> from upfeat.extraction import run_bulk, tensor_writer
        >>> pool = torch.nn.AvgPool2d(8)
        >>> backbone = upfeat.CallableBackbone(pool, dim=3, patch_size=8)
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run_bulk([], pipe, [tensor_writer("npz", 3)], pathlib.Path(folder), {}).count(
        ...         "done"
        ...     )
        0
    """
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    names = [job.name for job in jobs]
    if len(set(names)) != len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two inputs share the output name {double}; rename one of them")
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job, image in _read_ahead(jobs, out, writers, settings, pool, workers):
                if image is None:
                    outcome = Outcome(job, "skipped", _outputs(job, out, writers))
                else:
                    outcome = _compute(job, image, pipe, writers, out, settings)
                summary.outcomes.append(outcome)
                _write_failures(out, summary)
                if on_outcome is not None:
                    on_outcome(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return summary


def estimate_bytes(
    jobs: Sequence[Job],
    writers: Sequence[Writer],
    output_size: Any,
    out: Path,
    settings: Mapping[str, Any],
) -> int:
    """Return about how many bytes a run will write, from the headers of the images not done yet.

    Args:
        jobs: as in :func:`run_bulk`.
        writers: as in :func:`run_bulk`.
        output_size: as the pipeline takes it.
        out: as in :func:`run_bulk`.
        settings: as in :func:`run_bulk`.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.extraction import estimate_bytes
        >>> estimate_bytes([], [], None, Path("out"), {})
        0
    """
    per_pixel = sum(writer.bytes_per_pixel for writer in writers)
    total = 0
    for job in jobs:
        if _is_done(job, out, writers, settings):
            continue
        try:
            height, width = resolve_size(output_size, image_size(job.source), "output_size")
        except (ValueError, OSError):
            continue  # a broken file writes nothing; the run itself names it
        total += int(height * width * per_pixel)
    return total


# -- one image -------------------------------------------------------------------------------------


def _compute(
    job: Job,
    image: "Future[Tensor]",
    pipe: Pipeline,
    writers: Sequence[Writer],
    out: Path,
    settings: Mapping[str, Any],
) -> Outcome:
    """Run one image; whatever is wrong with it is its own failure and not the run's."""
    start = time.perf_counter()
    files = _outputs(job, out, writers)
    try:
        fingerprint = _fingerprint(job.source)
        encoded = pipe.encode(image.result())
        _record(job, out).parent.mkdir(parents=True, exist_ok=True)
        _record(job, out).unlink(missing_ok=True)
        for writer, file in zip(writers, files, strict=True):
            writer.write(pipe, encoded, file)
        content = {"settings": dict(settings), "source": str(job.source), "sha256": fingerprint}
        write_bytes(_record(job, out), f"{json.dumps(content, indent=2)}\n".encode())
    except Exception as error:  # named in failures.jsonl; the others go on
        logger.debug("%s failed", job.source, exc_info=True)
        return Outcome(job, "failed", error=f"{type(error).__name__}: {error}")
    return Outcome(job, "done", files, time.perf_counter() - start)


def _read_ahead(
    jobs: Sequence[Job],
    out: Path,
    writers: Sequence[Writer],
    settings: Mapping[str, Any],
    pool: ThreadPoolExecutor,
    workers: int,
) -> Iterator[tuple[Job, "Future[Tensor] | None"]]:
    """Yield each job with its image being read, or None if it is done; ``workers`` ahead."""

    def started() -> Iterator[tuple[Job, "Future[Tensor] | None"]]:
        for job in jobs:
            if _is_done(job, out, writers, settings):
                yield job, None
            else:
                yield job, pool.submit(read_image, job.source)

    source = started()
    waiting = list(islice(source, workers))
    while waiting:
        yield waiting.pop(0)
        waiting.extend(islice(source, 1))


def _outputs(job: Job, out: Path, writers: Sequence[Writer]) -> tuple[Path, ...]:
    return tuple(out / f"{job.name}{writer.suffix}" for writer in writers)


def _record(job: Job, out: Path) -> Path:
    return out / f"{job.name}.json"


def _is_done(job: Job, out: Path, writers: Sequence[Writer], settings: Mapping[str, Any]) -> bool:
    """Whether a record with these settings and this input lies beside complete outputs."""
    try:
        record = json.loads(_record(job, out).read_bytes())
        return (
            record["settings"] == json.loads(json.dumps(dict(settings)))
            and all(file.is_file() for file in _outputs(job, out, writers))
            and record["sha256"] == _fingerprint(job.source)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_failures(out: Path, summary: Summary) -> None:
    """Keep ``failures.jsonl`` up to date: the failures of this run, absent without any."""
    failed = [outcome for outcome in summary.outcomes if outcome.state == "failed"]
    path = out / FAILURES
    if not failed:
        path.unlink(missing_ok=True)
    elif summary.outcomes[-1].state == "failed":
        lines = [
            json.dumps({"file": os.fspath(outcome.job.source), "error": outcome.error})
            for outcome in failed
        ]
        write_bytes(path, ("\n".join(lines) + "\n").encode())
