"""Speed and memory of upsamplers, with everything that a number needs to be believed."""

from upfeat.evaluation.benchmark.cases import CASES, Case, scaling_cases
from upfeat.evaluation.benchmark.measure import Cost, measure_memory, measure_time
from upfeat.evaluation.benchmark.records import Environment, Record, Report
from upfeat.evaluation.benchmark.run import Rival, load_rival, run_benchmark

__all__ = [
    "CASES",
    "Case",
    "Cost",
    "Environment",
    "Record",
    "Report",
    "Rival",
    "load_rival",
    "measure_memory",
    "measure_time",
    "run_benchmark",
    "scaling_cases",
]
