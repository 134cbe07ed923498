"""What we add to LoftUp: weights of our own, colours of the tokens, a start as interpolation.

The start is for little data; the paper's networks start at random and see a million images. A
LoftUp must learn three things before it can learn anything of edges: to carry the features through
(projections, a residual stream and three norms lie in their way), where a pixel is, and that near
tokens are its own. On little data it learns them badly: weak directions of the features never
arrive, and the attention stays spread over far tokens. Here all three are written into the weights.

* The last channels of both convolutions hold sine and cosine of the pixel's row and column at
  the tokens' second frequency, e, each as a positive and a negative part, so that ReLUs keep them.
* Queries and keys of each head meet in them: their product falls off with the distance.
* With ``token_colors`` the same is done for sine and cosine of each colour, so that it starts as
  joint bilateral interpolation.
* The first layer's values are the tokens' features, added to the stream with a gain that leaves
  the pixel's own channels small beside them; the second layer and the feed-forwards add nothing
  yet, and the last projection takes the features' channels.

Everything else stays drawn as it was.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.attention import CrossAttentionLayer
from upfeat.ops.images import average_areas
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD
from upfeat.upsamplers.weights import Checkpoint, own_checkpoint

if TYPE_CHECKING:
    from upfeat.upsamplers.loftup import LoftUp

__all__ = ["OURS", "CellColors", "start_as_interpolation"]

TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TINY_CONFIG = {"token_colors": True, "feature_scale": 3.8}
COMPACT = "upfeat/vit_compact_patch16"
STAGE1 = (
    "LoftUp's first stage only; the tag without _stage1 went on with self-distillation. Not in the "
    "wheel: the file lies in the folder weights of upfeat's source repository."
)
REGIONS = "1041 images: training splits of BSDS500, MSRC v2, CamVid and NYUv2 with their regions"


def _ours(tag: str, sha256: str, backbone: str, **facts: Any) -> Checkpoint:
    means = (IMAGENET_MEAN, IMAGENET_STD)
    return own_checkpoint("loftup", tag, sha256, backbone, 192, *means, paper="2504.14032", **facts)


OURS = (
    _ours(
        "vit_tiny_patch16_augreg_stage1",
        "1fd0cdc424bcecff12c9c14520bc640e2455319a468f27ba10a66a66df103fdc",
        TINY, config=TINY_CONFIG, note=STAGE1, training_data=REGIONS, bundled=False,
    ),
    _ours(
        "vit_tiny_patch16_augreg",
        "ad0ee7174ba55550191a4e65bc83de3e409650d3a47382fbf3bac083f87b1985",
        TINY, config=TINY_CONFIG,
    ),
    _ours(
        "vit_compact_patch16_stage1",
        "589ac52cabbb34a9ef151c2e377c223e596f0d8a54853f843bbfdefeb7849bdd",
        COMPACT, note=STAGE1, bundled=False,
    ),
    _ours(
        "vit_compact_patch16",
        "0a4b1ba6d4930198542fb30c359b809842369f6ec0215ac0e5ab99aff06896b4",
        COMPACT,
    ),
)  # fmt: skip

# -- colours of the tokens -------------------------------------------------------------------------

COLOR_FREQUENCIES = (1, 2, 4)  # of a cell's mean, in half turns over the range of a colour
COLOR_CHANNELS = 12 + 6 * len(COLOR_FREQUENCIES)


def cell_colors(colors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describe the colours of each cell of a grid.

    The means of a cell's quarters, then sines and cosines of its own mean, with which a product of
    query and key can fall off with the distance of two colours.

    Args:
        colors: (B, 3, H', W') in [-0.5, 0.5].
        grid: (h, w).

    Returns:
        (B, n, 30), n = hw.
    """
    quarters = average_areas(colors, (2 * grid[0], 2 * grid[1]))  # (B, 3, 2h, 2w)
    quarters = F.pixel_unshuffle(quarters, 2)  # (B, 12, h, w)
    mean = quarters.unflatten(1, (3, 4)).mean(2)  # (B, 3, h, w)
    angles = torch.cat([math.pi * step * mean for step in COLOR_FREQUENCIES], dim=1)
    return torch.cat((quarters, angles.sin(), angles.cos()), dim=1).flatten(2).mT


class CellColors(nn.Module):
    """Linear map of :func:`cell_colors` that is zero before the first training step.

    So it can be added to a network whose other weights are trained, or written, already.

    Args:
        width: D, channels of the tokens it is added to.
    """

    SINES: ClassVar[int] = 12  # channel of the first sine, at the lowest frequency
    COSINES: ClassVar[int] = 12 + 3 * len(COLOR_FREQUENCIES)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, COLOR_CHANNELS))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, colors: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(B, 3, H', W') and (h, w) -> (B, n, D), the colours rounded to ``dtype``."""
        return F.linear(cell_colors(colors, grid).to(dtype), self.weight, self.bias)


# -- start as interpolation ------------------------------------------------------------------------

FREQUENCY = 1  # of the tokens' position channels, exp(1): one that no grid aliases
HIGHEST = 8.0  # frequency of the pixels' Fourier features that the codes are fitted with
SHARPNESS = 19.5  # of the attention: the product of queries and keys at distance 0
JOINT_SHARPNESS = 5.0  # the same where colours choose among the near cells
COLOR_SHARPNESS = 5.0  # of each colour: a deviation of 0.14 of its range
COPY_GAIN = 6.0
QUERY_DEVIATIONS = (0.62, 0.85 * COPY_GAIN)  # of the stream in front of the first and second layer
# Pixels' outermost centres lie outside the tokens', and both are numbered -1 to 1; this is the
# factor between the two of a grid of 22 cells.
OUTER = 1 + 0.75 / 21
# Tokens' position channels of the two highest frequencies, sines and cosines of rows and columns,
# alias on every grid: noise, in which the code of the colours finds room.
NOISE_CHANNELS = (6, 7, 8, 9, 16, 17)
CODE_GAIN = 12.0  # of that code, above that noise


@torch.no_grad()
def start_as_interpolation(model: "LoftUp") -> None:
    """Write into fresh weights what makes the network interpolate; the rest is left as drawn.

    With ``token_colors`` it interpolates as a joint bilateral filter does: near cells count more
    the more their colour is the pixel's.

    Raises:
        ValueError: positions have no Fourier code, convolutions are 1x1, there is no pair of
            layers, or heads have fewer than 4 channels (10 where colours are compared).
    """
    width, channels = model.conv1.out_channels, model.output_norm.normalized_shape[0]
    codes = 10 if sees_colors(model) else 4
    if model.position is None or isinstance(model.position, nn.Parameter):
        got = "none" if model.position is None else "learnable"
        raise ValueError(f"start='interpolation' needs position='sine', got {got!r}")
    if model.conv1.kernel_size != (3, 3):
        raise ValueError("start='interpolation' needs conv_kernel=3, got 1")
    if len(model.layers) != len(QUERY_DEVIATIONS) or width < codes * model.num_heads:
        raise ValueError(
            f"start='interpolation' needs num_layers=2 and heads of at least {codes} channels, got "
            f"{len(model.layers)} layers and {width // model.num_heads} channels a head"
        )
    model.position.phases.zero_()
    write_code(model)
    if model.token_colors is not None and model.color_feats:
        # Sine and cosine of each mean colour, in half turns.
        room = [channels + place for place in NOISE_CHANNELS]
        known = [CellColors.SINES + color for color in range(3)]
        known += [CellColors.COSINES + color for color in range(3)]
        model.token_colors.weight[room, known] = CODE_GAIN
    layers: list[CrossAttentionLayer] = list(model.layers)  # type: ignore[arg-type]
    for number, layer in enumerate(layers):
        attention = layer.attention
        write_attention(attention, channels, QUERY_DEVIATIONS[number], codes)
        nn.init.zeros_(attention.out_proj.weight)
        nn.init.zeros_(attention.out_proj.bias)
        if number == 0:
            attention.out_proj.weight[:channels, :channels] = COPY_GAIN * torch.eye(channels)
        nn.init.zeros_(layer.reduce.weight)
        nn.init.zeros_(layer.reduce.bias)
    project: nn.Linear = model.project  # type: ignore[assignment]
    nn.init.zeros_(project.bias)
    project.weight.copy_(torch.eye(channels, width))


def sees_colors(model: "LoftUp") -> bool:
    """Whether both sides of the attention know colours."""
    return model.color_feats and model.token_colors is not None


def write_code(model: "LoftUp") -> None:
    """Let the last channels of both convolutions carry the codes of position and colour."""
    solution, used, target = fit_code(model)
    mean, deviation = target.mean(0), target.std(0)  # (K,)
    signs = torch.tensor([1.0, -1.0])
    count = target.shape[1]
    part = slice(model.conv1.out_channels - 2 * count, None)
    for conv in (model.conv1, model.conv2):
        conv.weight[part] = 0
    both = (signs[:, None] * solution.T[:, None]).flatten(0, 1)  # (K, F + 1) -> (2K, F + 1)
    model.conv1.weight[part, used, 1, 1] = both[:, :-1]
    model.conv1.bias[part] = both[:, -1]  # type: ignore[index]
    # Positive minus negative part is the code again; each channel takes its own part of it.
    model.conv2.weight[part, part, 1, 1] = torch.block_diag(*[signs[:, None] * signs] * count)
    model.conv2.bias[part] = 0  # type: ignore[index]
    for norm in (model.batch_norm1, model.batch_norm2):  # what the batch norms do to it is undone
        norm.running_mean[part] = norm.bias[part] = (mean[:, None] * signs).flatten()  # type: ignore[index]
        norm.running_var[part] = deviation.square().repeat_interleave(2)  # type: ignore[index]
        norm.weight[part] = deviation.repeat_interleave(2)


def fit_code(model: "LoftUp") -> tuple[Tensor, Tensor, Tensor]:
    """Fit sines and cosines of row, column and colours with low Fourier frequencies.

    Returns:
        Coefficients (F + 1, K), the last of the bias; the F channels used; the functions, (N, K).
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(5, 64, 64, generator=generator, device=generator.device) - 0.5
    drawn = drawn.to(model.conv1.weight)
    places, colors = 2 * drawn[:2], drawn[2:]
    described = model.fourier.at(places, colors)[None]  # (1, G, 64, 64)
    described = model.guidance_norm(described)[0].flatten(1).T  # (N, G)
    inputs, steps = model.fourier.phases.shape[1:]
    low = [k for k in range(steps) if k == 0 or -2 + 12 * k / (steps - 1) <= math.log(HIGHEST)]
    colored = sees_colors(model)
    axes = range(5 if colored else 2)
    sines = torch.tensor([k * inputs + axis for k in low for axis in axes])
    used = torch.cat((sines, sines + inputs * steps))  # cosines lie behind all sines
    angles = math.exp(FREQUENCY) * OUTER * places.flatten(1)  # (2, N)
    target = torch.stack((angles.sin(), angles.cos()), 1).flatten(0, 1).T  # (2, 2, N) -> (N, 4)
    if colored:
        angles = math.pi * colors.flatten(1)  # (3, N)
        target = torch.cat((target, angles.sin().T, angles.cos().T), 1)  # (N, 10)
    known = torch.cat((described[:, used], torch.ones_like(target[:, :1])), 1).double()
    ridge = 1e-2 * torch.eye(known.shape[1]).to(known)  # keeps coefficients small
    solution = torch.linalg.solve(known.T @ known + ridge, known.T @ target.double())
    return solution.to(target.dtype), used, target


def write_attention(
    attention: nn.MultiheadAttention, channels: int, deviation: float, codes: int
) -> None:
    """Let queries and keys of every head meet in the codes, and copy the values."""
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads
    projections: Tensor = attention.in_proj_weight
    queries, keys, values = projections.chunk(3)
    nn.init.zeros_(attention.in_proj_bias)
    first = channels + 2 * FREQUENCY  # of the tokens' sines at this frequency
    half = (width - channels) // 2  # cosines lie behind all sines
    tokens = [first, first + half, first + 1, first + half + 1]
    colored = codes > len(tokens)
    gains = [math.sqrt((JOINT_SHARPNESS if colored else SHARPNESS) * math.sqrt(size))] * 4
    if colored:
        tokens += [channels + place for place in NOISE_CHANNELS]
        gains += [math.sqrt(COLOR_SHARPNESS * math.sqrt(size))] * len(NOISE_CHANNELS)
    # What the norm in front of the keys divides by: features, positions, and colours if there.
    power = channels + (width - channels) / 2 + (3 * CODE_GAIN**2 if colored else 0)
    spread = math.sqrt(power / width)
    values.copy_(spread * torch.eye(width))
    for head in range(heads):
        for number, (token, gain) in enumerate(zip(tokens, gains, strict=True)):
            row = head * size + number
            queries[row] = keys[row] = 0
            start = width - 2 * codes + 2 * number
            queries[row, start], queries[row, start + 1] = gain * deviation, -gain * deviation
            keys[row, token] = spread * (gain if number < 4 else gain / CODE_GAIN)
