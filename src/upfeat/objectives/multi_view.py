"""FeatUp's multi-view term: a map, moved and reduced, should be the moved image's features.

Optional part of LoftUp's released training, which grew out of FeatUp's (arXiv 2403.10516, section
3). It keeps a map consistent with what the backbone says of the image's jittered copies.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import UnsupportedError, shape_text
from upfeat.objectives._networks import backbone_features
from upfeat.objectives.draws import draw_like, draw_uniform
from upfeat.objectives.images import gaussian_blur, resize_bilinear
from upfeat.objectives.losses import energy, project, random_projection, total_variation, widen

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["AttentionDownsampler", "Jitter", "MultiView", "MultiViewConfig", "jitter_map"]

SCALE_OFFSET, SCALE_FLOOR = 0.1, 1e-4  # of the predicted scale in FeatUp's uncertain loss


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


class AttentionDownsampler(nn.Module):
    """FeatUp's learned reduction: each cell is a softmax-weighted mean of its patch.

    Patches do not overlap, as FeatUp's do not where the map is a whole number of patches.

    Args:
        dim: channels C.
        patch: side of a patch.
        blur: blur the map first (5x5, sigma 1, mirrored border).

    Example:
        >>> import torch
        >>> AttentionDownsampler(8, 4)(torch.randn(1, 8, 12, 16), torch.Generator()).shape
        torch.Size([1, 8, 3, 4])
    """

    dropout = 0.2
    window_dropout = 0.2

    def __init__(self, dim: int, patch: int, blur: bool = True) -> None:
        super().__init__()
        self.patch, self.blur = patch, blur
        self.attention = nn.Linear(dim, 1)
        self.weight = nn.Parameter(1 + 0.01 * torch.randn(patch, patch))
        self.bias = nn.Parameter(0.01 * torch.randn(patch, patch))

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Reduce (B, C, h p, w p) to (B, C, h, w).

        Args:
            x: the fine map; h and w are whole.
            generator: of both dropouts: of values in training, and of whole windows' logits in
                training and evaluation alike, as in FeatUp's code. None switches both off.
            kept: (B, h, w) instead of drawn windows: 1 where the logits are kept.

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        batch, channels, height, width = x.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(
                f"the sides of {shape_text(x)} must be multiples of the patch {p}; resize the map"
            )
        x = gaussian_blur(x, 1.0) if self.blur else x
        # (B, C, h, p, w, p) -> (B, h, w, p, p, C)
        windows = x.reshape(batch, channels, height // p, p, width // p, p)
        windows = windows.permute(0, 2, 4, 3, 5, 1)
        seen = windows
        if generator is not None and self.training:
            survive = draw_like(generator, x, windows.shape, normal=False) > self.dropout
            seen = windows * survive / (1 - self.dropout)
        logits = self.attention(seen).squeeze(-1)  # (B, h, w, p, p)
        if kept is None and generator is not None:
            kept = draw_like(generator, x, logits.shape[:3], normal=False) > self.window_dropout
        if kept is not None:
            logits = logits * kept[..., None, None]
        weights = (logits * self.weight + self.bias).flatten(3).softmax(-1)  # (B, h, w, p^2)
        return torch.einsum("bhwk,bhwkc->bchw", weights, windows.flatten(3, 4))


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

    Example:
        >>> MultiViewConfig().views
        4
    """

    views: int = 4
    weight: float = 1.0
    projection: int | None = 64
    tv_weight: float = 0.01
    max_pad: int = 8
    zoom: float = 0.1
    uncertainty: bool = False

    def __post_init__(self) -> None:
        if (
            self.views < 1
            or self.max_pad < 0
            or (self.projection is not None and self.projection < 1)
        ):
            raise ValueError("views and projection must be positive, max_pad not negative")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"zoom must lie in [0, 1), got {self.zoom}")


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
        self.downsampler = AttentionDownsampler(dim, patch)
        self.scale: nn.Conv2d | None = None
        if config.uncertainty:
            self.scale = nn.Conv2d(dim, 1, 1)
            with torch.no_grad():
                for parameter in self.scale.parameters():
                    parameter.mul_(0.1)  # FeatUp's start: nearly the same scale everywhere

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
        fine = (grid[0] * self.downsampler.patch, grid[1] * self.downsampler.patch)
        losses, terms = [], {}
        for view in range(config.views):
            jitter = draw_jitter(generator, size, config.max_pad, config.zoom)
            features = to_target(backbone_features(backbone, jitter_map(image, jitter)))
            moved = jitter_map(widen(output), jitter)
            reduced = self.downsampler(resize_bilinear(moved, fine), generator)
            seen, target = reduced, widen(features)
            if config.projection is not None:
                projection = random_projection(output, config.projection, generator)
                seen, target = project(seen, projection), project(target, projection)
                moved = project(moved, projection)
            losses.append(self._compare(seen, target, features))
            if view == 0 and config.tv_weight:
                terms["total_variation"] = (config.tv_weight, total_variation(energy(moved)))
        terms["reconstruction"] = (config.weight, torch.stack(losses).mean())
        return terms

    def _compare(self, seen: Tensor, target: Tensor, features: Tensor) -> Tensor:
        error = (seen - target).square()
        if self.scale is None:
            return error.mean()
        # (B, 1, h, w): how far off a cell may be
        spread = (self.scale(widen(features)) + SCALE_OFFSET).exp().clamp(min=SCALE_FLOOR)
        return (error / (2 * spread.square()) + spread.log()).mean()


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
