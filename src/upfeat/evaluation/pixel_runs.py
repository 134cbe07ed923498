"""What the quick probes on sampled pixels share: one method after the other, resumable."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from upfeat.errors import UnsupportedError
from upfeat.evaluation.dense import Method
from upfeat.evaluation.pixel_pool import PixelPool
from upfeat.evaluation.probe_parts import JointMethod
from upfeat.evaluation.results import Result, stored_result

__all__ = ["PixelRun", "Stages", "run_pixel_methods"]


class PixelRun(Protocol):
    """A probe of one backbone on one set."""

    pool: PixelPool

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        ...

    def run(self, method: Method, settings: dict[str, Any]) -> Result:
        """Sample, train, score."""
        ...


def run_pixel_methods(
    probe: PixelRun,
    methods: Sequence[Method | JointMethod],
    *,
    task: str,
    data: str,
    joint_presets: str,
    out: Path | str,
    keep_pixels: bool,
) -> list[Result]:
    """Return each method's result: the stored one of the same settings, or a new one, stored.

    Args:
        probe: runs a method.
        methods: in order.
        task: of the result files.
        data: of the result files.
        joint_presets: what to use for a method that is trained with the heads, for the error.
        out: folder of the results.
        keep_pixels: keep a method's sampled pixels after its result is written.

    Raises:
        UnsupportedError: a method is trained with the heads.
    """
    results = []
    for method in methods:
        if isinstance(method, JointMethod):
            raise UnsupportedError(
                f"{method.label} is trained with the heads, which pixel-sample cannot do; take "
                f"the preset {joint_presets}"
            )
        settings = probe.settings(method)
        path, known = stored_result(out, task, data, method.label, settings)
        if known is None:
            known = probe.run(method, settings)
            known.save(path)
            if not keep_pixels:
                probe.pool.remove(method)
        results.append(known)
    return results


class Stages:
    """Seconds of the stages of a run.

    Example:
        >>> from upfeat.evaluation.pixel_runs import Stages
        >>> stages = Stages()
        >>> stages.end("sampling")
        >>> list(stages.seconds)
        ['sampling']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        """Note that a stage is over; the next begins."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._start, 1)
        self._start = now
