"""Check a wheel: what it holds, and that it makes a picture in a clean environment, offline.

    python tools/check_dist.py dist                  # dependencies of this environment
    python tools/check_dist.py dist --install        # dependencies installed from the index

The environment has the wheel and nothing else of upfeat, so a file that only the checkout has is
missed.
"""

from __future__ import annotations

import argparse
import email
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

LARGEST = 15_000_000
LICENCES = ("LICENSE", "NOTICE")
FOREIGN = ("tests", "tools", "benchmarks", "docs", "weights", "examples", "__pycache__")
PHOTO = (320, 240)  # width, height


def wheel_in(folder: Path) -> Path:
    """The only wheel of a folder."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{folder} holds {len(wheels)} wheels, wanted one; run `make dist`")
    return wheels[0]


def faults_of(wheel: Path) -> list[str]:
    """What is wrong with a wheel's content, a sentence for each fault."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        head = email.message_from_bytes(archive.read(metadata))
    info = metadata.removesuffix("METADATA")
    faults = []
    if (size := wheel.stat().st_size) > LARGEST:
        faults.append(f"it has {size:,} bytes, more than {LARGEST:,}")
    for name in names:
        if not name.startswith(("upfeat/", info)) or set(Path(name).parts) & set(FOREIGN):
            faults.append(f"{name} does not belong in it")
    faults += [f"{n} is missing" for n in LICENCES if f"{info}licenses/{n}" not in names]
    if head["License-Expression"] != "Apache-2.0":
        faults.append(f"its licence is {head['License-Expression']}, not Apache-2.0")
    return faults


def make_environment(folder: Path, wheel: Path, *, install: bool) -> Path:
    """A new environment with the wheel; returns its folder of programs.

    Args:
        folder: of the environment.
        wheel: what is installed.
        install: whether dependencies are installed from the index, too; if not, the packages of
            the environment that runs this are seen, except an upfeat installed from a checkout.
    """
    options = ["--without-pip"] if not install else []
    subprocess.run([sys.executable, "-m", "venv", *options, str(folder)], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    limits = [] if install else ["--no-deps", "--no-index"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", *limits, str(wheel)], check=True)
    if not install:
        # A path in a .pth file is searched last, and .pth files found there are not followed:
        # an editable install of the checkout stays out.
        site = sysconfig.get_path("purelib", vars={"base": str(folder)})
        Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def try_it(programs: Path, folder: Path) -> list[str]:
    """Run the command on a photo as a new user would, without network; returns lines of a report.

    Args:
        programs: of the environment.
        folder: an empty folder, which becomes the user's.
    """
    from PIL import Image

    photo = folder / "photo.jpg"
    Image.effect_mandelbrot(PHOTO, (-2, -1.2, 1, 1.2), 60).convert("RGB").save(photo)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UPFEAT_", "PYTHON", "HF_"))}
    environment = kept | {"UPFEAT_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    where = Path(run("python", "-c", "import upfeat; print(upfeat.__file__)"))
    if not where.is_relative_to(programs.parent.resolve()):
        sys.exit(f"upfeat came from {where}, not from the wheel")
    start = os.times()
    run("upfeat", "upsample", "photo.jpg", "--out", "out")
    end = os.times()
    seconds, cpu = end.elapsed - start.elapsed, end.children_user - start.children_user
    with Image.open(folder / "out" / "photo.png") as picture:
        picture.load()
        size = picture.size
    if size[0] < 2 * PHOTO[0] or size[1] < PHOTO[1]:
        sys.exit(f"the picture of a photo of {PHOTO} has {size}")
    line = f"photo.jpg to out/photo.png in {seconds:.1f} s ({cpu:.1f} s of CPU), offline"
    return [run("upfeat", "--version"), line]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the wheel of a folder; prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the wheel")
    parser.add_argument("--install", action="store_true", help="dependencies from the index")
    given = parser.parse_args(arguments)
    wheel = wheel_in(given.folder)
    if faults := faults_of(wheel):
        sys.stderr.write("".join(f"{wheel.name}: {fault}\n" for fault in faults))
        return 1
    with tempfile.TemporaryDirectory() as folder:
        programs = make_environment(Path(folder, "venv"), wheel.resolve(), install=given.install)
        Path(folder, "user").mkdir()
        lines = try_it(programs, Path(folder, "user"))
    sys.stdout.write(f"{wheel.name}: {wheel.stat().st_size:,} bytes\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
