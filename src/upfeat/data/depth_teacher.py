"""Pseudo depth of images from Depth Anything V2, through transformers.

Source: Yang et al., "Depth Anything V2", 2024, arXiv 2406.09414; the networks come from the package
transformers (Apache-2.0), the weights of the small network are Apache-2.0. They are read from a
folder, ``config.json`` and ``model.safetensors``; nothing is downloaded.

The image goes in as its processor would prepare it: 8-bit pixels, shorter side resized to 518 or
what ``preprocessor_config.json`` says (Pillow's bicubic), both sides rounded to multiples of 14,
ImageNet's mean and deviation. What comes out is relative inverse depth, 0 far away, without a
scale. Legend: ``H W`` image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat._compat import ensure_torchvision_operators
from upfeat.checkpoints import file_sha256, read_config
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.records import ImageRecord
from upfeat.data.sizes import Size
from upfeat.errors import (
    CheckpointError,
    MissingPackageError,
    WeightsNotFoundError,
    check_normalization,
)
from upfeat.ops.images import normalize

__all__ = ["DepthTeacher", "TeacherDepth"]

MODEL_TYPE = "depth_anything"
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

    Example:
        >>> from upfeat.data.depth_teacher import DepthTeacher
        >>> try:
        ...     DepthTeacher("no-such-folder", "cache")
        ... except FileNotFoundError as error:
        ...     print("no weights")
        no weights
    """

    def __init__(
        self, folder: str | Path, cache: str | Path, device: torch.device | str = "cpu"
    ) -> None:
        self.folder = Path(folder).expanduser()
        files = sorted(self.folder.glob("*.safetensors"))
        if not (self.folder / "config.json").is_file() or not files:
            raise WeightsNotFoundError(
                f"no depth teacher in {self.folder}: expected config.json and model.safetensors, "
                "as in https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf"
            )
        config = read_config(self.folder / "config.json")
        if config.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"{self.folder} holds a model of type {config.get('model_type')!r}, expected "
                f"{MODEL_TYPE!r}"
            )
        self.name = _published_name(config)
        self.weights = "-".join(file_sha256(file)[:16] for file in files)
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
            raise CheckpointError(f"{path} says how no image is prepared: {error!r}") from error
        settings = f"{self.side} {self.multiple} {self.keep_ratio} {self.mean} {self.std}"
        key = {"backbone": self.name, "weights": self.weights, "input": settings}
        self.cache = FeatureCache(cache, key)
        self._model: Any = None

    def __call__(self, image: Tensor) -> Tensor:
        """Return relative inverse depth.

        Args:
            image: (3, H, W) in [0, 1]; taken to 8 bit by rounding down.

        Returns:
            (H, W) float32, as float16 holds it.
        """
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
        """Return the network, loaded at the first call; every weight must come from the file."""
        if self._model is not None:
            return self._model
        ensure_torchvision_operators()  # transformers imports torchvision
        try:
            import transformers
        except ImportError as error:
            raise MissingPackageError("transformers", "sam", "depth teachers") from error
        network: Any = transformers.DepthAnythingForDepthEstimation
        log = transformers.logging
        bar = log.is_progress_bar_enabled()
        log.disable_progress_bar()
        try:
            model, report = network.from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.folder} cannot be loaded: {error}") from error
        finally:
            if bar:
                log.enable_progress_bar()
        if report["missing_keys"] or report["mismatched_keys"]:
            raise CheckpointError(
                f"{self.folder} lacks weights of {type(model).__name__}: "
                f"{sorted(map(str, {*report['missing_keys'], *report['mismatched_keys']}))[:5]}"
            )
        self._model = model.to(self.device).eval().requires_grad_(False)
        return self._model


class TeacherDepth:
    """Pseudo depth of training images: a teacher's maps of the whole images, kept on disk.

    It stands where :class:`upfeat.data.DepthMapFolder` does.

    Args:
        folder: of the teacher, see :class:`DepthTeacher`.
        cache: folder of the maps.
        device: where the network runs.
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
        """Return relative inverse depth (1, H, W) of an image, float32; 0 is far away.

        Raises:
            ValueError: the image cannot be read.
        """
        return self.teacher(record.read_image())[None]


def _published_name(config: dict[str, Any]) -> str:
    """Return the name under which a configuration is published, or one that tells its width."""
    backbone = config.get("backbone_config") or {}
    layers = list(backbone.get("out_indices") or ())
    # The first version reads the last four layers, the second four evenly spread ones.
    last = bool(layers) and layers == list(range(layers[0], layers[0] + len(layers)))
    width = int(backbone.get("hidden_size", 0))
    return f"Depth-Anything-{'V1' if last else 'V2'}-{_SIZES.get(width, width)}"
