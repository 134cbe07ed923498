"""Run a pipeline over many files: resumable, interruptible, complete or absent.

In the folder of an image's outputs, ``.upfeat/records/NAME.json`` holds the settings and the
fingerprint of the input, written last. A file whose record fits is done and is skipped; with other
settings, another input or a missing output it is computed again. Images that fail are named in
``failures.jsonl``, one JSON object a line, and the others go on; a disk that is full or may not be
written ends the run.

Outputs take the place of what an earlier run wrote, and of nothing else: all of them are compared
with the images and with what lies there before the first one is computed, and again when they are
written.
"""

import errno
import functools
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from upfeat._files import OwnFiles, OwnFolders, sha256_of, write_bytes
from upfeat.checkpoints import write_safetensors
from upfeat.data import image_size, read_image
from upfeat.data.sizes import resolve_size
from upfeat.errors import ForeignFileError, UnknownNameError
from upfeat.pipeline import Encoded, Pipeline

__all__ = ["Job", "Outcome", "Summary", "Writer", "estimate_bytes", "run_bulk", "tensor_writer"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

FAILURES = "failures.jsonl"
FORMATS = ("safetensors", "npz")
MAKER = "upfeat upsample"
SHOWN = 3  # of the files that are in the way, in the message
# What all further images would meet as well: full, read-only, broken or forbidden places.
_FATAL = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
        *(errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV),
    }
)


@dataclass(frozen=True)
class Job:
    """One image file and the name of its outputs: a relative path without suffix."""

    source: Path
    name: Path


@dataclass(frozen=True)
class Outcome:
    """What happened to one image: computed now, found done (``skipped``), or failed and why."""

    job: Job
    state: Literal["done", "skipped", "failed"]
    files: tuple[Path, ...] = ()
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Summary:
    """All outcomes of a run, in order, and the file that names the failures, if there are any."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: Path | None = None

    def count(self, state: str) -> int:
        """Return how many images ended in a state."""
        return sum(outcome.state == state for outcome in self.outcomes)


@dataclass(frozen=True)
class Writer:
    """One kind of output file: its suffix, with the dot, and how it is computed and written.

    ``write(pipeline, encoded, path)`` writes it, whole or not at all; ``bytes_per_pixel`` is what
    an output pixel takes in the file, for the estimate before a run.
    """

    suffix: str
    write: Callable[[Pipeline, Encoded, Path], None]
    bytes_per_pixel: float


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
        ValueError: two jobs share a name, two writers a suffix, or ``workers`` is not positive.
        ForeignFileError: an output would replace an image of the run, or a file that upfeat did not
            write. Nothing was written.
        OSError: the disk is full, or ``out`` may not be written.
        KeyboardInterrupt: passed on; finished images stay, no half-written file does.

    Example:
        >>> import pathlib, tempfile, torch, upfeat
        >>> from PIL import Image
        >>> from upfeat.extraction import Job, run_bulk, tensor_writer
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> pipe = upfeat.Pipeline(backbone, "bilinear")
        >>> with tempfile.TemporaryDirectory() as name:
        ...     photo, out = pathlib.Path(name, "a.png"), pathlib.Path(name, "out")
        ...     Image.new("RGB", (48, 32)).save(photo)
        ...     summary = run_bulk(
        ...         [Job(photo, pathlib.Path("a"))], pipe, [tensor_writer("npz", 3)], out, {}
        ...     )
        >>> summary.count("done"), summary.outcomes[0].files[0].name
        (1, 'a.npz')
    """
    _check_arguments(jobs, writers, workers)
    run = _Run(pipe, writers, out, settings)
    run.check_targets(jobs)
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job, image in run.read_ahead(jobs, pool, workers):
                if image is None:
                    outcome = Outcome(job, "skipped", _outputs(job, out, writers))
                else:
                    outcome = run.compute(job, image)
                summary.outcomes.append(outcome)
                if outcome.state == "failed":
                    summary.failures = write_failures(run.own[out], summary.outcomes, MAKER)
                if on_outcome is not None:
                    on_outcome(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if summary.failures is None:
        forget_failures(run.own[out], MAKER)
    return summary


def estimate_bytes(
    jobs: Sequence[Job],
    writers: Sequence[Writer],
    output_size: Any,
    out: Path,
    settings: Mapping[str, Any],
) -> int:
    """Return about how many bytes a run will write, from the headers of the images not done yet.

    Arguments are those of :func:`run_bulk`, and ``output_size`` as the pipeline takes it.
    """
    per_pixel = sum(writer.bytes_per_pixel for writer in writers)
    total = 0
    for job in jobs:
        if _is_done(job, out, writers, settings):
            continue
        try:
            height, width = resolve_size(output_size, image_size(job.source), "output_size")
        except Exception:  # a broken file writes nothing; the run itself names it
            logger.debug("no size of %s", job.source, exc_info=True)
            continue
        total += int(height * width * per_pixel)
    return total


def tensor_writer(
    kind: str,
    channels: int,
    dtype: torch.dtype = torch.float16,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Writer:
    """Return a writer of feature maps: ``high`` (C, H', W') and ``low`` (C, h, w).

    Beside the two maps a file says what they are: ``image_size`` (H, W), ``low_extent`` (what
    ``low`` covers, see ``PipelineOutput``), ``layout`` and ``settings``, each as JSON. In a
    safetensors file they are the metadata of its header, in an npz file one text ``metadata``.

    Args:
        kind: ``"safetensors"`` or ``"npz"``.
        channels: C, for the estimate.
        dtype: of the stored numbers; npz knows no bfloat16.
        settings: what made the features, as JSON.

    Raises:
        UnknownNameError: another kind.
        ValueError: a dtype that the format does not have.

    Example:
        >>> from upfeat.extraction import tensor_writer
        >>> tensor_writer("npz", channels=192, dtype=torch.float16).bytes_per_pixel
        384.0
    """
    if kind not in FORMATS:
        raise UnknownNameError("format", kind, FORMATS)
    if kind == "npz" and dtype == torch.bfloat16:
        raise ValueError("npz has no bfloat16; store float16 or float32, or save safetensors")

    def write(pipe: Pipeline, encoded: Encoded, path: Path) -> None:
        tensors = {"high": pipe.upsample(encoded).to(dtype), "low": encoded.low.to(dtype)}
        metadata = {
            "layout": {"high": "C, H', W'", "low": "C, h, w"},
            "image_size": encoded.frame.own,
            "low_extent": encoded.low_extent,
            "settings": dict(settings or {}),
        }
        if kind == "safetensors":
            texts = {name: json.dumps(value) for name, value in metadata.items()}
            write_safetensors(path, tensors, texts)
        else:
            write_bytes(path, _npz(tensors, json.dumps(metadata)))

    return Writer(f".{kind}", write, float(channels * dtype.itemsize))


def _npz(tensors: dict[str, Tensor], metadata: str) -> bytes:
    import numpy as np

    stream = io.BytesIO()
    high, low = (tensors[name].cpu().numpy() for name in ("high", "low"))
    np.savez(stream, high=high, low=low, metadata=np.array(metadata))
    return stream.getvalue()


# -- the run ---------------------------------------------------------------------------------------


def _check_arguments(jobs: Sequence[Job], writers: Sequence[Writer], workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    if (name := _double([job.name for job in jobs])) is not None:
        raise ValueError(f"two inputs share the output name {name}; rename one of them")
    if (suffix := _double([writer.suffix for writer in writers])) is not None:
        raise ValueError(f"two writers share the suffix {suffix}; pass one of them")


def _double(values: Sequence[T]) -> T | None:
    """Return the first value that comes more than once, or None."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


class _Run:
    """What all images of a run share."""

    def __init__(
        self, pipe: Pipeline, writers: Sequence[Writer], out: Path, settings: Mapping[str, Any]
    ) -> None:
        self.pipe, self.writers, self.out, self.settings = pipe, writers, out, settings
        self.own = OwnFolders()

    def check_targets(self, jobs: Sequence[Job]) -> None:
        """Refuse outputs that lie where an image of the run or somebody else's file is."""
        real_folder = functools.cache(os.path.realpath)
        sources = {(real_folder(path.parent), path.name): path for path in (j.source for j in jobs)}
        foreign = []
        for job in jobs:
            for file in _outputs(job, self.out, self.writers):
                source = sources.get((real_folder(file.parent), file.name))
                if source is not None:
                    raise ForeignFileError(
                        f"the image {source} lies where the result of {job.source} belongs; choose "
                        "another folder for the results, or leave the image out"
                    )
                if os.path.lexists(file) and not self.own[file.parent].wrote(file.name, MAKER):
                    foreign.append(str(file))
        if foreign:
            shown = ", ".join(foreign[:SHOWN])
            more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
            raise ForeignFileError(
                f"{shown}{more} would be overwritten, but this command did not write it; choose "
                "another folder for the results, or move what is in the way"
            )

    def read_ahead(
        self, jobs: Sequence[Job], pool: ThreadPoolExecutor, workers: int
    ) -> Iterator[tuple[Job, "Future[Tensor] | None"]]:
        """Yield each job with its image being read, or None if it is done; ``workers`` ahead."""

        def start(job: Job) -> "tuple[Job, Future[Tensor] | None]":
            done = _is_done(job, self.out, self.writers, self.settings)
            return job, None if done else pool.submit(read_image, job.source)

        source = map(start, jobs)
        waiting = list(islice(source, workers))
        while waiting:
            yield waiting.pop(0)
            waiting.extend(islice(source, 1))

    def compute(self, job: Job, image: "Future[Tensor]") -> Outcome:
        """Run one image; whatever is wrong with it is its own failure and not the run's."""
        start = time.perf_counter()
        try:
            fingerprint = sha256_of(job.source)
            encoded = self.pipe.encode(image.result())
        except Exception as error:  # noqa: BLE001  (readers raise anything; the others go on)
            return failed(job, error)
        try:
            files = self.write(job, encoded, fingerprint)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FATAL:
                raise
            return failed(job, error)
        return Outcome(job, "done", files, time.perf_counter() - start)

    def write(self, job: Job, encoded: Encoded, fingerprint: str) -> tuple[Path, ...]:
        """Write the outputs beside their places, move them there, then write the record."""
        files = _outputs(job, self.out, self.writers)
        record = _record(job, self.out)
        record.parent.mkdir(parents=True, exist_ok=True)
        own = self.own[files[0].parent] if files else OwnFiles(self.out)
        with own.parts() as parts:
            for writer, file in zip(self.writers, files, strict=True):
                writer.write(self.pipe, encoded, parts / file.name)
            for file in files:
                own.check(file.name, MAKER)
            record.unlink(missing_ok=True)
            for file in files:
                own.take(parts / file.name, file.name, MAKER)
        content = {
            "settings": dict(self.settings),
            "source": str(job.source),
            "sha256": fingerprint,
            "bytes": {file.name: file.stat().st_size for file in files},
        }
        write_bytes(record, f"{json.dumps(content, indent=2)}\n".encode())
        return files


# -- failures --------------------------------------------------------------------------------------


def write_failures(own: OwnFiles, outcomes: Sequence[Outcome], maker: str) -> Path:
    """Name the failures of a run in a file, one a line, and return where."""
    lines = [
        json.dumps({"file": os.fspath(outcome.job.source), "error": outcome.error})
        for outcome in outcomes
        if outcome.state == "failed"
    ]
    content = ("\n".join(lines) + "\n").encode()
    try:
        return own.write(FAILURES, content, maker)
    except ForeignFileError:  # a file of the user's, which stays
        own.state.mkdir(parents=True, exist_ok=True)
        write_bytes(own.state / FAILURES, content)
        return own.state / FAILURES


def forget_failures(own: OwnFiles, maker: str) -> None:
    """Remove what an earlier run wrote about failures, where that can be removed."""
    try:
        own.remove(FAILURES, maker)
        (own.state / FAILURES).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is of an earlier run: %s", own.folder / FAILURES, error)


# -- one image -------------------------------------------------------------------------------------


def failed(job: Job, error: Exception) -> Outcome:
    """Return the outcome of an image that an error ended."""
    logger.debug("%s failed", job.source, exc_info=error)
    return Outcome(job, "failed", error=f"{type(error).__name__}: {error}")


def _outputs(job: Job, out: Path, writers: Sequence[Writer]) -> tuple[Path, ...]:
    return tuple(out / f"{job.name}{writer.suffix}" for writer in writers)


def _record(job: Job, out: Path) -> Path:
    """Return where the record is; no image's output can have this name."""
    place = out / job.name
    return OwnFiles(place.parent).state / "records" / f"{place.name}.json"


def _is_done(job: Job, out: Path, writers: Sequence[Writer], settings: Mapping[str, Any]) -> bool:
    """Whether a record with these settings and this input lies beside complete outputs."""
    try:
        record = json.loads(_record(job, out).read_bytes())
        return (
            record["settings"] == json.loads(json.dumps(dict(settings)))
            and record["bytes"]
            == {file.name: file.stat().st_size for file in _outputs(job, out, writers)}
            and record["sha256"] == sha256_of(job.source)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
