"""Pairs of images with corresponding key points, and the folder of one's own that holds such.

Points are ``(x, y)`` in pixels of the image as it is read, from 0 at the centre of the first pixel;
sizes are ``(height, width)``. Legend: ``K`` key points, ``H W`` image.
"""

import csv
import io
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data.folders import image_files
from upfeat.data.images import encode_png, image_size, read_image
from upfeat.data.layouts import FileSet, Layout, PathLike, list_images, read_json
from upfeat.data.sizes import resize, resolve_size
from upfeat.ops.images import gaussian_blur

Point = tuple[float, float]

_LAYOUT = Layout(
    "key points",
    """
images/NAME.jpg
annotations/NAME.json   {"keypoints": {"left eye": [x, y], "tail": null}, "box": [x0, y0, x1, y1]}
pairs.csv               columns source,target and, if there are several, category: names of images
""",
)


class KeypointView(NamedTuple):
    """One image of a pair; ``points`` are those of the pair's ids, None where it shows none."""

    image: Path
    points: tuple[Point | None, ...]
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 of the object, if known


class KeypointFile(NamedTuple):
    """One pair: where its images are, and its key points.

    Attributes:
        name: unique within the split.
        category: of the object.
        source: whose points are given.
        target: where they are looked for.
        groups: rows of interchangeable points, such as those of left and right eye.
        view: difference of the viewpoints, 0, 1 or 2, where it is known.
    """

    name: str
    category: str
    source: KeypointView
    target: KeypointView
    groups: tuple[tuple[int, ...], ...] = ()
    view: int | None = None


class KeypointPair(NamedTuple):
    """Both images (3, H, W), float32 in [0, 1], and their points (K, 2), NaN where not shown."""

    source: Tensor
    target: Tensor
    source_points: Tensor
    target_points: Tensor


@dataclass(frozen=True)
class KeypointData(FileSet[KeypointFile, KeypointPair]):
    """One split of a set of pairs, such as ``"spair71k/test"``; images are read on access.

    Attributes:
        categories: of the objects.
    """

    name: str
    categories: tuple[str, ...]
    files: tuple[KeypointFile, ...]

    def read(self, file: KeypointFile) -> KeypointPair:
        """Read both images of a pair."""
        source, target = file.source, file.target
        images = read_image(source.image), read_image(target.image)
        return KeypointPair(*images, self.points(source), self.points(target))

    def points(self, view: KeypointView) -> Tensor:
        """Return the points (K, 2) of an image, float64; NaN where it does not show one."""
        rows = [(math.nan, math.nan) if point is None else point for point in view.points]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def settings(self) -> str:
        """Return all points and boxes: they stand in no file of their own."""
        parts = [
            (file.category, *file.source[1:], *file.target[1:], file.groups) for file in self.files
        ]
        return json.dumps([self.categories, parts])


def keypoint_folder(root: PathLike) -> KeypointData:
    r"""List the pairs of a folder of one's own.

    ``annotations/NAME.json`` gives each key point of ``images/NAME.*`` as ``[x, y]``, or null where
    it is not visible; the two images of a pair have the same ids. Without a ``box`` the object's
    size is taken from its key points.

    Args:
        root: the folder with ``images``, ``annotations`` and ``pairs.csv``.

    Raises:
        FileNotFoundError: a folder, the list or a file that it names is missing.
        ValueError: the list or an annotation is malformed; a point lies outside its image, an id
            is in one image of a pair only, or a pair shares no point.

    Example:
        >>> import json, pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import keypoint_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = pathlib.Path(folder)
        ...     for part in ("images", "annotations"):
        ...         (root / part).mkdir()
        ...     for name, x in (("a", 3), ("b", 5)):
        ...         Image.new("RGB", (9, 6)).save(root / f"images/{name}.png")
        ...         content = json.dumps({"keypoints": {"nose": [x, 2]}})
        ...         _ = (root / f"annotations/{name}.json").write_text(content)
        ...     _ = (root / "pairs.csv").write_text("source,target\na,b\n")
        ...     keypoint_folder(root)[0].target_points.tolist()
        [[5.0, 2.0]]
    """
    folder = Path(root).expanduser()
    listing = folder / "pairs.csv"
    for path in (folder / "images", folder / "annotations", listing):
        if not path.exists():
            raise _LAYOUT.error(root, f"no {path}")
    images = {path.stem: path for path in list_images(folder / "images")}
    with listing.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"source", "target"} <= set(rows[0]):
        raise ValueError(f"{listing} must have the columns source and target, and a pair a line")
    known: dict[str, _Annotated] = {}
    files = []
    for line, row in enumerate(rows, 2):
        pair = [row[column] or "" for column in ("source", "target")]
        for name in pair:
            if not name:
                raise ValueError(f"{listing}, line {line}: a pair needs source and target")
            if name not in images:
                raise _LAYOUT.error(
                    root, f"pairs.csv, line {line}, names {name}, but no image has it"
                )
            if name not in known:
                known[name] = _annotated(folder / "annotations" / f"{name}.json", images[name])
        category = row.get("category") or "all"
        files.append(_pair(f"{line}: {pair[0]}-{pair[1]}", category, *(known[n] for n in pair)))
    categories = tuple(sorted({file.category for file in files}))
    return KeypointData(f"{folder.name}/all", categories, tuple(files))


class _Annotated(NamedTuple):
    """An image's file of annotations, read and checked."""

    file: Path
    image: Path
    points: Mapping[str, Point | None]
    box: tuple[float, float, float, float] | None


def _annotated(file: Path, image: Path) -> _Annotated:
    if not file.is_file():
        raise FileNotFoundError(f"the image {image} is in a pair, but has no key points at {file}")
    content = read_json(file)
    points = content.get("keypoints") if isinstance(content, dict) else None
    if not isinstance(points, dict) or not points:
        raise ValueError(f'{file} must hold {{"keypoints": {{ID: [x, y] or null}}}}')
    height, width = image_size(image)
    checked: dict[str, Point | None] = {}
    for name, value in points.items():
        if value is None:
            checked[name] = None
            continue
        x, y = _numbers(value, 2, f"the key point {name!r} of {file}", "[x, y] or null")
        if not (-0.5 <= x < width and -0.5 <= y < height):
            raise ValueError(
                f"the key point {name!r} of {file} is at ({x:g}, {y:g}), outside its image of "
                f"{width} x {height} pixels (width x height)"
            )
        checked[name] = (x, y)
    box = content.get("box")
    if box is None:
        return _Annotated(file, image, checked, None)
    x0, y0, x1, y1 = _numbers(box, 4, f"the box of {file}", "[x0, y0, x1, y1]")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box of {file} is empty: {box}; expected [x0, y0, x1, y1]")
    return _Annotated(file, image, checked, (x0, y0, x1, y1))


def _numbers(value: object, count: int, what: str, wanted: str) -> tuple[float, ...]:
    fits = isinstance(value, list) and len(value) == count
    if not fits or not all(
        isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part)
        for part in value  # type: ignore[attr-defined]
    ):
        raise ValueError(f"{what} is {value!r}, expected {wanted}")
    return tuple(map(float, value))  # type: ignore[call-overload]


def _pair(name: str, category: str, source: _Annotated, target: _Annotated) -> KeypointFile:
    for one, other in ((source, target), (target, source)):
        if missing := [point for point in one.points if point not in other.points]:
            raise ValueError(
                f"{other.file} has no key point {missing[0]!r}, which {one.file} has and is paired "
                "with it; write null where a point is not visible"
            )
    ids = list(source.points)
    if not any(source.points[i] and target.points[i] for i in ids):
        raise ValueError(f"{source.file} and {target.file} are a pair, but share no visible point")
    first, second = (
        KeypointView(one.image, tuple(one.points[i] for i in ids), one.box)
        for one in (source, target)
    )
    return KeypointFile(name, category, first, second)


# -- known correspondence ------------------------------------------------------------------------
# Chosen by us, for a test without a data set of key points: each image is warped by a drawn
# homography, so that the match of every point is known.

CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
MARGIN = 4  # pixels that a point keeps from the border of the other image


def draw_homography(size: tuple[int, int], strength: float, generator: torch.Generator) -> Tensor:
    """Return a homography (3, 3), float64, that moves each corner of an image (H, W).

    Args:
        size: (H, W).
        strength: the most that a corner moves, as a share of the side.
        generator: of the eight numbers.
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
    """Return where a homography (3, 3) moves points (K, 2)."""
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

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import keypoint_folder
        >>> from upfeat.data.keypoints import write_homographies
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
            stored = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # (H, W, 3)
            write_bytes(out / "images" / f"{stem}-{suffix}.png", encode_png(stored.numpy()))
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
