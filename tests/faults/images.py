"""Damaged images: read alone, and in a folder of a command."""

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, features

from tests.faults.damage import damaged
from tests.faults.figures import Figures
from tests.faults.processes import Commands
from tests.fuzz.calls import complaint_about
from upfeat.data import image_size, read_image

FORMATS: Mapping[str, dict[str, Any]] = {
    "png": {},
    "jpg": {"quality": 90},
    "webp": {"lossless": True},
    "tiff": {"compression": "tiff_lzw"},
    "tif": {},
    "gif": {},
    "bmp": {},
    "avif": {"quality": 60},
}


def sound_images(side: int = 40) -> dict[str, bytes]:
    """Return the bytes of one picture in every format that Pillow can write here."""
    noise = Image.effect_noise((side, side - 8), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for suffix, options in FORMATS.items():
        if suffix == "avif" and not features.check("avif"):
            continue
        stream = io.BytesIO()
        kind = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
        tagged = {} if suffix in ("gif", "bmp") else {"exif": exif}
        noise.save(stream, kind, **options, **tagged)
        files[suffix] = stream.getvalue()
    return files


def read_damaged(count: int, folder: Path, seed: int = 0) -> Figures:
    """Read ``count`` damaged files: each is a picture, or a ValueError that names the file."""
    figures, rng, files = Figures("damaged images read"), random.Random(seed), sound_images()
    for number in range(count):
        suffix = list(files)[number % len(files)]
        what, data = damaged(files[suffix], rng)
        path = folder / f"damaged{number}.{suffix}"
        path.write_bytes(data)
        for read in (read_image, image_size):
            try:
                result = read(path)
            except ValueError as error:
                figures.count("refused")
                complaint = complaint_about(str(error).replace(str(path), "FILE"))
                if path.name not in str(error):
                    complaint = "the message names no file"
                if complaint:
                    figures.find(f"{read.__name__}, {suffix}, {what}: {complaint}: {error}")
            except Exception as error:
                figures.find(f"{read.__name__}, {suffix}, {what}: {type(error).__name__}: {error}")
            else:
                figures.count("read")
                if isinstance(result, torch.Tensor) and not _is_picture(result):
                    figures.find(f"{suffix}, {what}: {tuple(result.shape)} is no picture")
        path.unlink()
    return figures


def _is_picture(image: torch.Tensor) -> bool:
    return bool(image.dim() == 3 and len(image) == 3 and (image >= 0).all() and (image <= 1).all())


def upsample_damaged(run: Commands, count: int, folder: Path, seed: int = 0) -> Figures:
    """Run a command on a folder of damaged files and a sound one: each fails for itself alone."""
    figures, rng, files = (
        Figures("damaged images in a command"),
        random.Random(seed),
        sound_images(),
    )
    (folder / "in").mkdir(parents=True)
    for number in range(count):
        suffix = list(files)[number % len(files)]
        (folder / "in" / f"damaged{number}.{suffix}").write_bytes(damaged(files[suffix], rng)[1])
    (folder / "in" / "sound.png").write_bytes(files["png"])
    ended = run("upsample", "in", "--upsampler", "bilinear", "--out", "out", cwd=folder)
    if "Traceback" in ended.output or ended.code not in (0, 1):
        figures.find(f"exit code {ended.code}: {ended.output[-400:]}")
    if not (folder / "out" / "sound.png").is_file():
        figures.find(f"the sound image was not computed: {ended.output[-400:]}")
    done = {path.stem for path in (folder / "out").glob("*.png")}
    listed = folder / "out" / "failures.jsonl"
    lines = listed.read_text().splitlines() if listed.is_file() else []
    failed = {Path(json.loads(line)["file"]).stem for line in lines}
    for path in (folder / "in").iterdir():
        if (path.stem in done) == (path.stem in failed):
            figures.find(f"{path.name}: computed {path.stem in done}, failed {path.stem in failed}")
        figures.count("computed" if path.stem in done else "failed")
    return figures
