"""Fixtures that every test may use: devices, dtypes, tolerances, seeds, goldens and real data.

Environment variables: ``UPFEAT_TEST_DEVICES`` (``cpu,cuda``; default: all that are there),
``UPFEAT_GOLDEN`` and ``UPFEAT_DATA`` (default: ``shared/golden`` and ``shared/data`` beside the
repository), ``CI`` (a missing golden folder then fails a test instead of skipping it).
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.goldens import golden_state, load_golden
from tests.tolerances import observed, tolerance

__all__ = ["golden_state", "load_golden", "tolerance"]

REPOSITORY = Path(__file__).resolve().parent.parent
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Examples are the same on every run, and a busy machine is no failure.
hypothesis.settings.register_profile(
    "upfeat",
    deadline=None,
    max_examples=20,
    derandomize=True,
    database=None,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("upfeat")


def _test_devices() -> list[str]:
    named = os.environ.get("UPFEAT_TEST_DEVICES")
    if named:
        return [name.strip() for name in named.split(",") if name.strip()]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _shared(variable: str, name: str) -> Path | None:
    """The folder that a variable names, else the one beside the repository; None if absent."""
    named = os.environ.get(variable)
    folder = Path(named) if named else REPOSITORY.parent / "shared" / name
    return folder.resolve() if folder.is_dir() else None


def _shared_or_skip(variable: str, name: str) -> Path:
    folder = _shared(variable, name)
    if folder is not None:
        return folder
    reason = f"needs the folder shared/{name} beside the repository, or ${variable} naming it"
    if _in_ci():
        pytest.fail(f"{reason}; under CI it must be there", pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collecting doctests imports every module; of the tests' folder only tests are wanted.

    One of the helpers there switches Triton to its interpreter for the whole process. A file that
    is named on the command line is collected all the same.
    """
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Keep the differences to stored outputs with the report, which may change processes."""
    observed.clear()
    result = yield
    if observed and "golden_dir" in getattr(item, "fixturenames", ()):
        item.user_properties.append(("golden differences", list(observed)))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the largest difference to the originals' outputs, a line for each test file."""
    found: dict[str, list[float]] = defaultdict(list)
    for report in terminalreporter.stats.get("passed", []):
        for name, values in report.user_properties:
            if name == "golden differences":
                found[report.nodeid.partition("::")[0]] += values
    if not found:
        return
    terminalreporter.section("largest difference to the originals' outputs")
    for file, values in sorted(found.items()):
        terminalreporter.write_line(f"{max(values):8.1e}  {len(values):3d} comparisons  {file}")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=_test_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(name="tolerance")
def _tolerance() -> Callable[[torch.dtype], dict[str, float]]:
    return tolerance


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def golden_dir() -> Path:
    """The folder of stored outputs of the original codes."""
    return _shared_or_skip("UPFEAT_GOLDEN", "golden")


@pytest.fixture
def data_dir() -> Path:
    """The folder of real images, labels and weights."""
    return _shared_or_skip("UPFEAT_DATA", "data")


@pytest.fixture
def weights_dir(data_dir: Path) -> Path:
    """The folder of real weights: backbones and published upsamplers."""
    folder = data_dir / "weights"
    if not folder.is_dir():
        pytest.fail(f"{data_dir} has no folder 'weights'", pytrace=False)
    return folder
