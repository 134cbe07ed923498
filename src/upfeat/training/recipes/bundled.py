"""Recipes of the models that come with the package: trained on two cores, on a thousand images.

They read the folder ``data`` of the working directory, with the layout that each recipe's mask
sources name: regions that people drew for ``bsds500``, ``msrc``, ``camvid`` and ``nyuv2`` (training
splits only), and superpixels for images without, those of ``imagenet_sample``.
"""

from typing import Any

from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    EmaConfig,
    MaskConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import register_recipe

__all__ = [
    "bundled_jafar",
    "bundled_jafar_pixels",
    "bundled_jafar_sizes",
    "bundled_loftup_stage1",
    "bundled_loftup_stage1_images",
    "bundled_loftup_stage1_longer",
    "bundled_loftup_stage2",
    "bundled_universal",
    "bundled_universal_stage2",
    "bundled_universal_stage3",
]

VIT_TINY = BackboneConfig(name="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
# 3.8 is the deviation of its features over the channels, the mean over training images.
LOFTUP = {"token_colors": True, "feature_scale": 3.8}

# The first source that knows an image is taken. Numbers of images coincide between sets, never
# within what a pattern can find: each set has its own form of name or its own folder.
REGIONS = (
    MaskConfig(
        kind="labels",
        options={
            "root": "data/bsds500/segmentations/train",
            "pattern": "{stem}_*.png",
            "ignore": [0],
        },
    ),
    MaskConfig(kind="labels", options={"root": "data/msrc/train/labels", "ignore": [255]}),
    MaskConfig(kind="labels", options={"root": "data/camvid/trainannot", "ignore": [11]}),
    MaskConfig(kind="labels", options={"root": "data/nyuv2/train/labels", "ignore": [255]}),
)
SUPERPIXELS = MaskConfig(
    kind="superpixels", options={"method": "felzenszwalb"}, cache="runs/superpixels"
)
LABELLED = (
    "data/bsds500/images/train",
    "data/msrc/train/images",
    "data/camvid/train",
    "data/nyuv2/train/images",
)
UNLABELLED = "data/imagenet_sample/images"


# (H, W) of inputs, one drawn for each step: what was trained at one size is good at that size only.
SIZES = [[160, 160], [224, 224], [208, 320], [320, 208], [240, 320], [320, 320], [352, 480]]


def cut_images(crop: int, **settings: Any) -> DataConfig:
    """Return random mirrored crops of all training images with masks."""
    return DataConfig(
        paths=(*LABELLED, UNLABELLED),
        crop=crop,
        position="random",
        flip=0.5,
        masks=(*REGIONS, SUPERPIXELS),
        **settings,
    )


# Several networks, layers and grids, so that nothing of one of them can be learned by heart.
SEVERAL = (
    VIT_TINY,
    BackboneConfig(name=VIT_TINY.name, options={"layer": 8}),
    BackboneConfig(name="timm/deit_tiny_patch16_224.fb_in1k"),
    BackboneConfig(name="upfeat/vit_compact_patch16"),
)


@register_recipe
def bundled_universal() -> TrainConfig:
    """KIN for any backbone, the package's default upsampler: its first stage.

    * Chosen: everything. Three small networks, one of them at two layers; crops of 192 pixels of
      images at 1 to 1.6 times that size.

    Example:
        >>> from upfeat.training.recipes import bundled_universal
        >>> len(bundled_universal().backbones)
        4
    """
    return TrainConfig(
        backbones=SEVERAL,
        upsampler=UpsamplerConfig(name="kin"),
        objective=ObjectiveConfig(name="mask_transfer"),
        data=cut_images(192, resize=208, scale=(1.0, 1.6)),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        clip=ClipConfig(max_norm=1.0),
        ema=EmaConfig(decay=0.995),
        checkpoint=CheckpointConfig(every=100),
        steps=2500,
        batch_size=4,
    )


@register_recipe
def bundled_universal_stage2() -> TrainConfig:
    """KIN once more on people's regions alone: superpixels cut objects, and so teach to.

    It starts from ``runs/bundled_universal/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``.

    * Chosen: everything. As ``bundled_universal``, without the images that have superpixels only.

    Example:
        >>> from upfeat.training.recipes import bundled_universal_stage2
        >>> len(bundled_universal_stage2().data.masks)
        4
    """
    first = bundled_universal()
    return first.model_copy(
        update={
            "upsampler": UpsamplerConfig(name="kin", start_from="runs/bundled_universal/model"),
            "objective": ObjectiveConfig(name="mask_transfer", settings={"samples": 2048}),
            "data": first.data.model_copy(update={"paths": LABELLED, "masks": REGIONS}),
            "optimizer": OptimizerConfig(lr=1.5e-3, weight_decay=1e-4),
            "schedule": ScheduleConfig(name="cosine", warmup_steps=20),
            "ema": EmaConfig(decay=0.98),
            "steps": 550,
            "seed": 1,
        }
    )


def _longer(recipe: TrainConfig, start_from: str, steps: int, seed: int) -> TrainConfig:
    """The same training from other weights, for many steps, averaged over more of them."""
    upsampler = recipe.upsampler.model_copy(update={"start_from": start_from})
    changes = {"upsampler": upsampler, "ema": EmaConfig(decay=0.995), "steps": steps, "seed": seed}
    return recipe.model_copy(update=changes)


@register_recipe
def bundled_universal_stage3() -> TrainConfig:
    """KIN's second stage for longer: fourteen more epochs of people's regions, after two.

    It starts from ``runs/bundled_universal_stage2/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``.

    * Chosen: everything. As ``bundled_universal_stage2``, with more steps and a longer average.

    Example:
        >>> from upfeat.training.recipes import bundled_universal_stage3
        >>> bundled_universal_stage3().steps
        3600
    """
    start = "runs/bundled_universal_stage2/model"
    return _longer(bundled_universal_stage2(), start, steps=3600, seed=5)


@register_recipe
def bundled_jafar() -> TrainConfig:
    """JAFAR for ViT-Tiny, as it comes with the package: mask-refined features at half resolution.

    JAFAR's own signal (``jafar_small``) never shows the network an edge that is sharper than a
    patch; LoftUp's first one does, and takes JAFAR as well as any other method.

    * As LoftUp's first stage: the objective.
    * Chosen: everything else. Keys and queries of 64 channels, crops of 160 pixels.

    Example:
        >>> from upfeat.training.recipes import bundled_jafar
        >>> bundled_jafar().objective.name
        'mask_refined'
    """
    return TrainConfig(
        backbones=(VIT_TINY,),
        upsampler=UpsamplerConfig(name="jafar", config={"qk_dim": 64}),
        objective=ObjectiveConfig(
            name="mask_refined", settings={"alpha": 0.9, "order": "free", "output_scale": 0.5}
        ),
        data=cut_images(160, resize=176, scale=(1.0, 1.6)),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=30),
        clip=ClipConfig(max_norm=1.0),
        ema=EmaConfig(decay=0.98),
        checkpoint=CheckpointConfig(every=50),
        steps=300,
        batch_size=4,
    )


@register_recipe
def bundled_jafar_sizes() -> TrainConfig:
    """JAFAR for ViT-Tiny, continued on inputs of many sizes and shapes.

    It starts from ``runs/bundled_jafar/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``.

    * As ``bundled_jafar``, with inputs from 160x160 to 352x480, outputs of a quarter of them, and
      half the batch.

    Example:
        >>> from upfeat.training.recipes import bundled_jafar_sizes
        >>> bundled_jafar_sizes().objective.settings["output_scale"]
        0.25
    """
    first = bundled_jafar()
    settings = first.objective.settings | {"output_scale": 0.25, "input_sizes": SIZES}
    return first.model_copy(
        update={
            "upsampler": first.upsampler.model_copy(
                update={"start_from": "runs/bundled_jafar/model"}
            ),
            "objective": ObjectiveConfig(name=first.objective.name, settings=settings),
            "data": first.data.model_copy(update={"crop": 352, "resize": 352}),
            "optimizer": first.optimizer.model_copy(update={"lr": 1e-3}),
            "schedule": ScheduleConfig(name="cosine", warmup_steps=10),
            "steps": 220,
            "batch_size": 2,
        }
    )


@register_recipe
def bundled_jafar_pixels() -> TrainConfig:
    """JAFAR for ViT-Tiny, continued on single pixels of whole images, with people's regions.

    It starts from ``runs/bundled_jafar_sizes/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``. The steps before it saw outputs of a quarter of the
    input's size, so never a pixel, nothing as small as in a whole road scene, and targets that are
    the same all over a region: their weights spread, and weak directions of the features were lost.

    * Chosen: everything. The universal model's signal, at 2,048 pixels of each image.

    Example:
        >>> from upfeat.training.recipes import bundled_jafar_pixels
        >>> bundled_jafar_pixels().objective.name
        'mask_transfer'
    """
    first = bundled_jafar_sizes()
    sizes = [[352, 480], [352, 480], [240, 320], [208, 320], [320, 208], [224, 224], [320, 320]]
    settings = {"samples": 2048, "locality": 1.5, "whitening": 0.5, "input_sizes": sizes}
    # Crops that hold a whole road scene.
    whole = {"crop": (352, 480), "resize": None, "scale": (1.0, 1.4)}
    return first.model_copy(
        update={
            "upsampler": first.upsampler.model_copy(
                update={"start_from": "runs/bundled_jafar_sizes/model"}
            ),
            "objective": ObjectiveConfig(name="mask_transfer", settings=settings),
            "data": first.data.model_copy(update=whole | {"paths": LABELLED, "masks": REGIONS}),
            "steps": 400,
            "seed": 3,
        }
    )


@register_recipe
def bundled_loftup_stage1() -> TrainConfig:
    """LoftUp's first stage for ViT-Tiny, from the start: 768 pixels of whole images.

    * From the paper: the architecture, but for tokens that see their cells' colours, and targets
      that masks refine.
    * Chosen: everything else. Weights that interpolate as a joint bilateral filter before the first
      step: from random ones the same images lead to a model that is worse than bilinear
      interpolation on road scenes, and without the colours to softer borders. Targets at single
      pixels, with region means that are taken near each pixel, and all directions of the features
      compared, whitened by half; beside them the attention is told where regions lie, and the
      output to resemble its own region's cells rather than to hedge.

    Example:
        >>> from upfeat.training.recipes import bundled_loftup_stage1
        >>> bundled_loftup_stage1().upsampler.config["start"]
        'interpolation'
    """
    pixels = bundled_jafar_pixels()
    settings = {"samples": 768, "projection": None, "locality": 2.0}
    weights = {"transfer_weight": 0.3, "match_weight": 0.3}
    return pixels.model_copy(
        update={
            "upsampler": UpsamplerConfig(
                name="loftup", config=LOFTUP | {"start": "interpolation"}, freeze_batch_norm=True
            ),
            "objective": ObjectiveConfig(
                name=pixels.objective.name, settings=pixels.objective.settings | settings | weights
            ),
            "schedule": ScheduleConfig(name="cosine", warmup_steps=20),
            "ema": EmaConfig(decay=0.99),
            "steps": 1500,
        }
    )


@register_recipe
def bundled_loftup_stage1_images() -> TrainConfig:
    """LoftUp's first stage for ViT-Tiny, continued on twice the images and half the pixels of each.

    It starts from ``runs/bundled_loftup_stage1/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``. What comes with the package ran it twice; the second run,
    from the first one's result, gained nothing (``bundled_loftup_stage1_longer`` followed).

    * Chosen: everything. As ``bundled_loftup_stage1``, at smaller inputs but one.

    Example:
        >>> from upfeat.training.recipes import bundled_loftup_stage1_images
        >>> bundled_loftup_stage1_images().batch_size
        4
    """
    first = bundled_loftup_stage1()
    sizes = [[208, 320], [320, 208], [224, 224], [240, 320], [192, 256], [352, 480]]
    settings = {"samples": 320, "input_sizes": sizes}
    return first.model_copy(
        update={
            "upsampler": first.upsampler.model_copy(
                update={"config": LOFTUP, "start_from": "runs/bundled_loftup_stage1/model"}
            ),
            "objective": ObjectiveConfig(
                name=first.objective.name, settings=first.objective.settings | settings
            ),
            "steps": 1300,
            "batch_size": 4,
            "seed": 8,
        }
    )


@register_recipe
def bundled_loftup_stage1_longer() -> TrainConfig:
    """LoftUp's first stage for ViT-Tiny for longer: 3,200 more steps, twelve epochs.

    It starts from ``runs/bundled_loftup_stage1_images/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``.

    * Chosen: everything. As ``bundled_loftup_stage1_images``, with more steps and a longer average.

    Example:
        >>> from upfeat.training.recipes import bundled_loftup_stage1_longer
        >>> bundled_loftup_stage1_longer().steps
        3200
    """
    start = "runs/bundled_loftup_stage1_images/model"
    return _longer(bundled_loftup_stage1_images(), start, steps=3200, seed=12)


@register_recipe
def bundled_loftup_stage2() -> TrainConfig:
    """LoftUp's second stage for ViT-Tiny, as it comes with the package: self-distillation.

    It starts from ``runs/bundled_loftup_stage1_longer/model``; name another folder with
    ``--set upsampler.start_from=FOLDER``.

    * As LoftUp's second stage: objective, teacher, crops.
    * Chosen: everything else. Images of 480, inputs of 160, 240 and 320 pixels; few steps, as 80 at
      twice the learning rate softened the borders.

    Example:
        >>> from upfeat.training.recipes import bundled_loftup_stage2
        >>> bundled_loftup_stage2().upsampler.start_from
        'runs/bundled_loftup_stage1_longer/model'
    """
    settings = {"input_sizes": [160, 240, 320], "crops": 2, "order": "free", "output_scale": 0.5}
    return TrainConfig(
        backbones=(VIT_TINY,),
        upsampler=UpsamplerConfig(
            name="loftup",
            config=LOFTUP,
            start_from="runs/bundled_loftup_stage1_longer/model",
            freeze_batch_norm=True,
        ),
        objective=ObjectiveConfig(name="self_distillation", settings=settings),
        data=cut_images(480, resize=480, scale=(1.0, 1.3)),
        optimizer=OptimizerConfig(lr=5e-5),
        schedule=ScheduleConfig(name="cosine", warmup_steps=10),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=20),
        steps=40,
        batch_size=2,
    )
