"""From settings to objects: backbones, upsampler, objective, images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from upfeat.backbones import Backbone, create_backbone
from upfeat.data import FeatureCache
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.errors import UnsupportedError
from upfeat.layers.raw_images import expect_raw_images
from upfeat.loading import load_upsampler
from upfeat.objectives import Objective
from upfeat.training.config import BackboneConfig, DataConfig, TrainConfig, UpsamplerConfig
from upfeat.training.source import BatchSource, open_source, open_validation
from upfeat.upsamplers import Upsampler, needs_feature_dim

__all__ = ["CachedBackbone", "Parts", "build_parts", "build_upsampler"]


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
        """Move everything to a device, let the objective check and build, return what is trained.

        Raises:
            ValueError: the objective cannot train this upsampler with these backbones and images.
        """
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

    Args:
        config: the settings; weights are random from the present state of torch's generator.

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

    Example:
        >>> import tempfile, torch, upfeat
        >>> from upfeat.training import CachedBackbone
        >>> pool = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached = CachedBackbone(pool, folder, (32, 32), {})
        ...     image = torch.rand(2, 3, 32, 32)
        ...     torch.equal(cached(image), cached(image)), cached.cache.hits, cached.cache.misses
        (True, 2, 2)
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
