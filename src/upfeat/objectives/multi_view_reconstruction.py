"""Learning from moved copies of an image alone: FeatUp's training (arXiv 2403.10516, section 3)."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upfeat.objectives._networks import Call, backbone_features, guidance_image
from upfeat.objectives.base import Batch, Objective, ObjectiveConfig, Plan, weighted_sum
from upfeat.objectives.multi_view import MultiView, MultiViewConfig, check_multi_view
from upfeat.objectives.registry import register_objective
from upfeat.ops.images import Size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["MultiViewReconstruction", "MultiViewReconstructionConfig"]


FEATUP = MultiViewConfig(
    views=5,
    projection=30,
    tv_weight=0.0,
    max_pad=20,
    zoom=1.0,
    uncertainty=True,
    jitter="crop",
    crf_weight=0.001,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiViewReconstructionConfig(ObjectiveConfig):
    """Settings of :class:`MultiViewReconstruction`; the defaults are FeatUp's code.

    Attributes:
        multi_view: the views, the reduction and the penalties. (Five crops of at most twofold zoom
            with 20 mirrored pixels, attention downsampler, 30 random projections, predicted scale,
            CRF with 0.001.)
    """

    multi_view: MultiViewConfig = FEATUP


@register_objective("multi_view_reconstruction", MultiViewReconstructionConfig)
class MultiViewReconstruction(Objective):
    """Reconstruct the features of jittered copies from the moved and reduced map (FeatUp).

    The upsampled map of the image is moved as each copy was, reduced to the backbone's grid by a
    learned downsampler and compared with the copy's features. Hand the objective's parameters
    (downsampler, predicted scale) to the optimiser. FeatUp's gradients come from one backward pass
    for each copy; the sum is the same.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=8)
        >>> views = dataclasses.replace(FEATUP, views=2, max_pad=4)
        >>> objective = MultiViewReconstructionConfig(multi_view=views).build()
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(1, 3, 16, 16)}
        >>> sorted(objective.step(batch, backbone, upsampler, torch.Generator()))
        ['crf', 'loss', 'reconstruction']
    """

    several_backbones = False
    config: MultiViewReconstructionConfig

    def __init__(self, config: MultiViewReconstructionConfig) -> None:
        super().__init__(config)
        self.multi_view: MultiView | None = None

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._check_model(model, backbones)
        check_multi_view(self.config.multi_view, backbones, self.name)

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        backbone = backbones[0]
        self.multi_view = MultiView(self.config.multi_view, backbone.dim, int(backbone.patch_size))

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.multi_view is None:
            raise RuntimeError("prepare() builds the downsampler")
        image = batch["image"]
        features = backbone_features(backbone, image)
        output = upsampler(guidance_image(upsampler, backbone, image), self.source(features))
        return weighted_sum(self.multi_view(image, output, backbone, generator, self.target))

    def _plan(self, image_size: Size, backbone: "Backbone") -> Plan:
        views = self.config.multi_view
        if views.jitter == "crop" and views.max_pad >= min(image_size):
            raise ValueError(
                f"max_pad={views.max_pad} mirrors more than images of {image_size} have; lower "
                "multi_view.max_pad or enlarge the images"
            )
        return Plan([image_size], [Call(image_size, backbone.grid_size(image_size), image_size)])
