"""Guided filter: a local linear model of the guide, fitted in windows (He, Sun, Tang, ECCV 2010).

The fast variant (He, Sun, arXiv 1505.00996) fits on subsampled maps and applies the enlarged
coefficients to the full guide. Boxes are cut off at the border and divided by what remains.

Legend: B batch, C channels, G guide channels, H W map, r radius.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import dispatch
from upfeat.ops.symbolic import exporting


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the square of side 2 radius + 1 around each pixel, as far as it is inside.

    Args:
        x: (B, C, H, W).
        radius: at least 0.

    Example:
        >>> import torch
        >>> box_mean(torch.tensor([[[[0.0, 3.0, 6.0]]]]), 1).flatten().tolist()
        [1.5, 3.0, 4.5]
    """
    return _axis_mean(_axis_mean(x, radius, 2), radius, 3)


def _axis_mean(x: Tensor, radius: int, axis: int) -> Tensor:
    """Mean over ``2 radius + 1`` places along an axis, by the sums that neighbours share."""
    if not exporting():  # a graph's sizes may be free
        radius = min(radius, x.shape[axis] - 1)
    kernel = [1, 1]
    kernel[axis - 2] = 2 * radius + 1
    padding = [0, 0]
    padding[axis - 2] = radius
    return F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)


def guided_filter(
    guide: Tensor, source: Tensor, radius: int, eps: float, subsample: int = 1
) -> Tensor:
    """Filter every channel of a map under the guidance of the channel beside it.

    With means over boxes, a = (mean(I p) - mean(I) mean(p)) / (mean(I^2) - mean(I)^2 + eps) and
    b = mean(p) - a mean(I), the output is mean(a) I + mean(b) (He et al., equations 5 to 8).

    Args:
        guide: I, (B, C, H, W).
        source: p, (B, C, H, W).
        radius: r of the boxes, in pixels of the full map.
        eps: added to the guide's variance: edges of lower variance are smoothed.
        subsample: s; the model is fitted on every s-th pixel (nearest) with radius r // s, its
            means are enlarged bilinearly.

    Returns:
        (B, C, H, W) in the type of ``source``, computed in float32 at least.

    Raises:
        ValueError: shapes differ, or a parameter is out of range.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 3, 16, 16)
        >>> torch.allclose(guided_filter(x, x, radius=2, eps=1e-9), x, atol=1e-4)
        True
    """
    if guide.shape != source.shape or guide.dim() != 4:
        raise ValueError(
            "guide and source must have one shape (B, C, H, W), got "
            f"{tuple(guide.shape)} and {tuple(source.shape)}; resize or repeat the smaller one."
        )
    if subsample < 1 or radius < 0 or not eps > 0:
        raise ValueError(
            f"subsample must be at least 1, radius not negative and eps positive, got {subsample}, "
            f"{radius}, {eps}."
        )
    dtype = dispatch.compute_dtype(guide, source)
    full, p = guide.to(dtype), source.to(dtype)
    i = full
    if subsample > 1:
        i, p = (F.interpolate(x, scale_factor=1 / subsample, mode="nearest") for x in (i, p))
    radius //= subsample
    mean_i, mean_p = box_mean(i, radius), box_mean(p, radius)
    square = box_mean(i * i, radius)
    variance = (square - mean_i * mean_i).clamp(min=0)  # by rounding it may be below
    slope = (box_mean(i * p, radius) - mean_i * mean_p) / (variance + _ridge(square, eps))
    offset = box_mean(mean_p - slope * mean_i, radius)
    slope = box_mean(slope, radius)
    if subsample > 1:
        size = full.shape[2:]
        slope, offset = (F.interpolate(x, size, mode="bilinear") for x in (slope, offset))
    return (slope * full + offset).to(source.dtype)


def _ridge(square: Tensor, eps: float) -> Tensor:
    """Return eps, or what rounding may take from a variance where that is more.

    A variance is the mean square less the squared mean, so its error grows with the mean square: on
    a guide of 0 ... 255 it exceeds the usual eps, and flat or grey boxes had no solution.
    """
    return (16 * torch.finfo(square.dtype).eps * square).clamp(min=eps)


def guided_model(guide: Tensor, source: Tensor, radius: int, eps: float) -> tuple[Tensor, Tensor]:
    """Fit every channel of a map by a linear function of *all* channels of the guide.

    The colour model of He et al. (equations 14 to 16): with S the guide's covariance in a box,
    a = (S + eps)^-1 cov(I, p), b = mean(p) - a . mean(I), and both averaged over the boxes that
    hold a pixel.

    Args:
        guide: I, (B, G, h, w).
        source: p, (B, C, h, w).
        radius: of the boxes.
        eps: positive, added to the diagonal of S.

    Returns:
        Slopes (B, G, C, h, w) and offsets (B, C, h, w), so that the map is close to
        ``(slopes * guide[:, :, None]).sum(1) + offsets``; float32 at least.

    Example:
        >>> import torch
        >>> guide = torch.rand(1, 3, 8, 8)
        >>> slopes, offsets = guided_model(guide, 2 * guide[:, :1] + 1, radius=3, eps=1e-7)
        >>> fitted = (slopes * guide[:, :, None]).sum(1) + offsets
        >>> torch.allclose(fitted, 2 * guide[:, :1] + 1, atol=1e-2)
        True
    """
    dtype = dispatch.compute_dtype(guide, source)
    i, p = guide.to(dtype), source.to(dtype)
    channels = i.shape[1]
    with dispatch.without_autocast(source):
        # The guide from its mean over the map: smaller numbers cancel less.
        middle = i.mean((2, 3), keepdim=True)
        i = i - middle
        mean_i, mean_p = box_mean(i, radius), box_mean(p, radius)
        squares = (i[:, :, None] * i[:, None]).flatten(1, 2)  # (B, G * G, h, w)
        moments = box_mean(squares, radius).unflatten(1, (channels, channels))
        covariance = moments - mean_i[:, :, None] * mean_i[:, None]  # (B, G, G, h, w)
        products = (i[:, :, None] * p[:, None]).flatten(1, 2)  # (B, G * C, h, w)
        cross = box_mean(products, radius).unflatten(1, (channels, -1))
        cross = cross - mean_i[:, :, None] * mean_p[:, None]  # (B, G, C, h, w)
        trace = moments.diagonal(dim1=1, dim2=2).sum(-1)  # (B, h, w)
        ridge = torch.eye(channels, dtype=dtype, device=i.device)[..., None, None]
        slope = _solve(covariance + ridge * _ridge(trace, eps)[:, None, None], cross)
        offset = box_mean(mean_p - (slope * mean_i[:, :, None]).sum(1), radius)
        slope = box_mean(slope.flatten(1, 2), radius).unflatten(1, (channels, -1))
        return slope, offset - (slope * middle[:, :, None]).sum(1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a positive definite system at each place by elimination, which needs no pivots.

    Written out over maps: formats of graphs have no solver, and one call a place is slower.

    Args:
        matrix: (B, G, G, h, w).
        right: (B, G, C, h, w).

    Returns:
        (B, G, C, h, w).
    """
    size = matrix.shape[1]
    rows = [torch.cat((matrix[:, n], right[:, n]), dim=1) for n in range(size)]  # (B, G + C, h, w)
    for n in range(size):
        rows[n] = rows[n] / rows[n][:, n : n + 1]
        for below in range(n + 1, size):
            rows[below] = rows[below] - rows[below][:, n : n + 1] * rows[n]
    solved = [row[:, size:] for row in rows]
    for n in reversed(range(size)):
        for above in range(n):
            solved[above] = solved[above] - rows[above][:, n : n + 1] * solved[n]
    return torch.stack(solved, dim=1)
