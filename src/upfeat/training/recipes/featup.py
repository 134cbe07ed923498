"""Recipes of FeatUp's joint bilateral upsampler (Fu et al., 2024, arXiv 2403.10516)."""

from upfeat.objectives import MultiViewReconstructionConfig
from upfeat.objectives.multi_view import FEATUP
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
    ValidationConfig,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = ["featup_jbu_paper", "featup_jbu_small"]


@register_recipe
def featup_jbu_paper() -> TrainConfig:
    """FeatUp's joint bilateral upsampler for DINO ViT-S/16, as published.

    * Paper: COCO-Stuff, 2,000 steps of 4 images of 224 pixels, five views of each.
    * Released code: shorter side resized to 224 and centre crop, NAdam with 1e-3 (no weight decay),
      crops with 20 mirrored pixels and up to twofold zoom, attention downsampler with blur,
      projections to 30 channels, predicted scale, CRF with 0.001, gradients clipped to 1e-4 during
      the first ten steps, features behind a channel norm whose affine part stays the identity.
      (Its gradients of the adaptive convolution are wrong on GPUs; these are right.)
    * Chosen: the backbone among those of the paper, constant learning rate, seed 0.
    """
    return TrainConfig(
        backbones=(BackboneConfig(name="timm/vit_small_patch16_224.dino"),),
        upsampler=UpsamplerConfig(name="featup_jbu"),
        objective=MultiViewReconstructionConfig(feature_space="channel_norm"),
        data=DataConfig(crop=224, resize=224),
        optimizer=OptimizerConfig(name="nadam", lr=1e-3, weight_decay=0.0),
        clip=ClipConfig(max_norm=1e-4, first_steps=10),
        checkpoint=CheckpointConfig(every=500),
        steps=2000,
        batch_size=4,
        seed=0,
    )


@register_recipe(when="A baseline of the papers: FeatUp's joint bilateral stages.")
def featup_jbu_small() -> TrainConfig:
    """FeatUp's joint bilateral upsampler for the bundled encoder, on two cores.

    * As ``featup_jbu_paper``: objective, views' geometry, architecture, optimiser.
    * Chosen: everything else. Two views of images of 96 pixels, random crops and mirroring because
      the data are few, 200 steps with a learning rate that falls.
    """
    views = FEATUP.model_copy(update={"views": 2, "max_pad": 12})
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="featup_jbu"),
        objective=MultiViewReconstructionConfig(feature_space="channel_norm", multi_view=views),
        data=DataConfig(crop=96, resize=128, position="random", flip=0.5),
        optimizer=OptimizerConfig(name="nadam", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=20),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=50),
        steps=200,
        batch_size=2,
    )
