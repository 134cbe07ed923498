"""Pairs of images with corresponding key points, and the folder of one's own that holds such.

Points are ``(x, y)`` in pixels of the image as it is read, from 0 at the centre of the first pixel;
sizes are ``(height, width)``. Legend: ``K`` key points, ``H W`` image.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import FileSet, Layout, PathLike, list_images, read_json

__all__ = [
    "KeypointData",
    "KeypointFile",
    "KeypointPair",
    "KeypointView",
    "keypoint_folder",
]

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
    """One image of a pair.

    Attributes:
        image: its file.
        points: of the ids of the pair, in their order; None where the image does not show it.
        box: x0, y0, x1, y1 of the object; None if unknown.
    """

    image: Path
    points: tuple[Point | None, ...]
    box: tuple[float, float, float, float] | None = None


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

    Example:
        >>> from pathlib import Path
        >>> from upfeat.data.keypoints import KeypointData, KeypointFile, KeypointView
        >>> view = KeypointView(Path("a.jpg"), ((3.0, 4.0), None))
        >>> data = KeypointData("mine/all", ("cat",), (KeypointFile("a-a", "cat", view, view),))
        >>> data.points(data.files[0].source).tolist()
        [[3.0, 4.0], [nan, nan]]
    """

    name: str
    categories: tuple[str, ...]
    files: tuple[KeypointFile, ...]

    def read(self, file: KeypointFile) -> KeypointPair:
        """Read both images of a pair.

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: an image cannot be read.
        """
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
