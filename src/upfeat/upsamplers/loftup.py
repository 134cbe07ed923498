"""LoftUp: a cross-attention transformer from image coordinates to features.

Paper: Huang, Chen, Ebert et al., "LoftUp: Learning a Coordinate-Based Feature Upsampler for Vision
Foundation Models", ICCV 2025, arXiv 2504.14032. Original: github.com/andrehuang/loftup (MIT).
Weights: Hugging Face repositories haiwen/loftup-* (no licence of their own is stated there).

Every pixel asks: Fourier features of its position and colour (section 3.1) pass two 3x3
convolutions and become the queries of a small transformer whose keys and values are the
low-resolution features. The output is regressed, not mixed: it lives in the space of
channel-normalised features, and neither ``values`` nor a linear head in front make sense.

Legend: B batch, C feature channels, D = C + 20 (or C) token width, N = H'W' queries, n = hw tokens.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile, inert_globals
from upfeat.errors import CheckpointError, UnsupportedError
from upfeat.ops._dispatch import Scratch
from upfeat.ops.banded_convolution import ConvolvedRows, Kernel, prepare_kernel
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Tile,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

BAND_TOKENS = 8192  # queries of a band of rows, outside tiles()
CHUNK_TOKENS = 2048  # queries that pass the transformer at once
POSITION_FREQUENCIES = 5  # of the low-resolution tokens: 2 x 2 x 5 = 20 channels

NO_CHANNEL_NORM = (
    "this LoftUp file holds the upsampler alone, without the channel norm of the features that it "
    "was trained behind (the hub repositories have such a model.safetensors beside the complete "
    "pytorch_model.bin); its output would be wrong for raw backbone features. Take pytorch_model.bin, "
    "or pass channel_norm=False and normalise the features yourself"
)


def grid_coordinates(size: tuple[int, int], device: torch.device) -> Tensor:
    """Row and column of every position, from -1 to 1 inclusive: (2, H, W) in float32."""
    rows = torch.linspace(-1, 1, size[0], device=device, dtype=torch.float32)
    cols = torch.linspace(-1, 1, size[1], device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"))


class FourierFeatures(nn.Module):
    """Sines and cosines of the inputs at frequencies exp(-2) ... exp(10), with learned phases.

    The highest frequency turns a rounding of the input into an angle 22026 times as large, so
    inputs, frequencies and angles stay in float32 whatever the dtype of the weights.
    """

    def __init__(self, inputs: int, frequencies: int) -> None:
        super().__init__()
        # The published phases are stored (inputs, frequencies) but read as (frequencies, inputs).
        self.phases = nn.Parameter(torch.randn(2, inputs, frequencies))

    def frequencies(self) -> Tensor:
        """The n frequencies, float32."""
        return torch.linspace(-2, 10, self.phases.shape[-1], device=self.phases.device).exp()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., m, H, W) float32 -> (..., 2 n m, H, W): sines, then cosines; frequency slow."""
        count, steps = self.phases.shape[1:]
        phases = self.phases.to(inputs.dtype).reshape(2, steps, count, 1, 1)  # (2, n, m, 1, 1)
        frequencies = self.frequencies().to(inputs.dtype)[:, None, None, None]  # (n, 1, 1, 1)
        angles = inputs.unsqueeze(-4) * frequencies  # (..., n, m, H, W)
        waves = torch.cat(((angles + phases[0]).sin(), (angles + phases[1]).cos()), dim=-4)
        return waves.flatten(-4, -3)  # (..., 2n, m, H, W) -> (..., 2nm, H, W)


class CrossAttention(nn.Module):
    """Pre-norm multi-head attention of queries to tokens; one norm serves keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def heads(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D/heads)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, D) -> keys and values, each (B, heads, n, D/heads)."""
        key, value = self.key_value(self.norm_tokens(tokens)).chunk(2, dim=-1)
        return self.heads(key), self.heads(value)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, D) and (B, n, D) -> (B, N, D), without the residual."""
        key, value = self.keys_values(tokens)
        query = self.heads(self.query(self.norm_query(queries)))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Cross-attention and feed-forward, each with a residual."""

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, D) and (B, n, D) -> (B, N, D)."""
        queries = queries + self.attention(queries, tokens)
        return queries + self.reduce(F.gelu(self.expand(self.norm(queries))))


def channel_last(tensor: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C)."""
    return tensor.flatten(2).transpose(1, 2)


def channel_first(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, HW, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _record(
    tag: str, repository: str, backbone: str, feature_dim: int, backbone_license: str
) -> Checkpoint:
    """One row of the table of published weights."""
    return Checkpoint(
        tag=tag,
        file=HubFile(filename="pytorch_model.bin", repository=f"haiwen/loftup-{repository}"),
        backbone=backbone,
        feature_dim=feature_dim,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="SA-1B, 1 M images",
        code_license="MIT",
        weights_license="not stated (the code is MIT)",
        backbone_license=backbone_license,
        paper="2504.14032",
        config={"num_heads": 4},
        note="Trained with ImageNet mean and std for backbone and guidance, whatever the backbone.",
    )


CHECKPOINTS = (
    _record("dinov2_vits14", "dinov2s", "timm/vit_small_patch14_dinov2.lvd142m", 384, "Apache-2.0"),
    _record(
        "dinov2_vits14_reg",
        "dinov2s_reg",
        "timm/vit_small_patch14_reg4_dinov2.lvd142m",
        384,
        "Apache-2.0",
    ),
    _record("dinov2_vitb14", "dinov2b", "timm/vit_base_patch14_dinov2.lvd142m", 768, "Apache-2.0"),
    _record(
        "dinov2_vitb14_reg",
        "dinov2b_reg",
        "timm/vit_base_patch14_reg4_dinov2.lvd142m",
        768,
        "Apache-2.0",
    ),
    _record(
        "siglip_vitb16",
        "siglip",
        "SigLIP ViT-B/16 of open_clip, normed patch tokens of the timm trunk",
        768,
        "Apache-2.0",
    ),
    _record(
        "siglip2_vitb16",
        "siglip2",
        "SigLIP 2 ViT-B/16 of open_clip, normed patch tokens of the timm trunk",
        768,
        "Apache-2.0",
    ),
    _record(
        "clip_vitb16",
        "clip",
        "CLIP ViT-B/16 (OpenAI) read as in MaskCLIP: value path of the last block, projected",
        512,
        "MIT",
    ),
)

# Official key (after the prefix "upsampler.") -> ours. The convolution of "project" is 1x1.
_KEYS = (
    (r"channelnorm\.norm\.", "channel_norm."),
    (r"lr_pe\.biases$", "position.phases"),
    (r"lr_pe$", "position"),
    (r"fourier_feat\.1\.biases$", "fourier.phases"),
    (r"first_conv\.0\.norm\.", "guidance_norm."),
    (r"first_conv\.1\.", "conv1."),
    (r"first_conv\.2\.", "batch_norm1."),
    (r"first_conv\.4\.", "conv2."),
    (r"first_conv\.5\.", "batch_norm2."),
    (r"ca_transformer\.norm\.", "norm."),
    (r"ca_transformer\.layers\.(\d+)\.0\.norm_q\.", r"layers.\1.attention.norm_query."),
    (r"ca_transformer\.layers\.(\d+)\.0\.norm_kv\.", r"layers.\1.attention.norm_tokens."),
    (r"ca_transformer\.layers\.(\d+)\.0\.attention\.out_proj\.", r"layers.\1.attention.output."),
    (r"ca_transformer\.layers\.(\d+)\.0\.attention\.in_proj_", r"layers.\1.attention.in_proj_"),
    (r"ca_transformer\.layers\.(\d+)\.1\.net\.0\.", r"layers.\1.norm."),
    (r"ca_transformer\.layers\.(\d+)\.1\.net\.1\.", r"layers.\1.expand."),
    (r"ca_transformer\.layers\.(\d+)\.1\.net\.4\.", r"layers.\1.reduce."),
    (r"final_conv\.0\.", "project."),
    (r"final_conv\.1\.", "output_norm."),
    (r"final_conv\.(weight|bias)$", r"output_norm.\1"),
)


def _own_key(key: str) -> str:
    for pattern, ours in _KEYS:
        renamed, hits = re.subn(f"^{pattern}", ours, key)
        if hits:
            return renamed
    return key



class _Prepared:
    """Weights in the form that inference runs fastest: norms folded, heads padded."""

    def __init__(self, model: "LoftUp", dtype: torch.dtype) -> None:
        self.kernels = [
            _folded(model.conv1, model.batch_norm1, dtype),
            _folded(model.conv2, model.batch_norm2, dtype),
        ]
        self.layers = [_PreparedLayer(layer, dtype) for layer in model.layers]
        self.norm = _norm(model.norm, dtype)
        self.output_norm = _norm(model.output_norm, dtype)
        self.guidance_norm = _norm(model.guidance_norm, dtype)
        project = model.project
        self.project = (
            (project.weight.to(dtype), project.bias.to(dtype))
            if isinstance(project, nn.Linear)
            else None
        )


class _PreparedLayer:
    """A layer whose head width is padded with zeros to a multiple of 8, which attends faster."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        attention = layer.attention
        self.num_heads = heads = attention.num_heads
        width = attention.query.weight.shape[0] // heads
        self.scale = width**-0.5
        pad = -width % 8

        def by_head(weight: Tensor) -> Tensor:
            """(heads * width, ...) -> (heads * padded, ...)."""
            grouped = weight.to(dtype).unflatten(0, (heads, width))
            return F.pad(grouped, (0, 0) * (weight.dim() - 1) + (0, pad)).flatten(0, 1)

        def linear(module: nn.Linear) -> tuple[Tensor, Tensor]:
            return module.weight.to(dtype), module.bias.to(dtype)

        query, (key, value) = attention.query, attention.key_value.weight.chunk(2)
        key_bias, value_bias = attention.key_value.bias.chunk(2)
        self.norm_query = _norm(attention.norm_query, dtype)
        self.norm_tokens = _norm(attention.norm_tokens, dtype)
        self.query = by_head(query.weight), by_head(query.bias)
        self.key = by_head(key), by_head(key_bias)
        self.value = by_head(value), by_head(value_bias)
        self.output = by_head(attention.output.weight.T).T, attention.output.bias.to(dtype)
        self.norm = _norm(layer.norm, dtype)
        self.expand, self.reduce = linear(layer.expand), linear(layer.reduce)

    def heads(self, tokens: Tensor) -> Tensor:
        """(N, D) -> (1, heads, N, D/heads)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)[None]

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) -> keys and values, each (1, heads, n, padded head width)."""
        tokens = F.layer_norm(tokens, *self.norm_tokens)
        keys, values = F.linear(tokens, *self.key), F.linear(tokens, *self.value)
        return self.heads(keys).contiguous(), self.heads(values).contiguous()

    def add_to(self, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Both residual steps, in place on (N, D)."""
        query = self.heads(F.linear(F.layer_norm(queries, *self.norm_query), *self.query))
        mixed = F.scaled_dot_product_attention(query, keys, values, scale=self.scale)
        queries += F.linear(mixed[0].transpose(0, 1).flatten(1), *self.output)
        hidden = F.linear(F.layer_norm(queries, *self.norm), *self.expand)
        queries += F.linear(F.gelu(hidden), *self.reduce)


class _Bands:
    """Writes the output of one image, band after band from top to bottom."""

    def __init__(
        self, model: "LoftUp", prepared: _Prepared, colors: Tensor, tokens: Tensor, scratch: Scratch
    ) -> None:
        self.model, self.prepared, self.colors = model, prepared, colors
        self.memory = [layer.keys_values(tokens) for layer in prepared.layers]
        size = (colors.shape[1], colors.shape[2])
        first, second = prepared.kernels
        self.first = ConvolvedRows(self._guidance, first, size, "zeros", scratch)
        self.second = ConvolvedRows(self._hidden, second, size, "zeros", scratch)

    def _guidance(self, start: int, stop: int) -> Tensor:
        """Normalised Fourier features of some rows, (R, W', G)."""
        model, dtype = self.model, self.prepared.kernels[0].bias.dtype
        rows = slice(start, stop)
        waves = model.fourier(model.inputs(self.colors, rows)).permute(1, 2, 0)  # (R, W', 10 n)
        if model.color_feats:
            waves = torch.cat((waves, self.colors[:, rows].permute(1, 2, 0)), -1)
        return F.layer_norm(waves.to(dtype), *self.prepared.guidance_norm)

    def _hidden(self, start: int, stop: int) -> Tensor:
        return self.first.read(start, stop).relu_()

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Compute rows ``start:stop`` into ``out``, (R * W', C)."""
        with torch.autocast(out.device.type, enabled=False):
            queries = self.second.read(start, stop).relu_().flatten(0, 1)  # (R * W', D)
            for begin in range(0, len(queries), CHUNK_TOKENS):
                some = slice(begin, begin + CHUNK_TOKENS)
                out[some] = self._transform(queries[some])

    def _transform(self, queries: Tensor) -> Tensor:
        """(N, D) -> (N, C); overwrites its argument."""
        prepared = self.prepared
        for layer, (keys, values) in zip(prepared.layers, self.memory, strict=True):
            layer.add_to(queries, keys, values)
        queries = F.layer_norm(queries, *prepared.norm)
        if prepared.project is not None:
            queries = F.linear(queries, *prepared.project)
        return F.layer_norm(queries, *prepared.output_norm)


def _norm(norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    """The arguments of F.layer_norm after its input."""
    return norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> Kernel:
    """A convolution with the batch norm of eval mode folded in."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # (D,)
    bias = (conv.bias - norm.running_mean) * factor + norm.bias
    return prepare_kernel((conv.weight * factor[:, None, None, None]).to(dtype), bias.to(dtype))


@register_upsampler("loftup", checkpoints=CHECKPOINTS)
class LoftUp(Upsampler):
    """LoftUp (arXiv 2504.14032): regresses a feature for every pixel.

    The output lies in the space of channel-normalised features. An output size other than the
    image's is reached by resizing the image bilinearly first, as the original evaluation does.

    Args:
        feature_dim: C, channels of the backbone's features.
        n_freqs: frequencies of the pixels' Fourier features.
        num_heads: attention heads; must divide C + 20 ("sine") or C ("learnable").
        num_layers: layers of the transformer.
        position: what tells the tokens their place: ``"sine"`` appends 20 Fourier channels,
            ``"learnable"`` adds a table. The original calls it ``lr_pe_type``.
        lr_size: side of that table. It is resized bicubically when the number of tokens differs
            from ``lr_size ** 2``; as in the original the *counts* are compared, so a 2x8 grid
            takes a 4x4 table as it lies in memory.
        color_feats: whether colours enter the Fourier features beside the positions.
        min_max: colours are scaled to [-0.5, 0.5] over each ``"image"``, or over the whole
            ``"batch"`` as the original does, where a result depends on its batch mates.
        channel_norm: LayerNorm over the channels of the features, part of the published models.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("loftup", feature_dim=12, num_heads=4).eval()
        >>> up(torch.randn(1, 3, 28, 42), torch.randn(1, 12, 2, 3)).shape
        torch.Size([1, 12, 28, 42])
    """

    info = UpsamplerInfo(
        name="loftup",
        summary="Cross-attention transformer from pixel coordinates and colours to features.",
        paper="LoftUp: Learning a Coordinate-Based Feature Upsampler for Vision Foundation Models",
        year=2025,
        arxiv="2504.14032",
        code="https://github.com/andrehuang/loftup",
        code_license="MIT",
        weights_license="not stated (the code is MIT)",
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    supports_tiles = True
    official_keys = ("state_dict",)
    official_globals = tuple(
        inert_globals(
            [
                "omegaconf.dictconfig.DictConfig",
                "omegaconf.listconfig.ListConfig",
                "omegaconf.base.ContainerMetadata",
                "omegaconf.base.Metadata",
                "omegaconf.nodes.AnyNode",
            ]
        )
    )

    def __init__(
        self,
        feature_dim: int,
        n_freqs: int = 20,
        num_heads: int = 4,
        num_layers: int = 2,
        position: Literal["sine", "learnable"] = "sine",
        lr_size: int = 16,
        color_feats: bool = True,
        min_max: Literal["image", "batch"] = "image",
        channel_norm: bool | None = True,
    ) -> None:
        super().__init__()
        if channel_norm is None:  # official_config found none and the caller did not decide
            raise CheckpointError(NO_CHANNEL_NORM)
        if position not in ("sine", "learnable"):
            raise ValueError(f"position must be 'sine' or 'learnable', got {position!r}")
        if min_max not in ("image", "batch"):
            raise ValueError(f"min_max must be 'image' or 'batch', got {min_max!r}")
        sine = position == "sine"
        width = feature_dim + 4 * POSITION_FREQUENCIES if sine else feature_dim
        if width % num_heads:
            raise ValueError(
                f"num_heads={num_heads} must divide the token width {width} (feature_dim="
                f"{feature_dim}{' + 20 position channels' if sine else ''}); choose a divisor"
            )
        self.color_feats, self.min_max, self.lr_size = color_feats, min_max, lr_size
        guidance = 10 * n_freqs + 3 if color_feats else 4 * n_freqs
        self.channel_norm = nn.LayerNorm(feature_dim) if channel_norm else nn.Identity()
        self.position: FourierFeatures | nn.Parameter
        if sine:
            self.position = FourierFeatures(2, POSITION_FREQUENCIES)
        else:
            self.position = nn.Parameter(torch.randn(1, lr_size**2, feature_dim))
        self.fourier = FourierFeatures(5 if color_feats else 2, n_freqs)
        self.guidance_norm = nn.LayerNorm(guidance)
        self.conv1 = nn.Conv2d(guidance, width, 3, padding=1)
        self.batch_norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.batch_norm2 = nn.BatchNorm2d(width)
        self.layers = nn.ModuleList(Layer(width, feature_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, feature_dim) if sine else nn.Identity()
        self.output_norm = nn.LayerNorm(feature_dim, eps=1e-6)

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        if values is not None:
            raise UnsupportedError(
                "loftup regresses new features and mixes no values; call it without values= and "
                "apply the head to its output, or use a method whose info.commutes_with_head is True"
            )

    def _cast(
        self, image: Tensor, features: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the image in float32 at least: its rounding is amplified by the frequencies."""
        kept = image.to(torch.promote_types(image.dtype, torch.float32))
        _, features, values = super()._cast(image, features, values)
        return kept.to(torch.promote_types(features.dtype, torch.float32)), features, values

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        if self._wants_bands():
            return self._in_bands(image, features, output_size)
        tokens = self.tokens(features)  # (B, n, D)
        colors = self.scale_colors(image, output_size)
        waves = self.fourier(self.inputs(colors, slice(None)))  # (B, 10 n_freqs, H', W')
        guidance = torch.cat((waves, colors), 1) if self.color_feats else waves
        x = self.guidance_norm(channel_last(guidance).to(features.dtype))  # (B, N, G)
        x = channel_first(x, output_size)
        x = self.batch_norm1(self.conv1(x)).relu()
        x = self.batch_norm2(self.conv2(x)).relu()
        queries = channel_last(x)  # (B, N, D)
        for layer in self.layers:
            queries = layer(queries, tokens)
        out = self.output_norm(self.project(self.norm(queries)))  # (B, N, C)
        return channel_first(out, output_size)

    def _wants_bands(self) -> bool:
        """Bands serve inference; gradients, batch statistics and traced graphs go the plain way."""
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _in_bands(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Tensor:
        height, width = output_size
        channels = features.shape[1]
        out = features.new_empty(len(features), height, width, channels)
        step = max(2, BAND_TOKENS // width // 2 * 2)
        for index, bands in enumerate(self._bands(image, features, output_size)):
            for start in range(0, height, step):
                stop = min(start + step, height)
                bands.write(start, stop, out[index, start:stop].view(-1, channels))
        return out.permute(0, 3, 1, 2)  # (B, C, H', W'), channels last in memory

    @torch.no_grad()
    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        height, width = output_size
        batch, channels = features.shape[:2]
        if self.training:
            raise ValueError(
                "loftup in training mode normalises over the whole batch and has no tiles(); "
                "call .eval() first"
            )
        # A tile and, for one image, the Fourier features and the maps around both convolutions.
        row_values = width * (batch * channels + 4 * self.conv1.in_channels + 8 * self.norm.weight.numel())
        step = max(1, max_bytes // (row_values * features.element_size()))
        all_bands = self._bands(image, features, output_size)
        for start in range(0, height, step):
            stop = min(start + step, height)
            tile = features.new_empty(batch, stop - start, width, channels)
            for bands, part in zip(all_bands, tile, strict=True):
                bands.write(start, stop, part.view(-1, channels))
            yield slice(start, stop), slice(0, width), tile.permute(0, 3, 1, 2)

    def _bands(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int]
    ) -> list["_Bands"]:
        """One reader of output rows for each image of the batch; buffers are shared."""
        dtype = features.dtype
        if torch.is_autocast_enabled(features.device.type):
            dtype = torch.get_autocast_dtype(features.device.type)
        with torch.autocast(features.device.type, enabled=False):
            colors = self.scale_colors(image, output_size)
            tokens = self.tokens(features).to(dtype)
            prepared = _Prepared(self, dtype)
            scratch = Scratch(tokens, dtype)
            return [
                _Bands(self, prepared, colors[i], tokens[i], scratch) for i in range(len(features))
            ]

    def scale_colors(self, image: Tensor, output_size: tuple[int, int]) -> Tensor:
        """Resize the image to the output and scale each colour to [-0.5, 0.5]: (B, 3, H', W')."""
        if image.shape[-2:] != output_size:
            image = F.interpolate(image, output_size, mode="bilinear")
        axes = (2, 3) if self.min_max == "image" else (0, 2, 3)
        low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
        return (image - low) / (high - low).clamp(min=1e-4) - 0.5

    def inputs(self, colors: Tensor, rows: slice) -> Tensor:
        """What the Fourier features see of some rows: (..., 3, H', W') -> (..., 5 or 2, R, W')."""
        grid = grid_coordinates((colors.shape[-2], colors.shape[-1]), colors.device)
        grid = grid[:, rows].to(colors.dtype)  # (2, R, W')
        grid = grid.expand(*colors.shape[:-3], -1, -1, -1)
        return torch.cat((grid, colors[..., rows, :]), -3) if self.color_feats else grid

    def tokens(self, features: Tensor) -> Tensor:
        """Keys' and values' input: normalised features with their position, (B, n, D)."""
        size = (features.shape[2], features.shape[3])
        tokens = self.channel_norm(channel_last(features))  # (B, n, C)
        if isinstance(self.position, FourierFeatures):
            wide = torch.promote_types(features.dtype, torch.float32)
            grid = grid_coordinates(size, features.device).to(wide)
            place = self.position(grid).flatten(1).T  # (20, h, w) -> (n, 20)
            return torch.cat((tokens, place.to(tokens.dtype).expand(len(tokens), -1, -1)), -1)
        table = self.position
        if tokens.shape[1] != table.shape[1]:
            square = channel_first(table, (self.lr_size, self.lr_size))  # (1, C, lr_size, lr_size)
            table = channel_last(F.interpolate(square, size, mode="bicubic"))
        return tokens + table

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; a file without channel norm gives ``channel_norm=None`` (undecided)."""
        own = cls.convert_official(state)
        layers = {key.split(".")[1] for key in own if key.startswith("layers.")}
        phases = own["fourier.phases"]  # (2, inputs, n_freqs)
        config = {
            "feature_dim": own["output_norm.weight"].shape[0],
            "n_freqs": phases.shape[2],
            "num_layers": len(layers),
            "color_feats": phases.shape[1] == 5,
            "position": "learnable" if "position" in own else "sine",
            "channel_norm": True if "channel_norm.weight" in own else None,
        }
        if "position" in own:
            config["lr_size"] = round(own["position"].shape[1] ** 0.5)
        return config

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the released wrapper, a Lightning training checkpoint or the bare upsampler."""
        if "model.1.norm.weight" in state:  # training checkpoint: other networks lie beside ours
            state = {
                key.replace("model.1.norm.", "channelnorm.norm."): value
                for key, value in state.items()
                if key.startswith(("upsampler.", "model.1.norm."))
            }
        own = {_own_key(key.removeprefix("upsampler.")): value for key, value in state.items()}
        for key in [key for key in own if ".in_proj_" in key]:
            packed = own.pop(key)  # rows: queries, keys, values
            start, kind = key.split("in_proj_")
            width = len(packed) // 3
            own[f"{start}query.{kind}"] = packed[:width]
            own[f"{start}key_value.{kind}"] = packed[width:]
        if "project.weight" in own:
            own["project.weight"] = own["project.weight"].flatten(1)  # (C, D, 1, 1) -> (C, D)
        return own
