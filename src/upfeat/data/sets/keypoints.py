"""Pairs of images of one object category with semantic key points: SPair-71k, PF-PASCAL, PF-WILLOW.

A reader takes the folder whose tree is shown below, or the one above it.
"""

import csv
import math
from functools import cache
from pathlib import Path
from typing import Any, Literal

from upfeat.data.keypoints import KeypointData, KeypointFile, KeypointView
from upfeat.data.layouts import (
    Layout,
    PathLike,
    check_named,
    check_split,
    content_problem,
    find_base,
    read_json,
    read_mat,
)
from upfeat.data.segmentation import load_table
from upfeat.data.sets.labelled import VOC_CLASSES

_SPAIR = Layout(
    "SPair-71k",
    """
JPEGImages/CATEGORY/IMAGE.jpg
ImageAnnotation/CATEGORY/IMAGE.json
PairAnnotation/test/NUMBER-SOURCE-TARGET:CATEGORY.json    and trn/, val/; _ for : will do, too
""",
    "https://cvlab.postech.ac.kr/research/SPair-71k",
)
_SPAIR_FOLDERS = {"train": "trn", "val": "val", "test": "test"}

_PF_ADDRESS = "https://www.di.ens.fr/willow/research/proposalflow"
_PF_PASCAL = Layout(
    "PF-PASCAL",
    """
JPEGImages/2008_000001.jpg
Annotations/CATEGORY/2008_000001.mat   kps, one row (x, y) a point, NaN where it is not visible
test_pairs.csv                         columns source_image,target_image,class (1 to 20); val_, too
""",
    _PF_ADDRESS,
)
_PF_WILLOW = Layout(
    "PF-WILLOW",
    """
CATEGORY/NAME.png
test_pairs.csv   two images, then 10 x and 10 y of the first one's points, and of the second one's
""",
    _PF_ADDRESS,
)
WILLOW_POINTS = 10


def spair71k(root: PathLike, split: Literal["train", "val", "test"] = "test") -> KeypointData:
    """List the 53,340, 5,384 or 12,234 pairs of SPair-71k by their files' names; 18 categories.

    Min, Lee, Ponce, Cho: "SPair-71k: a large-scale benchmark for semantic correspondence", arXiv
    1908.10543. Groups of interchangeable points: Zhang et al., "Telling left from right", CVPR
    2024.
    """
    check_split("SPair-71k", split, tuple(_SPAIR_FOLDERS))
    base = find_base(root, ("SPair-71k",), "PairAnnotation")
    folder = base / "PairAnnotation" / _SPAIR_FOLDERS[split]
    pairs = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not pairs:
        raise _SPAIR.error(root, f"no pair in {folder}")
    table = load_table("spair71k")
    groups = {name: tuple(map(tuple, rows)) for name, rows in table["groups"].items()}
    view = cache(lambda category, name: _spair_view(base, category, name))
    files = []
    for path in pairs:
        content = read_json(path)
        try:
            category = content["category"]
            names = content["src_imname"], content["trg_imname"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no pair of SPair-71k: it lacks {error}") from error
        viewpoint = content.get("viewpoint_variation")
        with _SPAIR.explained(root):
            source, target = (view(category, name) for name in names)
        own = groups.get(category, ())
        files.append(KeypointFile(path.stem, category, source, target, own, viewpoint))
    return KeypointData(f"spair71k/{split}", tuple(table["categories"]), tuple(files))


def _spair_view(base: Path, category: str, name: str) -> KeypointView:
    """Return an image with all its key points, those of the ids 0 to 29."""
    image = base / "JPEGImages" / category / name
    path = (base / "ImageAnnotation" / category / name).with_suffix(".json")
    check_named("a pair", f"{name} of {category}", image, path)
    content: dict[str, Any] = read_json(path)
    try:
        kept = {int(number): point for number, point in content["kps"].items()}
        x0, y0, x1, y1 = map(float, content["bndbox"])
        points = tuple(
            None if (point := kept.get(number)) is None else (float(point[0]), float(point[1]))
            for number in range(30)
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is no annotation of SPair-71k: {content_problem(error)}"
        ) from error
    return KeypointView(image, points, (x0, y0, x1, y1))


def pf_pascal(root: PathLike, split: Literal["val", "test"] = "test") -> KeypointData:
    """List the 308 or 299 pairs of PF-PASCAL in their list's order; the 20 categories of VOC.

    Ham, Cho, Schmid, Ponce: "Proposal flow: semantic correspondences from object proposals", TPAMI
    2018; the lists of pairs are those of later work (Han et al., "SCNet", ICCV 2017). The files of
    points take SciPy.
    """
    check_split("PF-PASCAL", split, ("val", "test"))
    base = find_base(root, ("PF-dataset-PASCAL",), "JPEGImages")
    listing = base / f"{split}_pairs.csv"
    _PF_PASCAL.check_files(root, listing)
    names = VOC_CLASSES[1:]

    @cache
    def view(category: str, name: str) -> KeypointView:
        image = base / "JPEGImages" / name
        points = (base / "Annotations" / category / name).with_suffix(".mat")
        _PF_PASCAL.check_files(root, image, points)
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


def _mat_points(path: Path) -> tuple[tuple[float, float] | None, ...]:
    rows = read_mat(
        path,
        "key points",
        lambda mat: mat["kps"].astype(float).reshape(-1, 2).tolist(),
        "holds no key points of PF-PASCAL",
    )
    return tuple(None if math.isnan(x) or math.isnan(y) else (x, y) for x, y in rows)


def pf_willow(root: PathLike) -> KeypointData:
    """List the 900 pairs of PF-WILLOW, see :func:`pf_pascal`, in the list's order."""
    base = find_base(root, ("PF-dataset",), "test_pairs.csv")
    listing = base / "test_pairs.csv"
    _PF_WILLOW.check_files(root, listing)
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
        views, half = [], 2 * WILLOW_POINTS
        for name, own in zip(row[:2], (numbers[:half], numbers[half:]), strict=True):
            image = base / Path(name).parent.name / Path(name).name
            _PF_WILLOW.check_files(root, image)
            points = zip(own[:WILLOW_POINTS], own[WILLOW_POINTS:], strict=True)
            views.append(KeypointView(image, tuple(points)))
        source, target = views
        category = source.image.parent.name
        files.append(KeypointFile(f"{line}-{source.image.stem}", category, source, target))
    categories = tuple(sorted({file.category for file in files}))
    return KeypointData("pf_willow/test", categories, tuple(files))


def _rows(listing: Path) -> list[list[str]]:
    with listing.open(newline="", encoding="utf-8-sig") as stream:
        return [row for row in csv.reader(stream) if row]
