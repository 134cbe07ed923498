"""Full and read-only disks: one sentence, exit code 2, and nothing half-written."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.figures import Figures
from tests.faults.kills import TRAIN
from tests.faults.processes import Commands, Ended

SMALL_DISK = 2 * 2**20


class NoMountsError(Exception):
    """This process may not mount file systems."""


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount something at a folder; raises `NoMountsError` where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoMountsError(str(error)) from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def small_disk(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """Mount a disk of two megabytes."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Make a folder read-only: by its mode, or by a mount where root may write all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield folder
        return
    folder.chmod(0o555)
    try:
        yield folder
    finally:
        folder.chmod(0o755)


def _pictures(folder: Path, side: int, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{number}.png")


def _judge(figures: Figures, label: str, ended: Ended, out: Path) -> None:
    """One sentence, exit code 2, no part of a file."""
    complaint = None
    errors = [line for line in ended.output.splitlines() if line.startswith("error:")]
    if "Traceback" in ended.output:
        complaint = "traceback"
    elif ended.code != 2:
        complaint = f"exit code {ended.code}"
    elif len(errors) != 1:
        complaint = f"{len(errors)} lines that begin with error:"
    if complaint:
        figures.find(f"{label}: {complaint}: {ended.output[-500:]}")
    figures.count("refused" if complaint is None else "other")
    parts = [str(path.relative_to(out)) for path in out.rglob("*.part*")]
    if parts:
        figures.find(f"{label}: left {parts}")
    for picture in out.rglob("*.png"):
        with Image.open(picture) as image:
            image.load()  # whole


SAVES = ("npz", "safetensors", "png,npz")


def full_disk(run: Commands, folder: Path, saves: tuple[str, ...] = SAVES) -> Figures:
    """Run both commands on a disk of two megabytes; without one, on files that may not grow."""
    figures = Figures("full disk")
    _pictures(folder / "in", 256)
    _pictures(folder / "small" / "in", 40)
    for place, kind in _full_places(folder, figures):
        limit = None if place is not None else 100_000
        out = place or folder / f"out{kind}"
        for number, save in enumerate(saves):
            target = out / str(number)
            command = ("upsample", "in", "--out", target, "--upsampler", "bilinear", "--save", save)
            ended = run(*command, "--save-dtype", "float32", cwd=folder, file_bytes=limit)
            _judge(figures, f"{kind}, upsample --save {save}", ended, target)
        arguments = [str(out / "run") if a == "out" else a for a in TRAIN]
        ended = run(*arguments, cwd=folder / "small", file_bytes=limit)
        _judge(figures, f"{kind}, train", ended, out / "run")
    return figures


def _full_places(folder: Path, figures: Figures) -> Iterator[tuple[Path | None, str]]:
    """Yield a small disk that is nearly full, where one can be mounted, then None for a limit."""
    try:
        with small_disk(folder / "disk") as disk:
            (disk / "filler").write_bytes(bytes(SMALL_DISK - 300_000))
            yield disk, "2 MB disk"
    except NoMountsError:
        figures.count("no mounts")
    yield None, "limit of a file's size"


def read_only_disk(run: Commands, folder: Path) -> Figures:
    """Run both commands into a read-only folder, into a file, and below a file."""
    figures = Figures("output that cannot be written")
    _pictures(folder / "in", 40)
    (folder / "file").write_bytes(b"mine")
    done = run("upsample", "in", "--out", "done", "--upsampler", "bilinear", cwd=folder)
    if done.code != 0:
        figures.find(f"a sound run ends with {done.code}: {done.output}")
    upsample: Callable[[object], Ended] = lambda out: run(  # noqa: E731
        "upsample", "in", "--out", out, "--upsampler", "bilinear", cwd=folder
    )
    train: Callable[[object], Ended] = lambda out: run(  # noqa: E731
        *(str(out) if a == "out" else a for a in TRAIN), cwd=folder
    )
    for name, command in (("upsample", upsample), ("train", train)):
        for out in ("file", "file/below"):
            _judge(figures, f"{name} --out {out}", command(out), folder / out)
        try:
            with read_only(folder / "locked"):
                for out in ("locked", "locked/new"):
                    _judge(figures, f"{name} --out {out}", command(out), folder / out)
        except NoMountsError:
            figures.count("no mounts")
    if (folder / "file").read_bytes() != b"mine":
        figures.find("the file was replaced")
    _rerun_finished(figures, upsample, folder)
    return figures


def _rerun_finished(figures: Figures, upsample: Callable[[object], Ended], folder: Path) -> None:
    """A finished job has nothing to write, so a read-only folder is no obstacle."""
    try:
        with read_only(folder / "done"):
            ended = upsample("done")
    except NoMountsError:
        figures.count("no mounts")
        return
    figures.count("rerun of a finished job")
    if ended.code not in (0, 2) or "Traceback" in ended.output:
        figures.find(f"rerun of a finished job: exit code {ended.code}: {ended.output[-500:]}")
