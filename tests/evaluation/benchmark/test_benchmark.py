"""The benchmark: its schema, its rivals, its honesty."""

import json
import resource
import sys
from pathlib import Path

import pydantic
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from upfeat.cli.app import app
from upfeat.errors import ForeignFileError
from upfeat.evaluation.benchmark import (
    CASES,
    BenchmarkRun,
    Case,
    Environment,
    Measurement,
    Rival,
    load_rival,
    measure_memory,
    measure_time,
    run_benchmark,
    scaling_cases,
)
from upfeat.evaluation.benchmark.measure import free_memory_only
from upfeat.upsamplers import create_upsampler

SMALL = Case("small", (16, 16), (4, 4), (16, 16), channels=8)


@pytest.fixture
def environment() -> Environment:
    return Environment(
        date="2026-01-01T00:00:00+00:00",
        commit="abc",
        upfeat_version="0",
        python_version="3.11",
        torch_version="2",
        processor="p",
        cores=2,
        memory_bytes=1,
        gpu=None,
        threads=2,
        dtype="float32",
        matmul_flops=1e9,
    )


@pytest.fixture(scope="module")
def rival() -> Rival:
    return load_rival(Path(__file__).parents[3] / "benchmarks" / "plain.py")


CONFIGS = {
    "jafar": {"feature_dim": 16, "qk_dim": 32},
    "anyup": {"qk_dim": 32},
    "naf": {"dim": 32, "kernel_size": 3, "heads_rope": 2},
    "loftup": {"feature_dim": 16, "n_freqs": 4},
    "featup_jbu": {"feature_dim": 16},
    "lift": {"feature_dim": 16, "iterations": 2},
    "uplift": {"feature_dim": 16, "patch_size": 14},
}


@pytest.mark.parametrize("method", CONFIGS)
@torch.no_grad()
def test_plain_implementations_compute_the_same(rival: Rival, method: str) -> None:
    torch.manual_seed(0)
    upsampler = create_upsampler(method, **CONFIGS[method]).eval()
    image, features = torch.randn(1, 3, 30, 40), torch.randn(1, 16, 5, 5)
    plain = rival.build[method](upsampler)
    for size in ((15, 20), (30, 40)):
        expected = plain(image, features, size)
        torch.testing.assert_close(upsampler(image, features, size), expected, atol=5e-5, rtol=1e-4)


def test_every_plain_implementation_is_held_to_ours(rival: Rival) -> None:
    assert set(CONFIGS) == set(rival.build)


def test_every_rival_has_its_floor(rival: Rival) -> None:
    assert set(rival.build) == set(rival.flops)
    for method, flops in rival.flops.items():
        assert flops(CASES["448"]) > 3 * flops(CASES["224"]) > 0, method


def test_floors_count_what_the_modules_multiply(rival: Rival) -> None:
    """Of lift, whose layers torch can count; the others' floors are below what they compute."""
    case = Case("count", (32, 32), (2, 2), (4, 4), channels=16)
    for method in ("lift", "uplift", "featup_jbu"):
        upsampler = case.build(method, torch.float32, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            rival.build[method](upsampler)(
                *case.inputs(torch.float32, torch.device("cpu")), case.output_size
            )
        convolutions = counter.get_total_flops()
        floor = rival.flops[method](case)
        if method == "lift":
            assert floor == convolutions
        # Windows and mixes are sums of products, which the counter does not see.
        assert 0.1 * convolutions < floor < 3 * convolutions


def test_floor_of_jafar_is_the_papers_arithmetic(rival: Rival) -> None:
    pairs = 448 * 448 * 32 * 32
    expected = 448 * 448 * 2 * 128 * 128 * 24 + 2 * pairs * (128 + 384)
    assert rival.flops["jafar"](CASES["448"]) == expected


def test_a_run_records_everything_and_round_trips(tmp_path: Path) -> None:
    cases = [SMALL, Case("head", (16, 16), (4, 4), (16, 16), channels=8, values=3)]
    cases.append(Case("train", (16, 16), (4, 4), (16, 16), channels=8, backward=True))
    report = run_benchmark(["bicubic"], cases, repeats=2, memory=False)
    assert [(r.case, r.implementation) for r in report.records] == [
        (case.name, implementation) for case in cases for implementation in ("upfeat", "bilinear")
    ]
    assert all(len(record.seconds) == 2 and record.error is None for record in report.records)
    report.save(tmp_path / "deep" / "r.json")
    again = BenchmarkRun.model_validate_json((tmp_path / "deep" / "r.json").read_text())
    assert again == report
    assert again.environment.matmul_flops > 1e6


def test_only_reports_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    for _ in range(2):
        run_benchmark(["nearest"], [SMALL], repeats=1, memory=False, out=out)
    assert BenchmarkRun.load(out).records
    for content in (b"{}", b'{"shapes": []}', b"\xff"):
        out.write_bytes(content)
        with pytest.raises(ForeignFileError, match=r"r\.json is there already"):
            run_benchmark(["nearest"], [SMALL], repeats=1, memory=False, out=out)
        assert out.read_bytes() == content


def test_half_precision_states_its_error() -> None:
    report = run_benchmark(["bicubic"], [SMALL], dtype=torch.bfloat16, repeats=1, memory=False)
    record = report.find("bicubic", "small", "upfeat")
    assert record is not None
    assert record.half_error is not None
    assert 1e-5 < record.half_error < 0.02


def test_a_failure_is_a_record_not_a_crash() -> None:
    impossible = Case("impossible", (16, 16), (2, 2), (16, 16), channels=8)
    report = run_benchmark(["naf"], [impossible], repeats=1, memory=False)
    ours = next(r for r in report.records if r.implementation == "upfeat")
    assert ours.error is not None
    assert ours.median_seconds is None
    assert report.find("naf", "impossible", "upfeat") is None


def test_memory_is_measured_in_a_fresh_process() -> None:
    wide = Case("wide", (8, 8), (4, 4), (512, 512), channels=128)  # the output takes 134 MB
    report = run_benchmark(["nearest"], [wide], repeats=1)
    record = report.find("nearest", "wide", "upfeat")
    assert record is not None
    assert 130e6 < record.peak_bytes < 300e6


def test_memory_of_a_call() -> None:
    grown = measure_memory(lambda: torch.ones(64 * 2**20).sum())  # 256 MiB
    assert 200e6 < grown < 400e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_than_the_free_memory_fails_instead_of_killing() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with free_memory_only():
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        with pytest.raises(RuntimeError, match="allocate"):
            torch.empty(soft - mapped + 2**30, dtype=torch.uint8)  # threads may end meanwhile
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_time_has_a_budget() -> None:
    calls = []
    cost = measure_time(lambda: calls.append(1), repeats=7, warmup=2)
    assert (len(cost.seconds), len(calls)) == (7, 9)
    assert len(measure_time(lambda: None, repeats=5, max_seconds=0.0).seconds) == 1
    assert cost.spread >= 0


def test_the_schema_refuses_what_it_does_not_know(environment: Environment) -> None:
    with pytest.raises(pydantic.ValidationError, match="extra"):
        Measurement(
            method="a",
            case="b",
            implementation="upfeat",
            seconds=[],
            peak_bytes=0,
            surprise=1,  # type: ignore[call-arg]
        )
    with pytest.raises(pydantic.ValidationError, match="implementation"):
        Measurement(method="a", case="b", implementation="other", seconds=[], peak_bytes=0)  # type: ignore[arg-type]
    report = BenchmarkRun(environment=environment, settings={}, records=[])
    content = json.loads(report.model_dump_json()) | {"schema_version": 2}
    with pytest.raises(pydantic.ValidationError, match="schema_version"):
        BenchmarkRun.model_validate(content)


def test_kept_results_fit_the_schema(repository: Path) -> None:
    files = sorted((repository / "benchmarks" / "results").glob("*.json"))
    assert files, "the repository keeps its measured results"
    for file in files:
        BenchmarkRun.model_validate_json(file.read_text())


def test_scaling_reaches_2048() -> None:
    assert [case.output_size[0] for case in scaling_cases()][::6] == [112, 2048]


@pytest.mark.parametrize("content", ["", "PLAIN = {}"])
def test_a_rival_without_its_names(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.py").write_text(content)
    with pytest.raises(ValueError, match="must define PLAIN and FLOPS"):
        load_rival(tmp_path / "r.py")
    with pytest.raises(ValueError, match="no file"):
        load_rival(tmp_path / "absent.py")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "small", SMALL)
    out = tmp_path / "r.json"
    arguments = ["bench", "bi*", "--case", "small", "--repeats", "1", "--no-memory", "--out"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, str(out)])
    assert result.exit_code == 0, result.output
    assert "bicubic" in result.stdout
    assert "GFLOP/s" in result.stdout
    report = BenchmarkRun.model_validate_json(out.read_text())
    assert {record.method for record in report.records} == {"bicubic", "bilinear"}
    unknown = CliRunner().invoke(app, ["bench", "--case", "447"])
    assert unknown.exit_code == 2
    assert "unknown case '447'" in unknown.stderr
