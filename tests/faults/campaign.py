"""The fault campaign in its large form: ``make faults``; exits 1 on findings."""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.faults.disks import full_disk, read_only_disk
from tests.faults.figures import Figures
from tests.faults.images import read_damaged, upsample_damaged
from tests.faults.kills import killed
from tests.faults.pickles import malicious_pickles
from tests.faults.processes import Commands, commands
from tests.faults.weights import damaged_configs, damaged_weights, foreign_weights


def parts(run: Commands, scale: float, seed: int) -> dict[str, Callable[[Path], Figures]]:
    """Return the parts of the campaign by name; each gets a folder of its own."""

    def n(count: int) -> int:
        return max(1, round(scale * count))

    return {
        "images": lambda folder: read_damaged(n(8000), folder, seed),
        "folders": lambda folder: upsample_damaged(run, n(400), folder, seed),
        "weights": lambda folder: damaged_weights(n(6000), folder, seed),
        "foreign": foreign_weights,
        "configs": lambda folder: damaged_configs(n(1500), folder, seed),
        "pickles": lambda folder: malicious_pickles(folder, seed, n(200)),
        "upsample": lambda folder: killed(run, "upsample", n(20), folder, seed),
        "extract": lambda folder: killed(run, "extract", n(20), folder, seed),
        "train": lambda folder: killed(run, "train", n(20), folder, seed),
        "full": lambda folder: full_disk(run, folder),
        "locked": lambda folder: read_only_disk(run, folder),
    }


def main() -> int:
    """Run the parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="append", help="default: all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow and torch warn of what is damaged on purpose
    findings = 0
    with commands() as run, tempfile.TemporaryDirectory() as place:
        for name, part in parts(run, options.scale, options.seed).items():
            if options.part and name not in options.part:
                continue
            start = time.monotonic()
            folder = Path(place) / name
            folder.mkdir()
            figures = part(folder)
            findings += len(figures.findings)
            print(f"{figures}\n  {time.monotonic() - start:.0f} s", flush=True)
    print(f"{findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
