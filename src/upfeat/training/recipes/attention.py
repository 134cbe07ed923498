"""Recipes of methods that attend to low-resolution cells, from JAFAR to ViT-Up.

JAFAR: Couairon et al., 2025, arXiv 2506.11136; RaysUp: 2026, arXiv 2606.22749; AnyUp: Wimmer et
al., 2025, arXiv 2510.12764; NAF: 2025, arXiv 2511.18452; PixelUp: 2026, arXiv 2608.02792;
ViT-Up: 2026, arXiv 2606.14024.
"""

from upfeat.objectives import (
    CropsConfig,
    MultiResolutionConfig,
    ObjectiveConfig,
    RestorationConfig,
    naf_config,
)
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import (
    DINOV2_SMALL,
    random_crops,
    register_recipe,
    small_recipe,
)

IMAGE = BackboneConfig(name="image/rgb")
SMALL_OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=1e-5)


def _published(
    backbone: BackboneConfig,
    upsampler: UpsamplerConfig,
    objective: ObjectiveConfig,
    data: DataConfig,
    *,
    every: int,
    steps: int,
) -> TrainConfig:
    """What the released trainings share: AdamW at a constant 2e-4, four images, bfloat16."""
    return TrainConfig(
        backbones=(backbone,),
        upsampler=upsampler,
        objective=objective,
        data=data,
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-5),
        checkpoint=CheckpointConfig(every=every),
        steps=steps,
        batch_size=4,
        precision="bf16",
        seed=0,
    )


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
    return _published(
        DINOV2_SMALL,
        UpsamplerConfig(name="jafar"),
        MultiResolutionConfig(clamp="released"),
        DataConfig(crop=448),
        every=50_000,
        steps=100_000,
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
    * Chosen: everything else. Crops of 224 pixels, keys and queries of 64 channels, a higher
      learning rate that falls.
    """
    return small_recipe(
        UpsamplerConfig(name="jafar", config={"qk_dim": 64}),
        MultiResolutionConfig(),
        SMALL_OPTIMIZER,
        random_crops(224, resize=256),
        warmup_steps=100,
    )


@register_recipe
def raysup_paper() -> TrainConfig:
    """RaysUp for DINOv2 ViT-S/14, as released; no weights are published.

    * Released script: as ``jafar_paper`` without the regulariser, stand-in cameras, checkpoints
      every quarter of the run.
    * Not here: the paper's training on crops, which the released scripts lack.
    * Chosen: seed 0.
    """
    return _published(
        DINOV2_SMALL,
        UpsamplerConfig(name="raysup"),
        MultiResolutionConfig(regulariser_weight=0.0),
        DataConfig(crop=448),
        every=25_000,
        steps=100_000,
    )


@register_recipe
def raysup_small() -> TrainConfig:
    """RaysUp for the bundled encoder, on two cores.

    * As ``raysup_paper``: architecture and objective.
    * Chosen: as ``jafar_small``, with crops of 256 pixels and a factor from [0.4, 0.5], since the
      small image's grid needs six cells.
    """
    return small_recipe(
        UpsamplerConfig(name="raysup"),
        MultiResolutionConfig(scale=(0.4, 0.5), regulariser_weight=0.0),
        SMALL_OPTIMIZER,
        random_crops(256, resize=288),
        warmup_steps=100,
    )


@register_recipe(when="AnyUp as published: ImageNet and a GPU.")
def anyup_paper() -> TrainConfig:
    """AnyUp trained on DINOv2 ViT-S/14, as published.

    * Paper and released code: ImageNet's training images whose shorter side has at least 448
      pixels, batch 4, 100,000 steps, AdamW with a constant 2e-4; the features of four crops at full
      resolution as targets, consistency under a changed guidance and under downsampling with
      weight 0.1 each.
    * Released code only: centre crop of 448, weight decay 1e-5, bfloat16, the guidance's
      normalisation for the backbone too. Its several backbones in one run are a list here:
      ``backbones`` takes any number.
    * Chosen: seed 0.
    """
    return _published(
        DINOV2_SMALL,
        UpsamplerConfig(name="anyup"),
        CropsConfig(normalization="guidance"),
        DataConfig(crop=448, min_side=448),
        every=10_000,
        steps=100_000,
    )


@register_recipe(when="One upsampler for several backbones: give --backbone more than once.")
def anyup_small() -> TrainConfig:
    """AnyUp trained on the bundled encoder, on two cores.

    * As ``anyup_paper``: objective and architecture.
    * Chosen: everything else. The backbone's own normalisation, two crops of each image, keys and
      queries of 64 channels, a higher learning rate that falls.
    """
    return small_recipe(
        UpsamplerConfig(name="anyup", config={"qk_dim": 64}),
        CropsConfig(crops=2),
        SMALL_OPTIMIZER,
        random_crops(224, resize=256),
        warmup_steps=100,
        every=100,
        batch_size=2,
    )


@register_recipe(when="NAF as published, for DINOv3 ViT-B/16: ImageNet and a GPU.")
def naf_paper() -> TrainConfig:
    """NAF for DINOv3 ViT-B/16, as published.

    * Paper and released code: ImageNet's training images of 512 pixels, features of the half-sized
      image to those of the image, plain squared error, AdamW with a constant 2e-4, batch 4, 25,000
      steps.
    * Released code only: shorter side and centre crop, guidance of at most 224 pixels and four for
      each cell of the target, weight decay 1e-5, bfloat16, checkpoints every quarter of the run.
    * Chosen: seed 0.
    """
    return _published(
        BackboneConfig(name="timm/vit_base_patch16_dinov3.lvd1689m"),
        UpsamplerConfig(name="naf"),
        naf_config(),
        DataConfig(crop=512),
        every=6250,
        steps=25_000,
    )


@register_recipe(
    when="One or several backbones; each pixel attends only to cells in its neighbourhood."
)
def naf_small() -> TrainConfig:
    """NAF for the bundled encoder, on two cores.

    * As ``naf_paper``: objective and architecture, but windows of 7 instead of 9 cells, since the
      small image's grid has eight.
    * Chosen: everything else. 2,000 steps with a higher learning rate that falls.
    """
    return small_recipe(
        UpsamplerConfig(name="naf", config={"kernel_size": 7}),
        naf_config(),
        SMALL_OPTIMIZER,
        random_crops(256, resize=288),
        warmup_steps=100,
        steps=2000,
    )


@register_recipe
def joint_bilateral_learned_small() -> TrainConfig:
    """NAF's learned bilateral baseline for the bundled encoder, on two cores.

    * As ``naf_small``: everything but the method, which NAF's paper sets beside its own. How it was
      trained there is not published.
    """
    upsampler = UpsamplerConfig(name="joint_bilateral_learned")
    return naf_small().model_copy(update={"upsampler": upsampler})


@register_recipe
def naf_restoration_paper() -> TrainConfig:
    """NAF as a filter that removes noise from images, as its code trains it.

    * Released code: ImageNet's training images of 448 pixels, Gaussian noise of deviation 0.1
      (``objective.deviation=[0.1,0.5]`` for the range, ``objective.noise=salt-pepper``), 1 L1 + 5
      squared error + 0.2 (1 - SSIM with a 3x3 mean), batch 4, 25,000 steps, bfloat16, a constant
      learning rate.
    * Chosen: one attention head, as three channels cannot be shared by four; learning rate and
      weight decay as in ``naf_paper``; shorter side and centre crop; seed 0.
    """
    return _published(
        IMAGE,
        UpsamplerConfig(name="naf", config={"heads_attn": 1}),
        RestorationConfig(),
        DataConfig(crop=448),
        every=6250,
        steps=25_000,
    )


@register_recipe
def naf_restoration_small() -> TrainConfig:
    """NAF as a filter that removes noise from images, on two cores.

    * As ``naf_restoration_paper``: objective and noise.
    * Chosen: everything else. A narrow NAF with windows of 5 pixels, crops of 64, 500 steps with a
      higher learning rate that falls.
    """
    narrow = {"heads_attn": 1, "dim": 64, "kernel_size": 5}
    return small_recipe(
        UpsamplerConfig(name="naf", config=narrow),
        RestorationConfig(),
        OptimizerConfig(lr=2e-3, weight_decay=1e-5),
        random_crops(64, resize=128),
        backbones=(IMAGE,),
        steps=500,
        validation=None,
    )


@register_recipe
def diveup_small() -> TrainConfig:
    """DiveUp's training of NAF for the bundled encoder, on two cores.

    * Paper, as a reader reports it: NAF's architecture and squared error, and the absolute
      difference of centre-of-mass fields in windows of 7.
    * Not here: four backbones at once, and the two larger networks that guide; the large image's
      own features do.
    * Chosen: the weight 1 of the fields' term, their temperature, and everything else as in
      ``naf_small``.
    """
    base = naf_small()
    return base.model_copy(
        update={
            "upsampler": UpsamplerConfig(
                name="naf", config={"kernel_size": 7, "clamp_dilation": True}
            ),
            "objective": base.objective.model_copy(update={"field_weight": 1.0}),
        }
    )


@register_recipe
def pixelup_paper() -> TrainConfig:
    """PixelUp, guided by DINOv3's ConvNeXt-S; no training code was within reach.

    * Paper, as a reader reports it: squared error to features of a larger image, AdamW, bfloat16,
      a random factor in each step; images of SA-1B and COCO.
    * Released files: architecture and encoder. Its weights are under the DINOv3 licence, and so are
      models trained with them.
    * Chosen: everything else. The backbone, images of 448 pixels of one size, factors from
      [0.35, 0.6], whose grids have nine cells, 100,000 steps of 4 images at 2e-4, seed 0.
    """
    return _published(
        DINOV2_SMALL,
        UpsamplerConfig(name="pixelup", config={"encoder_weights": "timm"}),
        MultiResolutionConfig(
            scale=(0.35, 0.6), distance="mse", guidance_scale=1.0, regulariser_weight=0.0
        ),
        DataConfig(crop=448),
        every=25_000,
        steps=100_000,
    )


@register_recipe
def pixelup_small() -> TrainConfig:
    """PixelUp for the bundled encoder, on two cores, guided by a ConvNeXt of 3 M parameters.

    * As ``pixelup_paper``: the objective's form.
    * Chosen: everything else. ``convnext_atto.d2_in1k`` (Apache-2.0) as encoder, from local folders
      or the hub, queries of 64 channels, windows of 5 cells since the small image's grid has six,
      an encoder's image of 160 pixels at least, images of 224 pixels, cosine plus min-max
      normalised squared error, 1,000 steps with a higher learning rate that falls.
    """
    small = {"d_enc": 64, "num_heads_encoder": 4, "num_heads_decoder": 4, "rope_directions": 4}
    encoder = {"encoder": "convnext_atto.d2_in1k", "encoder_weights": "timm"}
    return small_recipe(
        UpsamplerConfig(
            name="pixelup", config={**small, "kernel_size": 5, "smallest_side": 160, **encoder}
        ),
        MultiResolutionConfig(scale=(0.4, 0.6), guidance_scale=1.0, regulariser_weight=0.0),
        SMALL_OPTIMIZER,
        random_crops(224, resize=256),
        warmup_steps=100,
    )


@register_recipe
def vit_up_paper() -> TrainConfig:
    """ViT-Up on the hidden states of DINOv3 ViT-S+/16, without adapters in the backbone.

    * Released code: six levels and blocks, AdamW at 2e-4 without weight decay, batch 24, 53,381
      steps with a warm-up of 2,669 and a cosine, gradients clipped to 1, bfloat16; per-channel
      normalised squared error, cosine, and the divergence of the tokens' similarities.
    * Not here: the backbone's LoRA; the canvas of noise that the image is pasted on; three scales;
      a loss of each level by itself (here all channels are one vector).
    * Chosen: images of 448 pixels and small images of a factor from [0.25, 0.5], seed 0.
    """
    layers = {"layers": [1, 3, 5, 7, 9, 11]}
    return TrainConfig(
        backbones=(
            BackboneConfig(name="timm/vit_small_plus_patch16_dinov3.lvd1689m", options=layers),
        ),
        upsampler=UpsamplerConfig(name="vit_up", config={"levels": 6}),
        objective=MultiResolutionConfig(distance="token_structure", regulariser_weight=0.0),
        data=DataConfig(crop=448),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=2669, final=0.005),
        clip=ClipConfig(max_norm=1.0),
        checkpoint=CheckpointConfig(every=10_000),
        steps=53_381,
        batch_size=24,
        precision="bf16",
        seed=0,
    )


@register_recipe
def vit_up_small() -> TrainConfig:
    """ViT-Up for the last layer of the bundled encoder, on two cores.

    * As ``vit_up_paper``: the loss, clipping, no weight decay.
    * Chosen: everything else. One level, two blocks of three heads, images of 224 pixels, 1,000
      steps with a higher learning rate that falls.
    """
    return small_recipe(
        UpsamplerConfig(name="vit_up", config={"num_blocks": 2}),
        MultiResolutionConfig(distance="token_structure", regulariser_weight=0.0),
        OptimizerConfig(lr=1e-3, weight_decay=0.0),
        random_crops(224, resize=256),
        warmup_steps=100,
        clip=ClipConfig(max_norm=1.0),
    )
