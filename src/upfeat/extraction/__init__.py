"""Bulk runs: many images through one pipeline, skipping what is done and naming what failed."""

from upfeat.extraction.bulk import Job, Outcome, Summary, estimate_bytes, run_bulk
from upfeat.extraction.writers import Writer, tensor_writer

__all__ = [
    "Job",
    "Outcome",
    "Summary",
    "Writer",
    "estimate_bytes",
    "run_bulk",
    "tensor_writer",
]
