"""Bulk runs: many images through one pipeline, skipping what is done and naming what failed."""

from upfeat.extraction.basis import ChannelBasis
from upfeat.extraction.bulk import (
    Job,
    Outcome,
    Summary,
    Writer,
    estimate_bytes,
    run_bulk,
    tensor_writer,
)
from upfeat.extraction.filling import write_store
from upfeat.extraction.plan import StorePlan, plan_store
from upfeat.extraction.store import Store, StoredFeatures, open_store

__all__ = [
    "ChannelBasis",
    "Job",
    "Outcome",
    "Store",
    "StorePlan",
    "StoredFeatures",
    "Summary",
    "Writer",
    "estimate_bytes",
    "open_store",
    "plan_store",
    "run_bulk",
    "tensor_writer",
    "write_store",
]
