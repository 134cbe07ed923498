"""FeatUp's multi-view term: a map, moved and reduced, should be the moved image's features.

It keeps a map consistent with the backbone's features of the image's jittered copies. FeatUp (arXiv
2403.10516, section 3) trains with it alone (:class:`MultiViewReconstruction`); LoftUp's released
training, which grew out of FeatUp's, has it as an option.

Legend: ``B`` batch, ``C`` channels, ``H W`` map, ``n`` sampled pixels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._settings import Settings
from upfeat.errors import UnsupportedError, check_map, shape_text
from upfeat.layers.downsamplers import AttentionDownsampler, ScaleNet, SimpleDownsampler
from upfeat.objectives._networks import backbone_features, size_of
from upfeat.objectives.base import Batch, Calls, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.draws import draw_uniform
from upfeat.objectives.losses import (
    energy,
    entropy,
    project,
    random_projection,
    to_float32,
    total_variation,
)
from upfeat.ops.images import Size, draw_crop, normalize, resize_bilinear, take_crop

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = [
    "Jitter",
    "MultiView",
    "MultiViewConfig",
    "MultiViewReconstruction",
    "MultiViewReconstructionConfig",
    "crf_loss",
    "jitter_map",
]


class Jitter(NamedTuple):
    """A window of an image: centre (row, column) and side lengths, all as shares of the image."""

    center: tuple[float, float]
    extent: tuple[float, float]


def draw_jitter(
    generator: torch.Generator, size: tuple[int, int], max_pad: int, zoom: float
) -> Jitter:
    """Draw a window that is zoomed by 1 +- zoom on each axis and reaches over the border."""
    factors = [draw_uniform(generator, 1 - zoom, 1 + zoom) for _ in size]
    extent = [1 / factor for factor in factors]
    center = []
    for side, length in zip(size, extent, strict=True):
        # What the padded image leaves for the window to move; nothing if the window is larger.
        slack = max(0.0, 1 + 2 * max_pad / side - length) / 2
        center.append(0.5 + draw_uniform(generator, -slack, slack))
    return Jitter((center[0], center[1]), (extent[0], extent[1]))


def jitter_map(x: Tensor, jitter: Jitter) -> Tensor:
    """Show a window of (B, C, H, W) at its own size, bilinearly, mirrored beyond the border."""
    (row, column), (height, width) = jitter
    # grid_sample counts columns first, from -1 to 1
    theta = x.new_tensor([[width, 0, 2 * column - 1], [0, height, 2 * row - 1]])
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


class MultiViewConfig(Settings):
    """Settings of :class:`MultiView`; the defaults are those of LoftUp's released first stage.

    Attributes:
        views: jittered copies in each step.
        weight: of the reconstruction, the mean over the views.
        projection: channels of the random projection that both sides go through; None compares all.
        tv_weight: of the total variation of the energy of the first view's projected map.
        max_pad: how many mirrored pixels a view may show.
        zoom: views are zoomed by 1 +- this, on each axis on its own.
        uncertainty: predict a scale s for each cell; the loss is mse / (2 s^2) + log s.
        jitter: ``"window"``, LoftUp's; ``"crop"``, FeatUp's: padded, half of the time zoomed by
            1 ... 1 + ``zoom``, cut out and half of the time mirrored.
        downsampler: ``"attention"`` or ``"simple"``, FeatUp's two.
        entropy_weight: of the entropy of the simple one's kernel, subtracted.
        crf_weight: of the :func:`crf_loss` of the first view's projected map
            with, as in FeatUp's code, the image that was not moved.
        crf_pixels: how many pixels that looks at.
    """

    views: PositiveInt = 4
    weight: float = 1.0
    projection: PositiveInt | None = 64
    tv_weight: float = 0.01
    max_pad: NonNegativeInt = 8
    zoom: NonNegativeFloat = 0.1
    uncertainty: bool = False
    jitter: Literal["window", "crop"] = "window"
    downsampler: Literal["attention", "simple"] = "attention"
    entropy_weight: float = 0.0
    crf_weight: float = 0.0
    crf_pixels: PositiveInt = 1000

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jitter == "window" and self.zoom >= 1:
            raise ValueError(f"zoom must lie in [0, 1), or be any share of crops, got {self.zoom}")
        if self.entropy_weight and self.downsampler != "simple":
            raise ValueError("entropy_weight is for the kernel of downsampler='simple'")
        return self


class MultiView(nn.Module):
    """The multi-view reconstruction term with its learned downsampler.

    What the pages on the released code leave open is chosen here: a view is cut by one bilinear
    sampling with mirrored borders, for the image and for the map alike.

    Args:
        config: its settings.
        dim: channels C of the features.
        patch: the backbone's patch.
    """

    def __init__(self, config: MultiViewConfig, dim: int, patch: int) -> None:
        super().__init__()
        self.config = config
        self.patch = patch
        simple = config.downsampler == "simple"
        self.downsampler = SimpleDownsampler(patch) if simple else AttentionDownsampler(dim, patch)
        self.scale = ScaleNet(dim) if config.uncertainty else None

    def forward(
        self,
        image: Tensor,
        output: Tensor,
        backbone: "Backbone",
        generator: torch.Generator,
        to_target: Callable[[Tensor], Tensor],
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the weighted terms of a map (B, C, H', W') of an image (B, 3, H, W) in [0, 1].

        ``to_target`` brings the features of the jittered image into the map's space.
        """
        config = self.config
        size = size_of(image)
        grid = backbone.grid_size(size)
        fine = (grid[0] * self.patch, grid[1] * self.patch)
        losses, terms = [], {}
        for view in range(config.views):
            move = self._draw(generator, size)
            features = to_target(backbone_features(backbone, move(image)))
            moved = move(self._movable(output, size))
            reduced = self.downsampler(resize_bilinear(moved, fine), generator)
            seen, target = reduced, to_float32(features)
            if config.projection is not None:
                projection = random_projection(output, config.projection, generator)
                seen, target = project(seen, projection), project(target, projection)
                moved = project(moved, projection)
            losses.append(self._compare(seen, target, features))
            if view == 0 and config.tv_weight:
                terms["total_variation"] = (config.tv_weight, total_variation(energy(moved)))
            if view == 0 and config.crf_weight:
                pixels = draw_pixels(generator, size_of(moved), config.crf_pixels)
                still = normalize(image, backbone.image_mean, backbone.image_std)
                still = resize_bilinear(still, size_of(moved))
                terms["crf"] = (config.crf_weight, crf_loss(moved, still, pixels))
        terms["reconstruction"] = (config.weight, torch.stack(losses).mean())
        if isinstance(self.downsampler, SimpleDownsampler) and config.entropy_weight:
            terms["entropy"] = (-config.entropy_weight, entropy(self.downsampler.kernel()))
        return terms

    def _draw(
        self, generator: torch.Generator, size: tuple[int, int]
    ) -> Callable[[Tensor], Tensor]:
        """Draw one view; the result moves image and map alike."""
        config = self.config
        if config.jitter == "window":
            jitter = draw_jitter(generator, size, config.max_pad, config.zoom)
            return lambda x: jitter_map(x, jitter)
        crop = draw_crop(generator, size, config.max_pad, 1 + config.zoom)
        return lambda x: take_crop(x, crop, config.max_pad)

    def _movable(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Crops count the image's pixels, so that a map must have its size."""
        wide = to_float32(output)
        return resize_bilinear(wide, size) if self.config.jitter == "crop" else wide

    def _compare(self, seen: Tensor, target: Tensor, features: Tensor) -> Tensor:
        error = (seen - target).square()
        return error.mean() if self.scale is None else self.scale.error(error, to_float32(features))


class MultiViewOption(ObjectiveConfig):
    """Settings of an objective that may add the multi-view term.

    Attributes:
        multi_view: add it, with these settings.
    """

    multi_view: MultiViewConfig | None = None


class MultiViewObjective(Objective):
    """Base of the objectives that may add the multi-view term: checks and builds it."""

    config: MultiViewOption

    def __init__(self, config: MultiViewOption) -> None:
        super().__init__(config)
        self.multi_view: MultiView | None = None

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._check_model(model, backbones)
        if self.config.multi_view is None:
            return
        if len(backbones) > 1:
            raise UnsupportedError(
                f"the multi-view term of {self.name} learns a downsampler for one backbone, got "
                f"{len(backbones)}; train with one backbone or with multi_view=None"
            )
        patch = backbones[0].patch_size
        if patch != int(patch):
            raise UnsupportedError(
                f"the multi-view term of {self.name} needs a whole patch size, "
                f"{backbones[0].name} has {patch}; train with multi_view=None"
            )

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        if self.config.multi_view is not None:
            patch = int(backbones[0].patch_size)
            self.multi_view = MultiView(self.config.multi_view, backbones[0].dim, patch)


# -- the contrastive random field --------------------------------------------------------------
# What is near and looks alike is alike: FeatUp's regulariser (its released code; the pairwise
# potentials are those of a dense CRF, an appearance and a smoothness kernel).

APPEARANCE, SMOOTHNESS = 10.0, 3.0  # weights of the two kernels
PLACE_VARIANCE, COLOR_VARIANCE, NEAR_VARIANCE = 0.1, 0.15, 0.005


def draw_pixels(generator: torch.Generator, size: tuple[int, int], count: int) -> Tensor:
    """Draw rows and columns of pixels, with repetition: (2, n)."""
    device = generator.device
    drawn = [torch.randint(n, (count,), generator=generator, device=device) for n in size]
    return torch.stack(drawn)


def crf_loss(features: Tensor, guidance: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean over all pairs of |f_i - f_j|^2 times the affinity of i and j.

    With places p as shares of the sides and colours c:
    10 exp(-|dp|^2 / 0.2 - |dc|^2 / 0.3) + 3 exp(-|dp|^2 / 0.01).

    Args:
        features: (B, C, H, W).
        guidance: (B, 3, H, W), normalised.
        pixels: (2, n), rows and columns, the same for all images.

    Raises:
        ValueError: the maps differ in size.
    """
    check_map(features, "features", "(B, C, H, W)")
    if features.shape[0] != guidance.shape[0] or features.shape[2:] != guidance.shape[2:]:
        raise ValueError(
            "features and guidance must share batch and size, got "
            f"{shape_text(features)} and {shape_text(guidance)}; resize the image"
        )
    pixels = pixels.to(features.device)
    sides = torch.tensor(features.shape[2:], device=features.device)
    place = (pixels / sides[:, None])[None].to(to_float32(features))  # (1, 2, n)
    rows, columns = pixels
    place_square = _pairs(place)
    color_square = _pairs(to_float32(guidance)[:, :, rows, columns])
    affinity = APPEARANCE * torch.exp(
        -place_square / (2 * PLACE_VARIANCE) - color_square / (2 * COLOR_VARIANCE)
    ) + SMOOTHNESS * torch.exp(-place_square / (2 * NEAR_VARIANCE))
    return (_pairs(to_float32(features)[:, :, rows, columns]) * affinity).mean()


def _pairs(x: Tensor) -> Tensor:
    """Squared distances between all columns, (B, C, n) -> (B, n, n)."""
    with torch.autocast(x.device.type, enabled=False):
        square = x.square().sum(1)
        return (square[:, :, None] + square[:, None] - 2 * x.mT @ x).clamp(min=0)


# -- the objective -----------------------------------------------------------------------------

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


class MultiViewReconstructionConfig(MultiViewOption):
    """Settings of :class:`MultiViewReconstruction`; the defaults are FeatUp's code.

    Attributes:
        multi_view: the views, the reduction and the penalties. (Five crops of at most twofold zoom
            with 20 mirrored pixels, attention downsampler, 30 random projections, predicted scale,
            CRF with 0.001.)
    """

    name: Literal["multi_view_reconstruction"] = "multi_view_reconstruction"
    multi_view: MultiViewConfig = FEATUP


@register_objective(MultiViewReconstructionConfig)
class MultiViewReconstruction(MultiViewObjective):
    """Reconstruct the features of jittered copies from the moved and reduced map (FeatUp).

    The upsampled map of the image is moved as each copy was, reduced to the backbone's grid by a
    learned downsampler and compared with the copy's features. Hand the objective's parameters
    (downsampler, predicted scale) to the optimiser. FeatUp's gradients come from one backward pass
    for each copy; the sum is the same.
    """

    several_backbones = False
    config: MultiViewReconstructionConfig

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert self.multi_view is not None  # prepare() builds it
        image = batch["image"]
        _, output = self._upsampled(image, backbone, upsampler)
        return self.weighted_sum(self.multi_view(image, output, backbone, generator, self.target))

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        views = self.config.multi_view
        if views.jitter == "crop" and views.max_pad >= min(image_size):
            raise ValueError(
                f"max_pad={views.max_pad} mirrors more than images of {image_size} have; lower "
                "multi_view.max_pad or enlarge the images"
            )
        return super()._plan(image_size, backbone)
