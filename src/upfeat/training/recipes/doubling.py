"""Recipes of methods that double the grid: LiFT, UPLiFT, IFA.

LiFT: Suri et al., 2024, arXiv 2403.14625; UPLiFT: Walmer, Suri et al., 2026; IFA (arXiv 2206.08655)
as FeatUp runs it (arXiv 2403.10516).
"""

from upfeat.objectives import DoubledInputConfig, RepeatedDoublingConfig
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

__all__ = ["ifa_small", "lift_paper", "lift_small", "uplift_paper", "uplift_small"]


# Half and quarter images by taking every second pixel; the raw features as targets.
LIFT = DoubledInputConfig(levels=2, distance="cosine", reduce="stride", feature_space="raw")


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
        objective=LIFT,
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
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="lift"),
        objective=LIFT,
        data=DataConfig(crop=256, resize=288, position="random", flip=0.5),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )


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
        validation=ValidationConfig(),
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


@register_recipe
def ifa_small() -> TrainConfig:
    """IFA for the bundled encoder, on two cores, from images of half the size.

    * Original: the architecture. The paper trains it inside a segmentation network; no paper
      describes how to train it alone.
    * Chosen: LiFT's signal, since IFA doubles the grid as LiFT does: features of the halved image,
      doubled, against those of the image, by their cosine; random crops and mirroring because the
      data are few, 1,000 steps with a learning rate that falls.
    """
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name="ifa"),
        objective=DoubledInputConfig(levels=1, distance="cosine", feature_space="raw"),
        data=DataConfig(crop=256, resize=288, position="random", flip=0.5),
        optimizer=OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )
