"""Key points of known correspondence: photographs and the same ones seen from elsewhere.

Chosen by us, for a test without a data set of key points: each image is warped by a drawn
homography, so that the match of every point is known. Legend: ``H W`` image, points ``(x, y)``.
"""

import csv
import io
import json
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data.folders import image_files
from upfeat.data.images import read_image
from upfeat.data.layouts import PathLike
from upfeat.data.sizes import resize, resolve_size
from upfeat.ops.images import gaussian_blur

__all__ = ["draw_homography", "transfer", "warp", "write_homographies"]

CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
MARGIN = 4  # pixels that a point keeps from the border of the other image


def draw_homography(size: tuple[int, int], strength: float, generator: torch.Generator) -> Tensor:
    """Return a homography (3, 3), float64, that moves each corner of an image (H, W).

    Args:
        size: (H, W).
        strength: the most that a corner moves, as a share of the side.
        generator: of the eight numbers.

    Example:
        >>> import torch
        >>> from upfeat.data.homographies import draw_homography
        >>> draw_homography((40, 60), 0.0, torch.Generator()).round().abs().int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    height, width = size
    scale = torch.tensor([width - 1.0, height - 1.0], dtype=torch.float64)
    moves = 2 * torch.rand(4, 2, generator=generator, dtype=torch.float64) - 1
    source, target = CORNERS * scale, (CORNERS + strength * moves) * scale
    rows = []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    system = torch.tensor(rows, dtype=torch.float64)
    solved = torch.linalg.solve(system, target.flatten())
    return torch.cat([solved, solved.new_ones(1)]).reshape(3, 3)


def transfer(points: Tensor, matrix: Tensor) -> Tensor:
    """Return where a homography (3, 3) moves points (K, 2).

    Example:
        >>> import torch
        >>> from upfeat.data.homographies import transfer
        >>> shift = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> transfer(torch.tensor([[1.0, 2.0]]), shift).tolist()
        [[6.0, 2.0]]
    """
    moved = F.pad(points, (0, 1), value=1.0) @ matrix.T  # (K, 3)
    return moved[:, :2] / moved[:, 2:]


def warp(image: Tensor, matrix: Tensor) -> Tensor:
    """Return an image (3, H, W) as a homography moves it; what lies outside is its mirror image."""
    height, width = image.shape[1:]
    rows, cols = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    grid = torch.stack(torch.meshgrid(cols, rows, indexing="xy"), -1)  # (H, W, 2)
    places = transfer(grid.reshape(-1, 2), torch.linalg.inv(matrix)).reshape(height, width, 2)
    # Pixel centres -> -1 to 1 from edge to edge
    places = (2 * places + 1) / places.new_tensor([width, height]) - 1
    return F.grid_sample(
        image[None], places[None].to(image), padding_mode="reflection", align_corners=False
    )[0]


def _corners(image: Tensor, across: int, down: int) -> Tensor:
    """Return the pixel of each of so many equal fields where the image changes most, (K, 2)."""
    grey = image.mean(0)
    right, low = torch.zeros_like(grey), torch.zeros_like(grey)
    right[:, 1:-1], low[1:-1] = grey[:, 2:] - grey[:, :-2], grey[2:] - grey[:-2]
    # The smaller eigenvalue of the structure tensor: change in two directions.
    products = torch.stack([right * right, low * low, right * low])[None]
    xx, yy, xy = gaussian_blur(products, 1.5)[0]
    smaller = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    _, places = F.adaptive_max_pool2d(smaller[None], (down, across), return_indices=True)
    flat = places.flatten()
    return torch.stack([flat % grey.shape[1], flat // grey.shape[1]], 1).double()


def write_homographies(
    images: PathLike,
    folder: PathLike,
    *,
    strength: float = 0.2,
    side: int = 480,
    fields: int = 6,
    limit: int | None = None,
    seed: int = 0,
) -> int:
    """Write a key-point folder of images and their warped copies, as ``keypoint_folder`` reads it.

    Each image is brought to a longer side, warped by a homography of its own, and made brighter or
    darker by up to a fifth. Its points are where it changes most in two directions, one a field of
    a grid; those that leave the warped image are null there. The box of both is the whole image.

    Args:
        images: folder of images, read recursively.
        folder: where ``images``, ``annotations`` and ``pairs.csv`` go; what is there is replaced.
        strength: the most that a corner moves, as a share of the side.
        side: longer side of what is written; smaller images keep their size.
        fields: of the grid, in each direction.
        limit: at most so many images, the first by name.
        seed: of the homographies; with the image's name it decides each.

    Returns:
        The number of pairs.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import keypoint_folder
        >>> from upfeat.data.homographies import write_homographies
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.effect_noise((64, 48), 80).save(pathlib.Path(folder, "a.png"))
        ...     pairs = write_homographies(folder, f"{folder}/pairs")
        ...     pairs, keypoint_folder(f"{folder}/pairs")[0].source_points.shape
        (1, torch.Size([36, 2]))
    """
    out = Path(folder).expanduser()
    found = image_files(images)[:limit]
    for part in ("images", "annotations"):
        (out / part).mkdir(parents=True, exist_ok=True)
    listing = io.StringIO()
    rows = csv.writer(listing, lineterminator="\n")
    rows.writerow(["source", "target"])
    for path, name in found:
        stem = "-".join(name.parts)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {stem}".encode()))
        image = read_image(path)
        height, width = image.shape[1:]
        if max(height, width) > side:
            size = resolve_size(side / max(height, width), (height, width))
            image = resize(image[None], size)[0]
        matrix = draw_homography((image.shape[1], image.shape[2]), strength, generator)
        light = 0.8 + 0.4 * float(torch.rand((), generator=generator))
        points = _corners(image, fields, fields)
        copies = ((image, points), (warp(image, matrix) * light, transfer(points, matrix)))
        for suffix, (pixels, own) in zip("ab", copies, strict=True):
            write_bytes(out / "images" / f"{stem}-{suffix}.png", _png(pixels))
            content = json.dumps(_annotation(own, (pixels.shape[1], pixels.shape[2])))
            write_bytes(out / "annotations" / f"{stem}-{suffix}.json", content.encode())
        rows.writerow([f"{stem}-a", f"{stem}-b"])
    write_bytes(out / "pairs.csv", listing.getvalue().encode())
    return len(found)


def _annotation(points: Tensor, size: tuple[int, int]) -> dict[str, object]:
    height, width = size
    kept = {
        str(number): [round(x, 2), round(y, 2)]
        if MARGIN <= x < width - MARGIN and MARGIN <= y < height - MARGIN
        else None
        for number, (x, y) in enumerate(points.tolist())
    }
    return {"keypoints": kept, "box": [0, 0, width, height]}


def _png(image: Tensor) -> bytes:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()
