"""From settings to objects: backbones, upsampler, objective, images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from upfeat.backbones import Backbone, create_backbone
from upfeat.layers.raw_images import expect_raw_images
from upfeat.loading import load_upsampler
from upfeat.objectives import MultiViewConfig, Objective, create_objective
from upfeat.training.cached_backbone import CachedBackbone
from upfeat.training.config import (
    BackboneConfig,
    DataConfig,
    ObjectiveConfig,
    TrainConfig,
    UpsamplerConfig,
    naming_setting,
)
from upfeat.training.contracts import BatchSource
from upfeat.training.source import open_source
from upfeat.upsamplers import Upsampler, needs_feature_dim

__all__ = ["Parts", "build_objective", "build_parts", "build_upsampler"]


@dataclass
class Parts:
    """What a run works with.

    Attributes:
        backbones: frozen; of several the objective draws one for each micro-batch.
        upsampler: what is trained.
        objective: the training signal.
        source: the images.
        freeze_batch_norm: batch norms keep their running averages and normalise with them.
    """

    backbones: Sequence[Backbone]
    upsampler: Upsampler
    objective: Objective
    source: BatchSource
    freeze_batch_norm: bool = False

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> list[nn.Parameter]:
        """Move everything to a device, let the objective check and build, return what is trained.

        Raises:
            ValueError: the objective cannot train this upsampler with these backbones and images.
        """
        self.upsampler.trained_for = None  # whatever it starts from: these backbones from now on
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
        build_objective(config.objective),
        source,
        config.upsampler.freeze_batch_norm,
    )


def _backbone(config: BackboneConfig, data: DataConfig, images: int) -> Backbone:
    with naming_setting("backbones.options", config.options):
        backbone = create_backbone(config.name, weights=config.weights, **config.options)
    if data.feature_cache is None:
        return backbone
    cached = CachedBackbone(backbone, data.feature_cache, data.crop_size, config.options)
    cached.reserve(images)
    return cached


def build_objective(config: ObjectiveConfig) -> Objective:
    """Build the objective from settings as JSON has them: lists for tuples, nested dictionaries.

    Raises:
        UnknownNameError: no such objective or setting; the message lists close matches.
        ValueError: a value makes no sense.

    Example:
        >>> from upfeat.training import ObjectiveConfig, build_objective
        >>> settings = {"scale": [0.5, 0.5]}
        >>> build_objective(
        ...     ObjectiveConfig(name="multi_resolution", settings=settings)
        ... ).config.scale
        (0.5, 0.5)
    """
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.settings.items()
    }
    views = config.settings.get("multi_view")
    if isinstance(views, dict):
        with naming_setting("objective.settings.multi_view", views):
            settings["multi_view"] = MultiViewConfig(**views)
    return create_objective(config.name, **settings)


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
    with naming_setting("upsampler.config", config.config):
        if start is not None:
            return load_upsampler(name, backbones[0], weights=start, **config.config)
        return load_upsampler(config.name, backbones[0], allow_random=True, **config.config)
