"""Computing the shards of a store: in this process, or on the workers of a Ray cluster.

A shard is computed in the same way wherever that is: its images in order, in batches of
``card.batch_size``. It is written beside its place and renamed when it is complete.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upfeat._files import OwnFiles
from upfeat.data.images import decode_image
from upfeat.errors import UnknownNameError, check_file, import_optional
from upfeat.extraction.basis import ChannelBasis
from upfeat.extraction.bulk import Job, Outcome, Summary, failed, forget_failures, write_failures
from upfeat.extraction.plan import BASIS, COMPONENTS, MAKER, StorePlan, key_of
from upfeat.extraction.shards import FailedImage, ShardContent, StoredImage
from upfeat.pipeline import Encoded, Pipeline

ENGINES = ("local", "ray")
_READERS = 2
_BASIS_IMAGES = 64
_STARTS = 3  # attempts to start Ray

OnOutcome = Callable[[Outcome], None]


def write_store(
    plan: StorePlan,
    pipe: Pipeline,
    *,
    engine: str = "local",
    workers: int = 2,
    threads: int | None = None,
    on_outcome: OnOutcome | None = None,
) -> Summary:
    """Compute and write every shard that is not there yet.

    Engines give equal stores where their threads are equal: sums of floating point numbers may
    come out otherwise in the last bit where other threads share them.

    Args:
        plan: what :func:`upfeat.extraction.plan_store` returned.
        pipe: the pipeline that it was made with.
        engine: ``"local"`` for this process; ``"ray"`` for a pool of workers, on the cluster that
            ``RAY_ADDRESS`` names or on this machine, all of which see the images and ``plan.root``
            under the same paths. A worker that is lost is replaced and begins its shard anew.
        workers: of the pool.
        threads: CPU threads of a worker, or of this process; None for this process's own number,
            or each worker's share of this machine.
        on_outcome: called after each image, for a progress bar.

    Returns:
        The outcomes in the order of ``plan.jobs``. Images that fail are left out of the store, and
        are computed when their file has changed.

    Raises:
        ForeignFileError: the folder holds something else.
        MissingPackageError: Ray is not installed.
        OSError: the disk is full, or ``plan.root`` may not be written.
        KeyboardInterrupt: passed on; finished shards stay, no half-written one does.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    plan.begin()
    maker = ShardMaker(plan, _basis(plan, pipe))
    outcomes: dict[Job, Outcome] = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.job] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    missing = [number for number in range(len(plan.shards)) if not _is_done(plan, number, note)]
    if engine == "local":
        if threads is not None:
            torch.set_num_threads(threads)
        for number in missing:
            maker.make(number, pipe, note)
    elif missing:
        share = max(1, (os.cpu_count() or 1) // workers) if threads is None else threads
        _make_on_ray(maker, missing, pipe, workers, share, note)
    summary = Summary([outcomes[job] for job in plan.jobs])
    if summary.count("failed"):
        summary.failures = write_failures(OwnFiles(plan.root), summary.outcomes, MAKER)
    else:
        forget_failures(OwnFiles(plan.root), MAKER)
    return summary


def _is_done(plan: StorePlan, number: int, note: OnOutcome) -> bool:
    """Whether a shard is there; what became of its images is noted."""
    file = plan.finished(number)
    if file is None:
        return False
    errors = {each.key: each.error for each in file.failures}
    for job in plan.shards[number]:
        if (error := errors.get(key_of(job))) is None:
            note(Outcome(job, "skipped", (file.path,)))
        else:
            note(Outcome(job, "failed", error=error))
    return True


# -- one shard -------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """An image (3, H, W) in [0, 1] or why it is none, its file's content and fingerprint."""

    image: Tensor | Exception
    content: bytes = b""
    sha256: str | None = None


class ShardMaker:
    """Computes and writes shards of a store; it can be sent to another process.

    Args:
        plan: the store.
        basis: of ``pca64``; None for other features.
    """

    def __init__(self, plan: StorePlan, basis: ChannelBasis | None = None) -> None:
        self.plan, self.basis = plan, basis

    def make(self, number: int, pipe: Pipeline, note: OnOutcome) -> None:
        """Compute and write one shard."""
        content = ShardContent()
        place = self.plan.place(number)
        for batch in _read_ahead(self.plan.shards[number], self.plan.card.batch_size):
            start = time.perf_counter()
            outcomes = self._add(content, batch, pipe)
            seconds = (time.perf_counter() - start) / len(batch)
            for outcome in outcomes:
                done = outcome.state == "done"
                note(replace(outcome, files=(place,) if done else (), seconds=seconds))
        self._write(place, content)

    def _add(
        self, content: ShardContent, batch: Sequence[tuple[Job, "Future[_Read]"]], pipe: Pipeline
    ) -> list[Outcome]:
        """Compute a batch and add it to the content."""
        read = [(job, future.result()) for job, future in batch]
        images = [each.image for _, each in read if isinstance(each.image, Tensor)]
        encoded = iter(_encoded(pipe, images))
        outcomes = []
        for job, each in read:
            try:
                one = next(encoded) if isinstance(each.image, Tensor) else each.image
                if isinstance(one, Exception):
                    raise one
                self._add_map(content, job, each, one, pipe)
                outcomes.append(Outcome(job, "done"))
            except Exception as error:  # noqa: BLE001  (readers and networks raise anything)
                outcomes.append(failed(job, error))
                reason = outcomes[-1].error or ""
                source = str(job.source.absolute())
                content.failures.append(FailedImage(key_of(job), source, each.sha256, reason))
        return outcomes

    def _add_map(
        self, content: ShardContent, job: Job, read: _Read, encoded: Encoded, pipe: Pipeline
    ) -> None:
        if self.plan.card.features == "high":
            features = pipe.upsample(encoded)
            visible = features.shape[-2:]
        else:
            features = encoded.features[0]
            visible = encoded.low.shape[-2:]
            features = features if self.basis is None else self.basis.project(features)
        stored = features.to("cpu", self.plan.dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise ValueError(
                f"features up to {float(features.abs().max()):.3g} do not fit into "
                f"{self.plan.card.dtype}; store float32"
            )
        content.images.append(
            StoredImage(
                key=key_of(job),
                source=str(job.source.absolute()),
                sha256=read.sha256 or "",
                size=encoded.frame.own,
                shape=(stored.shape[0], stored.shape[1], stored.shape[2]),
                visible=(visible[0], visible[1]),
            )
        )
        content.maps.append(stored.numpy())
        if self.plan.card.pictures:
            content.pictures.append(read.content)

    def _write(self, place: Path, content: ShardContent) -> None:
        """Write beside the place, then rename; what an earlier run left there goes."""
        with OwnFiles(self.plan.root).parts() as parts:
            self.plan.kind.write(parts / place.name, content)
            if place.is_dir():
                place.rename(parts / "earlier")
            (parts / place.name).replace(place)


def _read_ahead(
    jobs: Sequence[Job], batch_size: int
) -> Iterator[list[tuple[Job, "Future[_Read]"]]]:
    """Yield batches of images being read, while those of the next one are read as well."""
    starts = range(0, len(jobs), batch_size)
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            waiting: list[list[tuple[Job, Future[_Read]]]] = []
            for start in starts:
                batch = jobs[start : start + batch_size]
                waiting.append([(job, pool.submit(_read, job.source)) for job in batch])
                if len(waiting) == 2:
                    yield waiting.pop(0)
            yield from waiting
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(source: Path) -> _Read:
    """Read a file once, for its pixels and its fingerprint."""
    try:
        check_file(source, "image")
        content = source.read_bytes()
    except (OSError, ValueError) as error:
        return _Read(error)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return _Read(decode_image(content, str(source)), content, sha256)
    except Exception as error:  # noqa: BLE001  (readers raise anything; the others go on)
        return _Read(error, content, sha256)


def _encoded(pipe: Pipeline, images: list[Tensor]) -> list[Encoded | Exception]:
    """Encode images together, and each alone where one of them stops the others."""
    if not images:
        return []
    try:
        return list(pipe.encode(images))
    except Exception as error:  # noqa: BLE001  (backbones raise anything)
        if len(images) == 1:
            return [error]
    return [one for image in images for one in _encoded(pipe, [image])]


# -- fewer channels --------------------------------------------------------------------------------


def _basis(plan: StorePlan, pipe: Pipeline) -> ChannelBasis | None:
    """Return the basis of the store; one that is not there yet is fitted to some of the images."""
    if plan.card.features != "pca64":
        return None
    path = plan.root / BASIS
    if not path.is_file():
        order = torch.randperm(len(plan.jobs), generator=torch.Generator().manual_seed(0))
        chosen = [plan.jobs[index] for index in sorted(order[:_BASIS_IMAGES].tolist())]
        basis = ChannelBasis.fit(_some_maps(chosen, pipe), COMPONENTS)
        OwnFiles(plan.root).write(BASIS, basis.to_bytes(), MAKER)
    return ChannelBasis.load(path)


def _some_maps(jobs: Sequence[Job], pipe: Pipeline) -> Iterator[Tensor]:
    """Yield the features (C, h, w) of the images that can be read."""
    found = False
    for job in jobs:
        image = _read(job.source).image
        for one in _encoded(pipe, [image] if isinstance(image, Tensor) else []):
            if not isinstance(one, Exception):
                found = True
                yield one.low
    if not found:
        raise ValueError(f"none of {len(jobs)} images can be read; there is no basis to fit")


# -- Ray ------------------------------------------------------------------------------------------
# Each shard is one row of a data set. Ray Data sends a row anew where its actor was lost; shards
# that an earlier run finished are not in the data set: the store itself is the checkpoint.


def _make_on_ray(
    maker: ShardMaker,
    numbers: Sequence[int],
    pipe: Pipeline,
    workers: int,
    threads: int,
    note: OnOutcome,
) -> None:
    """Compute and write shards on a cluster."""
    from PIL import Image

    with _cluster(workers * threads) as ray:
        rows = [{"shard": number} for number in numbers]
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(numbers)))
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(maker, ray.put(pipe), threads, Image.MAX_IMAGE_PIXELS),
            compute=pool,
            batch_size=1,
            num_cpus=threads,
            num_gpus=1 if pipe.device.type == "cuda" else 0,
        )
        for row in made.iter_rows():
            answer = json.loads(row["answer"])
            if "error" in answer:
                raise OSError(*answer["error"])
            shard = maker.plan.shards[int(row["shard"])]
            place = maker.plan.place(int(row["shard"]))
            for job, (state, seconds, error) in zip(shard, answer["outcomes"], strict=True):
                files = (place,) if state == "done" else ()
                note(Outcome(job, state, files, seconds, error))


class _Worker:
    """An actor: it takes the pipeline once and makes a shard of each row."""

    def __init__(self, maker: ShardMaker, pipe: Any, threads: int, most_pixels: int | None) -> None:
        import ray
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = most_pixels
        torch.set_num_threads(threads)
        self.maker, self.pipe = maker, ray.get(pipe)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch, which holds one."""
        return {"shard": batch["shard"], "answer": [self._made(int(n)) for n in batch["shard"]]}

    def _made(self, number: int) -> str:
        """Make a shard and return its outcomes, or what the disk refused, as JSON."""
        outcomes: list[Outcome] = []
        try:
            self.maker.make(number, self.pipe, outcomes.append)
        except OSError as error:  # told here: Ray would wrap it beyond recognition
            return json.dumps({"error": [error.errno, error.strerror, error.filename]})
        told = [(outcome.state, outcome.seconds, outcome.error) for outcome in outcomes]
        return json.dumps({"outcomes": told})


@contextmanager
def _cluster(cpus: int) -> Iterator[Any]:
    """Yield Ray, joined to a cluster; one that is started here ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what went wrong is raised as well
    needed = ("ray[data]", "ray", "runs of several workers")
    ray, _ = (import_optional(module, *needed) for module in ("ray", "ray.data"))
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield ray
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start(ray, cpus)
    try:
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, cpus: int) -> None:
    """Start a cluster of this machine; Ray allows its processes 30 s, which a busy one exceeds."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises nothing more special
            ray.shutdown()
            if not left:
                text = f"Ray did not start in {_STARTS} attempts ({error}); free this machine, or "
                raise OSError(text + "name a cluster in RAY_ADDRESS") from error
