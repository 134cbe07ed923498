"""What a benchmark writes: numbers with the hardware, versions and settings that made them."""

import datetime
import os
import platform
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from upfeat._files import write_bytes
from upfeat.errors import check_file
from upfeat.evaluation.benchmark.measure import matmul_rate
from upfeat.evaluation.results import checkout, processor

__all__ = ["Environment", "Record", "Report"]


class _Strict(BaseModel):
    """A record without unknown fields, which never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(_Strict):
    """Where and with what the numbers were measured.

    Example:
        >>> from upfeat.evaluation.benchmark import Environment
        >>> "matmul_flops" in Environment.model_fields
        True
    """

    date: str
    commit: str
    upfeat_version: str
    python_version: str
    torch_version: str
    processor: str
    cores: PositiveInt
    memory_bytes: PositiveInt
    gpu: str | None
    threads: PositiveInt
    dtype: str
    matmul_flops: PositiveFloat

    @classmethod
    def here(cls, dtype: torch.dtype, device: torch.device) -> "Environment":
        """Describe this process; measures the matrix product rate (a second or two)."""
        import upfeat

        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cuda = device.type == "cuda"
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=checkout(),
            upfeat_version=upfeat.__version__,
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            processor=processor(),
            cores=os.cpu_count() or 1,
            memory_bytes=pages,
            gpu=torch.cuda.get_device_name(device) if cuda else None,
            threads=torch.get_num_threads(),
            dtype=str(dtype).removeprefix("torch."),
            matmul_flops=matmul_rate(dtype, device),
        )


class Record(_Strict):
    """One implementation of one method in one case.

    Attributes:
        method: registry name.
        case: name of the case.
        implementation: ours, the plain one, or bilinear interpolation of the same features.
        seconds: every timed call; empty if the case failed.
        peak_bytes: growth of the peak over what is held before the call; 0 if not measured.
        floor_seconds: unavoidable operations over the measured matrix product rate.
        max_difference: largest absolute difference of plain to ours on a small input.
        half_error: mean absolute difference to float32 over the output's standard deviation, at the
            case's own size, where the run is in half precision.
        error: why the case failed.

    Example:
        >>> from upfeat.evaluation.benchmark import Record
        >>> record = Record(
        ...     method="jafar",
        ...     case="224",
        ...     implementation="upfeat",
        ...     seconds=[1.0, 3.0],
        ...     peak_bytes=10,
        ... )
        >>> record.median_seconds
        2.0
    """

    method: str
    case: str
    implementation: Literal["upfeat", "plain", "bilinear"]
    seconds: list[float]
    peak_bytes: int
    floor_seconds: float | None = None
    max_difference: float | None = None
    half_error: float | None = None
    error: str | None = None

    @property
    def median_seconds(self) -> float | None:
        """Median time, or None if the call failed."""
        ordered = sorted(self.seconds)
        if not ordered:
            return None
        middle = len(ordered) // 2
        return (ordered[middle] + ordered[-middle - 1]) / 2


class Report(_Strict):
    """A whole run.

    Example:
        >>> from upfeat.evaluation.benchmark import Report
        >>> Report.model_fields["schema_version"].default
        1
    """

    schema_version: Literal[1] = 1
    environment: Environment
    settings: dict[str, str | int | float | bool | None]
    records: list[Record]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f"{self.model_dump_json(indent=1)}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no report.
        """
        check_file(path, "report of a benchmark")
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is not a report of upfeat bench: {error}") from error

    def find(self, method: str, case: str, implementation: str) -> Record | None:
        """Return a record that succeeded, or None."""
        for record in self.records:
            if (record.method, record.case, record.implementation) == (
                method,
                case,
                implementation,
            ) and record.error is None:
                return record
        return None
