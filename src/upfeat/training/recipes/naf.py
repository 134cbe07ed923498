"""Recipes of NAF (2025, arXiv 2511.18452)."""

from upfeat.objectives import MultiResolutionConfig, RestorationConfig
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

__all__ = [
    "joint_bilateral_learned_small",
    "naf_paper",
    "naf_restoration_paper",
    "naf_restoration_small",
    "naf_small",
]

# The small image has half the size, the guidance four pixels for each cell of the target.
OBJECTIVE = MultiResolutionConfig(
    scale=(0.5, 0.5), distance="mse", guidance_cells=4, guidance_max=224, regulariser_weight=0.0
)


@register_recipe(when="NAF as published, for DINOv3 ViT-B/16: ImageNet and a GPU.")
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


@register_recipe(
    when="One or several backbones; each pixel attends only to cells in its neighbourhood."
)
def naf_small() -> TrainConfig:
    """NAF for the bundled encoder, on two cores.

    * As ``naf_paper``: objective and architecture, but windows of 7 instead of 9 cells, since the
      small image's grid has eight.
    * Chosen: everything else. Images of 256 pixels, random crops and mirroring because the data are
      few, 2,000 steps with a higher learning rate that falls.
    """
    return TrainConfig(
        validation=ValidationConfig(),
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


@register_recipe
def naf_restoration_paper() -> TrainConfig:
    """NAF as a filter that removes noise from images, as its code trains it.

    * Released code: ImageNet's training images of 448 pixels, Gaussian noise of deviation 0.1
      (``objective.deviation=[0.1,0.5]`` for the range, ``objective.noise=salt-pepper``), 1 L1 + 5
      squared error + 0.2 (1 - SSIM with a 3x3 mean), batch 4, 25,000 steps, bfloat16, a constant
      learning rate.
    * Chosen: one attention head, as three channels cannot be shared by four; learning rate and
      weight decay as in ``naf_paper``; shorter side and centre crop; seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="image/rgb"),),
        upsampler=UpsamplerConfig(name="naf", config={"heads_attn": 1}),
        objective=RestorationConfig(),
        data=DataConfig(crop=448),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-5),
        checkpoint=CheckpointConfig(every=6250),
        steps=25_000,
        batch_size=4,
        precision="bf16",
        seed=0,
    )


@register_recipe
def naf_restoration_small() -> TrainConfig:
    """NAF as a filter that removes noise from images, on two cores.

    * As ``naf_restoration_paper``: objective and noise.
    * Chosen: everything else. A narrow NAF with windows of 5 pixels, random crops of 64, 500 steps
      with a higher learning rate that falls.
    """
    narrow = {"heads_attn": 1, "dim": 64, "kernel_size": 5}
    return TrainConfig(
        backbones=(BackboneConfig(name="image/rgb"),),
        upsampler=UpsamplerConfig(name="naf", config=narrow),
        objective=RestorationConfig(),
        data=DataConfig(crop=64, resize=128, position="random", flip=0.5),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(every=250),
        steps=500,
        batch_size=4,
    )
