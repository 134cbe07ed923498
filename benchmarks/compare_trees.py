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


def compare(trees: list[Path], method: str, case: str, args: argparse.Namespace) -> str:
    """Return a row: medians of both trees and the medians of the ratios of neighbouring calls."""
    servers = [Server(tree, args.threads) for tree in trees]
    peaks = [server.ask(method, case, "peak")[0] for server in servers]  # this call warms up
    rounds: list[list[list[float]]] = []
    start = time.perf_counter()
    while len(rounds) < args.repeats and (
        len(rounds) < 3 or time.perf_counter() - start < args.seconds
    ):
        rounds.append([server.ask(method, case, "time") for server in servers])
    for server in servers:
        server.close()
    cells = [f"{method:<16} {case:<9}"]
    for kind in (0, 1):
        old, new = (statistics.median(one[tree][kind] for one in rounds) for tree in (0, 1))
        ratio = statistics.median(one[1][kind] / one[0][kind] for one in rounds)
        cells.append(f"{old:8.3f} {new:8.3f} {ratio:6.2f}")
    cells.append(f"{peaks[0] / 1e6:7.0f} {peaks[1] / 1e6:7.0f} {peaks[1] / max(peaks[0], 1):6.2f}")
    return "  ".join(cells)


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
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    say(f"{'method':<16} {'case':<9}  wall s: old  new  ratio   CPU s: old  new  ratio   peak MB")
    for method in args.methods:
        for case in args.case:
            say(compare([args.old, args.new], method, case, args))


if __name__ == "__main__":
    main()
