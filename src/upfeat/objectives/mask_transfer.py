"""Upsampling of region labels and of region means: the objective of the universal model.

Not from a paper. Two terms: a squared error to mask-refined features (LoftUp, arXiv 2504.14032,
section 3.2), and a cross-entropy of upsampled region labels. For the latter each region's share of
every low-resolution cell is upsampled in place of the features, and compared with the region that
each pixel belongs to; its target is sharp whatever the backbone blurs.

Where a method regresses features instead of mixing them (LoftUp), the second term is taken from
its attention: each layer's weights, averaged over the heads, should fall on cells of the region.

Legend: B batch, C feature channels, P projected channels, M regions, h w low-resolution grid, H W
image, N sampled pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._settings import Share, Sides
from upfeat.errors import UnsupportedError
from upfeat.layers.attention import attention_modules, record_attention
from upfeat.objectives._networks import Call, backbone_features, guidance_image, size_of, unwrap
from upfeat.objectives.base import Batch, Calls, Objective, ObjectiveConfig, register_objective
from upfeat.objectives.draws import draw_integer, draw_like, draw_part
from upfeat.objectives.losses import to_float32
from upfeat.ops.coordinates import pixel_centres, sample_at
from upfeat.ops.images import Size, resize_antialiased, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = ["MaskTransfer", "MaskTransferConfig", "region_map"]


# Added to a predicted share before its logarithm: it bounds the gradient of a single pixel.
SHARE_FLOOR = 1e-2
# Width in pixels of the strip along boundaries of regions that ``edge_share`` draws from.
EDGE_WIDTH = 9
# Least variance of a principal direction, relative to their mean, that whitening divides by.
SMALLEST_VARIANCE = 0.02


class MaskTransferConfig(ObjectiveConfig):
    """Settings of :class:`MaskTransfer`; all chosen here.

    Attributes:
        alpha: how far the features' target moves from bicubic interpolation to the region's mean.
        locality: standard deviation, in cells, of the Gaussian around a pixel that weighs its
            region's cells in that mean. None: all cells of the region weigh the same, so that the
            target has no variation inside a large region.
        whitening: 0 compares the features as they are, 1 gives all their principal directions the
            same variance. Without it a method that regresses features does not learn directions of
            small variance, which a probe can still use.
        feature_weight: of the squared error to that target, relative to the features' variance.
        transfer_weight: of the cross-entropy between predicted and true region. Where it is taken
            from an attention, only cells near the pixel count, see ``locality``.
        match_weight: of the cross-entropy between a pixel's region and those of the cells whose
            features are similar to its output, within ``locality``. The squared error alone leaves
            an uncertain output between the means of two regions; this moves it to one of them.
        match_width: mean squared distance of features, relative to their variance, at which a cell
            has weight exp(-1) in that comparison.
        projection: random channels P that the features are reduced to, drawn for each step; None
            keeps all. Exact in expectation, and many times cheaper.
        samples: pixels N of each image.
        edge_share: share of them that is drawn near boundaries of regions.
        input_scales: sizes of the backbone's image as shares of the guidance's; one is drawn for
            each step, so that a cell has more or fewer pixels.
        input_sizes: (H, W) of the guidance; one is drawn for each step, a part of its shape is cut
            from the images at a random place and resized. Empty: the images as they are.
    """

    name: Literal["mask_transfer"] = "mask_transfer"
    alpha: Share = 0.9
    locality: PositiveFloat | None = None
    whitening: Share = 0.0
    feature_weight: float = 1.0
    transfer_weight: float = 1.0
    match_weight: NonNegativeFloat = 0.0
    match_width: PositiveFloat = 0.15
    projection: PositiveInt | None = 32
    samples: PositiveInt = 1024
    edge_share: Share = 0.5
    input_scales: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1)
    input_sizes: tuple[Sides, ...] = ()


@register_objective(MaskTransferConfig)
class MaskTransfer(Objective):
    """Upsample region labels and region means (the objective of this package's universal model).

    The batch holds ``"masks"`` (B, M, H, W), of any source. The cross-entropy needs an upsampler
    that mixes values with weights which all channels share (``info.abilities.linear``), as region
    labels are upsampled in place of the features, or one with ``query()`` and attention over the
    cells (``nn.MultiheadAttention``); others need ``transfer_weight=0``. The loss is taken at
    sampled pixels of the full resolution; a method with ``query()`` computes only those.
    """

    batch_keys = ("image", "masks")
    config: MaskTransferConfig

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        super()._check_model(model, backbones)
        attends = model.info.abilities.query and bool(attention_modules(model))
        if self.config.transfer_weight and not (model.info.abilities.linear or attends):
            raise UnsupportedError(
                f"{self.name} upsamples region labels in place of the features, or reads attention "
                f"weights; {model.info.name} is not linear in its features and has no attention to "
                "read; set transfer_weight=0, or use mask_refined"
            )

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, image, masks = self.config, batch["image"], batch["masks"]
        image, masks = draw_part(image, masks, config.input_sizes, generator)
        scale = config.input_scales[draw_integer(generator, len(config.input_scales))]
        seen = resize_antialiased(image, self._input(size_of(image), scale, backbone))
        features = backbone_features(backbone, seen)
        regions = region_map(masks)  # (B, H, W)
        shares = region_shares(regions, size_of(features), features.dtype)
        targets = self.target(features)
        centre = targets.mean((2, 3), keepdim=True)
        matrix = self._projection(targets - centre, generator)  # (P, C)
        channels = torch.einsum("pc,bchw->bphw", matrix, targets - centre)  # (B, P, h, w)
        coords, places = self._draw(regions, generator)
        guidance = guidance_image(upsampler, backbone, image)
        region = regions.flatten(1).gather(1, places)  # (B, N), -1 outside
        terms = {}
        if unwrap(upsampler).info.abilities.linear:
            values = torch.cat([channels, shares], dim=1)
            upsampled = _at(upsampler, guidance, self.source(features), coords, values)
            widths = [channels.shape[1], shares.shape[1]]
            output, share = upsampled.split(widths, dim=2)  # (B, N, P), (B, N, M)
            terms["transfer"] = (config.transfer_weight, cross_entropy(share, region))
        else:
            if config.transfer_weight:
                with record_attention(unwrap(upsampler)) as weights:
                    upsampled = _at(upsampler, guidance, self.source(features), coords)  # (B, N, C)
                attended = self._attended(weights, shares, coords, region)
                terms["transfer"] = (config.transfer_weight, attended)
            else:
                upsampled = _at(upsampler, guidance, self.source(features), coords)
            output = (upsampled - centre.flatten(2).mT) @ matrix.T  # (B, N, P)
        variance = channels.square().mean((1, 2, 3))[:, None, None].clamp(min=1e-12)
        target = self._refined(channels, shares, coords, region)
        error = ((output - target).square() / variance).mean()
        terms["features"] = (config.feature_weight, error)
        if config.match_weight:
            distances = squared_distances(output, channels) / (channels.shape[1] * variance)
            matched = self._matched(distances, shares, coords, region)
            terms["match"] = (config.match_weight, matched)
        return self.weighted_sum(terms)

    def _projection(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what whitens and reduces the channels of centred features, (P, C)."""
        width = features.shape[1]
        if self.config.projection is None:
            matrix = torch.eye(width, dtype=features.dtype, device=features.device)
        else:
            matrix = draw_like(generator, features, (self.config.projection, width)) / width**0.5
        if not self.config.whitening:
            return matrix
        cells = to_float32(features.transpose(0, 1).flatten(1))  # (C, B * h * w)
        variance, directions = torch.linalg.eigh(cells @ cells.T / cells.shape[1])
        variance = variance.clamp(min=SMALLEST_VARIANCE * float(variance.mean()) + 1e-12)
        whitened = directions * variance ** (-self.config.whitening / 2) @ directions.T  # (C, C)
        return matrix @ whitened.to(matrix.dtype)

    def _draw(self, regions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw pixels: their centres (B, N, 2) and flat indices (B, N)."""
        height, width = regions.shape[1:]
        edges = region_edges(regions).flatten(1).to("cpu", torch.float64) + 1e-4
        near_edges = round(self.config.samples * self.config.edge_share)
        anywhere = self.config.samples - near_edges
        drawn = [
            torch.multinomial(weight, count, replacement=True, generator=generator)
            for weight, count in ((edges, near_edges), (torch.ones_like(edges), anywhere))
            if count
        ]
        places = torch.cat(drawn, dim=1).to(regions.device)  # (B, N)
        rows, cols = places // width, places % width
        coords = [(2 * rows + 1) / height - 1, (2 * cols + 1) / width - 1]
        return torch.stack(coords, dim=-1), places

    def _refined(self, channels: Tensor, shares: Tensor, coords: Tensor, region: Tensor) -> Tensor:
        """Return bicubic features at pixels, moved towards the mean of their region: (B, N, P).

        A cell's weight in the mean is its squared share, so that cells with several regions count
        little.
        """
        config = self.config
        points = coords.to(channels.dtype).flip(-1)[:, None]  # (B, 1, N, 2)
        smooth = F.grid_sample(
            channels, points, mode="bicubic", padding_mode="border", align_corners=False
        )[:, :, 0].transpose(1, 2)  # (B, P, 1, N) -> (B, N, P)
        weight = shares.square().flatten(2)  # (B, M, n)
        cells = channels.flatten(2).mT  # (B, P, h, w) -> (B, n, P)
        number = region.clamp(min=0)[..., None]  # (B, N, 1)
        if config.locality is None:
            means = weight @ cells / weight.sum(2, keepdim=True).clamp(min=1e-6)  # (B, M, P)
            mean = means.gather(1, number.expand(-1, -1, means.shape[2]))
        else:
            near = nearness(coords, size_of(channels), config.locality)  # (B, N, n)
            near = near.to(weight.dtype) * weight.gather(1, number.expand(-1, -1, weight.shape[2]))
            mean = near @ cells / near.sum(2, keepdim=True).clamp(min=1e-6)
        pull = config.alpha * (region >= 0)[..., None]
        return smooth + pull * (mean - smooth)

    def _attended(
        self, weights: Sequence[Tensor], shares: Tensor, coords: Tensor, region: Tensor
    ) -> Tensor:
        """Return the cross-entropy of the shares that attention weights (B, N, n) give a pixel."""
        if self.config.locality is not None:
            near = nearness(coords, size_of(shares), self.config.locality)
            weights = [one * near.to(one.dtype) for one in weights]
        cells = shares.flatten(2).mT  # (B, M, h, w) -> (B, n, M)
        terms = [cross_entropy(one @ cells, region) for one in weights]
        return torch.stack(terms).mean()

    def _matched(self, distances: Tensor, shares: Tensor, coords: Tensor, region: Tensor) -> Tensor:
        """Return the cross-entropy of the regions of the cells that resemble a pixel's output.

        Distances of outputs to cells (B, N, n) are in variances.
        """
        logits = -distances / self.config.match_width
        if self.config.locality is not None:
            near = nearness(coords, size_of(shares), self.config.locality)
            logits = logits + near.clamp(min=1e-30).log().to(logits.dtype)
        weights = logits.softmax(-1)  # (B, N, n)
        return cross_entropy(weights @ shares.flatten(2).mT, region)  # shares: (B, n, M)

    def _input(self, full: Size, scale: float, backbone: "Backbone") -> Size:
        return scale_size(full, scale, backbone.size_multiple)

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        sizes, calls = [], []
        for full in self.config.input_sizes or (image_size,):
            for scale in self.config.input_scales:
                sizes.append(self._input(full, scale, backbone))
                calls.append(Call(full, backbone.grid_size(sizes[-1]), full))
        return Calls(sizes, calls)


def _at(
    upsampler: nn.Module,
    image: Tensor,
    features: Tensor,
    coords: Tensor,
    values: Tensor | None = None,
) -> Tensor:
    """Return the upsampled values at positions (B, N, 2): (B, N, C or K)."""
    model = unwrap(upsampler)
    wrapped = model is not upsampler  # wrappers of parallel training have forward() alone
    if model.info.abilities.query and not wrapped:
        queried: Tensor = model.query(image, features, coords, values)
        return queried
    return sample_at(upsampler(image, features, None, values), coords)


def squared_distances(output: Tensor, channels: Tensor) -> Tensor:
    """Return the squared distances of vectors (B, N, P) to cells (B, P, h, w): (B, N, n)."""
    cells = channels.flatten(2)  # (B, P, n)
    lengths = output.square().sum(2, keepdim=True) + cells.square().sum(1)[:, None]  # (B, N, n)
    return lengths - 2 * output @ cells


def nearness(coords: Tensor, grid: Size, deviation: float) -> Tensor:
    """Return a Gaussian of the distances, in cells, of positions (B, N, 2) to cells: (B, N, n)."""
    centres = pixel_centres(grid, coords.device, coords.dtype)  # (n, 2)
    cells = torch.tensor(grid, device=coords.device, dtype=coords.dtype) / 2
    offsets = (coords[:, :, None] - centres) * cells  # (B, N, n, 2)
    return (-offsets.square().sum(-1) / (2 * deviation**2)).exp()


def region_shares(regions: Tensor, grid: Size, dtype: torch.dtype) -> Tensor:
    """Return the share of each cell that a region covers, (B, H, W) -> (B, M, h, w)."""
    count = max(int(regions.max()), 0) + 1
    hot = F.one_hot(regions + 1, count + 1)[..., 1:].permute(0, 3, 1, 2)  # (B, M, H, W)
    return F.adaptive_avg_pool2d(hot.to(dtype), grid)


def cross_entropy(share: Tensor, region: Tensor) -> Tensor:
    """Return the mean cross-entropy of predicted shares (B, N, M) with regions (B, N), -1 none."""
    known = region >= 0
    of_region = share.gather(2, region.clamp(min=0)[..., None])[..., 0]  # (B, N)
    entropy = -(of_region + SHARE_FLOOR).log() * known
    return entropy.sum() / known.sum().clamp(min=1)


def region_map(masks: Tensor) -> Tensor:
    """Return the number of each pixel's region, (B, M, H, W) -> (B, H, W), -1 where none is.

    Where masks overlap the smallest one counts, as a part is smaller than its object.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[1, 1, 0]], [[0, 1, 0]]])[None]  # two masks of 1 x 3 pixels
        >>> region_map(masks).tolist()
        [[[0, 1, -1]]]
    """
    if not masks.shape[1]:
        return masks.new_full((len(masks), *masks.shape[2:]), -1, dtype=torch.long)
    inside = masks > 0
    area = inside.sum((2, 3), keepdim=True)  # (B, M, 1, 1)
    _, number = torch.where(inside, area, torch.iinfo(torch.long).max).min(1)
    return torch.where(inside.any(1), number, -1)


def region_edges(regions: Tensor) -> Tensor:
    """Return the strip along boundaries of regions: (B, H, W) -> booleans of that shape."""
    edge = torch.zeros_like(regions, dtype=torch.bool)
    down, right = regions[:, 1:] != regions[:, :-1], regions[:, :, 1:] != regions[:, :, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= right
    edge[:, :, :-1] |= right
    wide = F.max_pool2d(edge[:, None].float(), EDGE_WIDTH, 1, EDGE_WIDTH // 2)
    return wide[:, 0] > 0
