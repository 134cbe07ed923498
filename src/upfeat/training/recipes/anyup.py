"""Recipes of AnyUp (Wimmer et al., 2025, arXiv 2510.12764)."""

from upfeat.objectives import CropsConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
    ValidationConfig,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = ["anyup_paper", "anyup_small"]


@register_recipe(when="AnyUp as published: ImageNet and a GPU.")
def anyup_paper() -> TrainConfig:
    """AnyUp trained on DINOv2 ViT-S/14, as published.

    * Paper and released code: ImageNet's training images whose shorter side has at least 448
      pixels, batch 4, 100,000 steps, AdamW with a constant 2e-4; the features of four crops at full
      resolution as targets, consistency under a changed guidance and under downsampling with
      weight 0.1 each.
    * Released code only: centre crop of 448, weight decay 1e-5, bfloat16, the guidance's
      normalisation for the backbone too. Its several backbones in one run are a list here:
      ``backbones`` takes any number.
    * Chosen: seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m"),),
        upsampler=UpsamplerConfig(name="anyup"),
        objective=CropsConfig(
            scale=0.5,
            crops=4,
            distance="cosine_mse",
            augmented_weight=0.1,
            downsample_weight=0.1,
            normalization="guidance",
        ),
        data=DataConfig(crop=448, min_side=448),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-5),
        checkpoint=CheckpointConfig(every=10_000),
        steps=100_000,
        batch_size=4,
        precision="bf16",
        seed=0,
    )


@register_recipe(when="One upsampler for several backbones: give --backbone more than once.")
def anyup_small() -> TrainConfig:
    """AnyUp trained on the bundled encoder, on two cores.

    * As ``anyup_paper``: objective and architecture.
    * Chosen: everything else. The backbone's own normalisation, two crops of each image, images of
      224 pixels, keys and queries of 64 channels, random crops and mirroring because the data are
      few, 1,000 steps with a higher learning rate that falls.
    """
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="anyup", config={"qk_dim": 64}),
        objective=CropsConfig(crops=2),
        data=DataConfig(crop=224, resize=256, position="random", flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=1e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        checkpoint=CheckpointConfig(every=100),
        steps=1000,
        batch_size=2,
    )
