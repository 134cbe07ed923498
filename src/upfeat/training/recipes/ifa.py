"""IFA (arXiv 2206.08655) as FeatUp runs it (arXiv 2403.10516): how it can be trained alone."""

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

__all__ = ["ifa_small"]


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
