"""The images of a run, readable at any position of one endless order."""

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from upfeat.data.depth import DepthMapFolder
from upfeat.data.depth_teacher import TeacherDepth
from upfeat.data.feature_maps import FeatureMapFolder
from upfeat.data.mask_cache import CachedMaskSource
from upfeat.data.masks import FirstOfMaskSource, MaskSource
from upfeat.data.records import JoinedRecords, Records, SelectedRecords
from upfeat.data.selection import hold_out, random_subset, with_min_side
from upfeat.data.tar_shards import find_images
from upfeat.data.training_images import PositionSampler, TrainingImages, collate
from upfeat.data.transforms import CropTransform
from upfeat.training.config import (
    MASK_SOURCES,
    DataConfig,
    DepthConfig,
    MaskConfig,
    TrainConfig,
)

__all__ = ["BatchSource", "ImageStream", "open_source", "open_validation"]

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """An endless, fixed sequence of training images that can be read at any position.

    The sequence depends on its seed only, never on the number of readers, so a run is continued
    by position and shared among processes by position.
    """

    def __len__(self) -> int:
        """Return the number of different images."""
        ...

    def batch(self, start: int, count: int) -> Mapping[str, Any]:
        """Return the images at positions ``start`` to ``start + count - 1`` as one batch.

        Returns:
            ``image`` (B, 3, H, W) in [0, 1], ``paths`` (list of B), and what the objective needs.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what identifies the sequence, as JSON: a resumed run must find the same."""
        ...


class ImageStream:
    """Training images by position: the same for any number of readers.

    Args:
        images: the collection with transform, masks and seed.
        description: what :meth:`describe` returns.
    """

    def __init__(self, images: TrainingImages, description: dict[str, Any]) -> None:
        self.images = images
        self.description = description
        self.skipped: dict[str, str] = {}
        self._lock = threading.Lock()
        self._order = PositionSampler(
            len(images), seed=images.seed, shuffle=True, start=0, stop=None, global_batch=1
        )

    def __len__(self) -> int:
        """Return the number of images in the collection."""
        return len(self.images)

    def batch(self, start: int, count: int) -> dict[str, Any]:
        """Return the images at positions from ``start`` on; safe to call from several threads.

        Returns:
            ``image`` (B, 3, H, W) in [0, 1], ``masks``, bool (B, M, H, W), where the run has
            some, ``paths`` and ``name``, lists of B.
        """
        with self._lock:
            keys = [self._order.key(position) for position in range(start, start + count)]
        samples = [self.images[key] for key in keys]
        batch: dict[str, Any] = dict(collate(samples))
        for name, reason in batch.pop("skipped"):
            if name not in self.skipped:
                logger.warning("skipped %s: %s", name, reason)
            self.skipped[name] = reason
        batch["paths"] = [str(self.images.records[s["index"]].image) for s in samples]
        return batch

    def describe(self) -> dict[str, Any]:
        """Return what identifies images and order."""
        return dict(self.description)


def open_source(config: TrainConfig) -> ImageStream:
    """Open the images that a configuration names, without those that are held out.

    Raises:
        ValueError: no path is given, or nothing usable is there.
        FileNotFoundError: a path does not exist.
    """
    return _stream(config, _split(config)[0], config.data.paths)


def open_validation(config: TrainConfig) -> ImageStream | None:
    """Open the images on which a run is validated, cut as the training images; None without any.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    validation = config.validation
    if validation is None:
        return None
    if validation.paths:
        records: Records = JoinedRecords([find_images(path) for path in validation.paths])
        records = random_subset(records, validation.images, config.seed)
        return _stream(config, records, validation.paths)
    held = _split(config)[1]
    if not len(held):
        logger.debug("fewer than ten images: none is held out, no validation")
        return None
    return _stream(config, held, config.data.paths)


def _split(config: TrainConfig) -> tuple[Records, Records]:
    """Return the images to train on, and those that are held out of them."""
    data, validation = config.data, config.validation
    if not data.paths:
        raise ValueError(
            "there are no training images; name a folder, list or shards with --data DIR "
            "(data.paths)"
        )
    records: Records = JoinedRecords([find_images(path) for path in data.paths])
    if data.min_side is not None:
        records = with_min_side(records, data.min_side, file=data.sides_file)
    if data.limit is not None:
        records = random_subset(records, data.limit, config.seed)
    if validation is None or validation.paths:
        return records, SelectedRecords(records, [])
    return hold_out(records, min(validation.images, len(records) // 10), config.seed)


def _stream(config: TrainConfig, records: Records, paths: tuple[str, ...]) -> ImageStream:
    data = config.data
    transform = CropTransform(
        data.resize or (data.crop if isinstance(data.crop, int) else "cover"),
        data.crop,
        position=data.position,
        flip=data.flip,
        scale=data.scale,
    )
    masks = _mask_source(data)
    depth = None if data.depth is None else _depth_source(data.depth)
    stored = None if data.features is None else FeatureMapFolder(**data.features.model_dump())
    images = TrainingImages(
        records, transform, masks=masks, depth=depth, features=stored, seed=config.seed
    )
    names = hashlib.sha256("\n".join(record.name for record in records).encode())
    description = {
        "images": len(records),
        "from": " and ".join(Path(path).name or str(path) for path in paths),
        "names": f"sha256 {names.hexdigest()[:12]}",
        "crop": f"{data.crop} ({data.position}) {_resize_text(data)}",
        "masks": "none" if masks is None else masks.name,
        "depth": "none" if depth is None else depth.name,
    }
    if stored is not None:
        description["features"] = stored.name
    return ImageStream(images, description)


def _depth_source(config: DepthConfig) -> DepthMapFolder | TeacherDepth:
    if config.teacher is not None and config.cache is not None:
        return TeacherDepth(config.teacher, config.cache)
    assert config.root is not None  # the configuration names one of the two
    return DepthMapFolder(config.root, config.pattern, units=config.units)


def _resize_text(data: DataConfig) -> str:
    if data.resize is None and not isinstance(data.crop, int):
        return "of the smallest size around it"
    return f"of shorter side {data.resize or data.crop}"


def _mask_source(data: DataConfig) -> MaskSource | None:
    sources = [_one_mask_source(mask) for mask in data.masks]
    if len(sources) > 1:
        return FirstOfMaskSource(sources)
    return sources[0] if sources else None


def _one_mask_source(config: MaskConfig) -> MaskSource:
    source: MaskSource = MASK_SOURCES[config.kind](**config.options)
    return source if config.cache is None else CachedMaskSource(source, config.cache)
