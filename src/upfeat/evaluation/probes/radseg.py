"""RADSeg's features: RADIO's last block attends by itself, in windows, and then over the image.

O. Alama et al., "RADSeg", arXiv 2511.19704; code: RADSeg-OVSS/RADSeg, 05ec86f. PixelUp reports the
scores of this task with upsampled features.

Legend: ``B`` batch, ``N`` tokens, ``D`` width, ``A`` heads, ``d`` = D / A, ``K`` classes, ``H W``
image, ``h w`` feature grid, ``p`` patch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.backbones.radio_backbone import RadioBackbone
from upfeat.data.sizes import Size
from upfeat.evaluation.probes.open_vocabulary import proxy_attention, window_places

SCALE = 10.0  # of the cosines, in the windows and over the image


def self_correlating_attention(
    tokens: Tensor, qkv: nn.Module, projection: nn.Module, heads: int
) -> Tensor:
    """Compute attention whose output decides the weights of a second one over the same values.

    ``o = P(softmax(q k' / sqrt(d)) v)``; with each head of ``o`` at unit length, the result is
    ``P(softmax(10 o o') v)``, negative cosines left out.

    Args:
        tokens: (B, N, D), what enters the attention.
        qkv: from (B, N, D) to queries, keys and values, (B, N, 3 D).
        projection: of the output, (B, N, D) to (B, N, D).
        heads: A.

    Returns:
        (B, N, D)

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.radseg import self_correlating_attention
        >>> qkv, projection = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)
        >>> self_correlating_attention(torch.rand(1, 5, 8), qkv, projection, heads=2).shape
        torch.Size([1, 5, 8])
    """
    # (B, N, 3 D) -> three of (B, A, N, d)
    queries, keys, values = qkv(tokens).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(queries, keys, values)
    output = projection(attended.transpose(1, 2).flatten(2))  # (B, N, D)
    own = output.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, A, N, d)
    # The tokens of each head are a map of N rows and one column: (B A, d, N, 1).
    maps = [part.flatten(0, 1).mT.unsqueeze(3) for part in (own, values)]
    mixed = proxy_attention(*maps, beta=0.0, gamma=SCALE)
    # (B A, d, N, 1) -> (B, D, N) -> (B, N, D)
    result: Tensor = projection(mixed.reshape(len(tokens), -1, tokens.shape[1]).mT)
    return result


def radseg_size(size: Size, window: int, stride: int) -> Size:
    """Return the size to which RADSeg resizes an image before its windows are cut.

    Args:
        size: (H, W).
        window: side of the windows.
        stride: distance of two windows.

    Returns:
        The same if both sides are multiples of the stride. Else the longer side is the next
        multiple, the other one follows and is raised to a multiple, and none is below the window.

    Example:
        >>> from upfeat.evaluation.probes.radseg import radseg_size
        >>> radseg_size((448, 672), 336, 224), radseg_size((336, 500), 336, 224)
        ((448, 672), (672, 672))
    """
    if not any(side % stride for side in size):
        return size
    longer = max(size)
    factor = -(-longer // stride) * stride / longer
    height, width = (max(-(-int(side * factor) // stride) * stride, window) for side in size)
    return height, width


class RadSegFeatures(Backbone):
    """RADIO's features in RADSeg's form: a backbone like any other.

    Windows of the image go through RADIO, whose last block has the attention of
    :func:`self_correlating_attention`. Where their features overlap they are averaged. Each cell of
    the stitched map then takes the mean of the cells that resemble it more than two cells do on
    average.

    Args:
        backbone: RADIO; it is wrapped, and its last block is changed during a call only.
        window, stride: of the windows in pixels, multiples of the patch.

    Raises:
        ValueError: window or stride is no multiple of the patch.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.evaluation.probes.radseg import RadSegFeatures
        >>> small = dict(dim=32, depth=1, heads=2, side=8, prefix=3)
        >>> radio = upfeat.create_backbone("radio/c-radio_v3-b", weights="random", network=small)
        >>> RadSegFeatures(radio, window=32, stride=16)(torch.randn(1, 3, 48, 64)).shape
        torch.Size([1, 32, 3, 4])
    """

    def __init__(self, backbone: RadioBackbone, *, window: int = 336, stride: int = 224) -> None:
        patch = int(backbone.patch_size)
        if window % patch or stride % patch:
            raise ValueError(
                f"windows of {backbone.name} need sides and strides that are multiples of {patch}, "
                f"got window={window} and stride={stride}"
            )
        super().__init__(
            name=f"{backbone.name}+radseg{window}-{stride}",
            dim=backbone.dim,
            patch_size=patch,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            layer=backbone.layer,
        )
        self.backbone = backbone
        self.window, self.stride = window, stride
        self.freeze()

    def _extract(self, image: Tensor) -> Tensor:
        p = int(self.patch_size)
        grid = self.grid_size(tuple(image.shape[-2:]))
        total = image.new_zeros(len(image), self.dim, *grid)
        count = image.new_zeros(1, 1, *grid)
        with _attending_by_itself(self.backbone):
            for rows, columns in window_places(grid, self.window // p, self.stride // p):
                part = image[
                    ..., rows.start * p : rows.stop * p, columns.start * p : columns.stop * p
                ]
                total[..., rows, columns] += self.backbone(part)
                count[..., rows, columns] += 1
        stitched = total / count
        return proxy_attention(stitched, stitched, beta=1.0, gamma=SCALE)


@contextmanager
def _attending_by_itself(backbone: RadioBackbone) -> Iterator[None]:
    """Give the last block the other attention as long as this is open."""

    def replaced(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self_correlating_attention(inputs[0], module.qkv, module.proj, module.num_heads)

    handle = backbone.last_attention.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def certain_classes(probabilities: Tensor, least: float, threshold: float = 0.0) -> Tensor:
    """Return the most probable class of each pixel, among those that some pixel is sure of.

    Args:
        probabilities: (K, H, W).
        least: a class must reach this somewhere in the image; else its probabilities count as 0.
        threshold: pixels whose best class has a probability below this become class 0.

    Returns:
        (H, W) int64.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.radseg import certain_classes
        >>> probabilities = torch.tensor([[0.2, 0.55], [0.45, 0.05], [0.35, 0.4]])[:, None]
        >>> certain_classes(probabilities, least=0.5)
        tensor([[0, 0]])
    """
    unsure = probabilities.amax((1, 2), keepdim=True) < least
    best, found = probabilities.masked_fill(unsure, 0.0).max(0)
    return found.masked_fill(best < threshold, 0)
