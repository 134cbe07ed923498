"""Recipes of LiFT (Suri et al., 2024, arXiv 2403.14625)."""

from upfeat.objectives import DoubledInputConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = ["lift_paper", "lift_small"]

# Half and quarter images by taking every second pixel; the raw features as targets.
OBJECTIVE = DoubledInputConfig(levels=2, distance="cosine", reduce="stride", feature_space="raw")


@register_recipe
def lift_paper() -> TrainConfig:
    """LiFT for DINO ViT-S/16, as published.

    * Paper and released code: ImageNet's training images at 448 pixels, features of half and
      quarter images to those of the image and its half, one minus the cosine, Adam with a constant
      1e-3.
    * Released code only: five epochs with batch 256 (25,023 steps).
    * Different: the features are the last layer's output tokens instead of the keys of block 11;
      images are cut to squares instead of being squashed; the colour jitter (0.2 each) is left out.
    * Chosen: seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_small_patch16_224.dino"),),
        upsampler=UpsamplerConfig(name="lift"),
        objective=OBJECTIVE,
        data=DataConfig(crop=448),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=1000),
        steps=25_023,
        batch_size=256,
        seed=0,
    )


@register_recipe
def lift_small() -> TrainConfig:
    """LiFT for the bundled encoder, on two cores.

    * As ``lift_paper``: objective, architecture, optimiser.
    * Chosen: everything else. Images of 256 pixels, random crops and mirroring because the data
      are few, 1,000 steps with a learning rate that falls.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="lift"),
        objective=OBJECTIVE,
        data=DataConfig(crop=256, resize=288, position="random", flip=0.5),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )
