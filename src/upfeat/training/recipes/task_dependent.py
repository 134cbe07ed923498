"""Recipes of the baselines that the papers train with a probe: CARAFE, SAPA, DySample and others.

JAFAR (arXiv 2506.11136) trains CARAFE, SAPA, DySample and ReSFU jointly with a linear probe, anew
for each data set and task. Each of them must be trainable alone, too, and no paper describes
how; so all objectives here are chosen:

* The stacks of four doublings (``carafe``, ``sapa``, ``dysample``, ``resize_conv``) learn from
  LoftUp's mask-refined features at the size of the image, as LoftUp (arXiv 2504.14032) has
  retrained FeatUp's stack. The output then has 16 times the grid's size for a patch of 16, so that
  every stage sees a target at each pixel; two resolutions of one image would give them a target of
  2 to 4 times the grid, and most of what they compute would be thrown away.
* ``resfu`` and ``liif`` go to any size at once and learn from two resolutions of an image.

All compare with raw features, as these methods give outputs in their space. There are no recipes of
the papers' size: they would be their probes' (see the evaluation's).
"""

from typing import Any

from upfeat.objectives import MaskRefinedConfig, MultiResolutionConfig, ObjectiveConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    MaskConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
    ValidationConfig,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = [
    "carafe_small",
    "dysample_small",
    "liif_small",
    "resfu_small",
    "resize_conv_small",
    "sapa_small",
]

# Masks of every image without annotators or a segmentation network, made at about the training
# images' size. They do not overlap, so that their order has no effect.
SUPERPIXELS = MaskConfig(
    kind="superpixels", options={"method": "felzenszwalb", "max_side": 192, "min_size": 40}
)
MASK_REFINED = MaskRefinedConfig(alpha=0.8, order="free", feature_space="raw")


def _small(name: str, objective: ObjectiveConfig, lr: float, **config: Any) -> TrainConfig:
    """The settings that all recipes of this file share."""
    masks = (SUPERPIXELS,) if objective is MASK_REFINED else ()
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BackboneConfig(name="upfeat/vit_compact_patch16"),),
        upsampler=UpsamplerConfig(name=name, config=config),
        objective=objective,
        data=DataConfig(crop=96, resize=128, position="random", flip=0.5, masks=masks),
        optimizer=OptimizerConfig(lr=lr),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )


@register_recipe
def carafe_small() -> TrainConfig:
    """CARAFE for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, windows of 5.
    * Chosen: the objective and everything else (see the head of this file). The weights start flat
      and far from a sharp output, hence the high learning rate.
    """
    return _small("carafe", MASK_REFINED, lr=3e-3)


@register_recipe
def sapa_small() -> TrainConfig:
    """SAPA for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, windows of 5, 64 channels of queries and keys.
    * Chosen: the objective and everything else (see the head of this file).
    """
    return _small("sapa", MASK_REFINED, lr=3e-3)


@register_recipe
def dysample_small() -> TrainConfig:
    """DySample for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, style "lp", 4 groups.
    * Chosen: the objective and everything else (see the head of this file). It starts as bilinear
      interpolation, close to where it ends.
    """
    return _small("dysample", MASK_REFINED, lr=1e-3)


@register_recipe(when="The simplest learned baseline.")
def resize_conv_small() -> TrainConfig:
    """Resize-convolution for the bundled encoder, on two cores, from mask-refined features.

    * Original: four doublings, 1x1 convolutions.
    * Chosen: the objective and everything else (see the head of this file).
    """
    return _small("resize_conv", MASK_REFINED, lr=1e-3)


@register_recipe
def resfu_small() -> TrainConfig:
    """ReSFU for the bundled encoder, on two cores, from two resolutions of an image.

    * Original: all widths. Its factor of 500 on the gradients of the scoring blocks has no effect
      with this optimiser, which normalises gradients, and is left out.
    * Chosen: the objective and everything else (see the head of this file): the features of a
      quarter or half of the image, guided by the image, should be those of the image.
    """
    objective = MultiResolutionConfig(
        scale=(0.25, 0.5), distance="cosine_mse", regulariser_weight=0.0, feature_space="raw"
    )
    config = _small("resfu", objective, lr=1e-3)
    return config.model_copy(update={"data": config.data.model_copy(update={"crop": 128})})


@register_recipe
def liif_small() -> TrainConfig:
    """LIIF for the bundled encoder, on two cores, from two resolutions of an image.

    * Paper: a random factor, mean absolute error, Adam. (Its factors are 1 to 4 and its batch is of
      48x48 patches of images.)
    * Chosen: factors 1 to 4 between the features of a resized image and of the image, as two
      networks' grids allow them; no regulariser, because the guidance has no influence; a network
      of 192 channels; everything else (see the head of this file).
    """
    objective = MultiResolutionConfig(
        scale=(0.25, 1.0), distance="l1", regulariser_weight=0.0, feature_space="raw"
    )
    config = _small("liif", objective, lr=1e-3, hidden_dim=192)
    changes = {
        "data": config.data.model_copy(update={"crop": 128}),
        "optimizer": OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0),
    }
    return config.model_copy(update=changes)
