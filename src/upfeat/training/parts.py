"""From settings to objects: backbones, upsampler, objective, and images in one endless order."""

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from upfeat.backbones import Backbone, create_backbone
from upfeat.data import FeatureCache
from upfeat.data.depth import DepthMapFolder, TeacherDepth
from upfeat.data.feature_cache import FeatureMapFolder, weights_fingerprint
from upfeat.data.mask_cache import CachedMaskSource
from upfeat.data.masks import FirstOfMaskSource, MaskSource
from upfeat.data.records import (
    JoinedRecords,
    Records,
    SelectedRecords,
    hold_out,
    random_subset,
    with_min_side,
)
from upfeat.data.tar_shards import find_images
from upfeat.data.training_images import PositionSampler, TrainingImages, collate
from upfeat.data.transforms import CropTransform
from upfeat.errors import UnsupportedError
from upfeat.layers.raw_images import expect_raw_images
from upfeat.loading import load_upsampler
from upfeat.objectives import Objective
from upfeat.training.config import (
    MASK_SOURCES,
    BackboneConfig,
    DataConfig,
    MaskConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.upsamplers import Upsampler, needs_feature_dim

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


@dataclass
class Parts:
    """What a run works with.

    Attributes:
        backbones: frozen; of several the objective draws one for each micro-batch.
        upsampler: what is trained.
        objective: the training signal.
        source: the images.
        freeze_batch_norm: batch norms keep their running averages and normalise with them.
        validation: images that are held out, or None.
    """

    backbones: Sequence[Backbone]
    upsampler: Upsampler
    objective: Objective
    source: BatchSource
    freeze_batch_norm: bool = False
    validation: BatchSource | None = None

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> list[nn.Parameter]:
        """Move all to a device, let the objective check and build, return what is trained."""
        # Whatever it starts from: weights of their own, for these backbones, from now on.
        self.upsampler.trained_for = None
        self.upsampler.info = dataclasses.replace(self.upsampler.info, weights_license=None)
        for module in (*self.backbones, self.upsampler):
            expect_raw_images(module)  # crops of normalised images, which may be pale
            module.to(device)
        self.upsampler.train().requires_grad_(True)
        if self.freeze_batch_norm:
            for module in self.upsampler.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.objective.prepare(self.upsampler, self.backbones, image_size)
        self.objective.train()
        parameters = (*self.upsampler.parameters(), *self.objective.parameters())
        return [parameter for parameter in parameters if parameter.requires_grad]


def build_parts(config: TrainConfig) -> Parts:
    """Build everything that a configuration names.

    Raises:
        ValueError: names or settings that do not exist or do not fit together.
        FileNotFoundError: images or weights that are not there.
    """
    source = open_source(config)
    backbones = [_backbone(backbone, config.data, len(source)) for backbone in config.backbones]
    return Parts(
        backbones,
        build_upsampler(config.upsampler, backbones),
        config.objective.build(),
        source,
        config.upsampler.freeze_batch_norm,
        open_validation(config),
    )


def _backbone(config: BackboneConfig, data: DataConfig, images: int) -> Backbone:
    try:
        backbone = create_backbone(config.name, weights=config.weights, **config.options)
    except TypeError as error:  # the provider's arguments, or those of a network of timm
        raise ValueError(f"backbones.options={config.options} does not fit: {error}") from error
    if data.feature_cache is None:
        return backbone
    cached = CachedBackbone(backbone, data.feature_cache, data.crop_size, config.options)
    cached.reserve(images)
    return cached


def build_upsampler(config: UpsamplerConfig, backbones: Sequence[Backbone]) -> Upsampler:
    """Build the upsampler for backbones, with the weights it starts from.

    Raises:
        ValueError: it is built for one feature width, and the backbones have several.
        CheckpointError: ``start_from`` holds another method or another width.
    """
    name = config.name.partition(".")[0]
    if needs_feature_dim(name):
        widths = sorted({backbone.dim for backbone in backbones})
        if len(widths) > 1:
            raise ValueError(
                f"{name} is built for one feature width, and the backbones have {widths}; train it "
                "for one of them, or train a universal upsampler such as anyup"
            )
    start = None if config.start_from is None else Path(config.start_from).expanduser()
    if start is not None:
        return load_upsampler(name, backbones[0], weights=start, any_backbone=True, **config.config)
    return load_upsampler(
        config.name, backbones[0], allow_random=True, any_backbone=True, **config.config
    )


class CachedBackbone(Backbone):
    """A backbone with its features on disk, as float16, for images of one size.

    Images of other sizes (the small image of a random factor, crops) are computed each time: they
    do not come again. Features come without gradients.

    Args:
        backbone: what computes.
        folder: of the cache.
        size: (H, W) of the images whose features are kept.
        options: what the backbone was built with; a part of the cache's key.

    Attributes:
        cache: the files, with counts of hits and misses.
    """

    def __init__(
        self,
        backbone: Backbone,
        folder: str | Path,
        size: tuple[int, int],
        options: dict[str, str | int | float | bool | None],
    ) -> None:
        super().__init__(
            name=backbone.name,
            dim=backbone.dim,
            patch_size=backbone.patch_size,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            size_multiple=backbone.size_multiple,
            layer=backbone.layer,
            fixed_size=backbone.fixed_size,
        )
        self.size = size
        self.backbone = backbone
        weights = weights_fingerprint(backbone.state_dict())
        key = {"backbone": backbone.name, "weights": weights} | options
        self.cache = FeatureCache(folder, key)
        self.freeze()

    def reserve(self, images: int) -> None:
        """Log the size that the cache will have, and refuse one that does not fit on the disk.

        Raises:
            ValueError: more would be needed than is free.
        """
        self.cache.reserve(images, self.dim, self.grid_size(self.size))

    def _extract(self, image: Tensor) -> Tensor:
        if tuple(image.shape[-2:]) != self.size:
            return self.backbone(image)
        if image.requires_grad:
            raise UnsupportedError(
                f"features of {self.name} from a cache have no gradient to the image; train "
                "without data.feature_cache"
            )
        return self.cache(image, self.backbone)


# -- images ----------------------------------------------------------------------------------------


class ImageStream:
    """Training images by position, as :class:`BatchSource` wants them.

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
    shorter = data.resize or (data.crop if isinstance(data.crop, int) else None)
    transform = CropTransform(
        shorter or "cover", data.crop, position=data.position, flip=data.flip, scale=data.scale
    )
    found = [_mask_source(mask) for mask in data.masks]
    masks = FirstOfMaskSource(found) if len(found) > 1 else next(iter(found), None)
    stored = None if data.features is None else FeatureMapFolder(**data.features.model_dump())
    depth = _depth_source(data)
    images = TrainingImages(
        records, transform, masks=masks, depth=depth, features=stored, seed=config.seed
    )
    names = hashlib.sha256("\n".join(record.name for record in records).encode())
    description = {
        "images": len(records),
        "from": " and ".join(Path(path).name or str(path) for path in paths),
        "names": f"sha256 {names.hexdigest()[:12]}",
        "crop": f"{data.crop} ({data.position}) of "
        + (f"shorter side {shorter}" if shorter else "the smallest size around it"),
        "masks": "none" if masks is None else masks.name,
        "depth": "none" if depth is None else depth.name,
    }
    if stored is not None:
        description["features"] = stored.name
    return ImageStream(images, description)


def _depth_source(data: DataConfig) -> DepthMapFolder | TeacherDepth | None:
    config = data.depth
    if config is None:
        return None
    if config.teacher is not None and config.cache is not None:
        return TeacherDepth(config.teacher, config.cache)
    assert config.root is not None  # the configuration names one of the two
    return DepthMapFolder(config.root, config.pattern, units=config.units)


def _mask_source(config: MaskConfig) -> MaskSource:
    source: MaskSource = MASK_SOURCES[config.kind](**config.options)
    return source if config.cache is None else CachedMaskSource(source, config.cache)
