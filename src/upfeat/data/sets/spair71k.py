"""SPair-71k: pairs of images of one object category with semantic key points.

Min, Lee, Ponce, Cho: "SPair-71k: a large-scale benchmark for semantic correspondence", arXiv
1908.10543. Groups of interchangeable points: Zhang et al., "Telling left from right", CVPR 2024.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

from upfeat.data.keypoints import KeypointData, KeypointFile, KeypointView, read_json
from upfeat.data.layouts import PathLike, check_split, expected_tree, find_base
from upfeat.data.segmentation import load_table

__all__ = ["spair71k"]

ADDRESS = "https://cvlab.postech.ac.kr/research/SPair-71k"
FOLDERS = {"train": "trn", "val": "val", "test": "test"}

_TREE = """
JPEGImages/CATEGORY/IMAGE.jpg
ImageAnnotation/CATEGORY/IMAGE.json
PairAnnotation/test/NUMBER-SOURCE-TARGET:CATEGORY.json    and trn/, val/; _ for : will do, too
"""


def spair71k(root: PathLike, split: Literal["train", "val", "test"] = "test") -> KeypointData:
    """List a split of SPair-71k by the names of its pair files; 18 categories.

    Args:
        root: the folder that holds ``PairAnnotation``, or the one above it.
        split: 53,340, 5,384 and 12,234 pairs.

    Raises:
        FileNotFoundError: a folder or a file that a pair names is missing; shows the expected tree.
        ValueError: the split is unknown, or a file is malformed.
    """
    check_split("SPair-71k", split, tuple(FOLDERS))
    base = find_base(root, ("SPair-71k",), "PairAnnotation")
    folder = base / "PairAnnotation" / FOLDERS[split]
    pairs = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not pairs:
        problem = f"no pair in {folder}"
        raise FileNotFoundError(expected_tree("SPair-71k", root, _TREE, problem, ADDRESS))
    table = load_table("spair71k")
    groups = {name: tuple(map(tuple, rows)) for name, rows in table["groups"].items()}
    view = cache(lambda category, name: _view(base, root, category, name))
    files = []
    for path in pairs:
        content = read_json(path)
        try:
            category = content["category"]
            names = content["src_imname"], content["trg_imname"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no pair of SPair-71k: it lacks {error}") from error
        viewpoint = content.get("viewpoint_variation")
        source, target = (view(category, name) for name in names)
        own = groups.get(category, ())
        files.append(KeypointFile(path.stem, category, source, target, own, viewpoint))
    return KeypointData(f"spair71k/{split}", tuple(table["categories"]), tuple(files))


def _view(base: Path, root: PathLike, category: str, name: str) -> KeypointView:
    """Return an image with all its key points, those of the ids 0 to 29."""
    image = base / "JPEGImages" / category / name
    path = (base / "ImageAnnotation" / category / name).with_suffix(".json")
    for file in (image, path):
        if not file.is_file():
            problem = f"a pair names {name} of {category}, but there is no {file}"
            raise FileNotFoundError(expected_tree("SPair-71k", root, _TREE, problem, ADDRESS))
    content: dict[str, Any] = read_json(path)
    try:
        kept = {int(number): point for number, point in content["kps"].items()}
        x0, y0, x1, y1 = map(float, content["bndbox"])
        points = tuple(
            None if (point := kept.get(number)) is None else (float(point[0]), float(point[1]))
            for number in range(30)
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no annotation of SPair-71k: {error!r}") from error
    return KeypointView(image, points, (x0, y0, x1, y1))
