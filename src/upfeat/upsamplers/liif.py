"""LIIF: a small network answers for any position from the features around it.

Paper: Chen et al., "Learning Continuous Image Representation with Local Implicit Image Function",
CVPR 2021, arXiv 2012.09161. Original: github.com/yinboc/liif at 4c833f8f (BSD-3-Clause). Its
published weights are for images: their encoder (EDSR, RDN) makes the features, which are a
backbone's here, so they are of no use.

At a position, four cells are asked: the nearest ones of the position moved by half a cell along
both diagonals. Each answers from its features (those of its 3 x 3 neighbours, "feature unfolding"),
the position relative to its centre and the size of a pixel of the output ("cell decoding"). The
answers are weighed by the area of the rectangle to the opposite centre ("local ensemble",
equation 4).

The first layer is linear in the features, so its share of them is computed once a cell, as a
convolution; the weights of the four answers sum to one, so they are blended before the last layer.
Positions are answered in chunks, whose intermediates are recomputed for gradients.

Legend: B batch, C feature channels, h w low-resolution grid, N positions, D hidden channels.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError
from upfeat.ops.coordinates import pixel_centres
from upfeat.ops.images import Size
from upfeat.ops.runtime import join_strips
from upfeat.upsamplers.base import Abilities, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler

NUDGE = 1e-6  # breaks ties between two nearest cells; also how far positions stay off the border
AREA_EPS = 1e-9


class Mlp(nn.Module):
    """Linear layers with ReLU between them, under the original's key ``layers``."""

    def __init__(self, wide: int, hidden_dim: int, num_hidden: int, deep: int) -> None:
        super().__init__()
        widths = [wide] + [hidden_dim] * num_hidden
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], deep))

    def split(self) -> tuple[nn.Linear, list[nn.Module], nn.Linear]:
        """Return the first layer, those between, and the last."""
        first, *inner, last = self.layers
        return cast(nn.Linear, first), inner, cast(nn.Linear, last)


class ImplicitFunction(nn.Module):
    """The function of the paper: features (B, C, h, w) and positions to (B, N, out_dim)."""

    def __init__(
        self,
        channels: int,
        out_dim: int,
        hidden_dim: int,
        num_hidden: int,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.local_ensemble = channels, local_ensemble
        self.feat_unfold, self.cell_decode = feat_unfold, cell_decode
        wide = channels * (9 if feat_unfold else 1) + 2 + (2 if cell_decode else 0)
        self.imnet = Mlp(wide, hidden_dim, num_hidden, out_dim)

    def prepare(self, features: Tensor, size: Size) -> Tensor:
        """Return the first layer's share of each cell, for pixels of 1 / size: (B, h, w, D)."""
        first, _, _ = self.imnet.split()
        side = 3 if self.feat_unfold else 1
        inputs = self.channels * side**2
        weight = first.weight[:, :inputs].unflatten(1, (self.channels, side, side))
        shares = F.conv2d(features, weight, first.bias, padding=side // 2)  # (B, D, h, w)
        if self.cell_decode:
            grid = features.shape[2:]
            cell = features.new_tensor(
                [2 * n / pixels for n, pixels in zip(grid, size, strict=True)]
            )
            shares = shares + (first.weight[:, inputs + 2 :] @ cell)[:, None, None]
        return shares.permute(0, 2, 3, 1)

    def forward(self, shares: Tensor, coords: Tensor) -> Tensor:
        """Answer at positions (B, N, 2), given ``prepare``'s shares: (B, N, out_dim)."""
        grid = (shares.shape[1], shares.shape[2])
        moves = [(0, 0)]
        if self.local_ensemble:
            moves = [(row, col) for row in (-1, 1) for col in (-1, 1)]
        answers, areas = [], []
        for move in moves:
            index, relative = nearest_cell(coords, grid, move)
            every = index[..., None].expand(-1, -1, shares.shape[3])  # (B, N, D)
            picked = shares.flatten(1, 2).gather(1, every)
            answers.append(self._hidden(picked, relative.to(shares.dtype)))
            areas.append(relative.prod(-1).abs() + AREA_EPS)  # (B, N)
        _, _, last = self.imnet.split()
        if len(answers) == 1:
            return last(answers[0])
        opposite = torch.stack(areas[::-1])  # (4, B, N)
        shared = (opposite / opposite.sum(0)).to(shares.dtype)[..., None]
        blended = sum(weight * answer for weight, answer in zip(shared, answers, strict=True))
        return last(blended)

    def _hidden(self, picked: Tensor, relative: Tensor) -> Tensor:
        """Run all layers but the last, from the first one's share of the features: (B, N, D)."""
        first, inner, _ = self.imnet.split()
        inputs = self.channels * (9 if self.feat_unfold else 1)
        x = picked + F.linear(relative, first.weight[:, inputs : inputs + 2])
        for layer in inner:
            x = layer(x)
        return x


def nearest_cell(coords: Tensor, grid: Size, move: Size) -> tuple[Tensor, Tensor]:
    """Find the cell nearest to a moved position, and where the position lies from its centre.

    Positions (B, N, 2) are moved by so many half cells along both axes. Returns the cells'
    row-major numbers (B, N) and the offsets (B, N, 2), in half cells.

    Example:
        >>> import torch
        >>> index, offset = nearest_cell(torch.tensor([[[0.0, 0.6]]]), (1, 4), (0, 0))
        >>> index.item(), round(offset[0, 0, 1].item(), 3)
        (3, -0.6)
    """
    index, offsets = torch.zeros_like(coords[..., 0], dtype=torch.long), []
    for axis, (count, step) in enumerate(zip(grid, move, strict=True)):
        own = coords[..., axis]
        moved = own + step / count + (NUDGE if step else 0.0)
        moved = moved.clamp(-1 + NUDGE, 1 - NUDGE)
        cell = (((moved + 1) * count - 1) / 2).round().clamp(0, count - 1)
        centre = (2 * cell + 1) / count - 1
        offsets.append((own - centre) * count)
        index = index * count + cell.long()
    return index, torch.stack(offsets, dim=-1)


class LIIFState(NamedTuple):
    """The first layer's share of each cell (B, h, w, D), and (H', W')."""

    shares: Tensor
    size: Size


@register_upsampler("liif")
class LIIF(Upsampler):
    """LIIF (arXiv 2012.09161) on a backbone's features; :meth:`query` answers at any position.

    The image gives the default output size and is not looked at otherwise. The default network is
    the one whose parameters LoftUp counts for 384 channels.

    Args:
        feature_dim: channels C of the features.
        hidden_dim: width D of the hidden layers (256 in the original, for images).
        num_hidden: their number.
        local_ensemble: blend four cells' answers.
        feat_unfold: a cell sees its neighbours' features.
        cell_decode: the network is told the size of an output pixel.

    Raises:
        ValueError: no hidden layer.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("liif", feature_dim=16, hidden_dim=32)
        >>> image, features = torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)
        >>> up(image, features).shape
        torch.Size([1, 16, 28, 42])
        >>> up.query(image, features, torch.tensor([[[0.0, 0.5]]])).shape
        torch.Size([1, 1, 16])
    """

    info = UpsamplerInfo(
        name="liif",
        summary="A network answers for any position from the features of the cells around it.",
        when="You train it for your backbone and ask for features at single positions (query()).",
        claim="A continuous image representation: one network decodes at any resolution.",
        as_baseline={
            "LoftUp": (
                "four hidden layers of 384 (+1.9 M parameters; read from the count), trained under "
                "LoftUp's objective"
            )
        },
        paper="Learning Continuous Image Representation with Local Implicit Image Function",
        year=2021,
        arxiv="2012.09161",
        code="https://github.com/yinboc/liif",
        code_license="BSD-3-Clause",
        abilities=Abilities(mixes_values=False, tiles=True, query=True),
    )
    official_keys = ("state_dict", "sd")

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int = 384,
        num_hidden: int = 4,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
    ) -> None:
        super().__init__()
        if num_hidden < 1 or hidden_dim < 1:
            raise ValueError(
                f"hidden_dim and num_hidden must be positive, got {hidden_dim} and {num_hidden}"
            )
        self.function = ImplicitFunction(
            feature_dim,
            feature_dim,
            hidden_dim,
            num_hidden,
            local_ensemble,
            feat_unfold,
            cell_decode,
        )

    def encode(self, image: Tensor, features: Tensor, output_size: Size) -> LIIFState:
        """Compute the first layer's share of each cell, once."""
        return LIIFState(self.function.prepare(features, output_size), output_size)

    def decode(self, state: LIIFState, values: Tensor, rows: slice) -> Tensor:
        """Answer at the centres of the pixels."""
        shares, width = state.shares, state.size[1]
        wide = torch.promote_types(shares.dtype, torch.float32)
        centres = pixel_centres(state.size, shares.device, wide)  # (H' W', 2)
        coords = centres[rows.start * width : rows.stop * width].expand(len(shares), -1, -1)
        return self._answer(shares, coords).unflatten(2, (-1, width))

    def decode_at(self, state: LIIFState, values: Tensor, coords: Tensor) -> Tensor:
        """Answer at the positions."""
        coords = coords.to(torch.promote_types(coords.dtype, torch.float32))
        return self._answer(state.shares, coords).mT

    def row_floats(self, features: Tensor, values: Tensor, output_size: Size) -> int:
        """Count what the positions of a row take."""
        return output_size[1] * self._position_floats()

    def _position_floats(self) -> int:
        """The answer and a copy, and the hidden layers of four cells."""
        return 2 * self.config["feature_dim"] + 8 * self.config["hidden_dim"]

    def _answer(self, shares: Tensor, coords: Tensor) -> Tensor:
        """Answer some positions after the other: (B, h, w, D) and (B, N, 2) to (B, C, N)."""

        def answer(shares: Tensor, part: slice) -> Tensor:
            return self.function(shares, coords[:, part]).mT[..., None]  # (B, C, n, 1)

        position_bytes = len(shares) * shares.element_size() * self._position_floats()
        return join_strips(answer, shares, coords.shape[1], position_bytes)[..., 0]

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths and depth; a first layer of 9 C + 4 inputs has both options."""
        state = cls.convert_official(state)
        weights = [
            value
            for key, value in state.items()
            if key.startswith("function.imnet.layers.") and key.endswith(".weight")
        ]
        feature_dim, hidden = weights[-1].shape[0], {len(weight) for weight in weights[:-1]}
        inputs = state["function.imnet.layers.0.weight"].shape[1]
        options = {
            side * side * feature_dim + 2 + cell: (side == 3, cell == 2)
            for side in (1, 3)
            for cell in (0, 2)
        }
        if len(hidden) != 1 or inputs not in options:
            raise CheckpointError(
                f"a liif state dict for {feature_dim} channels has hidden layers of one width and "
                f"one of {sorted(options)} inputs, got widths {sorted(hidden)} and {inputs} inputs"
            )
        feat_unfold, cell_decode = options[inputs]
        return {
            "feature_dim": feature_dim,
            "hidden_dim": hidden.pop(),
            "num_hidden": len(weights) - 1,
            "feat_unfold": feat_unfold,
            "cell_decode": cell_decode,
        }

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the network in its place; an encoder of images is an error when loading."""
        if all(key.startswith("function.") for key in state):
            return dict(state)
        return {f"function.{key}": tensor for key, tensor in state.items()}
