"""Recipes of JAFAR (Couairon et al., 2025, arXiv 2506.11136)."""

from upfeat.objectives import MultiResolutionConfig
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

__all__ = ["jafar_maskclip_paper", "jafar_paper", "jafar_small"]


@register_recipe(when="JAFAR as published, for DINOv2 ViT-S/14: ImageNet and a GPU.")
def jafar_paper() -> TrainConfig:
    """JAFAR for DINOv2 ViT-S/14, as published.

    * Paper and released script: ImageNet's training images, batch 4, 100,000 steps, AdamW with a
      constant learning rate of 2e-4; features at 448 pixels as target, a small image of a factor
      from [0.25, 0.5], guidance of half the size; cosine plus min-max normalised squared error.
    * Released script only: shorter side 448 and centre crop without other augmentation, weight
      decay 1e-5, bfloat16 for the whole step; the regulariser with weight 0.1 and its clamp of
      normalised pixels to [0, 1] (``objective.clamp="valid"`` does it right); checkpoints
      every half of the run; seed 0.
    * Chosen: the backbone among those of the paper.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m"),),
        upsampler=UpsamplerConfig(name="jafar"),
        objective=MultiResolutionConfig(
            scale=(0.25, 0.5),
            distance="cosine_mse",
            guidance_scale=0.5,
            regulariser_weight=0.1,
            clamp="released",
        ),
        data=DataConfig(crop=448),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-5),
        checkpoint=CheckpointConfig(every=50_000),
        steps=100_000,
        batch_size=4,
        precision="bf16",
        seed=0,
    )


@register_recipe
def jafar_maskclip_paper() -> TrainConfig:
    """JAFAR for CLIP ViT-B/16 in its text space, for open-vocabulary segmentation (table 3).

    * Paper: features of CLIP ViT-B/16 as in MaskCLIP; everything else as ``jafar_paper``.
    * Chosen: MaskCLIP's values without residual path and MLP, and ImageNet's normalisation, both as
      FeatUp's published ``maskclip`` weights have them. The published JAFAR weights for CLIP
      belong to a fine-tuned classifier of 768 channels without text space.
    """
    clip = BackboneConfig(name="clip/ViT-B-16.openai(image_norm='imagenet')")
    return jafar_paper().model_copy(update={"backbones": (clip,)})


@register_recipe(when="One backbone of yours, any images, sharp at any size: start here.")
def jafar_small() -> TrainConfig:
    """JAFAR for the bundled encoder, on two cores.

    * As ``jafar_paper``: the objective, with the clamp done right.
    * Chosen: everything else. Images of 224 pixels, random crops and mirroring because the data
      are few, keys and queries of 64 channels, 1,000 steps with a higher learning rate that falls.
    """
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="jafar", config={"qk_dim": 64}),
        objective=MultiResolutionConfig(),
        data=DataConfig(crop=224, resize=256, position="random", flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=1e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )
