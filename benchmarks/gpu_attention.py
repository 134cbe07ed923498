"""Triton kernels on a GPU: correctness, time and peak memory beside the plain implementation.

    python benchmarks/gpu_attention.py --out result.json

Needs a CUDA device and Triton; ``upfeat`` is taken from ``src`` beside this folder. Inputs are new
on every run (the seed is in the result). Correctness first: against float64, forward and
gradients at odd sizes, then a band of rows of the full size.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "src"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from upfeat.ops import reference, window_bounds  # noqa: E402
from upfeat.ops.triton import load  # noqa: E402

logger = logging.getLogger("gpu_attention")
# Largest error over the largest entry; weights are rounded to the type of the values.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One operator at one size: ``side`` of the output, ``grid`` of the features."""

    name: str
    operator: str
    side: tuple[int, int]
    grid: tuple[int, int]
    dim: int
    heads: int = 4
    channels: int = 384
    ratio: float = 0.1
    kernel: int = 9
    shared: bool = False

    @property
    def scale(self) -> float:
        return (self.dim / self.heads) ** -0.5

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        (H, W), (h, w) = self.side, self.grid
        if self.operator == "neighborhood_attention":
            shapes = [(1, self.dim, H, W), (1, self.dim, h, w), (1, self.channels, h, w)]
            layout = torch.channels_last
        else:
            shapes = [(1, H * W, self.dim), (1, h * w, self.dim), (1, h * w, self.channels)]
            layout = torch.contiguous_format
        query, key, value = (
            torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
            for shape in shapes
        )
        return query, key, value

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_heads": self.heads, "scale": self.scale}
        if self.operator == "windowed_attention":
            rows, cols = window_bounds(self.side, self.grid, self.ratio)
            options |= {"grid_size": self.grid, "row_bounds": rows, "col_bounds": cols}
        elif self.operator == "neighborhood_attention":
            rows, cols = (
                reference.neighbor_cells(length, cells, self.kernel, length // cells)
                for length, cells in zip(self.side, self.grid, strict=True)
            )
            head_values = "shared" if self.shared else "grouped"
            options |= {"head_values": head_values, "row_cells": rows, "col_cells": cols}
        return options

    def reference(self, query: Tensor, key: Tensor, value: Tensor, band: int | None) -> Tensor:
        """The plain reference; of the first ``band`` output rows only where a number is given."""
        rows = None if band is None else (0, band)
        if self.operator == "head_averaged_attention":
            return reference.head_averaged_attention(
                query, key, value, self.heads, scale=self.scale
            )
        if self.operator == "windowed_attention":
            return reference.windowed_attention(
                query, key, value, self.heads, output_size=self.side, grid_size=self.grid,
                window_ratio=self.ratio, rows=rows, scale=self.scale,
            )  # fmt: skip
        return reference.cross_scale_neighborhood_attention(
            query, key, value, self.heads, kernel_size=self.kernel, output_size=self.side,
            head_values="shared" if self.shared else "grouped", rows=rows, scale=self.scale,
        )  # fmt: skip

    def plain(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What a straightforward implementation does in the inputs' own type."""
        if self.operator == "neighborhood_attention":
            return self.reference(query, key, value, None)
        q, k = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key))
        scores = q @ k.transpose(-1, -2) * self.scale  # (B, heads, N, n)
        if self.operator == "windowed_attention":
            scores = scores.masked_fill(hidden_keys(self, query.device), float("-inf"))
        return scores.softmax(-1).mean(1).to(value.dtype) @ value

    def flops(self) -> float:
        """Multiply-adds x 2 of visible pairs: scores twice (two passes), weights times values."""
        options = self.options()
        if self.operator == "windowed_attention":
            spans = [options[name] for name in ("row_bounds", "col_bounds")]
            pairs = float((spans[0][:, 1] - spans[0][:, 0]).sum())
            pairs *= float((spans[1][:, 1] - spans[1][:, 0]).sum())
        else:
            keys = self.grid[0] * self.grid[1]
            if self.operator == "neighborhood_attention":
                keys = self.kernel**2
            pairs = float(self.side[0] * self.side[1] * keys)
        return 2 * pairs * (2 * self.dim + self.channels)


@cache
def hidden_keys(case: Case, device: torch.device) -> Tensor:
    """(N, n), true where a query does not see a key; kept, as the published code keeps it."""
    seen = []
    for bounds, cells in zip(
        window_bounds(case.side, case.grid, case.ratio), case.grid, strict=True
    ):
        cell = torch.arange(cells)
        seen.append((cell >= bounds[:, :1]) & (cell < bounds[:, 1:]))
    visible = seen[0][:, None, :, None] & seen[1][None, :, None, :]  # (H, W, h, w)
    return ~visible.flatten(2).flatten(0, 1).to(device)


CASES = (
    Case("jafar 448", "head_averaged_attention", (448, 448), (32, 32), 128),
    Case(
        "jafar 448, 21 channels", "head_averaged_attention", (448, 448), (32, 32), 128, channels=21
    ),
    Case("anyup 448", "windowed_attention", (448, 448), (32, 32), 128),
    Case("anyup 448, 21 channels", "windowed_attention", (448, 448), (32, 32), 128, channels=21),
    Case("naf 224", "neighborhood_attention", (224, 224), (16, 16), 256),
    Case("naf 448", "neighborhood_attention", (448, 448), (32, 32), 256),
)
# Odd sizes for the gradients: tails on every axis, heads of no power of two, non-integer ratios.
CHECKS = (
    Case("jafar, odd sizes", "head_averaged_attention", (61, 53), (17, 19), 96, channels=70),
    Case("jafar, 384 channels", "head_averaged_attention", (40, 40), (16, 16), 128),
    Case("anyup, odd sizes", "windowed_attention", (61, 53), (17, 19), 96, channels=70),
    Case("anyup, 384 channels", "windowed_attention", (64, 64), (16, 16), 128),
    Case("naf, odd sizes", "neighborhood_attention", (61, 53), (13, 11), 96, channels=72, kernel=3),
    Case("naf, 384 channels", "neighborhood_attention", (56, 56), (14, 14), 256),
    Case("anyup natten", "neighborhood_attention", (56, 60), (14, 15), 128, kernel=3, shared=True),
)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact entry."""
    return float((actual.double() - exact).abs().max() / exact.abs().max())


def check_gradients(case: Case, device: str, dtype: torch.dtype) -> dict[str, Any]:
    kernel, options = load(case.operator), case.options()
    inputs = case.inputs(device, dtype)
    output, residuals = kernel.forward(*inputs, **options)
    exact = [t.double().requires_grad_() for t in inputs]
    wanted = case.reference(exact[0], exact[1], exact[2], None)
    grad_output = torch.randn_like(output)
    grads = kernel.backward(grad_output, *inputs, residuals, **options)
    wanted_grads = torch.autograd.grad(wanted, exact, grad_output.double())
    errors = {"output": relative_error(output, wanted.detach())}
    for name, grad, exact_grad in zip(("query", "key", "value"), grads, wanted_grads, strict=True):
        errors[f"grad_{name}"] = relative_error(grad, exact_grad)
    return {"errors": errors, "passed": max(errors.values()) < TOLERANCE[dtype]}


def check_band(case: Case, device: str, dtype: torch.dtype, band: int = 4) -> dict[str, Any]:
    """The full size against float64 in its first rows."""
    query, key, value = case.inputs(device, dtype)
    output, _ = load(case.operator).forward(query, key, value, **case.options())
    if case.operator == "neighborhood_attention":
        query, output = query[:, :, :band], output[:, :, :band]
    else:
        query, output = (t[:, : band * case.side[1]] for t in (query, output))
    wanted = case.reference(query.double(), key.double(), value.double(), band)
    error = relative_error(output, wanted)
    return {"errors": {"output": error}, "passed": error < TOLERANCE[dtype]}


def measure(run: Callable[[], object]) -> dict[str, float | str]:
    """Median time with quantiles, and the growth of peak memory; or that memory did not suffice."""
    from triton.testing import do_bench

    try:
        run()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        median, low, high = do_bench(run, warmup=100, rep=500, quantiles=[0.5, 0.2, 0.8])
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}
    return {"ms": median, "ms_q20": low, "ms_q80": high, "peak_mib": peak / 2**20}


def measure_case(case: Case, device: str, dtype: torch.dtype, rate: float) -> dict[str, Any]:
    kernel, options = load(case.operator), case.options()
    inputs = case.inputs(device, dtype)
    output, _ = kernel.forward(*inputs, **options)
    grad_output = torch.randn_like(output)
    del output
    leaves = [t.detach().requires_grad_() for t in inputs]

    def train() -> object:
        _, residuals = kernel.forward(*inputs, **options)
        return kernel.backward(grad_output, *inputs, residuals, **options)

    def train_plain() -> object:
        return torch.autograd.grad(case.plain(*leaves), leaves, grad_output)

    with torch.no_grad():
        rows = {
            "forward": measure(lambda: kernel.forward(*inputs, **options)),
            "plain_forward": measure(lambda: case.plain(*inputs)),
            "forward_backward": measure(train),
        }
    rows["plain_forward_backward"] = measure(train_plain)
    rows["floor_forward"] = {"ms": case.flops() / rate * 1e3}
    for ours, plain in (
        ("forward", "plain_forward"),
        ("forward_backward", "plain_forward_backward"),
    ):
        if "ms" in rows[plain] and "ms" in rows[ours]:
            rows[ours]["times_faster"] = rows[plain]["ms"] / rows[ours]["ms"]
    return rows


def matmul_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a square matrix product of random numbers."""
    from triton.testing import do_bench

    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / (do_bench(lambda: a @ b, return_mode="median") * 1e-3)


def surroundings(seed: int) -> dict[str, Any]:
    import triton

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "seed": seed,
        "gpu": device.name,
        "gpu_memory_gib": device.total_memory / 2**30,
        "multiprocessors": device.multi_processor_count,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = os.environ.get("OUT")
    parser.add_argument(
        "--out", type=Path, default=Path(folder) / "gpu_attention.json" if folder else None
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--cases", nargs="+", help="only cases whose name starts so")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--checks-only", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if not torch.cuda.is_available():
        logger.error("this benchmark needs a CUDA device; the CPU has `upfeat bench`")
        return 2
    torch.manual_seed(arguments.seed)
    result: dict[str, Any] = {"machine": surroundings(arguments.seed), "checks": [], "rows": []}
    chosen = [c for c in CASES if not arguments.cases or c.name.startswith(tuple(arguments.cases))]
    passed = True
    for dtype_name in arguments.dtypes:
        dtype = DTYPES[dtype_name]
        for check, cases in ((check_gradients, CHECKS), (check_band, chosen)):
            for case in cases:
                row = {"case": case.name, "dtype": dtype_name, **check(case, "cuda", dtype)}
                passed &= row["passed"]
                result["checks"].append(row)
                logger.info("check %s", json.dumps(row))
        if arguments.checks_only:
            continue
        rate = matmul_rate(dtype)
        result["machine"][f"matmul_tflops_{dtype_name}"] = rate / 1e12
        for case in chosen:
            measured = measure_case(case, "cuda", dtype, rate)
            row = {"case": case.name, "dtype": dtype_name, **measured}
            result["rows"].append(row)
            logger.info("time %s", json.dumps(row))
    result["passed"] = passed
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.out.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1))
        os.replace(partial, arguments.out)
    logger.info("%s", json.dumps(result["machine"]))
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
