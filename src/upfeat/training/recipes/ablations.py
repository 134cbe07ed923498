"""Recipes of rows that only the papers' comparisons have.

JAFAR (arXiv 2506.11136): FeatUp retrained on ImageNet (table 1), JAFAR after LoftUp's second stage
(table 9). LoftUp (arXiv 2504.14032): the network trained on other pseudo ground truths (table 2),
other networks under LoftUp's two stages (table 5). Neither has code for these rows: each starts
from the recipe of the method or of the stage, and says what it changes.
"""

from typing import Any

from upfeat.objectives import DepthTargetConfig, DoubledInputConfig, StoredTargetConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    DataConfig,
    DepthConfig,
    FeatureMapConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.featup import featup_jbu_paper
from upfeat.training.recipes.loftup import (
    loftup_stage1_paper,
    loftup_stage1_small,
    loftup_stage2_paper,
    loftup_stage2_small,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = [
    "featup_jbu_imagenet_50k",
    "featup_jbu_loftup_objective",
    "featup_jbu_loftup_objective_small",
    "featup_jbu_loftup_objective_stage2",
    "jafar_distilled",
    "jafar_distilled_small",
    "liif_loftup_objective",
    "liif_loftup_objective_small",
    "liif_loftup_objective_stage2",
    "loftup_depth_paper",
    "loftup_depth_small",
    "loftup_doubled_paper",
    "loftup_doubled_small",
    "loftup_implicit_paper",
    "loftup_implicit_small",
    "resize_conv_loftup_objective",
    "resize_conv_loftup_objective_small",
    "resize_conv_loftup_objective_stage2",
]

DINOV2_SMALL = BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m")


def _changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    return config.model_copy(update=changes)


def _of(config: TrainConfig, name: str, start_from: str | None = None) -> TrainConfig:
    """Return a recipe with another network."""
    upsampler = UpsamplerConfig(name=name, start_from=start_from)
    return _changed(config, upsampler=upsampler)


# -- JAFAR's rows ----------------------------------------------------------------------------------


@register_recipe
def featup_jbu_imagenet_50k() -> TrainConfig:
    """FeatUp's joint bilateral upsampler as JAFAR's paper retrains it: ImageNet, 50,000 steps.

    * JAFAR's paper: DINOv2 ViT-S/14, ImageNet's training images, 50,000 steps of 4.
    * As ``featup_jbu_paper`` (FeatUp's code): everything else, images of 224 pixels among it.
    * Chosen: checkpoints every 5,000 steps, seed 0.
    """
    return _changed(
        featup_jbu_paper(),
        backbones=(DINOV2_SMALL,),
        checkpoint=CheckpointConfig(every=5000),
        steps=50_000,
    )


@register_recipe
def jafar_distilled() -> TrainConfig:
    """JAFAR after a second stage of self-distillation (JAFAR's table 9), from ``jafar_paper``.

    It starts from ``runs/jafar_paper/model``; name another folder with
    ``upsampler.start_from=FOLDER``.

    * JAFAR's paper: JAFAR trained on in LoftUp's code by its distillation; no setting is printed.
    * As ``loftup_stage2_paper``: images, masks, crops, teacher, loss, optimiser, steps.
    * Chosen: that all of these stay LoftUp's.
    """
    return _of(loftup_stage2_paper(), "jafar", "runs/jafar_paper/model")


@register_recipe
def jafar_distilled_small() -> TrainConfig:
    """JAFAR after a second stage of self-distillation, for the bundled encoder, on two cores.

    * As ``loftup_stage2_small``: everything but the network, which starts from
      ``runs/jafar_small/model``.
    * Chosen: as there.
    """
    config = _of(loftup_stage2_small(), "jafar", "runs/jafar_small/model")
    settings = {"config": {"qk_dim": 64}}
    return _changed(config, upsampler=config.upsampler.model_copy(update=settings))


# -- LoftUp's pseudo ground truths -----------------------------------------------------------------


@register_recipe
def loftup_depth_paper() -> TrainConfig:
    """LoftUp trained on depth maps (table 2).

    Name the teacher: ``data.depth.teacher=FOLDER`` with Depth Anything V2 Small.

    * Paper: depth maps as the target of the same network; no loss, network or weight is printed.
    * As ``loftup_stage1_paper``: images, optimiser, steps.
    * Chosen: depth up to scale and shift by one 1x1 convolution, with a term that ties the output
      to the features; the teacher.
    """
    config = loftup_stage1_paper()
    depth = DepthConfig(teacher="depth-anything-v2-small", cache="runs/depth-maps")
    data = config.data.model_copy(update={"masks": (), "depth": depth})
    return _changed(config, objective=DepthTargetConfig(), data=data)


@register_recipe
def loftup_depth_small() -> TrainConfig:
    """LoftUp trained on depth maps beside the images, for the bundled encoder, on two cores.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: depth maps of a sensor in a folder (``data.depth.root``, NYUv2's unit) instead of a
      teacher's; no mirroring or random crops is changed.
    """
    config = loftup_stage1_small()
    depth = DepthConfig(root="nyuv2/train/depth", units=25.5)
    data = config.data.model_copy(update={"masks": (), "depth": depth})
    return _changed(config, objective=DepthTargetConfig(output_scale=0.25), data=data)


@register_recipe
def loftup_implicit_paper() -> TrainConfig:
    """LoftUp trained on stored maps of FeatUp's implicit network (table 2).

    First ``upfeat upsample IMAGES --upsampler featup_implicit --save safetensors --out MAPS``
    (paper: a minute on an A100 and 74 MB an image), then ``data.features.root=MAPS``.

    * Paper: per-image implicit features as the target of the same network.
    * As ``loftup_stage1_paper``: optimiser, batch, distance.
    * Chosen: 50,000 images (3.7 TB of maps; the paper does not say how many), the same steps.
    """
    config = loftup_stage1_paper()
    update = {"masks": (), "limit": 50_000, "features": FeatureMapConfig(root="runs/implicit-maps")}
    data = config.data.model_copy(update=update)
    return _changed(config, objective=StoredTargetConfig(), data=data)


@register_recipe
def loftup_implicit_small() -> TrainConfig:
    """LoftUp trained on stored maps of FeatUp's implicit network, for the bundled encoder.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: stored maps in a folder, ``data.features.root=MAPS``.
    """
    config = loftup_stage1_small()
    update = {"masks": (), "features": FeatureMapConfig(root="runs/implicit-maps")}
    data = config.data.model_copy(update=update)
    return _changed(config, objective=StoredTargetConfig(output_scale=0.25), data=data)


_DOUBLED = DoubledInputConfig(levels=1, distance="mse", reduce="bilinear")


@register_recipe
def loftup_doubled_paper() -> TrainConfig:
    """LoftUp trained on features of the image twice as large (table 2).

    * Paper: LiFT's target for the same network, of an input of 224 pixels.
    * As ``loftup_stage1_paper``: images, optimiser, steps, squared error.
    * Chosen: crops of 448 pixels, reduced bilinearly for the network.
    """
    config = loftup_stage1_paper()
    data = config.data.model_copy(update={"crop": 448, "masks": ()})
    return _changed(config, objective=_DOUBLED, data=data)


@register_recipe
def loftup_doubled_small() -> TrainConfig:
    """LoftUp trained on features of the image twice as large, for the bundled encoder.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: as ``loftup_doubled_paper``.
    """
    config = loftup_stage1_small()
    data = config.data.model_copy(update={"crop": 448, "resize": 512, "masks": ()})
    return _changed(config, objective=_DOUBLED, data=data)


# -- other networks under LoftUp's objective -------------------------------------------------------


def _small_objective(name: str) -> TrainConfig:
    """LoftUp's small first stage with another network, at a size that all of them take."""
    config = _of(loftup_stage1_small(), name)
    objective = config.objective.model_copy(update={"output_scale": 1.0})
    data = DataConfig(crop=96, resize=128, position="random", flip=0.5, masks=config.data.masks)
    schedule = ScheduleConfig(name="cosine", warmup_steps=50)
    return _changed(config, objective=objective, data=data, schedule=schedule)


@register_recipe
def resize_conv_loftup_objective() -> TrainConfig:
    """Resize-convolution under LoftUp's first stage (table 5).

    * Paper: the same training for another network; its stages are not told apart.
    * As ``loftup_stage1_paper``: everything but the network.
    * Chosen: the network's own defaults.
    """
    return _of(loftup_stage1_paper(), "resize_conv")


@register_recipe
def resize_conv_loftup_objective_stage2() -> TrainConfig:
    """Resize-convolution under LoftUp's second stage, from ``resize_conv_loftup_objective``.

    * Paper and chosen: as there; as ``loftup_stage2_paper``: everything but the network.
    """
    start = "runs/resize_conv_loftup_objective/model"
    return _of(loftup_stage2_paper(), "resize_conv", start)


@register_recipe
def resize_conv_loftup_objective_small() -> TrainConfig:
    """Resize-convolution under LoftUp's first stage, for the bundled encoder, on two cores.

    * As ``loftup_stage1_small``: objective, optimiser.
    * Chosen: images of 96 pixels and outputs of their size, because the network doubles the grid
      four times.
    """
    return _small_objective("resize_conv")


@register_recipe
def liif_loftup_objective() -> TrainConfig:
    """LIIF under LoftUp's first stage (table 5).

    * Paper: the same training for another network; its stages are not told apart.
    * As ``loftup_stage1_paper``: everything but the network.
    * Chosen: the network's own defaults.
    """
    return _of(loftup_stage1_paper(), "liif")


@register_recipe
def liif_loftup_objective_stage2() -> TrainConfig:
    """LIIF under LoftUp's second stage, from ``liif_loftup_objective``.

    * Paper and chosen: as there; as ``loftup_stage2_paper``: everything but the network.
    """
    return _of(loftup_stage2_paper(), "liif", "runs/liif_loftup_objective/model")


@register_recipe
def liif_loftup_objective_small() -> TrainConfig:
    """LIIF under LoftUp's first stage, for the bundled encoder, on two cores.

    * As ``loftup_stage1_small``: objective, optimiser.
    * Chosen: images of 96 pixels and outputs of their size.
    """
    return _small_objective("liif")


@register_recipe
def featup_jbu_loftup_objective() -> TrainConfig:
    """FeatUp's joint bilateral upsampler under LoftUp's first stage (table 5).

    * Paper: the same training for another network; its stages are not told apart.
    * As ``loftup_stage1_paper``: everything but the network.
    * Chosen: the network's own defaults.
    """
    return _of(loftup_stage1_paper(), "featup_jbu")


@register_recipe
def featup_jbu_loftup_objective_stage2() -> TrainConfig:
    """FeatUp's upsampler under LoftUp's second stage, from ``featup_jbu_loftup_objective``.

    * Paper and chosen: as there; as ``loftup_stage2_paper``: everything but the network.
    """
    return _of(loftup_stage2_paper(), "featup_jbu", "runs/featup_jbu_loftup_objective/model")


@register_recipe
def featup_jbu_loftup_objective_small() -> TrainConfig:
    """FeatUp's joint bilateral upsampler under LoftUp's first stage, on two cores.

    * As ``loftup_stage1_small``: objective, optimiser.
    * Chosen: images of 96 pixels and outputs of their size, because the network doubles the grid
      four times.
    """
    return _small_objective("featup_jbu")
