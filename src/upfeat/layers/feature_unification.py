"""AnyUp's feature unification (arXiv 2510.12764, section 3.2): any number of channels to O.

Legend: B batch, C feature channels, O filters, h w grid, k side of a filter.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import check_odd
from upfeat.ops.runtime import join_strips

Unification = Literal["released", "filterwise"]


class FeatureUnification(nn.Module):
    """Section 3.2: responses to O learned filters, a softmax, the mean over the channels.

    Every channel is correlated with every filter (zero padding, divided by the number of taps
    inside the map). In the paper the softmax runs over the filters of one channel ("filterwise").
    The published code lays the C * O responses of a position out channel by channel and then reads
    them as O rows of C: flat index g = c * O + o belongs to row g // C, and its softmax runs over
    those rows. The published weights were trained so; that layout is "released", and the channels'
    order matters.

    Args:
        filters: O.
        kernel_size: of the filters, odd.
        layout: "released" or "filterwise".
        gaussian_derivatives: start from derivatives of a Gaussian instead of noise.
    """

    def __init__(
        self, filters: int, kernel_size: int, layout: Unification, gaussian_derivatives: bool
    ) -> None:
        super().__init__()
        check_odd(kernel_size, "kernel_size_lfu")
        self.layout = layout
        basis = (
            gaussian_derivative_basis(filters, kernel_size)
            if gaussian_derivatives
            else torch.randn(filters, kernel_size, kernel_size)
        )
        self.basis = nn.Parameter(basis[:, None])  # (O, 1, k, k)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, h, w) of any width to (B, O, h, w)."""
        _, channels, height, width = features.shape
        filters, _, kernel, _ = self.basis.shape
        padded = F.pad(features, [kernel // 2] * 4)
        inside, all_taps = (features.new_ones(1, 1, *n) for n in ((height, width), [kernel] * 2))
        taps = F.conv2d(inside, all_taps, padding=kernel // 2)  # (1, 1, h, w)

        def unify(item: Tensor, rows: slice) -> Tensor:
            strip = item[:, :, rows.start : rows.stop + kernel - 1]
            return self._unify(strip, taps[:, :, rows])

        # The responses of all channels to all filters, (rows, w, C, O), exist for a strip alone.
        row_bytes = width * channels * filters * features.element_size()
        items = padded.split(1)  # (1, C, h + k - 1, w + k - 1) each
        return torch.cat([join_strips(unify, item, height, row_bytes) for item in items])

    def _unify(self, padded: Tensor, taps: Tensor) -> Tensor:
        """Unify rows of one item: padded (1, C, rows + k - 1, w + k - 1) -> (1, O, rows, w)."""
        channels = padded.shape[1]
        filters, _, kernel, _ = self.basis.shape
        rows, width = taps.shape[2:]
        patches = padded.unfold(2, kernel, 1).unfold(3, kernel, 1)[0]  # (C, rows, w, k, k)
        patches = patches.permute(1, 2, 0, 3, 4).flatten(3).flatten(0, 1)  # (rows * w, C, k * k)
        patches = patches / taps.reshape(-1, 1, 1)
        responses = patches @ self.basis.flatten(1).T.to(patches.dtype)  # (rows * w, C, O)
        if self.layout == "released":  # the same numbers read as O rows of C
            responses = responses.flatten(1).unflatten(1, (filters, channels))  # (rows * w, O, C)
        else:
            responses = responses.transpose(1, 2)  # (rows * w, O, C)
        unified = responses.softmax(1).mean(2)  # (rows * w, O)
        return unified.T.unflatten(1, (rows, width))[None]


def gaussian_derivative_basis(filters: int, kernel_size: int) -> Tensor:
    """Return the first ``filters`` separable derivatives of a Gaussian, (filters, k, k).

    Orders 0, 1, 2, …, within an order by rising horizontal order. The n-th factor in one dimension
    is (-1)^n He_n(z) g(z) with z = x / sigma, sigma = (k // 2) / 1.645 and g the normal density;
    He_n are the probabilists' Hermite polynomials.
    """
    radius = kernel_size // 2
    sigma = radius / 1.645
    z = torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma  # (k,)
    density = torch.exp(-z.square() / 2) / (sigma * math.sqrt(2 * math.pi))
    order = 0
    while (order + 1) * (order + 2) // 2 < filters:
        order += 1
    hermite = [torch.ones_like(z), z]
    for n in range(1, order):
        hermite.append(z * hermite[n] - n * hermite[n - 1])
    factors = [(-1) ** n * hermite[n] * density for n in range(order + 1)]
    kernels = [
        torch.outer(factors[total - i], factors[i])
        for total in range(order + 1)
        for i in range(total + 1)
    ]
    return torch.stack(kernels[:filters]).to(torch.get_default_dtype())
