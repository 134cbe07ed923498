"""Recipes of LoftUp's two stages (Huang et al., 2025, arXiv 2504.14032)."""

from upfeat.objectives import MaskRefinedConfig, SelfDistillationConfig
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
    "loftup_stage1_paper",
    "loftup_stage1_small",
    "loftup_stage2_paper",
    "loftup_stage2_small",
]

DINOV2_SMALL = BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m")
BUNDLED = BackboneConfig(name="upfeat/vit_compact_patch16")
# Masks of every image without annotators or a segmentation network.
SUPERPIXELS = MaskConfig(kind="superpixels", options={"method": "felzenszwalb"})


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
    return TrainConfig(
        backbones=(DINOV2_SMALL,),
        upsampler=UpsamplerConfig(name="loftup"),
        objective=MaskRefinedConfig(alpha=0.8, order="sequential"),
        data=DataConfig(
            crop=224,
            min_side=1500,
            masks=(MaskConfig(kind="sa1b", options={"limit": 150, "keep": "first"}),),
        ),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.01),
        clip=ClipConfig(max_norm=1e-4, first_steps=10),
        checkpoint=CheckpointConfig(every=5000),
        steps=125_000,
        batch_size=8,
        seed=0,
    )


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
    return TrainConfig(
        backbones=(DINOV2_SMALL,),
        upsampler=UpsamplerConfig(name="loftup", start_from="runs/loftup_stage1_paper/model"),
        objective=SelfDistillationConfig(
            input_sizes=(224, 336),
            crops=2,
            crop_multiple=16,
            distance="affinity_l2",
            alpha=0.5,
            decay=0.99,
            every=10,
        ),
        data=DataConfig(
            crop=896,
            min_side=1500,
            masks=(MaskConfig(kind="sa1b", options={"limit": 150, "keep": "first"}),),
        ),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.01),
        clip=ClipConfig(max_norm=1e-4, first_steps=10),
        checkpoint=CheckpointConfig(every=5000),
        steps=125_000,
        batch_size=8,
        precision="fp16",
        seed=0,
    )


@register_recipe(
    when="Borders of objects from superpixels as masks; slower than JAFAR to train and to run."
)
def loftup_stage1_small() -> TrainConfig:
    """LoftUp's first stage for the bundled encoder with superpixels as masks, on two cores.

    * As ``loftup_stage1_paper``: objective, strength, architecture.
    * Chosen: everything else. Superpixels instead of SA-1B's masks, outputs of a quarter of the
      image's size, random crops and mirroring because the data are few, 1,000 steps with a
      learning rate that falls.
    """
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BUNDLED,),
        upsampler=UpsamplerConfig(name="loftup"),
        objective=MaskRefinedConfig(alpha=0.8, output_scale=0.25),
        data=DataConfig(crop=224, resize=256, position="random", flip=0.5, masks=(SUPERPIXELS,)),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=250),
        steps=1000,
        batch_size=4,
    )


@register_recipe(
    when="After loftup_stage1_small, on its model: sharper still, by self-distillation."
)
def loftup_stage2_small() -> TrainConfig:
    """LoftUp's second stage for the bundled encoder with superpixels as masks, on two cores.

    It starts from ``runs/loftup_stage1_small/model``; name another folder with
    ``upsampler.start_from=FOLDER``.

    * As ``loftup_stage2_paper``: objective, teacher, crops.
    * Chosen: everything else. Images of 448 and inputs of 224 pixels, outputs of a quarter of
      the input's size, 500 steps.
    """
    return TrainConfig(
        validation=ValidationConfig(),
        backbones=(BUNDLED,),
        upsampler=UpsamplerConfig(name="loftup", start_from="runs/loftup_stage1_small/model"),
        objective=SelfDistillationConfig(input_sizes=(224,), crops=2, output_scale=0.25),
        data=DataConfig(crop=448, resize=480, position="random", flip=0.5, masks=(SUPERPIXELS,)),
        optimizer=OptimizerConfig(lr=1e-4),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=100),
        steps=500,
        batch_size=2,
    )
