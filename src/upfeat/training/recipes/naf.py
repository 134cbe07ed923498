"""Recipes of NAF (2025, arXiv 2511.18452)."""

from upfeat.objectives import MultiResolutionConfig
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

__all__ = ["joint_bilateral_learned_small", "naf_paper", "naf_small"]

# The small image has half the size, the guidance four pixels for each cell of the target.
OBJECTIVE = MultiResolutionConfig(
    scale=(0.5, 0.5), distance="mse", guidance_cells=4, guidance_max=224, regulariser_weight=0.0
)


@register_recipe
def naf_paper() -> TrainConfig:
    """NAF for DINOv3 ViT-B/16, as published.

    * Paper and released code: ImageNet's training images of 512 pixels, features of the half-sized
      image to those of the image, plain squared error, AdamW with a constant 2e-4, batch 4, 25,000
      steps.
    * Released code only: shorter side and centre crop, guidance of at most 224 pixels and four for
      each cell of the target, weight decay 1e-5, bfloat16, checkpoints every quarter of the run.
    * Chosen: seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_base_patch16_dinov3.lvd1689m"),),
        upsampler=UpsamplerConfig(name="naf"),
        objective=OBJECTIVE,
        data=DataConfig(crop=512),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-5),
        checkpoint=CheckpointConfig(every=6250),
        steps=25_000,
        batch_size=4,
        precision="bf16",
        seed=0,
    )


@register_recipe
def naf_small() -> TrainConfig:
    """NAF for the bundled encoder, on two cores.

    * As ``naf_paper``: objective and architecture, but windows of 7 instead of 9 cells, since the
      small image's grid has eight.
    * Chosen: everything else. Images of 256 pixels, random crops and mirroring because the data are
      few, 2,000 steps with a higher learning rate that falls.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="naf", config={"kernel_size": 7}),
        objective=OBJECTIVE,
        data=DataConfig(crop=256, resize=288, position="random", flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=1e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        checkpoint=CheckpointConfig(every=250),
        steps=2000,
        batch_size=4,
    )


@register_recipe
def joint_bilateral_learned_small() -> TrainConfig:
    """NAF's learned bilateral baseline for the bundled encoder, on two cores.

    * As ``naf_small``: everything but the method, which NAF's paper sets beside its own. How it was
      trained there is not published.
    """
    upsampler = UpsamplerConfig(name="joint_bilateral_learned")
    return naf_small().model_copy(update={"upsampler": upsampler})
