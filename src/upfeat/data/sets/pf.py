"""PF-PASCAL and PF-WILLOW: pairs of images of one object category with key points.

Ham, Cho, Schmid, Ponce: "Proposal flow: semantic correspondences from object proposals", TPAMI
2018; PF-PASCAL's lists of pairs are those of later work (Han et al., "SCNet", ICCV 2017).
"""

import csv
import math
from functools import cache
from pathlib import Path
from typing import Literal

from upfeat.data.keypoints import KeypointData, KeypointFile, KeypointView
from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base
from upfeat.data.sets.voc import VOC_CLASSES
from upfeat.errors import MissingPackageError, check_file

__all__ = ["pf_pascal", "pf_willow"]

ADDRESS = "https://www.di.ens.fr/willow/research/proposalflow"
WILLOW_POINTS = 10

_PASCAL_TREE = """
JPEGImages/2008_000001.jpg
Annotations/CATEGORY/2008_000001.mat   kps, one row (x, y) a point, NaN where it is not visible
test_pairs.csv                         columns source_image,target_image,class (1 to 20); val_, too
"""
_WILLOW_TREE = """
CATEGORY/NAME.png
test_pairs.csv   two images, then 10 x and 10 y of the first one's points, and of the second one's
"""


def pf_pascal(root: PathLike, split: Literal["val", "test"] = "test") -> KeypointData:
    """List a split of PF-PASCAL in the order of its list; the 20 categories of VOC.

    Args:
        root: the folder with ``JPEGImages``, or the one above it.
        split: 308 and 299 pairs.

    Raises:
        FileNotFoundError: the list or a file that it names is missing; shows the expected tree.
        ValueError: the split is unknown, or a file is malformed.
        MissingPackageError: SciPy is not installed.
    """
    check_split("PF-PASCAL", split, ("val", "test"))
    base = find_base(root, ("PF-dataset-PASCAL",), "JPEGImages")
    listing = base / f"{split}_pairs.csv"
    if not listing.is_file():
        raise _lacks("PF-PASCAL", root, _PASCAL_TREE, listing)
    names = VOC_CLASSES[1:]

    @cache
    def view(category: str, name: str) -> KeypointView:
        image = base / "JPEGImages" / name
        points = (base / "Annotations" / category / name).with_suffix(".mat")
        for path in (image, points):
            if not path.is_file():
                raise _lacks("PF-PASCAL", root, _PASCAL_TREE, path)
        return KeypointView(image, _mat_points(points))

    files = []
    for line, row in enumerate(_rows(listing)[1:], 2):
        if len(row) < 3 or not row[2].isdecimal() or not 1 <= int(row[2]) <= len(names):
            raise ValueError(f"{listing}, line {line}: expected SOURCE,TARGET,CLASS with 1 to 20")
        category = names[int(row[2]) - 1]
        # The lists name images by the path that they had on their authors' machines.
        source, target = (view(category, Path(name).name) for name in row[:2])
        if len(source.points) != len(target.points):
            raise ValueError(
                f"{listing}, line {line}: {row[0]} has {len(source.points)} key points, {row[1]} "
                f"{len(target.points)}; the images of a pair have the same ones"
            )
        files.append(KeypointFile(f"{line}-{Path(row[0]).stem}", category, source, target))
    return KeypointData(f"pf_pascal/{split}", names, tuple(files))


def pf_willow(root: PathLike) -> KeypointData:
    """List the 900 pairs of PF-WILLOW in the order of the list; 10 categories.

    Args:
        root: the folder with ``test_pairs.csv``, or the one above it.

    Raises:
        FileNotFoundError: the list or an image is missing; shows the expected tree.
        ValueError: the list is malformed.
    """
    base = find_base(root, ("PF-dataset",), "test_pairs.csv")
    listing = base / "test_pairs.csv"
    if not listing.is_file():
        raise _lacks("PF-WILLOW", root, _WILLOW_TREE, listing)
    files = []
    for line, row in enumerate(_rows(listing)[1:], 2):
        try:
            numbers = [float(cell) for cell in row[2:]]
        except ValueError:
            numbers = []
        if len(numbers) != 4 * WILLOW_POINTS:
            raise ValueError(
                f"{listing}, line {line}: expected two images and {4 * WILLOW_POINTS} numbers"
            )
        half = 2 * WILLOW_POINTS
        source, target = (
            _willow_view(base, root, name, own)
            for name, own in zip(row[:2], (numbers[:half], numbers[half:]), strict=True)
        )
        category = source.image.parent.name
        files.append(KeypointFile(f"{line}-{source.image.stem}", category, source, target))
    categories = tuple(sorted({file.category for file in files}))
    return KeypointData("pf_willow/test", categories, tuple(files))


def _willow_view(base: Path, root: PathLike, name: str, numbers: list[float]) -> KeypointView:
    image = base / Path(name).parent.name / Path(name).name
    if not image.is_file():
        raise _lacks("PF-WILLOW", root, _WILLOW_TREE, image)
    points = zip(numbers[:WILLOW_POINTS], numbers[WILLOW_POINTS:], strict=True)
    return KeypointView(image, tuple(points))


def _rows(listing: Path) -> list[list[str]]:
    with listing.open(newline="", encoding="utf-8-sig") as stream:
        return [row for row in csv.reader(stream) if row]


def _mat_points(path: Path) -> tuple[tuple[float, float] | None, ...]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError("scipy", "data", "files *.mat") from error
    check_file(path, "key points")
    try:
        rows = loadmat(path)["kps"].astype(float).reshape(-1, 2).tolist()
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(f"{path} holds no key points of PF-PASCAL: {error}") from error
    return tuple(None if math.isnan(x) or math.isnan(y) else (x, y) for x, y in rows)


def _lacks(name: str, root: PathLike, tree: str, path: Path) -> FileNotFoundError:
    return FileNotFoundError(expected_tree(name, root, tree, f"no file {path}", ADDRESS))
