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
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import OMEGACONF_GLOBALS, HubFile
from upfeat.errors import CheckpointError, check_choice
from upfeat.layers.attention import CrossAttentionLayer, Memory, TokenLinear
from upfeat.layers.fourier import FourierFeatures, PixelFeatures, resized_places
from upfeat.layers.norm import ChannelLayerNorm
from upfeat.ops import stream
from upfeat.ops.coordinates import sample_around
from upfeat.ops.images import Size, stretch_colors
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    Exports,
    Upsampler,
    UpsamplerInfo,
)
from upfeat.upsamplers.loftup_ours import OURS, CellColors, start_as_interpolation
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import Checkpoint

POSITION_FREQUENCIES = 5  # of the low-resolution tokens: 2 x 2 x 5 = 20 channels
NO_CHANNEL_NORM = (
    "this LoftUp file holds the upsampler without the channel norm of the features, so its output "
    "would be wrong for raw backbone features; take the complete pytorch_model.bin beside it, or "
    "pass channel_norm=False and normalise the features yourself"
)

SIGLIP = "{} ViT-B/16 of open_clip, normed patch tokens of its timm trunk"
CLIP = "clip/ViT-B-16.openai(image_norm='imagenet')"  # MaskCLIP's values of the last block
# Tag, repository haiwen/loftup-*, backbone, channels.
PUBLISHED = (
    ("dinov2_vits14", "dinov2s", "timm/vit_small_patch14_dinov2.lvd142m", 384),
    ("dinov2_vits14_reg", "dinov2s_reg", "timm/vit_small_patch14_reg4_dinov2.lvd142m", 384),
    ("dinov2_vitb14", "dinov2b", "timm/vit_base_patch14_dinov2.lvd142m", 768),
    ("dinov2_vitb14_reg", "dinov2b_reg", "timm/vit_base_patch14_reg4_dinov2.lvd142m", 768),
    ("siglip_vitb16", "siglip", SIGLIP.format("SigLIP"), 768),
    ("siglip2_vitb16", "siglip2", SIGLIP.format("SigLIP 2"), 768),
    ("clip_vitb16", "clip", CLIP, 512),
)
CHECKPOINTS = tuple(
    Checkpoint(
        tag=tag,
        file=HubFile(filename="pytorch_model.bin", repository=f"haiwen/loftup-{name}"),
        backbone=backbone,
        feature_dim=width,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="SA-1B, 1 M images",
        code_license="MIT",
        weights_license="not stated (the code is MIT)",
        backbone_license="MIT" if name == "clip" else "Apache-2.0",
        paper="2504.14032",
        config={"num_heads": 4},
        note="Trained with ImageNet mean and std for backbone and guidance, whatever the backbone.",
    )
    for tag, name, backbone, width in PUBLISHED
)

# Official key (after the prefix "upsampler.") -> ours. The convolution of "project" is 1x1.
KEYS = {
    r"(?:channelnorm|model\.1)\.norm": "channel_norm",
    r"lr_pe\.biases": "position.phases",
    r"lr_pe": "position",
    r"fourier_feat\.1\.biases": "fourier.phases",
    r"first_conv\.0\.norm": "guidance_norm",
    r"first_conv\.1": "conv1",
    r"first_conv\.2": "batch_norm1",
    r"first_conv\.4": "conv2",
    r"first_conv\.5": "batch_norm2",
    r"ca_transformer\.norm": "norm",
    r"ca_transformer\.(layers\.\d+)\.0\.norm_q": r"\1.norm_query",
    r"ca_transformer\.(layers\.\d+)\.0\.norm_kv": r"\1.norm_tokens",
    r"ca_transformer\.(layers\.\d+)\.0\.attention": r"\1.attention",
    r"ca_transformer\.(layers\.\d+)\.1\.net\.0": r"\1.norm",
    r"ca_transformer\.(layers\.\d+)\.1\.net\.1": r"\1.expand",
    r"ca_transformer\.(layers\.\d+)\.1\.net\.4": r"\1.reduce",
    r"final_conv\.0": "project",
    r"final_conv(?:\.1|(?=\.(?:weight|bias)$))": "output_norm",
}


def _our_key(key: str) -> str:
    renamed = (re.subn(rf"^{official}(?=\.|$)", ours, key) for official, ours in KEYS.items())
    return next((name for name, hits in renamed if hits), key)


class LoftUpState(NamedTuple):
    """Scaled colours (B, 3, H', W'), the pixels' queries (B, D, H', W'), memory of the layers."""

    colors: Tensor
    queries: stream.Map
    memory: Sequence[Memory]


@register_upsampler("loftup", checkpoints=CHECKPOINTS + OURS)
class LoftUp(Upsampler):
    """LoftUp (arXiv 2504.14032): regresses a feature for every pixel.

    The output lies in the space of channel-normalised features. An output size other than the
    image's is reached by resizing the image bilinearly first, as the original evaluation does.

    Args:
        feature_dim: C, channels of the backbone's features.
        n_freqs: of the pixels' Fourier features.
        num_heads: attention heads; must divide C + 20 ("sine") or C (the others).
        num_layers: layers of the transformer.
        position: of the tokens (``lr_pe_type``): ``"sine"`` appends 20 Fourier channels,
            ``"learnable"`` adds `resized_places` of ``lr_size`` squared; ``"none"`` leaves them
            without (table B.3; our reading: otherwise as ``"learnable"``).
        conv_kernel: of both convolutions of the image, 3 or 1 (table B.3).
        lr_size: side of that table.
        color_feats: whether colours enter the Fourier features beside the positions.
        min_max: colours are scaled to [-0.5, 0.5] over each ``"image"``, or over the whole
            ``"batch"`` as the original does, where a result depends on its batch mates.
        channel_norm: LayerNorm over the channels of the features, part of the published models.
        token_colors: the tokens get the colours of their cells too (ours).
        start: untrained weights: ``"random"``, or an ``"interpolation"`` (ours).
        feature_scale: factor on the output (ours): the features' usual deviation over channels.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("loftup", feature_dim=12, num_heads=4).eval()
        >>> up(torch.randn(1, 3, 28, 42), torch.randn(1, 12, 2, 3)).shape
        torch.Size([1, 12, 28, 42])
    """

    info = UpsamplerInfo(
        name="loftup",
        summary="Cross-attention transformer from pixel coordinates and colours to features.",
        when=(
            "There are weights for your backbone and time is no concern; strong on segmentation "
            "and surface normals in our tables."
        ),
        claim=(
            "A coordinate-based cross-attention network, trained on mask-refined pseudo ground "
            "truth, gives better dense features than earlier upsamplers."
        ),
        as_baseline={"JAFAR": "compared in LoftUp's code base", "LoftUp": "the paper's own method"},
        paper="LoftUp: Learning a Coordinate-Based Feature Upsampler for Vision Foundation Models",
        year=2025,
        arxiv="2504.14032",
        code="https://github.com/andrehuang/loftup",
        code_license="MIT",
        weights_license="not stated (the code is MIT)",
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        abilities=Abilities(
            mixes_values=False,
            tiles=True,
            query=True,
            export=Exports("dynamic", "dynamic", "static"),
        ),
    )
    whole_in_training = True
    positions_apart = True
    official_keys = ("state_dict",)
    official_globals = OMEGACONF_GLOBALS

    def __init__(
        self,
        feature_dim: int,
        n_freqs: int = 20,
        num_heads: int = 4,
        num_layers: int = 2,
        position: Literal["sine", "learnable", "none"] = "sine",
        lr_size: int = 16,
        color_feats: bool = True,
        min_max: Literal["image", "batch"] = "image",
        channel_norm: bool | None = True,
        token_colors: bool = False,
        start: Literal["random", "interpolation"] = "random",
        feature_scale: float = 1.0,
        conv_kernel: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        if channel_norm is None:  # official_config found none and the caller did not decide
            raise CheckpointError(NO_CHANNEL_NORM)
        check_choice("position", position, ("sine", "learnable", "none"))
        check_choice("conv_kernel", conv_kernel, (1, 3))
        check_choice("min_max", min_max, ("image", "batch"))
        check_choice("start", start, ("random", "interpolation"))
        if not feature_scale > 0:
            raise ValueError(f"feature_scale must be positive, got {feature_scale}")
        sine = position == "sine"
        width = feature_dim + 4 * POSITION_FREQUENCIES if sine else feature_dim
        if width % num_heads:
            raise ValueError(
                f"num_heads={num_heads} must divide the token width {width} (feature_dim="
                f"{feature_dim}{' + 20 position channels' if sine else ''}); choose a divisor"
            )
        self.color_feats, self.num_heads = color_feats, num_heads
        self.feature_scale = feature_scale
        self.streams = min_max == "image"  # otherwise the items of a batch depend on each other
        self.channel_norm = nn.LayerNorm(feature_dim) if channel_norm else nn.Identity()
        self.position: FourierFeatures | nn.Parameter | None = None
        if sine:
            self.position = FourierFeatures(2, POSITION_FREQUENCIES)
        elif position == "learnable":
            self.position = nn.Parameter(torch.randn(1, lr_size**2, feature_dim))
        self.token_colors = CellColors(width) if token_colors else None
        self.fourier = PixelFeatures(color_feats, n_freqs)
        self.guidance_norm = ChannelLayerNorm(self.fourier.channels)
        self.conv1 = nn.Conv2d(self.fourier.channels, width, conv_kernel, padding=conv_kernel // 2)
        self.batch_norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, conv_kernel, padding=conv_kernel // 2)
        self.batch_norm2 = nn.BatchNorm2d(width)
        layers = (CrossAttentionLayer(width, feature_dim, num_heads) for _ in range(num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.project = TokenLinear(width, feature_dim) if sine else nn.Identity()
        self.output_norm = nn.LayerNorm(feature_dim, eps=1e-6)
        if start == "interpolation":
            start_as_interpolation(self)

    def _cast(
        self, image: Tensor, features: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the image in float32 at least: its rounding is amplified by the frequencies."""
        _, features, values = super()._cast(image, features, values)
        return image.to(torch.promote_types(features.dtype, torch.float32)), features, values

    def encode(self, image: Tensor, features: Tensor, output_size: Size) -> LoftUpState:
        """Queries from places and colours (section 3.1); keys and values from the features."""
        colors = self.scale_colors(image, output_size)
        tokens = self.tokens(features, colors)  # (B, n, D)
        memory = [layer.keys_values(tokens) for layer in self.layers]  # type: ignore[operator]
        return LoftUpState(colors, stream.deferred(self.queries, colors), memory)

    def decode(self, state: LoftUpState, values: Tensor, rows: slice) -> Tensor:
        """Attend from the pixels of some rows to the tokens, layer by layer."""
        queries = state.queries[:, :, rows].flatten(2).mT  # (B, D, R, W') -> (B, R W', D)
        return self._attend(queries, state).mT.unflatten(2, (-1, state.colors.shape[3]))

    def decode_at(self, state: LoftUpState, values: Tensor, coords: Tensor) -> Tensor:
        """Convolve over the 5x5 positions around each one (1x1: itself), a pixel apart."""
        reach = self.conv1.kernel_size[0] // 2
        color, place, mask = sample_around(state.colors, coords, 1 + 4 * reach)
        x = self.fourier.at(place.to(color.dtype), color)  # (B N, G, 5, 5)
        x = self.guidance_norm(x.to(self.conv1.weight.dtype))
        for conv, norm in ((self.conv1, self.batch_norm1), (self.conv2, self.batch_norm2)):
            x = norm(F.conv2d(x * mask, conv.weight, conv.bias)).relu()
            mask = mask[:, :, reach:-1, reach:-1] if reach else mask
        return self._attend(x.view(len(coords), -1, x.shape[1]), state)  # (B, N, D)

    def row_floats(self, features: Tensor, values: Tensor, output_size: Size) -> int:
        """Count five rows of queries, and a row of features."""
        return output_size[1] * (5 * self.conv2.out_channels + features.shape[1])

    def scale_colors(self, image: Tensor, output_size: Size) -> Tensor:
        """Resize the image to the output and scale each colour to [-0.5, 0.5]: (B, 3, H', W')."""
        return stretch_colors(image, (2, 3) if self.streams else (0, 2, 3), output_size)

    def queries(self, colors: Tensor) -> Tensor:
        """Fourier features through two convolutions: (B, 3, H', W') -> (B, D, H', W')."""
        x = self.guidance_norm(self.fourier(colors).to(self.conv1.weight.dtype))
        x = self.batch_norm1(self.conv1(x)).relu()
        return self.batch_norm2(self.conv2(x)).relu()

    def _attend(self, queries: Tensor, state: LoftUpState) -> Tensor:
        """(B, N, D) -> features (B, N, C)."""
        for layer, memory in zip(self.layers, state.memory, strict=True):
            queries = layer(queries, memory)
        queries = self.project(self.norm(queries))
        norm, scale = self.output_norm, self.feature_scale
        weight, bias = norm.weight * scale, norm.bias * scale
        return F.layer_norm(queries, norm.normalized_shape, weight, bias, norm.eps)

    def tokens(self, features: Tensor, colors: Tensor) -> Tensor:
        """Normalised features (B, C, h, w) with their position, and colours: (B, n, D)."""
        size = (features.shape[2], features.shape[3])
        tokens = self.channel_norm(features.flatten(2).mT)  # (B, n, C)
        if isinstance(self.position, FourierFeatures):
            place = self.position.of_grid(size, tokens)  # (n, 20)
            tokens = torch.cat((tokens, place.expand(len(tokens), -1, -1)), -1)
        elif self.position is not None:
            tokens = tokens + resized_places(self.position, size)  # (1, n, C)
        added = self.token_colors
        return tokens if added is None else tokens + added(colors, size, tokens.dtype)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes; a file without channel norm gives ``channel_norm=None`` (undecided)."""
        own = cls.convert_official(state)
        phases = own["fourier.phases"]  # (2, inputs, n_freqs)
        unlearned = "sine" if "position.phases" in own else "none"
        config = {
            "feature_dim": own["output_norm.weight"].shape[0],
            "n_freqs": phases.shape[2],
            "num_layers": len({key.split(".")[1] for key in own if key.startswith("layers.")}),
            "color_feats": phases.shape[1] == 5,
            "position": "learnable" if "position" in own else unlearned,
            "channel_norm": True if "channel_norm.weight" in own else None,
            "conv_kernel": own["conv1.weight"].shape[-1],
        }
        if "position" in own:
            config["lr_size"] = round(own["position"].shape[1] ** 0.5)
        return config

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the released wrapper, a Lightning training checkpoint or the bare upsampler."""
        if "model.1.norm.weight" in state:  # training checkpoint: other networks lie beside ours
            parts = ("upsampler.", "model.1.norm.")
            state = {key: value for key, value in state.items() if key.startswith(parts)}
        own = {_our_key(key.removeprefix("upsampler.")): value for key, value in state.items()}
        if "project.weight" in own:
            own["project.weight"] = own["project.weight"].flatten(1)  # (C, D, 1, 1) -> (C, D)
        return own
