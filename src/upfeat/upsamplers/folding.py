"""A linear head in front of the upsampler instead of behind it.

Where one set of weights mixes all channels and sums to one, ``head(up(F)) == up(values=head(F))``:
the bias passes through the mean, the matrix commutes with it. 21 logits then cost what 21 channels
cost, and no map of all features is ever held at the output size.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from upfeat.errors import UnsupportedError
from upfeat.ops.runtime import MAP_BYTES, TILE_BYTES
from upfeat.upsamplers.base import Tile, Upsampler

__all__ = ["FoldedHead", "fold_head"]


class FoldedHead(nn.Module):
    """An upsampler and a 1x1 convolution that give high-resolution logits; see :func:`fold_head`.

    Args:
        upsampler: a method that commutes with heads.
        head: the convolution.
    """

    def __init__(self, upsampler: Upsampler, head: nn.Conv2d) -> None:
        super().__init__()
        self.upsampler = upsampler
        self.head = head

    def forward(
        self, image: Tensor, features: Tensor, output_size: Sequence[int] | int | None = None
    ) -> Tensor:
        """Return logits (B, K, H', W') of features (B, C, h, w)."""
        return self.upsampler(image, features, output_size, values=self.head(features))

    def tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | int | None = None,
        *,
        max_bytes: int = MAP_BYTES + TILE_BYTES,
    ) -> Iterator[Tile]:
        """Yield the logits in pieces; see :meth:`Upsampler.tiles`."""
        values = self.head(features)
        yield from self.upsampler.tiles(image, features, output_size, values, max_bytes=max_bytes)


def fold_head(upsampler: Upsampler, head: nn.Conv2d) -> FoldedHead:
    """Return a module that computes ``head(upsampler(image, features))`` with the head first.

    Both are shared, not copied: training the result trains them.

    Args:
        upsampler: a method with ``info.abilities.linear``.
        head: a 1x1 convolution from the features' channels, with or without bias.

    Raises:
        UnsupportedError: the method's weights differ between channels or do not sum to one (NAF,
            LoftUp), so the result would be wrong.
        ValueError: the head looks at neighbours, strides, or takes another width.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("joint_bilateral")
        >>> head = torch.nn.Conv2d(8, 3, 1)
        >>> image, features = torch.rand(1, 3, 32, 32), torch.rand(1, 8, 4, 4)
        >>> folded = upfeat.fold_head(up, head)(image, features)
        >>> torch.allclose(folded, head(up(image, features)), atol=1e-5)
        True
    """
    info = upsampler.info
    if not info.abilities.linear:
        raise UnsupportedError(
            f"a head must not go before {info.name}: it does not mix all channels with one set of "
            "weights that sums to one; apply the head to its output"
        )
    if not isinstance(head, nn.Conv2d):
        raise ValueError(f"the head must be a 1x1 nn.Conv2d, got {type(head).__name__}")
    shape = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0)}
    for name, wanted in shape.items():
        if getattr(head, name) != wanted:
            raise ValueError(
                f"the head must be a 1x1 convolution: its {name} is {getattr(head, name)}, "
                f"expected {wanted}; a head that looks at neighbours belongs after the upsampler"
            )
    width = upsampler.config.get("feature_dim")
    if width is not None and head.in_channels != width:
        raise ValueError(
            f"the head takes {head.in_channels} channels, {info.name} was built for {width}"
        )
    return FoldedHead(upsampler, head)
