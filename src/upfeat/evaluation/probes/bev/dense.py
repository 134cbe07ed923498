"""Dense parts: neck of a camera's map, encoder-decoder of the map from above, heads.

Keys of the parameters are those of the published code.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

__all__ = ["HEADS", "BevHeads", "EncoderDecoder", "Neck"]

HEADS: Mapping[str, int] = {"binimg": 1, "offsets": 2, "centerness": 1}
"""Channels of the heads: a vehicle's logit, offsets to its centre, how close to a centre."""

WIDTHS = (64, 128, 256)


def _conv3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


class Neck(nn.Module):
    """Bring upsampled features to the width of the map from above.

    Args:
        channels: C of the features.
        width: of the output.
        middle: of the layers between; C if None.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.dense import Neck
        >>> Neck(24, 8)(torch.rand(1, 24, 6, 9)).shape
        torch.Size([1, 8, 6, 9])
    """

    def __init__(self, channels: int, width: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or channels
        self.layers = nn.Sequential(
            *(_conv3(channels, middle), nn.InstanceNorm2d(middle), nn.ReLU()),
            *(_conv3(middle, middle), nn.InstanceNorm2d(middle), nn.ReLU()),
        )
        self.tail = nn.Conv2d(middle, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w) of (B, C, h, w)."""
        found: Tensor = self.tail(self.layers(x))
        return found


class _Block(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3(width, width), nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (found + self.downsample(x)).relu()


class _Up(nn.Module):
    """Twice the size, another width, plus what came by."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.upsample_layer = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        found: Tensor = self.upsample_layer(x)
        return found + skip


class EncoderDecoder(nn.Module):
    """SimpleBeV's: the first three stages of a ResNet-18, and back up with sums.

    Args:
        channels: of input and output.
        widths: of the three stages.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.dense import EncoderDecoder
        >>> EncoderDecoder(8, (4, 8, 16))(torch.rand(1, 8, 16, 24)).shape
        torch.Size([1, 8, 16, 24])
    """

    def __init__(self, channels: int, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.first_conv = nn.Conv2d(channels, first, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = nn.Sequential(_Block(first, first, 1), _Block(first, first, 1))
        self.layer2 = nn.Sequential(_Block(first, second, 2), _Block(second, second, 1))
        self.layer3 = nn.Sequential(_Block(second, third, 2), _Block(third, third, 1))
        self.up3_skip = _Up(third, second)
        self.up2_skip = _Up(second, first)
        self.up1_skip = _Up(first, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X, Y) of the same shape.

        Raises:
            ValueError: a side is no multiple of 8.
        """
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"the grid must have sides that 8 divides, got {tuple(x.shape[2:])}")
        skip2 = self.layer1(self.bn1(self.first_conv(x)).relu())  # (B, ., X/2, Y/2)
        skip3 = self.layer2(skip2)  # (B, ., X/4, Y/4)
        found: Tensor = self.up3_skip(self.layer3(skip3), skip3)
        return self.up1_skip(self.up2_skip(found, skip2), x)


class BevHeads(nn.Module):
    """The three heads on a dense map.

    Args:
        channels: C of the map.
        names: which heads, of ``HEADS``.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.dense import BevHeads
        >>> {name: map.shape[1] for name, map in BevHeads(8)(torch.rand(1, 8, 4, 4)).items()}
        {'binimg': 1, 'offsets': 2, 'centerness': 1}
    """

    def __init__(self, channels: int, names: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.map_out = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Sequential(
                        _conv3(channels, channels), nn.InstanceNorm2d(channels), nn.ReLU()
                    ),
                    nn.Conv2d(channels, HEADS[name], 1),
                )
                for name in names
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits (B, 1, X, Y), offsets (B, 2, X, Y) and centerness (B, 1, X, Y) in 0 to 1.

        Args:
            x: (B, C, X, Y).
        """
        found = {name: head(x) for name, head in self.map_out.items()}
        if "centerness" in found:
            found["centerness"] = found["centerness"].sigmoid()
        return found
