"""NAVI v1: 36 objects photographed in many views, with depth and camera poses.

Jampani et al., "NAVI: Category-agnostic image collections with high-quality 3D shape and pose
annotations", NeurIPS 2023. Splits, frame and square crop are Probe3D's (arXiv 2404.08636); folders
and images are listed in sorted order, where the released code takes the file system's.

Legend: ``H W`` image. Sizes are ``(height, width)``.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.data.images import read_image
from upfeat.data.layouts import Layout, PathLike, check_split, lay_on_image, read_numbers
from upfeat.data.opening import read_picture
from upfeat.data.surfaces import SurfaceData, SurfaceImage, normals_from_depth, square_around

if TYPE_CHECKING:
    from PIL import Image

SHORT_SIDE = 1024  # of the resized copies
PREFIX = "downsampled_"
FRAME = 512  # side of the square frame that the crop is cut from
EVERY = 4  # Probe3D keeps every fourth image
TRAIN_SHARE = 0.9  # of an object's multiview folders
DISPARITY_UNITS = 65535 * 10  # a stored number divided by this is 1 / depth, in 1 / mm
MILLIMETRES = 1000.0

_LAYOUT = Layout(
    "NAVI v1",
    f"""
OBJECT/multiview_NN_CAMERA/annotations.json
OBJECT/multiview_NN_CAMERA/images/{PREFIX}NNN.jpg
OBJECT/multiview_NN_CAMERA/depth/{PREFIX}NNN.png
OBJECT/wild_set/                  likewise
upfeat.data.shrink_navi(ROOT) writes the files {PREFIX}* beside the originals, once.
""",
    "http://storage.googleapis.com/gresearch/navi-dataset/navi_v1.tar.gz",
)


class NaviFile(NamedTuple):
    """One view: its resized files and its camera.

    ``focal`` is in pixels of an image whose shorter side is ``short_side``; the pose takes points
    of the object to the camera: ``quaternion`` (w, x, y, z), then ``translation`` in millimetres.
    """

    name: str
    image: Path
    depth: Path
    annotations: Path
    focal: float
    short_side: float
    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]


class NaviFrame(NamedTuple):
    """The square frame of a view: image (3, S, S) in [0, 1], depth (S, S) in metres, focal."""

    image: Tensor
    depth: Tensor
    focal: float


@dataclass(frozen=True)
class NaviData(SurfaceData[NaviFile]):
    """One split of NAVI; images are square crops around the object."""

    name: str
    files: tuple[NaviFile, ...]

    def frame(self, file: NaviFile) -> NaviFrame:
        """Read a view: shorter side resized to 512 (nearest neighbour), cropped in the centre."""
        for path in (file.image, file.depth):
            if not path.is_file():
                raise FileNotFoundError(
                    f"no file at {path}; write the resized copies once: "
                    "upfeat.data.shrink_navi(ROOT)"
                )
        image = read_image(file.image)
        stored = read_numbers(file.depth, "depth map", "with 16 bit of inverse depth")
        stored = lay_on_image(stored, file.depth, file.image, image.shape[1:])
        metres = DISPARITY_UNITS / MILLIMETRES / stored.clamp(min=1)
        depth = torch.where(stored > 0, metres, 0.0).float()
        if not bool((depth > 0).any()):
            raise ValueError(f"{file.depth} holds no depth at all")
        # (4, H, W) -> (4, S, S)
        both = _square_frame(torch.cat([image, depth[None]]))
        return NaviFrame(both[:3], both[3], file.focal * FRAME / file.short_side)

    def read(self, file: NaviFile) -> SurfaceImage:
        """Read the square crop around the object, at the frame's resolution."""
        frame = self.frame(file)
        try:
            rows, columns = square_around(frame.depth)
        except ValueError as error:
            raise ValueError(f"{file.depth}: {error}") from error
        depth = frame.depth[rows, columns]
        normals = normals_from_depth(depth, frame.focal)
        return SurfaceImage(frame.image[:, rows, columns], depth, normals)


def _square_frame(x: Tensor) -> Tensor:
    """Resize the shorter side of (C, H, W) to the frame's (nearest), crop the centre."""
    height, width = x.shape[1:]
    short = min(height, width)
    size = (FRAME * height // short, FRAME * width // short)
    x = F.interpolate(x[None], size, mode="nearest")[0]
    top, left = (round((side - FRAME) / 2) for side in size)
    return x[:, top : top + FRAME, left : left + FRAME]


def navi(
    root: PathLike,
    split: Literal["trainval", "train", "val", "test"] = "trainval",
    every: int = EVERY,
) -> NaviData:
    """List a split of NAVI as Probe3D makes it.

    ``trainval`` are all images of the folders ``multiview_*``, ``train`` and ``val`` the first 90 %
    of an object's folders and the rest, ``test`` all images of ``wild_set``. Objects without a wild
    set or without a multiview folder are left out.

    Args:
        root: ``navi_v1``, or the folder that holds it.
        split: which of the four.
        every: of all images every n-th is kept; Probe3D keeps every fourth.
    """
    check_split("NAVI", split, ("trainval", "train", "val", "test"))
    base = Path(root).expanduser()
    base = base / "navi_v1" if (base / "navi_v1").is_dir() else base
    files: list[NaviFile] = []
    for folder in _objects(base):
        for scene in _scenes(folder, split):
            files += _views(base, scene)
    if not files:
        raise _LAYOUT.error(root, "no object with both kinds of folder")
    return NaviData(f"navi/{split}", tuple(files[::every]))


def _objects(base: Path) -> list[Path]:
    """Return the objects with a wild set and a multiview folder, sorted."""
    if not base.is_dir():
        return []
    return sorted(
        folder
        for folder in base.iterdir()
        if (folder / "wild_set").is_dir() and any(folder.glob("multiview_*"))
    )


def _scenes(folder: Path, split: str) -> list[Path]:
    if split == "test":
        return [folder / "wild_set"]
    scenes = sorted(folder.glob("multiview_*"))
    train = int(TRAIN_SHARE * len(scenes))  # rounded down: at least one folder for val
    return {"train": scenes[:train], "val": scenes[train:]}.get(split, scenes)


def _views(base: Path, scene: Path) -> Iterator[NaviFile]:
    """Yield the views of a folder; names with an underscore are resized copies."""
    annotations = scene / "annotations.json"
    known = _annotations(annotations)
    images = sorted((scene / "images").glob("*.jpg"))
    stems = {path.stem.removeprefix(PREFIX) for path in images}
    for stem in sorted(stems):
        if "_" in stem:
            continue
        if stem not in known:
            raise ValueError(f"{annotations} has no record of {scene / 'images' / stem}.jpg")
        yield NaviFile(
            f"{scene.relative_to(base).as_posix()}/{stem}",
            scene / "images" / f"{PREFIX}{stem}.jpg",
            scene / "depth" / f"{PREFIX}{stem}.png",
            annotations,
            *known[stem],
        )


def _annotations(path: Path) -> dict[str, Any]:
    """Return focal, shorter side, quaternion and translation of each image by its stem."""
    if not path.is_file():
        raise FileNotFoundError(f"no annotations of NAVI at {path}")
    try:
        records = json.loads(path.read_text())
        return {
            Path(record["filename"]).stem: (
                float(record["camera"]["focal_length"]),
                float(min(record["image_size"])),
                tuple(map(float, record["camera"]["q"])),
                tuple(map(float, record["camera"]["t"])),
            )
            for record in records
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what NAVI's annotations are: a list of records with filename, "
            f"image_size and camera (focal_length, q, t): {type(error).__name__} {error}"
        ) from error


def shrink_navi(root: PathLike, *, on_image: Callable[[int, int], None] | None = None) -> None:
    """Write the resized copies that :func:`navi` reads beside the original images and depth maps.

    The shorter side becomes 1024; images bilinear (Probe3D calls it bicubic, the filter that its
    number names in Pillow is bilinear), JPEG at the default quality; depth by nearest neighbour.
    Copies that are there are kept, so an interrupted run goes on where it stopped.

    Args:
        root: ``navi_v1``.
        on_image: called with done and total after each file.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: a file is broken.
    """
    base = Path(root).expanduser()
    found = [*base.glob("*/*/images/*.jpg"), *base.glob("*/*/depth/*.png")]
    found = sorted(path for path in found if "_" not in path.stem)
    if not found:
        raise _LAYOUT.error(root, "no OBJECT/*/images/*.jpg")
    for number, path in enumerate(found):
        copy = path.with_name(f"{PREFIX}{path.name}")
        if not copy.is_file():
            content = read_picture(path, _shrunk, what="image", name=f"the image {path}")
            write_bytes(copy, content)
        if on_image is not None:
            on_image(number + 1, len(found))


def _shrunk(image: "Image.Image") -> bytes:
    """Return an encoded copy, upright and resized."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    kind = "PNG" if image.format == "PNG" else "JPEG"  # some cameras' files are MPO
    image = ImageOps.exif_transpose(image)
    factor = SHORT_SIDE / min(image.size)
    size = (int(image.width * factor), int(image.height * factor))
    image = image.resize(size, Resampling.BILINEAR if kind == "JPEG" else Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
