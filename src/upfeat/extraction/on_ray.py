"""Shards of a store on Ray: each is one row of a data set, computed by a pool of actors.

Ray Data sends a row anew where its actor was lost. Shards that an earlier run finished are not in
the data set: the store itself is the checkpoint.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from upfeat.errors import MissingPackageError
from upfeat.extraction.bulk import Outcome

if TYPE_CHECKING:
    from upfeat.extraction.filling import ShardMaker
    from upfeat.pipeline import Pipeline

__all__ = ["make_on_ray"]

_STARTS = 3


def make_on_ray(
    maker: "ShardMaker",
    numbers: Sequence[int],
    pipe: "Pipeline",
    workers: int,
    threads: int,
    note: Callable[[Outcome], None],
) -> None:
    """Compute and write shards on a cluster.

    Args:
        maker: of the shards.
        numbers: which ones.
        pipe: sent to the workers as it is, with its weights and its device.
        workers: actors in the pool.
        threads: CPU threads of each.
        note: called after each image, when its shard is there.

    Raises:
        MissingPackageError: Ray is not installed.
        OSError: a worker could not write a shard.
    """
    with _cluster(workers * threads) as ray:
        rows = [{"shard": number} for number in numbers]
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(numbers)))
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(maker, ray.put(pipe), threads, _most_pixels()),
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

    def __init__(
        self, maker: "ShardMaker", pipe: Any, threads: int, most_pixels: int | None
    ) -> None:
        import ray
        import torch
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
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("ray[data]", "ray", "runs of several workers") from error
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
    """Start a cluster of this machine; Ray allows its processes 30 s, which a busy one exceeds.

    Raises:
        OSError: it did not start.
    """
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


def _most_pixels() -> int | None:
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS
