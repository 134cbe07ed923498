"""The targets that LoftUp's paper compares as training signals, made for one photo.

Paper: LoftUp (Huang et al., arXiv 2504.14032), the comparison of pseudo ground truths (table L3 of
the published results). Each is what the objective of the same kind compares an upsampler with:

* ``depth``: a depth map, given from outside (``depth_target``);
* ``implicit``: FeatUp's features, fitted to this one image;
* ``doubled``: the backbone's features of the image twice as large (``doubled_input``);
* ``mask_refined``: bicubic features, moved towards their means inside masks (``mask_refined``);
* ``self_distilled``: a trained upsampler's maps of crops of a larger image, mask-refined
  (``self_distillation``).

They are for looking at. The numbers of the table come from training one network on each, with
``upfeat train loftup_stage1_small objective.name=...``, and probing it with ``upfeat eval
seg-probe --preset loftup``; ``docs/pseudo_ground_truth.md`` has these commands.

Legend: ``C`` channels, ``M`` masks, ``H W`` the image that a student sees, ``h w`` its features,
``H' W'`` output. Sizes are (height, width).
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data.mask_sets import Masks
from upfeat.data.sizes import Size, fit_multiple, resolve_size
from upfeat.data.transforms import CropGeometry
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.objectives import SelfDistillation, SelfDistillationConfig
from upfeat.objectives._networks import backbone_features, guidance_image, normalises_features
from upfeat.objectives.losses import cosine_loss, downsampling_loss, to_float32
from upfeat.objectives.masks import MaskOrder, refine_with_masks
from upfeat.objectives.self_distillation import output_span
from upfeat.ops.images import resize_bilinear, scale_size
from upfeat.upsamplers import Upsampler, create_upsampler
from upfeat.upsamplers.fitted import with_views

__all__ = [
    "TARGETS",
    "PseudoGroundTruth",
    "PseudoGroundTruthConfig",
    "PseudoGroundTruths",
    "make_pseudo_ground_truths",
]

TARGETS = ("depth", "implicit", "doubled", "mask_refined", "self_distilled")


class PseudoGroundTruthConfig(BaseModel):
    """Settings of all targets.

    Attributes:
        input_size: size at which a student would see the photo: the shorter side, or (H, W);
            rounded to whole cells. (Paper: 224.)
        scale: how much larger the image is whose crops the teacher sees. (Paper: 896 / 224 = 4; 2
            here, for photos of usual size.)
        output_scale: size of the maps, as a share of the image's; ``doubled`` has its own.
        alpha: how far ``mask_refined`` moves features. (Code: 0.8.)
        teacher_alpha: the same for ``self_distilled``. (Code: 0.5.)
        order: what overlapping masks do. (Code: ``"sequential"``.)
        crop_multiple: corners of crops are multiples of it. (Code: 16.)
        crops_per_side: the teacher sees so many crops, squared, evenly spaced; where they overlap
            the mean is shown, which is what drawing the corners at random aims at.
        implicit_steps, implicit_views: of ``implicit``. (The method's own: 1200 and 3000; fewer
            here, for minutes instead of hours on a CPU.)
        feature_space: see :class:`~upfeat.objectives.base.ObjectiveConfig`; ``"auto"`` without a
            teacher is the channel-normalised space of LoftUp's training.
        seed: of ``implicit``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    scale: float = Field(default=2.0, gt=1)
    output_scale: PositiveFloat = 1.0
    alpha: float = Field(default=0.8, ge=0, le=1)
    teacher_alpha: float = Field(default=0.5, ge=0, le=1)
    order: MaskOrder = "sequential"
    crop_multiple: PositiveInt = 16
    crops_per_side: PositiveInt = 3
    implicit_steps: PositiveInt = 100
    implicit_views: PositiveInt = 100
    feature_space: Literal["auto", "raw", "channel_norm"] = "auto"
    seed: NonNegativeInt = 0


@dataclass(frozen=True, eq=False)
class PseudoGroundTruth:
    """One target.

    Attributes:
        name: one of ``TARGETS``.
        map: (C, H', W'), or (1, H', W') depth.
        seconds: that it took.
        agreement: mean cosine similarity with the image's own features, after averaging down to
            their grid; None for depth.
    """

    name: str
    map: Tensor
    seconds: float
    agreement: float | None = None


@dataclass(frozen=True, eq=False)
class PseudoGroundTruths:
    """What :func:`make_pseudo_ground_truths` returns.

    Attributes:
        image: (3, H, W) in [0, 1], as a student sees it.
        low: (C, h, w), its features, in the space of the targets.
        masks: bool (M, H, W).
        targets: in the order of ``TARGETS``.
        feature_space: ``"raw"`` or ``"channel_norm"``.
        left_out: targets that were not made, with the reason.
    """

    image: Tensor
    low: Tensor
    masks: Tensor
    targets: tuple[PseudoGroundTruth, ...]
    feature_space: str
    left_out: dict[str, str] = field(default_factory=dict)


def make_pseudo_ground_truths(
    config: PseudoGroundTruthConfig,
    photo: Tensor,
    backbone: Backbone,
    masks: Masks,
    *,
    teacher: Upsampler | None = None,
    depth: Tensor | None = None,
    names: Sequence[str] = TARGETS,
    on_start: Callable[[str], None] | None = None,
) -> PseudoGroundTruths:
    """Make the targets of one photo, in one feature space.

    Args:
        config: all settings.
        photo: (3, H, W) in [0, 1], any size; larger than ``scale`` times the input is best.
        backbone: whose features are upsampled; everything runs on its device.
        masks: class-agnostic masks of the photo, from any source of ``upfeat.data``.
        teacher: a trained upsampler of this backbone; without it ``self_distilled`` is left out.
        depth: (H, W) of the photo, any unit; values that are not positive and finite are unknown.
            Without it ``depth`` is left out.
        names: which targets.
        on_start: called with the name of each target before it is made.

    Raises:
        UnknownNameError: no such target.
        UnsupportedError: the teacher cannot serve this backbone or these settings.
        ValueError: masks or depth of another shape than the photo, or crops that leave gaps.

    Example:
        >>> import numpy as np, torch, upfeat
        >>> from upfeat.data.mask_sets import LabelMasks
        >>> from upfeat.viz.targets import *
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> masks = LabelMasks(np.arange(4).reshape(2, 2))
        >>> config = PseudoGroundTruthConfig(input_size=32)
        >>> names = ("doubled", "mask_refined")
        >>> made = make_pseudo_ground_truths(
        ...     config, torch.rand(3, 64, 64), backbone, masks, names=names
        ... )
        >>> [(target.name, tuple(target.map.shape)) for target in made.targets]
        [('doubled', (3, 8, 8)), ('mask_refined', (3, 32, 32))]
    """
    for name in names:
        if name not in TARGETS:
            raise UnknownNameError("target", name, TARGETS)
    own = (photo.shape[1], photo.shape[2])
    _check_shape(masks.size, own, "masks")
    if depth is not None:
        _check_shape((depth.shape[-2], depth.shape[-1]), own, "depth")
    photo = photo.to(next(backbone.parameters(), photo).device)
    scene = _Scene(config, photo, backbone, masks, teacher, depth)
    left_out = {name: reason for name, reason in scene.missing().items() if name in names}
    targets = []
    for name in TARGETS:
        if name not in names or name in left_out:
            continue
        if on_start is not None:
            on_start(name)
        start = time.perf_counter()
        made = getattr(scene, name)()[0]
        targets.append(
            PseudoGroundTruth(name, made, time.perf_counter() - start, scene.agreement(name, made))
        )
    return PseudoGroundTruths(
        scene.image[0],
        scene.low[0],
        scene.masks_at(scene.size),
        tuple(targets),
        scene.objective.feature_space,
        left_out,
    )


def _check_shape(size: Size, photo: Size, what: str) -> None:
    """Raise unless a map has the photo's aspect ratio, to a pixel."""
    stretch = (size[0] / photo[0]) / (size[1] / photo[1])
    if abs(stretch - 1) > 1.5 / min(*size, *photo) + 0.01:
        raise ValueError(
            f"{what} {size} and photo {photo} (height, width) have different aspect ratios; give "
            "those of this photo"
        )


def _teacher_space(teacher: Upsampler, requested: str) -> Literal["raw", "channel_norm"]:
    """Return the space of a trained upsampler's output; ``requested`` must agree or be "auto"."""
    regresses = not teacher.info.abilities.mixes_values
    own: Literal["raw", "channel_norm"] = "raw"
    if regresses and normalises_features(teacher):
        own = "channel_norm"
    if requested not in ("auto", own):
        raise UnsupportedError(
            f"the output of {teacher.info.name} lives in the {own!r} space and cannot be shown in "
            f"{requested!r}; use feature_space 'auto'"
        )
    return own


class _Scene:
    """One photo at the sizes that the targets want; a method for each target."""

    def __init__(
        self,
        config: PseudoGroundTruthConfig,
        photo: Tensor,
        backbone: Backbone,
        masks: Masks,
        teacher: Upsampler | None,
        depth: Tensor | None,
    ) -> None:
        self.config, self.photo, self.backbone = config, photo, backbone
        self.masks, self.teacher, self.known_depth = masks, teacher, depth
        own = (photo.shape[1], photo.shape[2])
        multiple = backbone.size_multiple
        size = resolve_size(config.input_size, own, "input_size")
        self.size = fit_multiple(size, multiple, pad=False)[0]
        self.large_size = scale_size(self.size, config.scale, multiple)
        self.out_size = scale_size(self.size, config.output_scale)
        self.objective = self._objective()
        self.image = self.image_at(self.size)
        self.low = self.objective.target(backbone_features(backbone, self.image))

    def _objective(self) -> SelfDistillation:
        """The training signal of the second stage, which makes the crops' targets here too."""
        config, space = self.config, self.config.feature_space
        if space == "auto" and self.teacher is None:
            space = "channel_norm"
        if self.teacher is not None:
            space = _teacher_space(self.teacher, space)
        objective = SelfDistillation(
            SelfDistillationConfig(
                feature_space=space,
                scale=config.scale,
                crop_multiple=config.crop_multiple,
                alpha=config.teacher_alpha,
                order=config.order,
                output_scale=config.output_scale,
            )
        )
        if self.teacher is not None:
            objective.prepare(self.teacher, self.backbone, self.large_size)
        return objective

    def missing(self) -> dict[str, str]:
        """Targets that lack an input."""
        missing = {}
        if self.known_depth is None:
            missing["depth"] = "no depth map was given"
        if self.teacher is None:
            missing["self_distilled"] = "no trained upsampler was given as teacher"
        return missing

    def image_at(self, size: Size) -> Tensor:
        """The photo at a size, as training images are resized: (1, 3, *size)."""
        return CropGeometry(size, 0, 0, size).image(self.photo)[None]

    def masks_at(self, size: Size) -> Tensor:
        """The masks at a size, bool (M, *size)."""
        return self.masks.cut(CropGeometry(size, 0, 0, size)).to(self.photo.device)

    def agreement(self, name: str, made: Tensor) -> float | None:
        """Mean cosine similarity with the features, averaged down; None for depth."""
        fits = all(m >= s for m, s in zip(made.shape[1:], self.low.shape[2:], strict=True))
        if name == "depth" or not fits:
            return None
        return 1 - float(downsampling_loss(made[None], self.low, cosine_loss))

    # -- the targets, (1, C, H', W') ---------------------------------------------------------------

    def depth(self) -> Tensor:
        if self.known_depth is None:
            raise RuntimeError("there is no depth map")
        geometry = CropGeometry(self.out_size, 0, 0, self.out_size)
        return geometry.labels(self.known_depth.to(self.photo.device).float())[None, None]

    def implicit(self) -> Tensor:
        config = self.config
        upsampler = create_upsampler(
            "featup_implicit",
            feature_dim=self.backbone.dim,
            steps=config.implicit_steps,
            views=config.implicit_views,
            seed=config.seed,
        ).to(self.photo.device)
        guidance = guidance_image(upsampler, self.backbone, self.image)
        features = backbone_features(self.backbone, self.image)
        fitted = with_views(upsampler, self.backbone)(guidance, features, self.out_size)
        return self.objective.target(fitted)

    def doubled(self) -> Tensor:
        image = self.image_at((2 * self.size[0], 2 * self.size[1]))
        return self.objective.target(backbone_features(self.backbone, image))

    def mask_refined(self) -> Tensor:
        bicubic = F.interpolate(to_float32(self.low), self.out_size, mode="bicubic")
        masks = self.masks_at(self.size)[None]
        return refine_with_masks(bicubic, masks, self.config.alpha, self.config.order)

    def self_distilled(self) -> Tensor:
        """Every crop's target at its region of the student's map, their mean where they overlap."""
        if self.teacher is None:
            raise RuntimeError("there is no teacher")
        batch = {
            "image": self.image_at(self.large_size),
            "masks": self.masks_at(self.large_size)[None],
        }
        total = self.low.new_zeros(1, self.low.shape[1], *self.out_size)
        count = self.low.new_zeros(1, 1, *self.out_size)
        for corner in self._corners():
            target = self.objective.teacher_map(
                batch, self.backbone, self.teacher, corner, self.size, self.out_size
            )
            axes = zip(corner, self.size, self.large_size, self.out_size, strict=True)
            rows, cols = (output_span(*axis) for axis in axes)
            region = (rows.stop - rows.start, cols.stop - cols.start)
            total[:, :, rows, cols] += resize_bilinear(target, region)
            count[:, :, rows, cols] += 1
        # A region's size is rounded down, which may leave out a line of pixels: repeat the nearest.
        for axis in (2, 3):
            index = _nearest_covered(count.amax(5 - axis).flatten() > 0)
            total, count = total.index_select(axis, index), count.index_select(axis, index)
        return total / count

    def _corners(self) -> list[Size]:
        """Corners of the crops: evenly spaced, multiples of a number but for the last."""
        steps = self.config.crops_per_side
        axes = []
        for side, full in zip(self.size, self.large_size, strict=True):
            if steps * side < full:
                raise ValueError(
                    f"{steps} crops of {side} pixels leave gaps in {full}; set crops_per_side to "
                    f"{-(-full // side)} or more"
                )
            multiple, free = self.config.crop_multiple, full - side
            places = [step * free // (steps - 1) // multiple * multiple for step in range(steps)]
            axes.append([*places[:-1], free])
        return list(itertools.product(axes[0], axes[1]))


def _nearest_covered(covered: Tensor) -> Tensor:
    """Index (N,) of the nearest True of (N,) for each place."""
    known = covered.nonzero().squeeze(1)
    places = torch.arange(len(covered), device=covered.device)
    return known[(places[:, None] - known).abs().argmin(1)]
