"""Running a table: a call of a protocol for each job, its record written as soon as it is known."""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat.cli.reproduce.methods import RowMethods, backbone_file
from upfeat.evaluation.papers.plan import TableJob, not_ready, plan_jobs, trained_on
from upfeat.evaluation.papers.records import PublishedRow, PublishedTable
from upfeat.evaluation.papers.reproductions import Ran, Reproduction, ran
from upfeat.evaluation.papers.sources import Roots
from upfeat.evaluation.results import describe_environment

if TYPE_CHECKING:
    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
    from upfeat.evaluation.registry import Progress, Protocol
    from upfeat.evaluation.results import Result
    from upfeat.ops.runtime.draws import DrawsFrom

__all__ = ["Runner", "load_backbone"]

logger = logging.getLogger(__name__)

# What a row may fail with for a reason of its own; the other rows go on.
_ROW_PROBLEMS = (ValueError, OSError, RuntimeError, TypeError, ImportError, NotImplementedError)


@dataclass
class Runner:
    """What all tables of a call share.

    Attributes:
        roots: folders of the data sets.
        out: folder of records, results and trainings.
        cache: folder of features.
        device: where everything runs.
        small: at the size of a test.
        options: of protocols, such as the folder of a depth teacher.
        show: called with label, stage, done and total.
        report: called with the record after every job.
    """

    roots: Roots
    out: Path
    cache: Path
    device: str = "cpu"
    small: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    show: "Progress | None" = None
    report: Callable[[Reproduction], None] | None = None

    def run(self, table: PublishedTable, keys: Collection[str] = ()) -> Reproduction:
        """Run what can be run of a table; return its record, which is written after each job.

        Args:
            table: of a paper.
            keys: of the rows that are wanted; none for all.

        Raises:
            UnknownNameError: no such row.
        """
        found: list[Ran] = []
        start = time.perf_counter() - Reproduction.seconds_before(table.id, self.out)
        jobs = plan_jobs(table, keys=keys, small=self.small)
        record = self._record(table, jobs, found, 0.0)
        for job in jobs:
            found += self._run(table, job)
            record = self._record(table, jobs, found, time.perf_counter() - start)
            record.save(self.out)
            if self.report is not None:
                self.report(record)
        return record

    def _record(
        self, table: PublishedTable, jobs: list[TableJob], found: list[Ran], seconds: float
    ) -> Reproduction:
        return Reproduction(
            id=table.id,
            small=self.small,
            backbone=", ".join(dict.fromkeys(job.backbone for job in jobs if job.backbone)),
            ran=tuple(found),
            seconds=round(seconds, 1),
            environment=describe_environment(),
        )

    def _run(self, table: PublishedTable, job: TableJob) -> list[Ran]:
        """Run a job; what stands in the way becomes the problem of its rows."""
        from upfeat.evaluation.registry import get_protocol

        problem = not_ready(job.task, job.preset)
        wanted = () if job.data is None else (job.data, *trained_on(job.task, self.small))
        problem = problem or next(filter(None, map(self.roots.missing, wanted)), None)
        if problem is not None:
            return [_failed(job, row, problem) for row in job.rows]
        protocol = get_protocol(job.task)
        try:
            network = load_backbone(protocol, job.backbone, self.roots, self.device)
            config = protocol.settings(job.preset, job.data, **job.changes)
            inputs = self.inputs(protocol, job)
        except _ROW_PROBLEMS as error:
            logger.debug("%s", job, exc_info=True)
            return [_failed(job, row, _text(error)) for row in job.rows]
        features = network or (protocol.width(config) if protocol.width is not None else 0)
        methods = self.methods(features, job.backbone)
        loaded: list[Method] = []
        records: dict[str, Ran] = {}
        for row in job.rows:
            try:
                loaded.append(methods.load(row, protocol))
            except _ROW_PROBLEMS as error:
                logger.debug("%s", row.key, exc_info=True)
                records[row.key] = _failed(job, row, _text(error))

        def call(some: list[Any]) -> "list[Result]":
            return protocol.run(
                config=config,
                backbone=network,
                methods=some,
                out=self.out / "results",
                on_progress=self.show,
                **inputs,
            )

        for key, result in _each(call, loaded).items():
            if isinstance(result, str):
                row = next(row for row in job.rows if row.key == key)
                records[key] = _failed(job, row, result)
            else:
                trained = methods.trained.get(key, ())
                records[key] = ran(table, job, key, result, trained=trained, small=self.small)
        return [records[row.key] for row in job.rows]

    def methods(self, backbone: "Backbone | int", name: str) -> RowMethods:
        """Return what builds the methods of rows for a backbone, or for a width."""
        return RowMethods(
            backbone,
            name,
            self.roots,
            self.out / "training",
            small=self.small,
            device=self.device,
            teacher=self.options.get("teacher"),
        )

    def inputs(self, protocol: "Protocol", job: TableJob) -> dict[str, Any]:
        """Open the data of a job: further arguments of the protocol's ``run``."""
        from upfeat.evaluation.registry import Request

        options = {option.name: option.default for option in protocol.options} | dict(job.options)
        options |= {name: value for name, value in self.options.items() if name in options}
        if "train" in options:
            folders = {name: self.roots.find(name) for name in trained_on(job.task, self.small)}
            options["train"] = ",".join(f"{name}={folder}" for name, folder in folders.items())
        root = None if job.data is None else self.roots.find(job.data)
        with _same_draws():
            return protocol.inputs(
                Request(job.data, root or Path(), self.cache, self.device, options)
            )


def _same_draws() -> "DrawsFrom":
    """Let ``weights='random'`` in a name be the same in every run, also in one that goes on."""
    import torch

    from upfeat.ops.runtime.draws import DrawsFrom

    return DrawsFrom(torch.Generator().manual_seed(0))


def load_backbone(protocol: "Protocol", name: str, roots: Roots, device: str) -> "Backbone | None":
    """Build the backbone of a job; None where a width is enough.

    Args:
        protocol: that may build it in a way of its own.
        name: of the backbone, empty for none.
        roots: whose folder ``weights`` is searched, too.
        device: where it runs.
    """
    import upfeat

    if not name:
        return None
    file = backbone_file(name, roots)
    with _same_draws():
        if protocol.backbone is not None:
            return protocol.backbone(name, file).to(device)
        return upfeat.create_backbone(name, weights=file).to(device)


def _each(
    call: "Callable[[list[Any]], list[Result]]", methods: "list[Method]"
) -> "dict[str, Result | str]":
    """Run all methods together, or one by one where one of them fails; a text is its problem."""
    if not methods:
        return {}
    try:
        results = call(methods)
        return {m.label: result for m, result in zip(methods, results, strict=True)}
    except _ROW_PROBLEMS as error:
        if len(methods) == 1:
            logger.debug("%s", methods[0].label, exc_info=True)
            return {methods[0].label: _text(error)}
    found: dict[str, Result | str] = {}
    for method in methods:
        found |= _each(call, [method])
    return found


def _failed(job: TableJob, row: PublishedRow, problem: str) -> Ran:
    return Ran(
        row=row.key,
        columns=job.columns,
        task=job.task,
        data=job.data or "",
        published=job.published if job.data is not None else "",
        problem=problem,
    )


def _text(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
