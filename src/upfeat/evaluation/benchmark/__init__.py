"""Speed and memory of upsamplers, with everything that a number needs to be believed."""

from upfeat.evaluation.benchmark.measure import (
    BenchmarkRun,
    Cost,
    Environment,
    Measurement,
    measure_memory,
    measure_time,
)
from upfeat.evaluation.benchmark.run import (
    CASES,
    Case,
    Rival,
    load_rival,
    run_benchmark,
    scaling_cases,
)

__all__ = [
    "CASES",
    "BenchmarkRun",
    "Case",
    "Cost",
    "Environment",
    "Measurement",
    "Rival",
    "load_rival",
    "measure_memory",
    "measure_time",
    "run_benchmark",
    "scaling_cases",
]
