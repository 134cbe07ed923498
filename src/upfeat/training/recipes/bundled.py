"""Recipes of the weights that come with the package: trained on two cores, on two thousand images.

Each model is trained in stages; a stage starts from the model of the one before, in
``runs/RECIPE/model`` unless ``upsampler.start_from=FOLDER`` names another folder. The recipes here
are the first stages and those that ship. The short stages in between are these recipes with other
numbers; they stand in the model cards, and what each gained in the ablation table of
``docs/results/remarks.md``. All settings were chosen here unless a recipe says otherwise.

Images and masks are read from the folder ``data`` of the working directory: regions that people
drew for ``bsds500``, ``msrc``, ``camvid`` and ``nyuv2`` (training splits only), and superpixels for
the images of ``imagenet_sample``, which have no regions.
"""

from typing import Any

from upfeat.objectives import MaskRefinedConfig, MaskTransferConfig, SelfDistillationConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    MaskConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import BUNDLED, CLIP, cosine, random_crops, register_recipe

VIT_TINY = BackboneConfig(name="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
# Several networks, layers and grids, so that the universal model fits none of them in particular.
SEVERAL = (
    VIT_TINY,
    BackboneConfig(name=VIT_TINY.name, options={"layer": 8}),
    BackboneConfig(name="timm/deit_tiny_patch16_224.fb_in1k"),
    BUNDLED,
)
# 3.8 is the standard deviation of ViT-Tiny's features over the channels, averaged over images.
LOFTUP = {"token_colors": True, "feature_scale": 3.8}

# For each image the first source that has masks of it is taken. Two sets may use the same numbers
# as image names; each set has a pattern or a folder of its own, so that they are not mixed up.
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

# (H, W) of inputs, one drawn for each step: weights trained at one size are poor at others.
LARGE_SIZES = (
    (352, 480), (352, 480), (240, 320), (208, 320), (320, 208), (224, 224), (320, 320),
)  # fmt: skip
SMALL_SIZES = ((208, 320), (320, 208), (224, 224), (240, 320), (192, 256), (352, 480))


def all_images(crop: int, **settings: Any) -> DataConfig:
    """All training images, with regions or superpixels."""
    return random_crops(
        crop, paths=(*LABELLED, UNLABELLED), masks=(*REGIONS, SUPERPIXELS), **settings
    )


def labelled_images(crop: int | tuple[int, int], **settings: Any) -> DataConfig:
    """The images with regions that people drew."""
    return random_crops(crop, paths=LABELLED, masks=REGIONS, **settings)


def _universal(
    objective: MaskTransferConfig,
    data: DataConfig,
    lr: float,
    start_from: str | None = None,
    *,
    warmup_steps: int,
    ema: float,
    **settings: Any,
) -> TrainConfig:
    """KIN for several backbones."""
    return TrainConfig(
        backbones=SEVERAL,
        upsampler=UpsamplerConfig(name="kin", start_from=start_from),
        objective=objective,
        data=data,
        optimizer=OptimizerConfig(lr=lr, weight_decay=1e-4),
        schedule=cosine(warmup_steps),
        clip=CLIP,
        ema=EmaConfig(decay=ema),
        checkpoint=CheckpointConfig(every=100),
        **settings,
    )


@register_recipe(
    when="kin.upfeat again: one small upsampler for any backbone, from images with regions."
)
def bundled_universal() -> TrainConfig:
    """KIN for any backbone, the package's default upsampler, in one stage.

    Three small networks, one of them at two layers; crops of 192 pixels of images at 1 to 1.6
    times that size; cells of 16 to 32 pixels. No image of the sets that it is scored on: regions of
    BSDS500's training split, and of ``data/more/images`` with label images of the same names in
    ``data/more/masks``, where 0 is no region.
    """
    more = MaskConfig(kind="labels", options={"root": "data/more/masks", "ignore": [0]})
    data = random_crops(
        192,
        resize=208,
        scale=(1.0, 1.6),
        paths=("data/bsds500/images/train", "data/more/images"),
        masks=(REGIONS[0], more),
    )
    return _universal(
        MaskTransferConfig(samples=2048, input_scales=(0.5, 0.75, 1.0)),
        data,
        lr=2e-3,
        warmup_steps=100,
        ema=0.998,
        steps=6500,
        batch_size=8,
        precision="bf16",
    )


@register_recipe
def bundled_universal_v1() -> TrainConfig:
    """KIN for any backbone as it first shipped, last stage: fourteen epochs of people's regions.

    It saw the training splits of three sets that it is scored on. Before it came 2,500 steps of
    all images with a learning rate of 2e-3, and 550 of these; superpixels cut objects into parts,
    and a model that is trained on them does so too.
    """
    return _universal(
        MaskTransferConfig(samples=2048),
        labelled_images(192, resize=208, scale=(1.0, 1.6)),
        lr=1.5e-3,
        start_from="runs/bundled_universal_stage2/model",
        warmup_steps=20,
        ema=0.995,
        steps=3600,
        batch_size=4,
        seed=5,
    )


@register_recipe
def bundled_jafar() -> TrainConfig:
    """JAFAR for ViT-Tiny, first stage: mask-refined features at half resolution.

    The objective is LoftUp's first stage: JAFAR's own (``jafar_small``) compares maps of the
    backbone's resolution only, which have no boundary sharper than a patch.
    """
    return TrainConfig(
        backbones=(VIT_TINY,),
        upsampler=UpsamplerConfig(name="jafar", config={"qk_dim": 64}),
        objective=MaskRefinedConfig(alpha=0.9, order="free", output_scale=0.5),
        data=all_images(160, resize=176, scale=(1.0, 1.6)),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-5),
        schedule=cosine(30),
        clip=CLIP,
        ema=EmaConfig(decay=0.98),
        checkpoint=CheckpointConfig(every=50),
        steps=300,
        batch_size=4,
    )


def _pixels(
    upsampler: UpsamplerConfig,
    objective: MaskTransferConfig,
    *,
    warmup_steps: int,
    ema: float,
    **settings: Any,
) -> TrainConfig:
    """ViT-Tiny, targets at single pixels of whole images: nearby means, whitened by half."""
    return TrainConfig(
        backbones=(VIT_TINY,),
        upsampler=upsampler,
        objective=objective,
        # Crops that hold a whole road scene.
        data=labelled_images((352, 480), scale=(1.0, 1.4)),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=1e-5),
        schedule=cosine(warmup_steps),
        clip=CLIP,
        ema=EmaConfig(decay=ema),
        checkpoint=CheckpointConfig(every=50),
        **settings,
    )


@register_recipe
def bundled_jafar_pixels() -> TrainConfig:
    """JAFAR for ViT-Tiny, last stage, which ships: single pixels of whole images.

    The objective is the universal model's, at 2,048 pixels of each image. The stages before it
    compare outputs of at most half the input's size with the mean of a whole region: attention
    spreads over the region, and weak directions of the features are lost. The one before it saw
    inputs of many sizes, as weights trained at one size are poor at others (the recipe
    ``bundled_jafar`` with ``data.crop=352 data.resize=352 objective.output_scale=0.25
    objective.input_sizes=[[160,160],[224,224],[208,320],[320,208],[240,320],[320,320],[352,480]]
    optimizer.lr=1e-3 schedule.warmup_steps=10 steps=220 batch_size=2``).
    """
    return _pixels(
        UpsamplerConfig(
            name="jafar", config={"qk_dim": 64}, start_from="runs/bundled_jafar_sizes/model"
        ),
        MaskTransferConfig(whitening=0.5, samples=2048, locality=1.5, input_sizes=LARGE_SIZES),
        warmup_steps=10,
        ema=0.98,
        steps=400,
        batch_size=2,
        seed=3,
    )


def _loftup_stage1(
    upsampler: UpsamplerConfig,
    *,
    samples: int,
    input_sizes: tuple[tuple[int, int], ...],
    **settings: Any,
) -> TrainConfig:
    """LoftUp towards nearby means of all channels, with cross-entropies of the regions found."""
    objective = MaskTransferConfig(
        whitening=0.5,
        samples=samples,
        locality=2.0,
        projection=None,
        transfer_weight=0.3,
        match_weight=0.3,
        input_sizes=input_sizes,
    )
    return _pixels(upsampler, objective, warmup_steps=20, **settings)


def _loftup(start_from: str | None = None, **arguments: Any) -> UpsamplerConfig:
    return UpsamplerConfig(
        name="loftup", config=LOFTUP | arguments, start_from=start_from, freeze_batch_norm=True
    )


@register_recipe
def bundled_loftup_stage1() -> TrainConfig:
    """LoftUp's first stage for ViT-Tiny: 768 pixels of whole images.

    * From the paper: the architecture, except for tokens that carry the colours of their cells
      (without them boundaries are softer), and targets that masks refine.
    * Chosen: everything else. The initial weights interpolate as a joint bilateral filter; from
      random ones the same images give a model below bilinear interpolation on road scenes.
    """
    return _loftup_stage1(
        _loftup(start="interpolation"),
        samples=768,
        input_sizes=LARGE_SIZES,
        ema=0.99,
        steps=1500,
        batch_size=2,
        seed=3,
    )


@register_recipe
def bundled_loftup_stage1_longer() -> TrainConfig:
    """LoftUp's first stage for ViT-Tiny, which ships: 3,200 more steps, twelve epochs.

    Twice the images and half the pixels of each in a step. Before it came two shorter runs of the
    same settings (``ema.decay=0.99``, 1,300 steps of seed 8 and 950 of seed 9); the second of them
    gained nothing.
    """
    return _loftup_stage1(
        _loftup("runs/bundled_loftup_stage1_images/model"),
        samples=320,
        input_sizes=SMALL_SIZES,
        ema=0.995,
        steps=3200,
        batch_size=4,
        seed=12,
    )


@register_recipe
def bundled_loftup_stage2() -> TrainConfig:
    """LoftUp's second stage for ViT-Tiny, which ships: self-distillation.

    * As LoftUp's second stage: objective, teacher, crops.
    * Chosen: everything else. Images of 480, inputs of 160, 240 and 320 pixels; 40 steps, as 80 at
      twice the learning rate softened the boundaries.
    """
    return TrainConfig(
        backbones=(VIT_TINY,),
        upsampler=_loftup("runs/bundled_loftup_stage1_longer/model"),
        objective=SelfDistillationConfig(
            input_sizes=(160, 240, 320), crops=2, order="free", output_scale=0.5
        ),
        data=all_images(480, resize=480, scale=(1.0, 1.3)),
        optimizer=OptimizerConfig(lr=5e-5),
        schedule=cosine(10),
        clip=CLIP,
        checkpoint=CheckpointConfig(every=20),
        steps=40,
        batch_size=2,
    )
