"""Recipes of methods that double the grid in stages, and of the papers' other baselines.

FeatUp: Fu et al., 2024, arXiv 2403.10516; LiFT: Suri et al., 2024, arXiv 2403.14625; UPLiFT:
Walmer, Suri et al., 2026; IFA (arXiv 2206.08655) as FeatUp runs it.

JAFAR (arXiv 2506.11136) trains CARAFE, SAPA, DySample and ReSFU jointly with a linear probe, anew
for each data set and task; such trainings are the evaluation's probes. Each method must be
trainable alone, too, and no paper describes how, so these objectives are chosen. They compare with
raw features, in whose space these methods give outputs:

* The stacks of four doublings (``carafe``, ``sapa``, ``dysample``, ``resize_conv``) learn from
  LoftUp's mask-refined features at the size of the image, as LoftUp (arXiv 2504.14032) has
  retrained FeatUp's stack: every stage then sees a target at each pixel, where two resolutions of
  one image would give them a target of 2 to 4 times the grid, and most of what they compute would
  be thrown away.
* ``resfu`` and ``liif`` go to any size at once and learn from two resolutions of an image.
"""

from typing import Any

from upfeat.objectives import (
    DoubledInputConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    MultiViewReconstructionConfig,
    ObjectiveConfig,
    RepeatedDoublingConfig,
)
from upfeat.objectives.multi_view import FEATUP
from upfeat.training.config import (
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    MaskConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.registry import (
    CLIP,
    DINO_SMALL,
    DINOV2_SMALL,
    random_crops,
    register_recipe,
    small_recipe,
)

ADAM = OptimizerConfig(name="adam", lr=1e-3, weight_decay=0.0)
NADAM = OptimizerConfig(name="nadam", lr=1e-3, weight_decay=0.0)
# Half and quarter images by taking every second pixel; the raw features as targets.
LIFT = DoubledInputConfig(levels=2, distance="cosine", reduce="stride", feature_space="raw")
MASK_REFINED = MaskRefinedConfig(alpha=0.8, order="free", feature_space="raw")
# Masks of every image without annotators or a segmentation network, made at about the training
# images' size. They do not overlap, so that their order has no effect.
SUPERPIXELS = MaskConfig(
    kind="superpixels", options={"method": "felzenszwalb", "max_side": 192, "min_size": 40}
)


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
        backbones=(DINO_SMALL,),
        upsampler=UpsamplerConfig(name="featup_jbu"),
        objective=MultiViewReconstructionConfig(feature_space="channel_norm"),
        data=DataConfig(crop=224, resize=224),
        optimizer=NADAM,
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
    * Chosen: everything else. Two views of crops of 96 pixels, 200 steps.
    """
    views = FEATUP.model_copy(update={"views": 2, "max_pad": 12})
    return small_recipe(
        UpsamplerConfig(name="featup_jbu"),
        MultiViewReconstructionConfig(feature_space="channel_norm", multi_view=views),
        NADAM,
        random_crops(96, resize=128),
        warmup_steps=20,
        clip=CLIP,
        every=50,
        steps=200,
        batch_size=2,
    )


# -- one doubling ----------------------------------------------------------------------------------


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
        backbones=(DINO_SMALL,),
        upsampler=UpsamplerConfig(name="lift"),
        objective=LIFT,
        data=DataConfig(crop=448),
        optimizer=ADAM,
        steps=25_023,
        batch_size=256,
        seed=0,
    )


def _small_doubling(name: str, objective: ObjectiveConfig) -> TrainConfig:
    """Images of 256 pixels, Adam."""
    return small_recipe(UpsamplerConfig(name=name), objective, ADAM, random_crops(256, resize=288))


@register_recipe
def lift_small() -> TrainConfig:
    """LiFT for the bundled encoder, on two cores.

    * As ``lift_paper``: objective, architecture, optimiser.
    * Chosen: everything else.
    """
    return _small_doubling("lift", LIFT)


@register_recipe
def uplift_paper() -> TrainConfig:
    """UPLiFT for DINOv2 ViT-S/14, as published.

    * Released code: ImageNet's training images at 448 pixels, one epoch with batch 32 (40,037
      steps), three levels, squared error of every step, Adam with a constant 1e-3, no clipping.
    * Different: images are cut to squares instead of being squashed.
    * Chosen: seed 0.
    """
    return TrainConfig(
        backbones=(DINOV2_SMALL,),
        upsampler=UpsamplerConfig(name="uplift", config={"patch_size": 14}),
        objective=RepeatedDoublingConfig(levels=3, distance="mse"),
        data=DataConfig(crop=448),
        optimizer=ADAM,
        steps=40_037,
        batch_size=32,
        seed=0,
    )


@register_recipe
def uplift_small() -> TrainConfig:
    """UPLiFT for the bundled encoder, on two cores.

    * As ``uplift_paper``: objective, architecture, optimiser.
    * Chosen: two levels; everything else as in ``lift_small``.
    """
    return _small_doubling("uplift", RepeatedDoublingConfig(levels=2))


@register_recipe
def ifa_small() -> TrainConfig:
    """IFA for the bundled encoder, on two cores, from images of half the size.

    * Original: the architecture. The paper trains it inside a segmentation network; no paper
      describes how to train it alone.
    * Chosen: LiFT's signal, since IFA doubles the grid as LiFT does: features of the halved image,
      doubled, against those of the image, by their cosine; everything else as in ``lift_small``.
    """
    objective = DoubledInputConfig(levels=1, distance="cosine", feature_space="raw")
    return _small_doubling("ifa", objective)


@register_recipe
def wrc_small() -> TrainConfig:
    """WRC for the bundled encoder, on two cores, from images of half the size.

    * Paper: the architecture, and cosine plus min-max normalised squared error.
    * Not here: its loader of crops and its term of a disturbed guidance.
    * Chosen: features of the halved image, doubled, against those of the image; everything else as
      in ``lift_small``.
    """
    return _small_doubling("wrc", DoubledInputConfig(levels=1, distance="cosine_mse"))


# -- baselines that the papers train with a probe --------------------------------------------------


def _baseline(name: str, lr: float) -> TrainConfig:
    """Mask-refined features of images of 96 pixels."""
    data = random_crops(96, resize=128, masks=(SUPERPIXELS,))
    return small_recipe(
        UpsamplerConfig(name=name), MASK_REFINED, OptimizerConfig(lr=lr), data, clip=CLIP
    )


@register_recipe
def carafe_small() -> TrainConfig:
    """CARAFE for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, windows of 5.
    * Chosen: the objective and everything else (see the head of this file). The weights start flat
      and far from a sharp output, hence the high learning rate.
    """
    return _baseline("carafe", lr=3e-3)


@register_recipe
def sapa_small() -> TrainConfig:
    """SAPA for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, windows of 5, 64 channels of queries and keys.
    * Chosen: the objective and everything else (see the head of this file).
    """
    return _baseline("sapa", lr=3e-3)


@register_recipe
def dysample_small() -> TrainConfig:
    """DySample for the bundled encoder, on two cores, from mask-refined features.

    * Original: four stages of factor two, style "lp", 4 groups.
    * Chosen: the objective and everything else (see the head of this file). It starts as bilinear
      interpolation, close to where it ends.
    """
    return _baseline("dysample", lr=1e-3)


@register_recipe(when="The simplest learned baseline.")
def resize_conv_small() -> TrainConfig:
    """Resize-convolution for the bundled encoder, on two cores, from mask-refined features.

    * Original: four doublings, 1x1 convolutions.
    * Chosen: the objective and everything else (see the head of this file).
    """
    return _baseline("resize_conv", lr=1e-3)


def _two_resolutions(
    name: str, optimizer: OptimizerConfig, config: dict[str, Any], **objective: Any
) -> TrainConfig:
    """Features of a smaller image, guided by the image of 128 pixels, to those of the image."""
    return small_recipe(
        UpsamplerConfig(name=name, config=config),
        MultiResolutionConfig(regulariser_weight=0.0, feature_space="raw", **objective),
        optimizer,
        random_crops(128, resize=128),
        clip=CLIP,
    )


@register_recipe
def resfu_small() -> TrainConfig:
    """ReSFU for the bundled encoder, on two cores, from two resolutions of an image.

    * Original: all widths. Its factor of 500 on the gradients of the scoring blocks has no effect
      with this optimiser, which normalises gradients, and is left out.
    * Chosen: the objective and everything else (see the head of this file): the features of a
      quarter or half of the image, guided by the image, should be those of the image.
    """
    return _two_resolutions("resfu", OptimizerConfig(lr=1e-3), {}, scale=(0.25, 0.5))


@register_recipe
def liif_small() -> TrainConfig:
    """LIIF for the bundled encoder, on two cores, from two resolutions of an image.

    * Paper: a random factor, mean absolute error, Adam. (Its factors are 1 to 4 and its batch is of
      48x48 patches of images.)
    * Chosen: factors 1 to 4 between the features of a resized image and of the image, as two
      networks' grids allow them; no regulariser, because the guidance has no influence; a network
      of 192 channels; everything else (see the head of this file).
    """
    return _two_resolutions("liif", ADAM, {"hidden_dim": 192}, scale=(0.25, 1.0), distance="l1")
