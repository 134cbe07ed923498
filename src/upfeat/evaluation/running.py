"""The frame of a protocol: results that are there are read, other methods measured and saved."""

import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.checkpoints import read_checkpoint
from upfeat.errors import CheckpointError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.registry import Progress
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.evaluation.tables.panels import Kind, Panel, image_panel, save_panel

logger = logging.getLogger(__name__)

SAVE_EVERY = 20  # items


class Unfinished:
    """What a protocol has measured of a method so far, by item; kept until the result is there.

    Written after every twentieth item, and where the block that it opens is left by an error.

    Rows of other settings, or of another result's name, are not read.

    Attributes:
        rows: what was measured of each item, as JSON has it.
    """

    def __init__(self, folder: str | Path, result: str, settings: dict[str, Any]) -> None:
        self.path, self.settings = Path(folder) / f"rows-{result}", settings
        self.rows: dict[str, Any] = {}
        if self.path.is_file():
            content = json.loads(self.path.read_text())
            if content["settings"] == settings:
                self.rows = content["rows"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        if kind is not None and self.rows:
            self.save()

    def put(self, name: str, row: Any) -> None:
        """Add what was measured of an item."""
        self.rows[name] = row
        if len(self.rows) % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write all rows, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.settings, "rows": self.rows}
        write_bytes(self.path, json.dumps(content).encode())


@dataclass
class Pending:
    """A method that has no result yet.

    Attributes:
        method: what is measured.
        settings: everything that decides the numbers.
        path: where the result goes.
        seconds: so far, by stage.
        leftovers: files of unfinished work, which go once the result is saved.
    """

    method: Method
    settings: dict[str, Any]
    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    leftovers: list[Path] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def temporary(self, file: Path) -> Path:
        """Return a file of unfinished work, which goes once the result is saved."""
        self.leftovers.append(file)
        return file

    def unfinished(self, folder: Path) -> Unfinished:
        """Return the rows so far, kept in a folder."""
        rows = Unfinished(folder, self.path.name, self.settings)
        self.temporary(rows.path)
        return rows


Measured = tuple[dict[str, Score], dict[str, Any]]
"""Scores and details of a method."""

Picture = tuple[str, Kind, Tensor]
"""Label, kind and values (H, W) of a panel."""


@dataclass(eq=False)
class ProtocolRun:
    """A protocol on one backbone and one data set.

    A subclass adds what it reads as fields, puts into ``facts`` what decides the numbers beside
    its settings, and measures a method (``measure``), or all of them together (``measure_all``).

    Attributes:
        task: name of the protocol.
        unit: of the scores.
        config: the settings.
        out: folder of the results.
        on_progress: called with label, stage, done and total.
        facts: what else decides the numbers, whatever the method.
    """

    task: ClassVar[str]
    unit = "percent"

    config: Any
    out: Path
    on_progress: Progress
    facts: dict[str, Any] = field(init=False, default_factory=dict)

    @property
    def group(self) -> str:
        """What the files of the results are grouped by, the data set."""
        return str(self.config.data)

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return self.config.model_dump(mode="json") | self.facts | {"upsampler": method.identity}

    def run(self, methods: Sequence[Method]) -> list[Result]:
        """Return the result of each method; those of equal settings are read."""
        found = [self.look_up(method) for method in methods]
        pending = [each for each in found if isinstance(each, Pending)]
        written = {
            each.path: self.save(each, scores, details)
            for each, (scores, details) in zip(pending, self.measure_all(pending), strict=True)
        }
        return [written[each.path] if isinstance(each, Pending) else each for each in found]

    def measure_all(self, pending: Sequence[Pending]) -> Iterator[Measured]:
        """Yield scores and details of each method; here one method after the other."""
        for each in pending:
            start = time.perf_counter()
            found = self.measure(each)
            each.seconds = each.seconds or {"all": time.perf_counter() - start}
            yield found

    def measure(self, pending: Pending) -> Measured:
        """Return scores and details of a method."""
        raise NotImplementedError

    def look_up(self, method: Method) -> Result | Pending:
        """Return a method's result if a run with equal settings left it."""
        settings = self.settings(method)
        path, known = stored_result(self.out, self.task, self.group, method.label, settings)
        return Pending(method, settings, path) if known is None else known

    def save(self, pending: Pending, scores: dict[str, Score], details: dict[str, Any]) -> Result:
        """Write a result, and remove what an interrupted run would have gone on from."""
        result = self.result(pending, scores, details)
        result.save(pending.path)
        for file in pending.leftovers:
            file.unlink(missing_ok=True)
        return result

    def result(self, pending: Pending, scores: dict[str, Score], details: dict[str, Any]) -> Result:
        """Return the result of a method."""
        return Result(
            task=self.task,
            label=pending.method.label,
            settings=pending.settings,
            scores=scores,
            unit=self.unit,
            details=details,
            seconds={stage: round(seconds, 1) for stage, seconds in pending.seconds.items()},
            environment=describe_environment(),
        )

    def rows(
        self,
        pending: Pending,
        folder: Path,
        stage: str,
        files: Iterable[Any],
        measure: Callable[[Method, Any], Any],
    ) -> dict[str, Any]:
        """Return what a function gives of method and each file, by name; a stopped run goes on.

        The files have a ``name``; what JSON can keep is kept in a folder until the result is there.
        """
        listed = list(files)
        with pending.unfinished(folder) as unfinished:
            for number, file in enumerate(listed):
                if file.name not in unfinished.rows:
                    self.on_progress(pending.method.label, stage, number, len(listed))
                    unfinished.put(file.name, measure(pending.method, file))
        return unfinished.rows

    def draw(
        self, image: Tensor, name: str, backbone: str, pictures: Iterable[Picture], **about: Any
    ) -> None:
        """Leave an image (3, H, W) in [0, 1], and what was made of it, as pictures for the report.

        ``about`` is more of each :class:`~upfeat.evaluation.tables.panels.Panel` but the image's.
        """
        common: dict[str, Any] = {"task": self.task, "data": self.group, "image": name}
        common["backbone"] = backbone
        panels = [image_panel(image, **common)]
        for label, kind, values in pictures:
            panels.append(Panel(**common, **about, label=label, kind=kind, values=values.cpu()))
        for panel in panels:
            save_panel(self.out, panel)


def described_splits(*splits: Any, items: str = "images") -> dict[str, dict[str, Any]]:
    """Return size and fingerprint of each split, by its name; ``items`` says what is counted."""
    return {split.name: {items: len(split), "fingerprint": split.fingerprint()} for split in splits}


def seed_scores(
    seeds: Sequence[Mapping[str, float]], percent: Callable[[str], bool] = lambda name: True
) -> dict[str, Score]:
    """Return each score with its values over the seeds, rounded to four digits.

    ``percent`` says of a score's name whether it is a share, which becomes percent.

    Example:
        >>> from upfeat.evaluation.running import seed_scores
        >>> seed_scores([{"miou": 0.5}, {"miou": 0.75}])["miou"].per_seed
        (50.0, 75.0)
    """
    return {
        name: Score.of([round((100 if percent(name) else 1) * seed[name], 4) for seed in seeds])
        for name in seeds[0]
    }


def save_state(path: Path, content: dict[str, Any]) -> None:
    """Write the state of a training, whole or not at all."""
    stream = io.BytesIO()
    torch.save(content, stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())


def load_state(path: Path, label: str) -> dict[str, Any] | None:
    """Read what :func:`save_state` wrote; an unreadable file counts as absent."""
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = read_checkpoint(path)
    except CheckpointError as error:
        logger.warning("%s; training %s from the start", error, label)
        return None
    return content
