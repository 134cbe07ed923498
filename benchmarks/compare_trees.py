"""Two source trees of upfeat on one machine: time and peak memory of methods, in turn.

    python benchmarks/compare_trees.py OLD NEW jafar naf --case 448 448-21 448-train

Each tree runs in a process of its own; the processes take turns, call by call, so that other work
on the machine slows both. Times are medians, wall clock and CPU; peaks are of fresh processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def workload(method: str, name: str) -> Callable[[], None]:
    """Return a call of a method in a case, of the tree on the path."""
    import torch

    from upfeat.evaluation.benchmark import CASES

    side, _, kind = name.partition("-")
    case = replace(CASES[side], values=21 if kind == "21" else None, backward=kind == "train")
    cpu = torch.device("cpu")
    upsampler = case.build(method, torch.float32, cpu)
    image, features = case.inputs(torch.float32, cpu)
    call = case.ours(upsampler, case.head(torch.float32, cpu))
    features.requires_grad_(case.backward)
    return lambda: call(image, features)


def warm_threads() -> None:
    """Let the libraries make the buffers that each thread of ours keeps: they are no method's."""
    import torch

    runtime = "upfeat.ops.runtime" if find_spec("upfeat.ops.runtime") else "upfeat.ops._workers"
    x, weight = torch.randn(1, 128, 64, 64), torch.randn(128, 128, 3, 3)
    rows, square = x[0].flatten(1).T.contiguous(), weight[:, :, 0, 0]

    def work(*_: object) -> None:
        torch.mm(rows, square), torch.conv2d(x, weight)
        torch.bmm(rows.view(4, -1, 128), square.expand(4, 128, 128))

    run_blocks = import_module(runtime).run_blocks
    run_blocks(range(2 * torch.get_num_threads()), work, lambda: None, x.device)


def serve(threads: int) -> None:
    """Answer ``method case kind`` lines: seconds of one call, or the peak's growth in bytes."""
    import torch

    from upfeat.evaluation.benchmark.measure import measure_memory, warm_libraries

    torch.set_num_threads(threads)
    warm_libraries(torch.float32)
    warm_threads()
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for line in sys.stdin:
        method, case, kind = line.split()
        if (method, case) not in calls:
            calls.clear()
            calls[method, case] = workload(method, case)
        call = calls[method, case]
        if kind == "peak":
            answer = [float(measure_memory(call))]
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            answer = [time.perf_counter() - wall, time.process_time() - cpu]
        say(json.dumps(answer))


class Server:
    """A process that runs one tree."""

    def __init__(self, tree: Path, threads: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree / "src")}
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, __file__, "--serve", str(threads)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, method: str, case: str, kind: str) -> list[float]:
        """Return the answer of `serve`."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self.process.stdin.write(f"{method} {case} {kind}\n")
        self.process.stdin.flush()
        answer: list[float] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(method: str, case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return medians of both trees, old and new, and the median ratios of neighbouring calls."""
    servers = [Server(tree, args.threads) for tree in (args.old, args.new)]
    peaks = [server.ask(method, case, "peak")[0] for server in servers]  # this call warms up
    rounds: list[list[list[float]]] = []
    start = time.perf_counter()
    while len(rounds) < args.repeats and (
        len(rounds) < 3 or time.perf_counter() - start < args.seconds
    ):
        rounds.append([server.ask(method, case, "time") for server in servers])
    for server in servers:
        server.close()
    row: dict[str, Any] = {"method": method, "case": case, "threads": args.threads}
    for kind, name in enumerate(("wall", "cpu")):
        sides = (statistics.median(one[tree][kind] for one in rounds) for tree in (0, 1))
        ratio = statistics.median(one[1][kind] / one[0][kind] for one in rounds)
        row[name] = [*(round(side, 4) for side in sides), round(ratio, 3)]
    megabytes = [round(peak / 1e6, 1) for peak in peaks]
    row["peak_mb"] = [*megabytes, round(peaks[1] / max(peaks[0], 1), 3)]
    return row | {"calls": len(rounds)}


def shown(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [f"{row['method']:<16} {row['case']:<9}"]
    cells += ["{:8.3f} {:8.3f} {:6.2f}".format(*row[name]) for name in ("wall", "cpu")]
    return "  ".join([*cells, "{:7.0f} {:7.0f} {:6.2f}".format(*row["peak_mb"])])


def keep(row: dict[str, Any], file: Path) -> None:
    """Put a row into a file of rows, in the place of an earlier one of the same measurement."""
    key = ("method", "case", "threads")
    rows = json.loads(file.read_text()) if file.exists() else []
    rows = [one for one in rows if any(one[name] != row[name] for name in key)]
    rows = sorted([*rows, row], key=lambda one: [one[name] for name in key])
    lines = ",\n".join(json.dumps(one) for one in rows)
    whole = file.with_suffix(".part")
    whole.write_text(f"[\n{lines}\n]\n")
    whole.replace(file)


def main() -> None:
    """Print a row for each method and case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--case", nargs="+", default=["448", "448-21", "448-train"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each tree")
    parser.add_argument("--seconds", type=float, default=30.0, help="after three calls")
    parser.add_argument("--out", type=Path, help="JSON file of rows to add to")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    say(f"{'method':<16} {'case':<9}  wall s: old  new  ratio   CPU s: old  new  ratio   peak MB")
    for method in args.methods:
        for case in args.case:
            row = compare(method, case, args)
            say(shown(row))
            if args.out is not None:
                keep(row, args.out)


if __name__ == "__main__":
    main()
