"""Self-distillation: a moving average of the upsampler on crops of a larger image is the teacher.

Paper: LoftUp (arXiv 2504.14032), section 3.2, second stage. It works for any upsampler; "JAFAR +
distillation" of JAFAR's paper is this objective on JAFAR.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat._settings import Share
from upfeat.objectives._networks import (
    Call,
    Calls,
    backbone_features,
    frozen_copy,
    guidance_image,
    size_of,
    unwrap,
)
from upfeat.objectives.affinity import BORDER, affinity_loss
from upfeat.objectives.base import Batch, register_objective
from upfeat.objectives.draws import draw_integer
from upfeat.objectives.losses import get_distance, total_variation
from upfeat.objectives.masks import MaskOrder, refine_with_masks
from upfeat.objectives.multi_view import MultiViewConfig, MultiViewObjective, MultiViewOption
from upfeat.ops.images import Size, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = [
    "SelfDistillation",
    "SelfDistillationConfig",
    "ema_update",
    "output_span",
    "released_stage2_config",
]

MapDistance = Literal["affinity_l2", "affinity_l1", "mse", "l1", "cosine_mse"]


class SelfDistillationConfig(MultiViewOption):
    """Settings of :class:`SelfDistillation`; the defaults are the paper's.

    Attributes:
        input_sizes: shorter side of the student's image; one is drawn for each step. (Paper: 224
            or 336; code: see :func:`released_stage2_config`.)
        scale: if given, the student's image is the batch's divided by this, and ``input_sizes``
            does not count. (Chosen; 4 is the paper's 896 / 224.)
        crops: K, crops of each image. (Paper: 2.)
        crop_multiple: the crops' corners are multiples of it. (Code: 16.)
        distance: between teacher and student. (Paper: ``"affinity_l2"``.)
        border: what the affinities leave out at each side of a region. (Code: 0.1.)
        weight: of the distance. (Code: 20; 1 here, the paper names none.)
        refine: sharpen the teacher's map with the crop's masks. (Paper and code.)
        alpha: how far. (Code: 0.5.)
        order: what overlapping masks do. (Code: ``"sequential"``.)
        decay: of the teacher's moving average. (Paper and code: 0.99.)
        every: steps between its updates. (Paper and code: 10.)
        output_scale: size of the outputs, as a share of the student's image. (1 in paper and code;
            less is cheaper, chosen.)
        tv_weight: of the total variation of the student's map. (Code: 0.05; paper: none.)
        multi_view: add the first stage's multi-view term on the student's image. (Code only.)
    """

    name: Literal["self_distillation"] = "self_distillation"
    input_sizes: tuple[PositiveInt, ...] = Field(default=(224,), min_length=1)
    scale: float | None = Field(default=None, gt=1)
    crops: PositiveInt = 2
    crop_multiple: PositiveInt = 16
    distance: MapDistance = "affinity_l2"
    border: float = Field(default=BORDER, ge=0, lt=0.5)
    weight: float = 1.0
    refine: bool = True
    alpha: Share = 0.5
    order: MaskOrder = "sequential"
    decay: Share = 0.99
    every: PositiveInt = 10
    output_scale: PositiveFloat = 1.0
    tv_weight: float = 0.0


def released_stage2_config(patch_size: int) -> SelfDistillationConfig:
    """Return what the released second stage does with 896 x 896 images.

    The backbone's patch decides about the largest input.
    """
    return SelfDistillationConfig(
        input_sizes=(224, 336, 448, 518 if patch_size == 14 else 512),
        weight=20.0,
        decay=0.99,
        tv_weight=0.05,
        multi_view=MultiViewConfig(views=2, tv_weight=0.0),
    )


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an averaged copy towards a model: average <- decay average + (1 - decay) model.

    Parameters are averaged; buffers (running statistics, counters) are copied.

    Example:
        >>> import torch
        >>> average, model = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(average.weight), torch.nn.init.ones_(model.weight)
        >>> ema_update(average, model, 0.75)
        >>> average.weight.item()
        0.25
    """
    for averaged, parameter in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(parameter.to(averaged), 1 - decay)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)


@register_objective(SelfDistillationConfig)
class SelfDistillation(MultiViewObjective):
    """Match the output with a slow teacher's output on crops (LoftUp, second stage).

    The batch's image is the large one. The student sees it resized; the teacher, which starts as a
    copy and follows as a moving average, sees crops of the large image of the student's size.
    The teacher's map of a crop, sharpened by the crop's masks, is resized bilinearly to the crop's
    region in the student's map and compared there. One corner is drawn for each crop of a batch, as
    in the released code. The teacher runs in evaluation mode (chosen).

    Start from trained weights, as the paper does from its first stage: equal affinities are also
    those of a constant map, so nothing here keeps an untrained upsampler from becoming one.

    With ``config.refine`` a batch must hold ``"masks"``.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("jafar", feature_dim=3, qk_dim=8)
        >>> objective = SelfDistillationConfig(scale=2.0, refine=False).build()
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(1, 3, 32, 32)}
        >>> terms = objective.step(batch, backbone, upsampler, torch.Generator())
        >>> terms["loss"].backward()
        >>> objective.after_step(10, upsampler)  # the teacher follows at every 10th step
    """

    config: SelfDistillationConfig

    def __init__(self, config: SelfDistillationConfig) -> None:
        super().__init__(config)
        # Masks are needed only where they are used; the class attribute cannot know.
        self.batch_keys = ("image", "masks") if config.refine else ("image",)  # type: ignore[misc]
        self.teacher: nn.Module | None = None

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Set the mode of everything but the teacher, which stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def after_step(self, step: int, upsampler: nn.Module) -> None:
        """Let the teacher follow at every ``config.every``-th step."""
        if self.teacher is not None and step % self.config.every == 0:
            ema_update(self.teacher, unwrap(upsampler), self.config.decay)

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._prepare(upsampler, backbones)
        self.teacher = frozen_copy(upsampler)

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, image = self.config, batch["image"]
        full = size_of(image)
        sizes = self._sizes(full, backbone)
        size = sizes[draw_integer(generator, len(sizes))] if len(sizes) > 1 else sizes[0]
        out_size = scale_size(size, config.output_scale)
        small = resize_bilinear(image, size)
        _, student = self._upsampled(small, backbone, upsampler, out_size)
        losses = []
        for _ in range(config.crops):
            corner = self._corner(full, size, generator)
            target = self.teacher_map(batch, backbone, upsampler, corner, size, out_size)
            rows, columns = (
                output_span(*axis) for axis in zip(corner, size, full, out_size, strict=True)
            )
            seen = student[:, :, rows, columns]
            losses.append(self._distance(seen, resize_bilinear(target, size_of(seen))))
        terms = {"distillation": (config.weight, torch.stack(losses).mean())}
        if config.tv_weight:
            terms["total_variation"] = (config.tv_weight, total_variation(student))
        if self.multi_view is not None:
            terms |= self.multi_view(small, student, backbone, generator, self.target)
        return self.weighted_sum(terms)

    def _corner(self, full: Size, size: Size, generator: torch.Generator) -> Size:
        """Draw the top left corner of a crop, rounded down to a multiple."""
        multiple = self.config.crop_multiple
        top, left = (
            draw_integer(generator, whole - side + 1) // multiple * multiple
            for whole, side in zip(full, size, strict=True)
        )
        return top, left

    @torch.no_grad()
    def teacher_map(
        self,
        batch: Batch,
        backbone: "Backbone",
        upsampler: nn.Module,
        corner: Size,
        size: Size,
        out_size: Size,
    ) -> Tensor:
        """The teacher's map of a crop, sharpened by the masks: (B, C, H', W')."""
        window = (..., slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1]))
        crop = batch["image"][window]
        guidance = guidance_image(upsampler, backbone, crop)
        assert self.teacher is not None  # prepare() builds it
        output = self.teacher(guidance, self.source(backbone_features(backbone, crop)), out_size)
        if not self.config.refine:
            return output
        masks = batch["masks"][window]
        return refine_with_masks(output, masks, self.config.alpha, self.config.order)

    def _distance(self, seen: Tensor, target: Tensor) -> Tensor:
        match self.config.distance:
            case "affinity_l2":
                return affinity_loss(seen, target, "l2", self.config.border)
            case "affinity_l1":
                return affinity_loss(seen, target, "l1", self.config.border)
            case other:
                return get_distance(other)(seen, target)

    def _sizes(self, full: Size, backbone: "Backbone") -> list[Size]:
        """Sizes of the student's image, from a (fitted) image of size ``full``."""
        shares = [side / min(full) for side in self.config.input_sizes]
        if self.config.scale is not None:
            shares = [1 / self.config.scale]
        return [scale_size(full, share, backbone.size_multiple) for share in shares]

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes = self._sizes(image_size, backbone)
        calls = []
        for size in sizes:
            if size[0] >= image_size[0] or size[1] >= image_size[1]:
                raise ValueError(
                    f"{self.name} crops images to the student's size {size}, so they must be "
                    f"larger, got {image_size}; read larger images, or set scale or smaller "
                    "input_sizes"
                )
            output = scale_size(size, self.config.output_scale)
            calls.append(Call(size, backbone.grid_size(size), output))
            regions = [output_span(0, *axis) for axis in zip(size, image_size, output, strict=True)]
            border = self.config.border if self.config.distance.startswith("affinity") else 0
            if any(int((1 - border) * r.stop) - int(border * r.stop) < 2 for r in regions):
                raise ValueError(
                    f"a crop of {size} covers only {regions[0].stop} x {regions[1].stop} pixels "
                    f"of the student's output {output}; enlarge input_sizes or output_scale"
                )
        return Calls(sizes, calls)


def output_span(corner: int, side: int, full: int, out: int) -> slice:
    """Return where a crop of an axis of ``full`` pixels lies in an output of ``out`` pixels.

    The crop has ``side`` pixels from ``corner`` on.

    Example:
        >>> from upfeat.objectives.self_distillation import output_span
        >>> output_span(176, 224, 896, 224)
        slice(44, 100, None)
    """
    start, length = corner * out // full, max(1, side * out // full)
    return slice(start, min(start + length, out))
