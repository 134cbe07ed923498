"""Small trees of files in the layouts of the data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_image(path: Path, value: int = 100, size: tuple[int, int] = (4, 6)) -> Path:
    return write(path, np.full((*size, 3), value, np.uint8))


def write_label(path: Path, values: list[int], size: tuple[int, int] = (4, 6)) -> Path:
    """A label map that holds the values, the first of them in the rest."""
    label = np.full(size, values[0], np.uint8)
    label.flat[: len(values)] = values
    return write(path, label)
