"""Images with a depth map: what the loaders of depth sets give, and depth of training images.

A training image's depth is one file beside it, of a sensor or a depth network, or the pseudo depth
of a teacher: Depth Anything V2 (Yang et al., 2024, arXiv 2406.09414; the weights of the small
network are Apache-2.0) through the package transformers. Sizes are ``(height, width)``.

Legend: ``H W`` image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.checkpoints import read_config
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.images import read_image
from upfeat.data.layouts import (
    FileSet,
    PathLike,
    content_problem,
    lay_on_image,
    read_npy,
    read_numbers,
)
from upfeat.data.networks import NetworkFolder
from upfeat.data.records import ImageRecord
from upfeat.data.sizes import Size
from upfeat.errors import CheckpointError, check_normalization
from upfeat.ops.images import normalize


class DepthFile(NamedTuple):
    """Where one image and its depth map are; ``name`` is unique within the split."""

    name: str
    image: Path
    depth: Path


class DepthImage(NamedTuple):
    """One image (3, H, W) in [0, 1] and its depth (H, W) in metres, 0 = missing; both float32."""

    image: Tensor
    depth: Tensor


@dataclass(frozen=True)
class DepthData(FileSet[DepthFile, DepthImage]):
    """One split of a set with metric depth, such as ``"nyuv2-depth/val"``.

    Attributes:
        units_per_metre: a stored number divided by this is the depth in metres; 0 stands for a
            missing measurement.
    """

    name: str
    files: tuple[DepthFile, ...]
    units_per_metre: float = 1000.0

    def read(self, file: DepthFile) -> DepthImage:
        """Read an image with its depth."""
        image, depth = read_depth(file.image, file.depth, self.units_per_metre)
        low, high = (float(end) * self.units_per_metre for end in depth.aminmax())
        if low < 0 or high == 0:
            raise ValueError(
                f"{file.depth} holds {low:.0f} to {high:.0f}; expected distances above 0, and 0 "
                "where there is none"
            )
        return DepthImage(image, depth)

    def settings(self) -> str:
        """Return the unit."""
        return f"{self.units_per_metre:g} a metre"


def read_depth(image: Path, depth: Path, units_per_metre: float) -> DepthImage:
    """Read an image and its depth map, turned as the image is; what is missing is 0."""
    pixels = read_image(image)
    stored = read_numbers(depth, "depth map", "with 8 or 16 bit of distance")
    stored = lay_on_image(stored, depth, image, pixels.shape[1:])
    return DepthImage(pixels, stored.float() / units_per_metre)


class DepthMapFolder:
    """Depth maps in a folder, found by the image's name; 0, infinity and NaN are missing depths.

    NYUv2 as in the package's loaders: ``DepthMapFolder("nyuv2/train/depth", units=25.5)``.

    Args:
        root: folder of the depth maps.
        pattern: name of an image's map below ``root``; ``{stem}`` and ``{name}`` stand for the last
            part and the whole of the image's name. ``.npy`` holds (H, W) numbers, everything else
            is an image with one channel of 8 or 16 bits.
        units: stored numbers per unit of depth, such as 1000 for millimetres.

    Raises:
        ValueError: ``units`` is not positive.
    """

    def __init__(self, root: PathLike, pattern: str = "{stem}.png", *, units: float = 1.0) -> None:
        if not units > 0:
            raise ValueError(f"units must be positive, got {units}")
        self.root = Path(root).expanduser()
        self.pattern = pattern
        self.units = units

    @property
    def name(self) -> str:
        """Kind and settings."""
        return f"depth-{self.pattern}" + ("" if self.units == 1 else f"-per{self.units:g}")

    def path(self, record: ImageRecord) -> Path:
        """Return where an image's depth map lies."""
        stem = record.name.rpartition("/")[2]
        return self.root / self.pattern.replace("{stem}", stem).replace("{name}", record.name)

    def __call__(self, record: ImageRecord) -> Tensor:
        """Return the depth (1, H, W) of an image, float32; 0 is missing."""
        path = self.path(record)
        try:
            if path.suffix == ".npy":
                stored = torch.from_numpy(read_npy(path).astype(np.float32))
            else:
                stored = read_numbers(path, "depth map", "store depth in one channel")
        except (OSError, ValueError) as error:
            raise ValueError(f"no depth of {record.name}: {error}") from error
        if stored.dim() != 2:
            raise ValueError(f"{path} is {tuple(stored.shape)}, expected (H, W)")
        depth = stored.float() / self.units
        return depth.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)[None]


# -- Depth Anything ------------------------------------------------------------------------------
# The image goes in as its processor would prepare it: 8-bit pixels, shorter side resized to 518 or
# what preprocessor_config.json says (Pillow's bicubic), both sides rounded to multiples of 14,
# ImageNet's mean and deviation. What comes out is relative inverse depth, 0 far away, without a
# scale.

MODEL_TYPE = "depth_anything"
ADDRESS = "https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE, MULTIPLE = 518, 14
_SIZES = {384: "Small", 768: "Base", 1024: "Large", 1536: "Giant"}


class DepthTeacher:
    """Depth Anything, from a local folder; its maps are kept on disk.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and perhaps
            ``preprocessor_config.json``, as in ``depth-anything/Depth-Anything-V2-Small-hf``.
        cache: folder of the maps.
        device: where the network runs.

    Attributes:
        name: such as ``"Depth-Anything-V2-Small"``, read from the configuration.
        weights: hash of the weights.

    Raises:
        WeightsNotFoundError: the folder holds no weights.
        CheckpointError: they are of another kind, or do not fit.
        MissingPackageError: transformers is not installed.
    """

    def __init__(
        self, folder: str | Path, cache: str | Path, device: torch.device | str = "cpu"
    ) -> None:
        self._network = NetworkFolder(Path(folder), "depth teacher", (MODEL_TYPE,), ADDRESS)
        self.folder = self._network.folder
        self.name = _published_name(self._network.config)
        self.weights = "-".join(digest[:16] for digest in self._network.hashes())
        self.device = torch.device(device)
        path = self.folder / "preprocessor_config.json"
        prepared = read_config(path) if path.is_file() else {}
        try:
            size = prepared.get("size", {"height": SIDE, "width": SIDE})
            self.side: Size = (int(size["height"]), int(size["width"]))
            self.multiple = int(prepared.get("ensure_multiple_of", MULTIPLE))
            self.keep_ratio = bool(prepared.get("keep_aspect_ratio", True))
            self.mean = prepared.get("image_mean", MEAN)
            self.std = prepared.get("image_std", STD)
            check_normalization(self.mean, self.std)
            if min(*self.side, self.multiple) < 1:
                raise ValueError("sizes must be positive")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} says how no image is prepared: {content_problem(error)}"
            ) from error
        settings = f"{self.side} {self.multiple} {self.keep_ratio} {self.mean} {self.std}"
        key = {"backbone": self.name, "weights": self.weights, "input": settings}
        self.cache = FeatureCache(cache, key)
        self._model: Any = None

    def __call__(self, image: Tensor) -> Tensor:
        """Return relative inverse depth (H, W), as float16 holds it, of an image (3, H, W)."""
        return self.cache(image[None], self._predict)[0, 0].float()

    def input_size(self, size: Size) -> Size:
        """Return the size to which an image of this size is resized.

        Example: 480 x 640 becomes 518 x 686, the one closest to both sides of 518.
        """
        scales = [target / own for target, own in zip(self.side, size, strict=True)]
        if self.keep_ratio:
            # The scale that changes the image less, as in the original of this rule (MiDaS).
            least = scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]
            scales = [least, least]
        height, width = (
            round(scale * own / self.multiple) * self.multiple
            for scale, own in zip(scales, size, strict=True)
        )
        return max(height, self.multiple), max(width, self.multiple)

    def _predict(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 1, H, W)."""
        from PIL import Image

        height, width = image.shape[2], image.shape[3]
        # (1, 3, H, W) -> (H, W, 3)
        pixels = (image[0] * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        rows, columns = self.input_size((height, width))
        resized = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC)
        # (h, w, 3) -> (1, 3, h, w)
        small = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        model = self._load()
        with torch.no_grad():
            depth = model(normalize(small.to(self.device), self.mean, self.std)).predicted_depth
        # (1, h', w') -> (1, 1, H, W)
        return F.interpolate(depth[:, None].float(), (height, width), mode="bilinear")

    def _load(self) -> Any:
        """Return the network, loaded at the first call."""
        if self._model is None:
            network = "DepthAnythingForDepthEstimation"
            self._model = self._network.load(network, "depth teachers", self.device, torch.float32)
        return self._model


class TeacherDepth:
    """Pseudo depth of training images: a teacher's maps of the whole images, kept on disk.

    It stands where :class:`upfeat.data.DepthMapFolder` does.
    """

    def __init__(
        self, folder: str | Path, cache: str | Path, device: torch.device | str = "cpu"
    ) -> None:
        self.teacher = DepthTeacher(folder, cache, device)

    @property
    def name(self) -> str:
        """The teacher's."""
        return f"depth-{self.teacher.name}"

    def __call__(self, record: ImageRecord) -> Tensor:
        """Return relative inverse depth (1, H, W) of an image, float32; 0 is far away."""
        return self.teacher(record.read_image())[None]


def _published_name(config: dict[str, Any]) -> str:
    """Return the name under which a configuration is published, or one that tells its width."""
    backbone = config.get("backbone_config") or {}
    layers = list(backbone.get("out_indices") or ())
    # The first version reads the last four layers, the second four evenly spread ones.
    last = bool(layers) and layers == list(range(layers[0], layers[0] + len(layers)))
    width = int(backbone.get("hidden_size", 0))
    return f"Depth-Anything-{'V1' if last else 'V2'}-{_SIZES.get(width, width)}"
