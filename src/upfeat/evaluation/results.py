"""What every protocol writes: numbers with all settings, versions and data that made them."""

import datetime
import hashlib
import json
import logging
import math
import os
import platform
import re
import statistics
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from torch import Tensor

from upfeat._files import write_bytes
from upfeat._settings import readable_error

logger = logging.getLogger(__name__)


class FrozenRecord(BaseModel):
    """A record without unknown fields, which never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read_json(cls, path: str | os.PathLike[str], what: str) -> Self:
        """Read a file of the record, or say that it is not ``what`` it should be.

        Raises:
            ValueError: it is not.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is not {what}: {readable_error(error)}") from error


def _undefined(value: object) -> object:
    return math.nan if value is None else value


# JSON has no NaN: a score of nothing, such as one along boundaries where there are none, is null.
_Number = Annotated[float, BeforeValidator(_undefined)]


class Score(FrozenRecord):
    """One number, once for each seed; NaN where there was nothing to score.

    Attributes:
        per_seed: in the order of the settings' seeds.
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; None for a single one, and where a
            score is not finite.

    Example:
        >>> from upfeat.evaluation.results import Score
        >>> score = Score.of([1.0, 2.0, 3.0])
        >>> score.mean, score.deviation
        (2.0, 1.0)
    """

    per_seed: tuple[_Number, ...]
    mean: _Number
    deviation: float | None

    @classmethod
    def of(cls, per_seed: Sequence[float]) -> Self:
        """Return the score with mean and deviation."""
        known = len(per_seed) > 1 and all(map(math.isfinite, per_seed))
        spread = statistics.stdev(per_seed) if known else None
        return cls(per_seed=tuple(per_seed), mean=statistics.fmean(per_seed), deviation=spread)


class Metric(ABC):
    """Scores of a data set, gathered image by image.

    A subclass keeps sums over images as tensors, names them in :meth:`totals`, and defines ``add``
    with arguments of its own.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import DepthMetric
        >>> metric, target = DepthMetric(), torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> metric.add(target, target)
        >>> metric.compute()["d1"]
        1.0
        >>> metric.reset()
        >>> metric.compute()["d1"]
        nan
    """

    add: Any  # a method; its arguments differ

    def totals(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold all that was added; they are changed in place."""
        return ()

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the scores of everything added so far; NaN where nothing was."""

    def reset(self) -> None:
        """Forget everything that was added."""
        for total in self.totals():
            total.zero_()

    def sync(self) -> None:
        """Add up the totals of all processes of ``torch.distributed``; each then has them all."""
        if dist.is_available() and dist.is_initialized():
            for total in self.totals():
                dist.all_reduce(total)


class MeanMetric(Metric):
    """The mean of several scores over images, or over whatever has a row of them.

    Args:
        names: of the scores.

    Attributes:
        sums: of each score, float64.
        count: of rows, int64.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.int64)

    def add_scores(self, scores: Tensor) -> None:
        """Add rows of scores that are known, (N, names) in the order of the names."""
        self.sums += scores.to(self.sums).sum(0)
        self.count += len(scores)

    def totals(self) -> tuple[Tensor, ...]:
        """Return the sums and the number of rows."""
        return self.sums, self.count

    def compute(self) -> dict[str, float]:
        """Return the mean of each score by its name; NaN without any row."""
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))


class Result(FrozenRecord):
    """One method in one protocol.

    Attributes:
        task: the protocol, such as ``seg-probe``.
        label: what the user calls the method.
        settings: everything that decides the numbers; two results with equal settings are one.
        scores: by name, in ``unit``.
        unit: of the scores.
        details: more numbers, such as scores of each class.
        seconds: by stage.
        environment: machine, versions, date.

    Example:
        >>> from upfeat.evaluation.results import Result, Score
        >>> result = Result(
        ...     task="seg-probe",
        ...     label="bilinear",
        ...     settings={"data": "msrc"},
        ...     scores={"miou": Score.of([70.0])},
        ... )
        >>> result.file_name("msrc")
        'seg-probe--msrc--bilinear--b6658a4f.json'
    """

    schema_version: Literal[1] = 1
    task: str
    label: str
    settings: dict[str, Any]
    scores: dict[str, Score]
    unit: str = "percent"
    details: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    environment: dict[str, Any] = {}

    def file_name(self, group: str) -> str:
        """Return the name of its file; settings that differ give names that differ."""
        return result_file_name(self.task, group, self.label, self.settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f"{self.model_dump_json(indent=1)}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no result.
        """
        return cls.read_json(path, "a result of upfeat eval")


def result_file_name(task: str, group: str, label: str, settings: Mapping[str, Any]) -> str:
    """Return ``task--group--label--HASH.json``, the hash being that of the settings."""
    canonical = json.dumps(settings, sort_keys=True)
    digest = hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()
    readable = re.sub(r"[^\w.-]+", "-", label).strip("-")
    return f"{task}--{group}--{readable}--{digest}.json"


def stored_result(
    folder: str | os.PathLike[str], task: str, group: str, label: str, settings: Mapping[str, Any]
) -> tuple[Path, Result | None]:
    """Return where a result belongs, and the result if a run with equal settings left it there.

    Raises:
        ValueError: a file of that name is no result.

    Example:
        >>> from upfeat.evaluation.results import stored_result
        >>> path, known = stored_result("results", "vos", "davis2016", "bilinear", {"top_k": 5})
        >>> path.name, known
        ('vos--davis2016--bilinear--4c16d40c.json', None)
    """
    path = Path(folder) / result_file_name(task, group, label, settings)
    if path.is_file() and (known := Result.load(path)).settings == settings:
        logger.info("%s: %s is there already", label, path)
        return path, known
    return path, None


def describe_environment() -> dict[str, Any]:
    """Return date, versions and machine, for a result."""
    import upfeat

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": checkout(),
        "upfeat": upfeat.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def checkout() -> str:
    """Return the commit of the package's own checkout, with a mark if it is changed."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
