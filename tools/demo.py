"""The main job on one real photo, offline: low-resolution and upsampled features in one picture.

    python tools/demo.py --out demo_out

The photo comes with the scikit-image wheel, the encoder with upfeat. Anything after ``--`` goes to
``upfeat upsample`` as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PHOTO = "astronaut.png"  # Eileen Collins, by NASA; public domain
BACKBONE = "upfeat/vit_compact_patch16"
UPSAMPLER = "kin.upfeat"  # comes with the package, too


def packaged_photo() -> Path:
    """Returns the photo inside the installed scikit-image, which needs no download."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / PHOTO
    if not path.is_file():
        sys.exit(f"scikit-image {skimage.__version__} has no {PHOTO}; name a photo with --photo")
    return path


def console_script() -> str:
    """Returns the command `upfeat` of the environment that runs this file."""
    script = shutil.which("upfeat", path=str(Path(sys.executable).parent))
    if script is None:
        sys.exit("the command upfeat is not installed here; run `make venv`, or `make demo`")
    return script


def main() -> int:
    parser = argparse.ArgumentParser(description="Upsample the features of a photo, offline.")
    parser.add_argument("--photo", type=Path, default=None, help="a photo of your own")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--upsampler", default=UPSAMPLER)
    parser.add_argument("more", nargs="*", help="options for `upfeat upsample`, after --")
    arguments = parser.parse_args()

    photo = arguments.photo or packaged_photo()
    command = [
        *(console_script(), "upsample", str(photo)),
        *("--backbone", arguments.backbone, "--upsampler", arguments.upsampler),
        *("--out", str(arguments.out), "--save", "png", *arguments.more),
    ]
    environment = {**os.environ, "UPFEAT_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        return code
    pictures = sorted(arguments.out.rglob(f"{photo.stem}*.png"))
    if not pictures:
        sys.exit(f"no picture of {photo.name} in {arguments.out}")
    sys.stdout.write(
        f"\n{photo.name} | its features on the coarse grid | upsampled by {arguments.upsampler}:\n"
    )
    for picture in pictures:
        sys.stdout.write(f"  {picture.resolve()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
