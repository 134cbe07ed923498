"""Recipes of RaysUp (2026, arXiv 2606.22749)."""

from upfeat.objectives import MultiResolutionConfig
from upfeat.training.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.recipes.jafar import jafar_paper, jafar_small
from upfeat.training.recipes.registry import register_recipe

__all__ = ["raysup_paper", "raysup_small"]


@register_recipe
def raysup_paper() -> TrainConfig:
    """RaysUp for DINOv2 ViT-S/14, as released; no weights are published.

    * Released script: as ``jafar_paper`` without the regulariser, stand-in cameras, checkpoints
      every quarter of the run.
    * Not here: the paper's training on crops, which the released scripts lack.
    * Chosen: seed 0.
    """
    return jafar_paper().model_copy(
        update={
            "upsampler": UpsamplerConfig(name="raysup"),
            "objective": MultiResolutionConfig(
                scale=(0.25, 0.5),
                distance="cosine_mse",
                guidance_scale=0.5,
                regulariser_weight=0.0,
            ),
            "optimizer": OptimizerConfig(lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-5),
            "checkpoint": CheckpointConfig(every=25_000),
        }
    )


@register_recipe
def raysup_small() -> TrainConfig:
    """RaysUp for the bundled encoder, on two cores.

    * As ``raysup_paper``: architecture and objective.
    * Chosen: as ``jafar_small``, with images of 256 pixels and a factor from [0.4, 0.5], since the
      small image's grid needs six cells.
    """
    return jafar_small().model_copy(
        update={
            "upsampler": UpsamplerConfig(name="raysup"),
            "objective": MultiResolutionConfig(
                scale=(0.4, 0.5), distance="cosine_mse", regulariser_weight=0.0
            ),
            "data": DataConfig(crop=256, resize=288, position="random", flip=0.5),
        }
    )
