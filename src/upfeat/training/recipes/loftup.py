"""Recipes of LoftUp's two stages (Huang et al., 2025, arXiv 2504.14032), and of what is set beside.

LoftUp compares its network trained on other pseudo ground truths (table 2), and other networks
under its two stages (table 5); JAFAR (arXiv 2506.11136) trains FeatUp anew on ImageNet (table 1)
and JAFAR in LoftUp's second stage (table 9). Neither has code for these rows: each starts from the
recipe of the method or of the stage, and says what it changes.
"""

from typing import Any

from upfeat.objectives import (
    DepthTargetConfig,
    DoubledInputConfig,
    MaskRefinedConfig,
    ObjectiveConfig,
    SelfDistillationConfig,
    StoredTargetConfig,
)
from upfeat.training.config import (
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    DepthConfig,
    FeatureMapConfig,
    MaskConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import (
    CLIP,
    DINOV2_SMALL,
    cosine,
    random_crops,
    register_recipe,
    small_recipe,
)
from upfeat.training.recipes.stages import featup_jbu_paper

# Masks of every image without annotators or a segmentation network.
SUPERPIXELS = MaskConfig(kind="superpixels", options={"method": "felzenszwalb"})
DOUBLED = DoubledInputConfig(levels=1, distance="mse", reduce="bilinear")


def _published(
    objective: ObjectiveConfig, crop: int, lr: float, start_from: str | None = None, **settings: Any
) -> TrainConfig:
    """What both published stages share: images and masks of SA-1B, AdamW, batch 8, clipping."""
    masks = (MaskConfig(kind="sa1b", options={"limit": 150, "keep": "first"}),)
    return TrainConfig(
        backbones=(DINOV2_SMALL,),
        upsampler=UpsamplerConfig(name="loftup", start_from=start_from),
        objective=objective,
        data=DataConfig(crop=crop, min_side=1500, masks=masks),
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.01),
        clip=ClipConfig(max_norm=1e-4, first_steps=10),
        checkpoint=CheckpointConfig(every=5000),
        steps=125_000,
        batch_size=8,
        seed=0,
        **settings,
    )


@register_recipe(when="LoftUp as published, first stage: SA-1B with its masks and several GPUs.")
def loftup_stage1_paper() -> TrainConfig:
    """LoftUp's first stage for DINOv2 ViT-S/14, as published: mask-refined features.

    * Paper: one epoch over a million images of SA-1B whose shorter side has at least 1500 pixels,
      input 224, batch 8 (125,000 steps), AdamW with 1e-3, squared error to bicubic features that
      masks have sharpened.
    * Released training branch: the strength 0.8, masks in file order and at most 150 of an image,
      centre crop, gradients clipped to 1e-4 during the first ten steps, float32. Its further terms
      (``objective.multi_view``, ``projection``) are not in the paper and left out.
    * Chosen: constant learning rate, weight decay 0.01 (PyTorch's default), the backbone among
      those of the paper, seed 0. SA-1B's published images are reduced to 1500 pixels.
    """
    return _published(MaskRefinedConfig(alpha=0.8, order="sequential"), crop=224, lr=1e-3)


@register_recipe
def loftup_stage2_paper() -> TrainConfig:
    """LoftUp's second stage for DINOv2 ViT-S/14, as published: self-distillation.

    It starts from ``runs/loftup_stage1_paper/model``; name another folder with
    ``upsampler.start_from=FOLDER``.

    * Paper: one epoch over the same images, batch 8, AdamW with 1e-4, inputs of 224 or 336 pixels,
      two crops of each image, teacher with decay 0.99 updated every ten steps, its output sharpened
      by masks, affinity-matrix loss.
    * Released training branch: images of 896 pixels, crops at multiples of 16, strength 0.5, a
      tenth of each side left out of the affinities, clipping as in the first stage, fp16. Its
      weight of 20 and further terms (``tv_weight``, ``multi_view``) are not in the paper and left
      out.
    * Chosen: constant learning rate, weight decay 0.01 (PyTorch's default), seed 0.
    """
    return _published(
        SelfDistillationConfig(input_sizes=(224, 336), distance="affinity_l2"),
        crop=896,
        lr=1e-4,
        start_from="runs/loftup_stage1_paper/model",
        precision="fp16",
    )


@register_recipe(
    when="Borders of objects from superpixels as masks; slower than JAFAR to train and to run."
)
def loftup_stage1_small() -> TrainConfig:
    """LoftUp's first stage for the bundled encoder with superpixels as masks, on two cores.

    * As ``loftup_stage1_paper``: objective, strength, architecture.
    * Chosen: everything else. Superpixels instead of SA-1B's masks, outputs of a quarter of the
      image's size.
    """
    return small_recipe(
        UpsamplerConfig(name="loftup"),
        MaskRefinedConfig(alpha=0.8, output_scale=0.25),
        OptimizerConfig(lr=1e-3),
        random_crops(224, resize=256, masks=(SUPERPIXELS,)),
        warmup_steps=100,
        clip=CLIP,
    )


@register_recipe(
    when="After loftup_stage1_small, on its model: sharper still, by self-distillation."
)
def loftup_stage2_small() -> TrainConfig:
    """LoftUp's second stage for the bundled encoder with superpixels as masks, on two cores.

    It starts from ``runs/loftup_stage1_small/model``; name another folder with
    ``upsampler.start_from=FOLDER``.

    * As ``loftup_stage2_paper``: objective, teacher, crops.
    * Chosen: everything else. Crops of 448 and inputs of 224 pixels, outputs of a quarter of the
      input's size, 500 steps.
    """
    return small_recipe(
        UpsamplerConfig(name="loftup", start_from="runs/loftup_stage1_small/model"),
        SelfDistillationConfig(input_sizes=(224,), output_scale=0.25),
        OptimizerConfig(lr=1e-4),
        random_crops(448, resize=480, masks=(SUPERPIXELS,)),
        clip=CLIP,
        every=100,
        steps=500,
        batch_size=2,
    )


# -- other pseudo ground truths (table 2) ----------------------------------------------------------


def _other_target(config: TrainConfig, objective: ObjectiveConfig, **data: Any) -> TrainConfig:
    """A first stage with another target, without masks."""
    changed = config.data.model_copy(update={"masks": ()} | data)
    return config.model_copy(update={"objective": objective, "data": changed})


@register_recipe
def loftup_depth_paper() -> TrainConfig:
    """LoftUp trained on depth maps (table 2).

    Name the teacher: ``data.depth.teacher=FOLDER`` with Depth Anything V2 Small.

    * Paper: depth maps as the target of the same network; no loss, network or weight is printed.
    * As ``loftup_stage1_paper``: images, optimiser, steps.
    * Chosen: depth up to scale and shift by one 1x1 convolution, with a term that ties the output
      to the features; the teacher.
    """
    depth = DepthConfig(teacher="depth-anything-v2-small", cache="runs/depth-maps")
    return _other_target(loftup_stage1_paper(), DepthTargetConfig(), depth=depth)


@register_recipe
def loftup_depth_small() -> TrainConfig:
    """LoftUp trained on depth maps beside the images, for the bundled encoder, on two cores.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: depth maps of a sensor in a folder (``data.depth.root``, NYUv2's unit) instead of a
      teacher's; no mirroring or random crops is changed.
    """
    depth = DepthConfig(root="nyuv2/train/depth", units=25.5)
    return _other_target(loftup_stage1_small(), DepthTargetConfig(output_scale=0.25), depth=depth)


@register_recipe
def loftup_implicit_paper() -> TrainConfig:
    """LoftUp trained on stored maps of FeatUp's implicit network (table 2).

    First ``upfeat upsample IMAGES --upsampler featup_implicit --save safetensors --out MAPS``
    (paper: a minute on an A100 and 74 MB an image), then ``data.features.root=MAPS``.

    * Paper: per-image implicit features as the target of the same network.
    * As ``loftup_stage1_paper``: optimiser, batch, distance.
    * Chosen: 50,000 images (3.7 TB of maps; the paper does not say how many), the same steps.
    """
    maps = FeatureMapConfig(root="runs/implicit-maps")
    return _other_target(loftup_stage1_paper(), StoredTargetConfig(), features=maps, limit=50_000)


@register_recipe
def loftup_implicit_small() -> TrainConfig:
    """LoftUp trained on stored maps of FeatUp's implicit network, for the bundled encoder.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: stored maps in a folder, ``data.features.root=MAPS``.
    """
    maps = FeatureMapConfig(root="runs/implicit-maps")
    return _other_target(
        loftup_stage1_small(), StoredTargetConfig(output_scale=0.25), features=maps
    )


@register_recipe
def loftup_doubled_paper() -> TrainConfig:
    """LoftUp trained on features of the image twice as large (table 2).

    * Paper: LiFT's target for the same network, of an input of 224 pixels.
    * As ``loftup_stage1_paper``: images, optimiser, steps, squared error.
    * Chosen: crops of 448 pixels, reduced bilinearly for the network.
    """
    return _other_target(loftup_stage1_paper(), DOUBLED, crop=448)


@register_recipe
def loftup_doubled_small() -> TrainConfig:
    """LoftUp trained on features of the image twice as large, for the bundled encoder.

    * As ``loftup_stage1_small``: everything but the objective.
    * Chosen: as ``loftup_doubled_paper``.
    """
    return _other_target(loftup_stage1_small(), DOUBLED, crop=448, resize=512)


# -- other networks (table 5) ----------------------------------------------------------------------
# Paper: the same training for another network; its stages are not told apart.


def _network(
    config: TrainConfig, name: str, start_from: str | None = None, **arguments: Any
) -> TrainConfig:
    """A recipe with another network."""
    upsampler = UpsamplerConfig(name=name, start_from=start_from, config=arguments)
    return config.model_copy(update={"upsampler": upsampler})


def _second_stage(name: str) -> TrainConfig:
    return _network(loftup_stage2_paper(), name, f"runs/{name}_loftup_objective/model")


def _small_stage(name: str) -> TrainConfig:
    """The small first stage at the full size of images of 96 pixels, which all networks take."""
    config = _network(loftup_stage1_small(), name)
    changes = {
        "objective": config.objective.model_copy(update={"output_scale": 1.0}),
        "data": random_crops(96, resize=128, masks=(SUPERPIXELS,)),
        "schedule": cosine(50),
    }
    return config.model_copy(update=changes)


@register_recipe
def resize_conv_loftup_objective() -> TrainConfig:
    """Resize-convolution under LoftUp's first stage (table 5).

    * As ``loftup_stage1_paper``: everything but the network. Chosen: its own defaults.
    """
    return _network(loftup_stage1_paper(), "resize_conv")


@register_recipe
def resize_conv_loftup_objective_stage2() -> TrainConfig:
    """Resize-convolution under LoftUp's second stage, from ``resize_conv_loftup_objective``.

    * As ``loftup_stage2_paper``: everything but the network. Chosen: its own defaults.
    """
    return _second_stage("resize_conv")


@register_recipe
def resize_conv_loftup_objective_small() -> TrainConfig:
    """Resize-convolution under LoftUp's first stage, for the bundled encoder, on two cores.

    * As ``loftup_stage1_small``: objective, optimiser.
    * Chosen: images of 96 pixels and outputs of their size, because the network doubles the grid
      four times.
    """
    return _small_stage("resize_conv")


@register_recipe
def liif_loftup_objective() -> TrainConfig:
    """LIIF under LoftUp's first stage (table 5).

    * As ``loftup_stage1_paper``: everything but the network. Chosen: its own defaults.
    """
    return _network(loftup_stage1_paper(), "liif")


@register_recipe
def liif_loftup_objective_stage2() -> TrainConfig:
    """LIIF under LoftUp's second stage, from ``liif_loftup_objective``.

    * As ``loftup_stage2_paper``: everything but the network. Chosen: its own defaults.
    """
    return _second_stage("liif")


@register_recipe
def liif_loftup_objective_small() -> TrainConfig:
    """LIIF under LoftUp's first stage, for the bundled encoder, on two cores.

    * As ``resize_conv_loftup_objective_small``: everything but the network. Chosen: as there.
    """
    return _small_stage("liif")


@register_recipe
def featup_jbu_loftup_objective() -> TrainConfig:
    """FeatUp's joint bilateral upsampler under LoftUp's first stage (table 5).

    * As ``loftup_stage1_paper``: everything but the network. Chosen: its own defaults.
    """
    return _network(loftup_stage1_paper(), "featup_jbu")


@register_recipe
def featup_jbu_loftup_objective_stage2() -> TrainConfig:
    """FeatUp's upsampler under LoftUp's second stage, from ``featup_jbu_loftup_objective``.

    * As ``loftup_stage2_paper``: everything but the network. Chosen: its own defaults.
    """
    return _second_stage("featup_jbu")


@register_recipe
def featup_jbu_loftup_objective_small() -> TrainConfig:
    """FeatUp's joint bilateral upsampler under LoftUp's first stage, on two cores.

    * As ``resize_conv_loftup_objective_small``: everything but the network. Chosen: as there.
    """
    return _small_stage("featup_jbu")


# -- JAFAR's rows ----------------------------------------------------------------------------------


@register_recipe
def featup_jbu_imagenet_50k() -> TrainConfig:
    """FeatUp's joint bilateral upsampler as JAFAR's paper retrains it: ImageNet, 50,000 steps.

    * JAFAR's paper: DINOv2 ViT-S/14, ImageNet's training images, 50,000 steps of 4.
    * As ``featup_jbu_paper`` (FeatUp's code): everything else, images of 224 pixels among it.
    * Chosen: checkpoints every 5,000 steps, seed 0.
    """
    changes = {
        "backbones": (DINOV2_SMALL,),
        "checkpoint": CheckpointConfig(every=5000),
        "steps": 50_000,
    }
    return featup_jbu_paper().model_copy(update=changes)


@register_recipe
def jafar_distilled() -> TrainConfig:
    """JAFAR after a second stage of self-distillation (JAFAR's table 9), from ``jafar_paper``.

    It starts from ``runs/jafar_paper/model``; name another folder with
    ``upsampler.start_from=FOLDER``.

    * JAFAR's paper: JAFAR trained on in LoftUp's code by its distillation; no setting is printed.
    * As ``loftup_stage2_paper``: images, masks, crops, teacher, loss, optimiser, steps.
    * Chosen: that all of these stay LoftUp's.
    """
    return _network(loftup_stage2_paper(), "jafar", "runs/jafar_paper/model")


@register_recipe
def jafar_distilled_small() -> TrainConfig:
    """JAFAR after a second stage of self-distillation, for the bundled encoder, on two cores.

    * As ``loftup_stage2_small``: everything but the network, which starts from
      ``runs/jafar_small/model``.
    * Chosen: as there.
    """
    return _network(loftup_stage2_small(), "jafar", "runs/jafar_small/model", qk_dim=64)
