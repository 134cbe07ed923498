"""Recipes of UPLiFT (Walmer, Suri et al., 2026)."""

from upfeat.objectives import RepeatedDoublingConfig
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

__all__ = ["uplift_paper", "uplift_small"]


@register_recipe
def uplift_paper() -> TrainConfig:
    """UPLiFT for DINOv2 ViT-S/14, as published.

    * Released code: ImageNet's training images at 448 pixels, one epoch with batch 32 (40,037
      steps), three levels, squared error of every step, Adam with a constant 1e-3, no clipping.
    * Different: images are cut to squares instead of being squashed.
    * Chosen: seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m"),),
        upsampler=UpsamplerConfig(name="uplift", config={"patch_size": 14}),
        objective=RepeatedDoublingConfig(levels=3, distance="mse"),
        data=DataConfig(crop=448),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=1000),
        steps=40_037,
        batch_size=32,
        seed=0,
    )


@register_recipe
def uplift_small() -> TrainConfig:
    """UPLiFT for the bundled encoder, on two cores.

    * As ``uplift_paper``: objective, architecture, optimiser.
    * Chosen: everything else. Two levels, images of 256 pixels, random crops and mirroring because
      the data are few, 1,000 steps with a learning rate that falls.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="uplift"),
        objective=RepeatedDoublingConfig(levels=2),
        data=DataConfig(crop=256, resize=288, position="random", flip=0.5),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )
