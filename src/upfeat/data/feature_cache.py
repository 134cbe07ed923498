"""Features on disk: those of a frozen backbone, computed once, and fitted maps of single images.

The cache knows no backbone: it takes any callable that turns images into features, and a key that
says which one it is. Features are stored as float16 or float32, one file an image, whole or absent.
Legend: ``B`` batch, ``C`` channels, ``H W`` image, ``h w`` feature grid.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.checkpoints import read_checkpoint
from upfeat.data.layouts import PathLike, write_npy
from upfeat.data.records import ImageRecord
from upfeat.data.sizes import Size
from upfeat.errors import CheckpointError, check_map, shape_text

MAP_KEY = "high"  # of the tensor in a stored map

logger = logging.getLogger(__name__)


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that change with any name, shape, dtype or value of a state."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        _feed(digest, name, state[name])
    return digest.hexdigest()


def image_hash(image: Tensor) -> str:
    """Return 32 hexadecimal digits of an image (3, H, W): pixels, size and dtype."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, "image", image)
    return digest.hexdigest()


def _feed(digest: "hashlib.blake2b", name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    # Bytes, since numpy has no bfloat16.
    digest.update(plain.view(torch.uint8).numpy().tobytes())


@dataclass(frozen=True)
class CacheEstimate:
    """What a cache will take."""

    images: int
    bytes: int
    free_bytes: int

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"{self.images} images: {self.bytes / 1e9:.2f} GB of features; "
            f"{self.free_bytes / 1e9:.2f} GB are free"
        )


class FeatureCache:
    """Features by image, for one backbone with one set of weights and options.

    A file's name is made of the hash of the pixels and the image's size; its folder of the key.
    What is returned is always what ``dtype`` holds, computed now or read, so a run on a cold cache
    and one on a warm one see the same numbers. If any image of a batch is missing the backbone
    sees the whole batch, as it would have without a cache; stored features stay as they are.

    Args:
        folder: where the files go; created if need be.
        key: everything that decides the features beside the image: the backbone's spec, the
            fingerprint of its weights (:func:`weights_fingerprint`), layer and options, such as
            ``{"backbone": "timm/vit_tiny_patch16_224", "weights": "0f3a…", "layer": -1}``.
        dtype: of the stored numbers, float16 or float32; each has a folder of its own.

    Attributes:
        hits, misses: images found and computed so far.

    Example:
        >>> import tempfile, torch
        >>> from upfeat.data.feature_cache import FeatureCache
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = FeatureCache(folder, {"backbone": "mean of 8x8"})
        ...     image = torch.rand(2, 3, 64, 96)
        ...     first = cache(image, torch.nn.AvgPool2d(8))
        ...     again = cache(image, torch.nn.AvgPool2d(8))
        ...     torch.equal(first, again), cache.hits, cache.misses
        (True, 2, 2)
    """

    def __init__(
        self,
        folder: PathLike,
        key: Mapping[str, str | int | float | bool | None],
        dtype: torch.dtype = torch.float16,
    ) -> None:
        if not key:
            raise ValueError("key must say which backbone, weights and options made the features")
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"features are stored as float16 or float32, got {dtype}")
        self.dtype = dtype
        stored = {} if dtype == torch.float16 else {"stored": "float32"}
        self.key = json.dumps(dict(key) | stored, sort_keys=True)
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()
        readable = re.sub(r"[^\w.-]+", "-", str(key.get("backbone", "features")))[:60]
        self.folder = Path(folder).expanduser() / f"{readable}-{digest}"
        self.hits = 0
        self.misses = 0

    def estimate(self, images: int, channels: int, grid: Size) -> CacheEstimate:
        """Return the size of the cache of so many images with features (C, h, w), before it is."""
        header = 128  # of a .npy file
        each = channels * grid[0] * grid[1] * self.dtype.itemsize + header
        existing = self.folder
        while not existing.exists():
            existing = existing.parent
        return CacheEstimate(images, images * each, shutil.disk_usage(existing).free)

    def reserve(self, images: int, channels: int, grid: Size) -> CacheEstimate:
        """Log the estimate and refuse one that does not fit on the disk."""
        estimate = self.estimate(images, channels, grid)
        logger.info("feature cache in %s, %s", self.folder, estimate)
        if estimate.bytes > estimate.free_bytes:
            raise ValueError(
                f"the feature cache does not fit on the disk of {self.folder}: {estimate}; free "
                "some space, use fewer or smaller images, or train without the cache"
            )
        return estimate

    def file(self, image: Tensor) -> Path:
        """Return the path of the features of an image (3, H, W)."""
        name = image_hash(image)
        height, width = image.shape[-2:]
        return self.folder / name[:2] / f"{name[2:]}-{height}x{width}.npy"

    def __call__(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features of a batch of images, from disk where they are there.

        Args:
            image: (B, 3, H, W) as the backbone takes it.
            compute: the backbone: (B, 3, H, W) to (B, C, h, w).

        Returns:
            (B, C, h, w), without gradient, on the image's device and in its dtype.

        Raises:
            ValueError: features beyond the stored dtype, or of another shape than (B, C, h, w).
        """
        check_map(image, "image", "(B, 3, H, W)")
        files = [self.file(one) for one in image]
        stored = [_read(file) for file in files]
        missing = [number for number, features in enumerate(stored) if features is None]
        self.hits += len(files) - len(missing)
        self.misses += len(missing)
        if missing:
            with torch.no_grad():
                features = compute(image)
            if features.dim() != 4 or len(features) != len(image):
                raise ValueError(
                    f"the backbone must return (B, C, h, w) for {shape_text(image)}, got "
                    f"{shape_text(features)}"
                )
            kept = features.detach().to("cpu", self.dtype)
            self._check_range(features, kept)
            for number in missing:
                self._write(files[number], kept[number])
                stored[number] = kept[number]
        # B x (C, h, w) -> (B, C, h, w)
        batch = torch.stack([features for features in stored if features is not None])
        return batch.to(image.device, image.dtype)

    def _check_range(self, features: Tensor, kept: Tensor) -> None:
        if not bool(kept.isfinite().all()):
            name = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"features up to {float(features.abs().max()):.3g} do not fit into {name} "
                f"({torch.finfo(self.dtype).max:.6g} at most); normalise them (the "
                "backbone's final norm), or train without the cache"
            )

    def _write(self, file: Path, features: Tensor) -> None:
        card = self.folder / "key.json"
        if not card.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(card, self.key.encode())
        write_npy(file, features.numpy())


def _read(file: Path) -> Tensor | None:
    """Return stored features (C, h, w), or None; an unreadable file counts as absent."""
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is not readable (%s); computing it again", file, error)
        return None
    return torch.from_numpy(array)


class FeatureMapFolder:
    """Maps of training images that are fitted once and kept as targets, found by the image's name.

    ``upfeat upsample IMAGES --upsampler featup_implicit --save safetensors --out MAPS`` fits a
    network to each image and keeps its map; finished images are skipped on a second run. LoftUp's
    paper (arXiv 2504.14032, table 2) compares such maps with its own targets.

    Args:
        root: the folder that ``upfeat upsample --save safetensors`` wrote.
        pattern: name of an image's file below it; ``{stem}`` and ``{name}`` stand for the last part
            and the whole of the image's name.
    """

    def __init__(self, root: PathLike, pattern: str = "{name}.safetensors") -> None:
        self.root = Path(root).expanduser()
        self.pattern = pattern

    @property
    def name(self) -> str:
        """Kind and settings."""
        return f"features-{self.pattern}"

    def __call__(self, record: ImageRecord) -> Tensor:
        """Return the map (C, H', W') of an image, float32, which covers the whole of it."""
        stem = record.name.rpartition("/")[2]
        path = self.root / self.pattern.replace("{stem}", stem).replace("{name}", record.name)
        if not path.is_file():
            raise ValueError(
                f"no stored features of {record.name} at {path}; make them with upfeat upsample "
                f"IMAGES --upsampler featup_implicit --save safetensors --out {self.root}"
            )
        try:
            stored = read_checkpoint(path).get(MAP_KEY)
        except CheckpointError as error:
            raise ValueError(f"no features of {record.name}: {error}") from error
        if not isinstance(stored, torch.Tensor) or stored.dim() != 3:
            shape = shape_text(stored) if isinstance(stored, torch.Tensor) else "no such tensor"
            raise ValueError(f"{path} must hold {MAP_KEY!r} (C, H, W), got {shape}")
        return stored.float()
