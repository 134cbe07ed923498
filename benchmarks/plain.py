"""Plain implementations, as the papers' code computes: the other side of every ratio.

Each takes one of our upsamplers, shares its weights and runs the textbook graph: whole maps at
once, ``torch.nn.MultiheadAttention`` with its weights returned (and its value path computed and
thrown away), masks and nearest-enlarged copies materialised. ``PLAIN`` maps a method's name to it,
``FLOPS`` to the multiply-adds (times two) that the method cannot avoid.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.evaluation.benchmark import Case
from upfeat.ops import window_bounds
from upfeat.upsamplers import Upsampler

Plain = Callable[..., Tensor]


def _block(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = x if block.shortcut is None else block.shortcut(x)
    x = block.conv1(F.silu(block.norm1(x)))
    return shortcut + block.conv2(F.silu(block.norm2(x)))


def _encoder(encoder: nn.Sequential, x: Tensor) -> Tensor:
    x = encoder[0](x)
    for block in list(encoder)[1:]:
        x = _block(block, x)
    return x


def _position_code(freqs: Tensor, x: Tensor) -> Tensor:
    rows, cols = (torch.linspace(0, 1, n, device=x.device) for n in x.shape[2:])
    grid = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1)  # (H, W, 2)
    angle = (grid @ freqs).permute(2, 0, 1)  # (d, H, W)
    first, second = x.chunk(2, dim=1)
    return x * angle.cos() + torch.cat((-second, first), dim=1) * angle.sin()


def _multihead(attention: nn.Module, value_dim: int) -> nn.MultiheadAttention:
    """The module of the original, with our projections; its value path is random and unused."""
    dim = attention.q_proj.in_features
    plain = nn.MultiheadAttention(
        dim, attention.num_heads, kdim=dim, vdim=value_dim, batch_first=True
    )
    with torch.no_grad():
        if plain.in_proj_weight is None:
            plain.q_proj_weight.copy_(attention.q_proj.weight)
            plain.k_proj_weight.copy_(attention.k_proj.weight)
        else:
            plain.in_proj_weight[:dim].copy_(attention.q_proj.weight)
            plain.in_proj_weight[dim : 2 * dim].copy_(attention.k_proj.weight)
        plain.in_proj_bias[:dim].copy_(attention.q_proj.bias)
        plain.in_proj_bias[dim : 2 * dim].copy_(attention.k_proj.bias)
    return plain.to(attention.q_proj.weight.dtype)


def _queries_and_keys(
    up: Upsampler, image: Tensor, features: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Queries and keys of JAFAR and AnyUp before the last norms: (B, d, H', W'), (B, d, h, w)."""
    guide = up.guidance
    encoded = _position_code(guide.rope.freqs, _encoder(guide.image_encoder, image))
    query = F.adaptive_avg_pool2d(_encoder(guide.query_encoder, encoded), size)
    key = F.adaptive_avg_pool2d(_encoder(guide.key_encoder, encoded), features.shape[-2:])
    return query, key


def _attend(
    up: Upsampler,
    multihead: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    features: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    size = query.shape[-2:]
    query = up.attention.conv2d(query).flatten(2).transpose(1, 2)  # (B, N, d)
    query, key = up.attention.norm_q(query), up.attention.norm_k(key.flatten(2).transpose(1, 2))
    value = features.flatten(2).transpose(1, 2)  # (B, n, C)
    _, weights = multihead(query, key, value, attn_mask=mask, average_attn_weights=True)
    return (weights @ value).transpose(1, 2).unflatten(2, size)


def plain_jafar(up: Upsampler) -> Plain:
    multihead = _multihead(up.attention, up.config["feature_dim"])

    def run(image: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        query, key = _queries_and_keys(up, image, features, size)
        query, key = F.group_norm(query, 8), F.group_norm(key, 8)
        semantics = _encoder(up.key_features_encoder, F.normalize(features, dim=1))
        key = up.sft_key.gamma(semantics) * key + up.sft_key.beta(semantics)
        return _attend(up, multihead, query, key, features)

    return run


def plain_anyup(up: Upsampler) -> Plain:
    multiheads: dict[int, nn.MultiheadAttention] = {}

    def run(image: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        batch, channels, *grid = features.shape
        query, key = _queries_and_keys(up, image, features, size)
        unify, first, second = up.key_features_encoder
        filters, _, kernel, _ = unify.basis.shape
        # (B, C * O, h, w): every channel with every filter
        bank = unify.basis.repeat(channels, 1, 1, 1)
        taps = F.conv2d(
            features.new_ones(1, 1, *grid), torch.ones_like(unify.basis[:1]), padding=kernel // 2
        )
        response = F.conv2d(
            F.normalize(features, dim=1), bank, padding=kernel // 2, groups=channels
        )
        response = (response / taps).view(batch, filters, channels, *grid)
        semantics = _block(second, _block(first, response.softmax(1).mean(2)))
        key = _encoder(up.aggregation, torch.cat((key, semantics), dim=1))
        rows, cols = window_bounds(size, (grid[0], grid[1]), up.window_ratio)
        cells = torch.arange(grid[0]), torch.arange(grid[1])
        see_rows = (cells[0] >= rows[:, :1]) & (cells[0] < rows[:, 1:])  # (H', h)
        see_cols = (cells[1] >= cols[:, :1]) & (cells[1] < cols[:, 1:])  # (W', w)
        see = see_rows[:, None, :, None] & see_cols[None, :, None, :]  # (H', W', h, w)
        mask = ~see.flatten(2).flatten(0, 1).to(features.device)  # (N, n), True forbids
        if channels not in multiheads:
            multiheads[channels] = _multihead(up.attention, channels)
        return _attend(up, multiheads[channels], query, key, features, mask)

    return run


def plain_naf(up: Upsampler) -> Plain:
    def branch(module: nn.Module, image: Tensor) -> Tensor:
        return module(image)

    def run(image: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        heads, kernel = up.heads_attn, up.kernel_size
        x = torch.cat((branch(up.pixel, image), branch(up.context, image)), dim=1)
        query = _rotary(F.adaptive_avg_pool2d(x, size), up.periods, up.heads_rope)
        grid = features.shape[-2:]
        key = F.interpolate(F.adaptive_avg_pool2d(query, grid), size, mode="nearest-exact")
        value = F.interpolate(features, size, mode="nearest-exact")
        taps = [_taps(n, kernel, n // cells) for n, cells in zip(size, grid, strict=True)]
        split = (heads, -1)
        scores = []  # one (B, heads, H', W') for each tap
        for i in range(kernel):
            rows = key[:, :, taps[0][:, i]]
            for j in range(kernel):
                score = query * rows[:, :, :, taps[1][:, j]]
                scores.append(score.unflatten(1, split).sum(2))
        width = query.shape[1] // heads
        weights = (torch.stack(scores, -1) * width**-0.5).softmax(-1)  # (B, heads, H', W', k * k)
        out = torch.zeros_like(value).unflatten(1, split)  # (B, heads, C/heads, H', W')
        for i in range(kernel):
            rows = value[:, :, taps[0][:, i]]
            for j in range(kernel):
                here = rows[:, :, :, taps[1][:, j]].unflatten(1, split)
                out = out + weights[..., i * kernel + j].unsqueeze(2) * here
        return out.flatten(1, 2)

    return run


def _rotary(x: Tensor, periods: Tensor, heads: int) -> Tensor:
    """Turn channel pairs (j, j + half) of each head of (B, D, H', W') by the position's angles."""
    axes = (2 * (torch.arange(n, device=x.device) + 0.5) / n - 1 for n in x.shape[2:])
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, H', W') in [-1, 1]
    angle = (2 * torch.pi * grid[:, None] / periods[:, None, None]).flatten(0, 1)  # (half, H', W')
    first, second = x.unflatten(1, (heads, 2, -1)).unbind(2)  # (B, heads, half, H', W') each
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=2).flatten(1, 3)


def _taps(length: int, kernel: int, dilation: int) -> Tensor:
    """Neighbours of each position on one axis: (L, k)."""
    index = torch.arange(length)
    group, place = index % dilation, index // dilation
    count = (length - group + dilation - 1) // dilation
    first = torch.minimum((place - kernel // 2).clamp(min=0), count - kernel)
    return group[:, None] + dilation * (first[:, None] + torch.arange(kernel))


def plain_loftup(up: Upsampler) -> Plain:
    """The convolutions as ours on the whole map, the attention with weights and all."""

    def run(image: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        colors = up.scale_colors(image, size)
        tokens = up.tokens(features, colors)
        queries = up.queries(colors).flatten(2).transpose(1, 2)  # (B, N, D)
        for layer in up.layers:
            norm, normed = layer.norm_tokens(tokens), layer.norm_query(queries)
            mixed, _ = nn.MultiheadAttention.forward(layer.attention, normed, norm, norm)
            queries = queries + mixed
            queries = queries + layer.reduce(F.gelu(layer.expand(layer.norm(queries))))
        out = up.output_norm(up.project(up.norm(queries)))
        return out.transpose(1, 2).unflatten(2, size)

    return run


def plain_method(up: Upsampler) -> Plain:
    """The method's own functions for all rows at once: they are the plain form."""

    def run(image: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        state = up.encode(image, features, size)
        return up.decode(state, up.encode_values(state, features), slice(0, size[0]))

    return run


def _doublings(grid: tuple[int, ...], size: tuple[int, ...]) -> int:
    """How often a grid is doubled until it covers the output, at least once."""
    ratios = [-(-out // cells) for cells, out in zip(grid, size, strict=True)]
    return max(1, (max(ratios) - 1).bit_length())


PLAIN: dict[str, Callable[[Upsampler], Plain]] = {
    "jafar": plain_jafar,
    "anyup": plain_anyup,
    "naf": plain_naf,
    "loftup": plain_loftup,
    "featup_jbu": plain_method,
    "lift": plain_method,
    "uplift": plain_method,
}


class PlainModule(nn.Module):
    """An upsampler's weights and description around its plain forward."""

    def __init__(self, upsampler: Upsampler) -> None:
        super().__init__()
        self.upsampler = upsampler
        self.info, self.config = upsampler.info.with_abilities(tiles=False), upsampler.config
        self.feature_scale = upsampler.feature_scale
        self._check = upsampler._check
        self.guidance_image = upsampler.guidance_image
        self.guidance_statistics = upsampler.guidance_statistics
        self.function = PLAIN[upsampler.info.name](upsampler)

    def forward(self, image: Tensor, features: Tensor, output_size: Sequence[int]) -> Tensor:
        """Upsample as the papers' code does."""
        return self.function(image, features, tuple(output_size))


# -- work that cannot be avoided -------------------------------------------------------------------


def _guidance_flops(case: Case, dim: int = 128) -> float:
    """Three encoders of 1x1 convolutions, the 3x3 convolution and the query projection."""
    pixels, outputs = _area(case.image_size), _area(case.output_size)
    return 2 * dim * dim * (14 * pixels + (9 + 1) * outputs)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def jafar_flops(case: Case) -> float:
    pairs = _area(case.output_size) * _area(case.grid)
    return _guidance_flops(case) + 2 * pairs * (128 + (case.values or case.channels))


def anyup_flops(case: Case) -> float:
    rows, cols = window_bounds(case.output_size, case.grid, 0.1)
    pairs = float((rows[:, 1] - rows[:, 0]).sum() * (cols[:, 1] - cols[:, 0]).sum())
    unify = 2 * _area(case.grid) * case.channels * 128 * 25
    return _guidance_flops(case) + unify + 2 * pairs * (128 + (case.values or case.channels))


def naf_flops(case: Case) -> float:
    pixels, outputs = _area(case.image_size), _area(case.output_size)
    convolutions = 2 * pixels * 128 * 128 * 4 * (1 + 9)
    return convolutions + 2 * outputs * 81 * (256 + case.channels)


def loftup_flops(case: Case) -> float:
    width, outputs, cells = case.channels + 20, _area(case.output_size), _area(case.grid)
    convolutions = 2 * 9 * (203 * width + width * width)
    layer = 2 * (2 * width * width + 2 * cells * width + 2 * width * case.channels)
    return outputs * (convolutions + 2 * layer + 2 * width * case.channels)


def featup_jbu_flops(case: Case) -> float:
    """Keys, scores, the small network and the mix at every fine pixel of the four stages."""
    fine = _area(case.grid) * (4 + 16 + 64 + 256)
    network = 3 * 32 + 32 * 32 + 49 * 32 + 52 * 49 + 49 * 49
    return 2 * fine * (network + 49 * case.channels) + 2 * _area(case.grid) * case.channels**2


def lift_flops(case: Case) -> float:
    """One doubling: the image's convolutions, the transposed one, and two at the doubled grid."""
    pixels, cells, width = _area(case.image_size), _area(case.grid), case.channels
    inputs, half = width + 32, width // 2
    image = pixels / 4 * 27 * 32 + (pixels / 16 + cells) * 9 * 32 * 32
    fine = inputs * (inputs // 2) + 9 * (inputs // 2 + 32) * half + 9 * half**2 + half * width
    return 2 * (image + 4 * cells * fine)


def uplift_flops(case: Case) -> float:
    """The encoder once (its last stage only where it is read), decoder and mix each doubling."""
    pixels, cells = _area(case.image_size), _area(case.grid)
    widths = (3, 16, 32, 64, 128)
    pairs = itertools.pairwise(widths)
    work = pixels * sum(9 * before * after + after**2 for before, after in pairs)
    for _ in range(_doublings(case.grid, case.output_size)):
        work += cells * (10 * 128**2 + 9 * (case.channels + 128) * 64 + 10 * 64**2)
        cells *= 4
        work += cells * (64**2 + 9 * 192 * 64 + 10 * 64**2 + 17 * (64 + case.channels))
    return 2 * work


FLOPS: dict[str, Callable[[Case], float]] = {
    "jafar": jafar_flops,
    "anyup": anyup_flops,
    "naf": naf_flops,
    "loftup": loftup_flops,
    "featup_jbu": featup_jbu_flops,
    "lift": lift_flops,
    "uplift": uplift_flops,
}
