"""FeatUp's multi-view term: a map, moved and reduced, should be the moved image's features.

FeatUp (arXiv 2403.10516, section 3) trains with it alone; LoftUp's released training, which grew
out of FeatUp's, has it as an option. It keeps a map consistent with the backbone's features of the
image's jittered copies.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import UnsupportedError
from upfeat.layers.downsamplers import AttentionDownsampler, ScaleNet, SimpleDownsampler
from upfeat.objectives._networks import backbone_features
from upfeat.objectives.crf import crf_loss, draw_pixels
from upfeat.objectives.draws import draw_uniform
from upfeat.objectives.images import resize_bilinear
from upfeat.objectives.losses import (
    energy,
    entropy,
    project,
    random_projection,
    to_float32,
    total_variation,
)
from upfeat.ops.images import draw_crop, normalize, take_crop

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["Jitter", "MultiView", "MultiViewConfig", "jitter_map"]


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
    """Show a window of (B, C, H, W) at the map's own size, mirrored beyond the border, bilinearly.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 2, 6, 8)
        >>> torch.allclose(jitter_map(x, Jitter((0.5, 0.5), (1.0, 1.0))), x, atol=1e-5)
        True
    """
    (row, column), (height, width) = jitter
    # grid_sample counts columns first, from -1 to 1
    theta = x.new_tensor([[width, 0, 2 * column - 1], [0, height, 2 * row - 1]])
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiViewConfig:
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
        crf_weight: of the :func:`~upfeat.objectives.crf.crf_loss` of the first view's projected map
            with, as in FeatUp's code, the image that was not moved.
        crf_pixels: how many pixels that looks at.
    """

    views: int = 4
    weight: float = 1.0
    projection: int | None = 64
    tv_weight: float = 0.01
    max_pad: int = 8
    zoom: float = 0.1
    uncertainty: bool = False
    jitter: Literal["window", "crop"] = "window"
    downsampler: Literal["attention", "simple"] = "attention"
    entropy_weight: float = 0.0
    crf_weight: float = 0.0
    crf_pixels: int = 1000

    def __post_init__(self) -> None:
        positive = {"views": self.views, "crf_pixels": self.crf_pixels}
        if self.projection is not None:
            positive["projection"] = self.projection
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.max_pad < 0:
            raise ValueError(f"max_pad must not be negative, got {self.max_pad}")
        if self.jitter not in ("window", "crop"):
            raise ValueError(f"jitter must be 'window' or 'crop', got {self.jitter!r}")
        if self.zoom < 0 or (self.jitter == "window" and self.zoom >= 1):
            raise ValueError(f"zoom must lie in [0, 1), or be any share of crops, got {self.zoom}")
        if self.downsampler not in ("attention", "simple"):
            raise ValueError(
                f"downsampler must be 'attention' or 'simple', got {self.downsampler!r}"
            )
        if self.entropy_weight and self.downsampler != "simple":
            raise ValueError("entropy_weight is for the kernel of downsampler='simple'")


class MultiView(nn.Module):
    """The multi-view reconstruction term with its learned downsampler.

    What the pages on the released code leave open is chosen here: a view is cut by one bilinear
    sampling with mirrored borders, for the image and for the map alike.

    Args:
        config: its settings.
        dim: channels C of the features.
        patch: the backbone's patch.

    Example:
        >>> import torch, upfeat
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> term = MultiView(MultiViewConfig(views=1, tv_weight=0.0), dim=3, patch=4)
        >>> image = torch.rand(1, 3, 16, 16)
        >>> sorted(term(image, image, backbone, torch.Generator(), lambda features: features))
        ['reconstruction']
    """

    def __init__(self, config: MultiViewConfig, dim: int, patch: int) -> None:
        super().__init__()
        self.config = config
        self.patch = patch
        self.downsampler: AttentionDownsampler | SimpleDownsampler
        if config.downsampler == "simple":
            self.downsampler = SimpleDownsampler(patch)
        else:
            self.downsampler = AttentionDownsampler(dim, patch)
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

        Args:
            image: what the backbone takes, jittered.
            output: the upsampler's map of the unjittered image.
            backbone: frozen.
            generator: of the jitters, projections and dropouts.
            to_target: brings the backbone's features into the output's space.
        """
        config = self.config
        size = (image.shape[2], image.shape[3])
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
                pixels = draw_pixels(generator, (moved.shape[2], moved.shape[3]), config.crf_pixels)
                still = normalize(image, backbone.image_mean, backbone.image_std)
                still = resize_bilinear(still, (moved.shape[2], moved.shape[3]))
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


def check_multi_view(
    config: MultiViewConfig | None, backbones: Sequence["Backbone"], name: str
) -> None:
    """Refuse the multi-view term where its downsampler cannot be built."""
    if config is None:
        return
    if len(backbones) > 1:
        raise UnsupportedError(
            f"the multi-view term of {name} learns a downsampler for one backbone, got "
            f"{len(backbones)}; train with one backbone or with multi_view=None"
        )
    patch = backbones[0].patch_size
    if patch != int(patch):
        raise UnsupportedError(
            f"the multi-view term of {name} needs a whole patch size, {backbones[0].name} has "
            f"{patch}; train with multi_view=None"
        )
