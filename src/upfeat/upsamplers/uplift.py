"""UPLiFT: doubles the grid again and again, each time mixing the given features locally.

Paper: Walmer, Suri et al., "UPLiFT: Efficient Pixel-Dense Feature Upsampling with Local
Attenders", 2026. Original: github.com/mwalmer-umd/UPLiFT at 85f09ee4. Weights: Hugging Face,
organisation UPLiFT-upsampler.

An encoder looks at the image once. A decoder turns the current features and the encoder's maps into
a guide of twice their size, of which the local attender makes weights over the cells around each
pixel's own. The output is a convex combination of the features; all iterations share weights.

Legend: B batch, C feature channels, K value channels, E E' channels of the encoder's last two maps,
G guide channels, n taps, h w current grid, H W guidance image.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.checkpoints import HubFile
from upfeat.layers.norm import ChannelLayerNorm
from upfeat.ops import local_attender
from upfeat.ops.images import resize_antialiased
from upfeat.upsamplers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Abilities,
    UpsamplerInfo,
    WholeMapUpsampler,
)
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import NOT_COMPARED, Checkpoint

LAYER_NORM_EPS = 1e-6

# Steps (row, column) of the local attender, by their number.
_PLUS = [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
_INNER = [(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
_OUTER = [(row, col) for row in range(-2, 3) for col in range(-2, 3)]
NEIGHBOURHOODS: dict[int, list[tuple[int, int]]] = {
    5: _PLUS,
    9: _INNER,
    13: [step for step in _OUTER if abs(step[0]) + abs(step[1]) <= 2],
    17: [step for step in _OUTER if max(map(abs, step)) < 2 or not (step[0] % 2 or step[1] % 2)],
    25: _OUTER,
}

# A stage: its blocks, "single" or "double", one output width each; "pool": halved by max pooling.
Stage = Mapping[str, Any]
RELEASED_ENCODER: tuple[Stage, ...] = tuple(
    {"block": "single", "widths": [width], "pool": False} for width in (16, 32, 64, 128, 128)
)
RELEASED_DECODER: tuple[Stage, ...] = ({"block": "double", "widths": [64]},) * 2


def add_residual(x: Tensor, residual: Tensor) -> Tensor:
    """Add the channels that both have: (B, C, H, W), (B, C', H, W) -> (B, C, H, W)."""
    missing = x.shape[1] - residual.shape[1]
    if missing > 0:
        return x + F.pad(residual, (0, 0, 0, 0, 0, missing))
    return x + residual[:, : x.shape[1]]


class ConvolutionBlock(nn.Module):
    """One or two of (3x3 convolution, norm, ReLU), a 1x1 convolution, and the input added."""

    def __init__(self, inputs: int, width: int, convolutions: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, width)[:convolutions]:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            batch = norm == "batch"
            layers.append(
                nn.BatchNorm2d(width) if batch else ChannelLayerNorm(width, LAYER_NORM_EPS)
            )
            layers.append(nn.ReLU(inplace=True))
        self.conv = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, width, H, W)."""
        return add_residual(self.conv(x), x)


class BlockStack(nn.Module):
    """The blocks of a stage."""

    def __init__(self, inputs: int, stage: Stage, norm: str) -> None:
        super().__init__()
        convolutions = {"single": 1, "double": 2}[stage["block"]]
        widths = [inputs, *stage["widths"]]
        self.width = widths[-1]
        self.blocks = nn.ModuleList(
            ConvolutionBlock(before, width, convolutions, norm)
            for before, width in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks one after the other."""
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    """Maps of the image, one a stage."""

    def __init__(self, stages: Sequence[Stage], norm: str) -> None:
        super().__init__()
        self.pooled = [bool(stage.get("pool", False)) for stage in stages]
        self.widths = [3]
        for index, stage in enumerate(stages):
            stack = BlockStack(self.widths[-1], stage, norm)
            self.add_module(f"block_{index}", stack)
            self.widths.append(stack.width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last two maps, (B, E', H, W) and (B, E, H, W); pooling halves H and W."""
        fine = x = image
        for index, pooled in enumerate(self.pooled):
            fine = x
            x = self.get_submodule(f"block_{index}")(F.max_pool2d(x, 2) if pooled else x)
        return fine, x


class Up(nn.Module):
    """Twice the size: a transposed convolution, and its input enlarged with aligned corners."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, h, w) -> (B, G, 2h, 2w)."""
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.up(x) + large


class LocalAttender(nn.Module):
    """Weights from the guide, values from the coarse map: section "Local Attender".

    Logits are a 1x1 convolution of the guide, plus the guide's first n channels.
    """

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        if taps not in NEIGHBOURHOODS:
            raise ValueError(f"taps must be one of {sorted(NEIGHBOURHOODS)}, got {taps}")
        self.offsets = NEIGHBOURHOODS[taps]
        self.conv1 = nn.Conv2d(width, taps, 1)

    def forward(self, guide: Tensor, values: Tensor) -> Tensor:
        """(B, G, H, W), (B, K, h, w) -> (B, K, H, W)."""
        return local_attender(add_residual(self.conv1(guide), guide), values, self.offsets)


def _record(
    tag: str, name: str, backbone: str, width: int, patch: int, **details: Any
) -> Checkpoint:
    record = Checkpoint(
        tag=tag,
        file=HubFile(filename=f"{name}.safetensors", repository=f"UPLiFT-upsampler/{name}"),
        backbone=backbone,
        feature_dim=width,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        training_data="ImageNet-1k, one epoch of 448 x 448, batch 32",
        code_license="not recorded; see the repository",
        weights_license="not recorded; see the model card",
        backbone_license="see the backbone's model card",
        paper="UPLiFT (2026)",
        config={"patch_size": patch},
    )
    return dataclasses.replace(record, **details)


CHECKPOINTS = (
    _record("dinov2_s14", "uplift_dinov2-s14", "timm/vit_small_patch14_dinov2.lvd142m", 384, 14),
    _record(
        "dinov3_splus16",
        "uplift_dinov3-splus16",
        "timm/vit_small_plus_patch16_dinov3.lvd1689m",
        384,
        16,
    ),
    _record(
        "sd15_vae",
        "uplift_sd1.5vae",
        "latents of the autoencoder of Stable Diffusion 1.5",
        4,
        8,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
        training_data="Unsplash-Lite, five epochs of 1024 x 1024 crops",
        note="Has a refiner, so it makes new values; its noise is fixed in eval mode.",
    ),
)


@register_upsampler("uplift", checkpoints=CHECKPOINTS)
class UPLiFT(WholeMapUpsampler):
    """UPLiFT (2026): repeated doubling with local attenders.

    Args:
        feature_dim: C, channels of the backbone's features.
        iterations: how often the size is doubled; None: as often as the asked size needs. What
            remains is an antialiased bilinear resize. (The original's code says 1, its
            documentation 4.)
        patch_size: of the backbone; with 14 the image is resized by 16/14 first, as the original
            does. Other values change nothing.
        taps: n cells that a pixel mixes: 5, 9, 13, 17 or 25.
        encoder: its stages; default: the released one. A stage is ``{"block": "single" or
            "double", "widths": [...], "pool": bool}``, with one block for each width.
        decoder: its two stages, before and after doubling; default: the released ones.
        refiner: a stage that works on the mixed features and makes new ones; None for none.
        norm: ``"batch"`` or ``"layer"`` (over the channels).
        noise_channels: channels of normal noise that decoder and refiner get, also at inference
            (autoencoder configuration). In eval mode it is the same in every call.
        noise_scale: factor on that noise.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("uplift", feature_dim=8, taps=9).eval()
        >>> up(torch.randn(1, 3, 32, 48), torch.randn(1, 8, 4, 6)).shape
        torch.Size([1, 8, 32, 48])
    """

    info = UpsamplerInfo(
        name="uplift",
        summary="Doubles the grid repeatedly, mixing features with local attenders.",
        when="Your backbone is one of those with published weights, or you compare with UPLiFT.",
        claim=(
            "Repeated doubling with local attenders is as good as cross-attention and scales "
            "better."
        ),
        as_baseline=NOT_COMPARED,
        paper="UPLiFT: Efficient Pixel-Dense Feature Upsampling with Local Attenders",
        year=2026,
        code="https://github.com/mwalmer-umd/UPLiFT",
        code_license="not recorded; see the repository",
        weights_license="not recorded; see the model card",
        abilities=Abilities(linear=True, any_size=False),
        factor=2,
    )
    whole_in_training = True
    channels_last = True

    def __init__(
        self,
        feature_dim: int,
        iterations: int | None = None,
        patch_size: int = 16,
        taps: int = 17,
        encoder: Sequence[Stage] | None = None,
        decoder: Sequence[Stage] | None = None,
        refiner: Stage | None = None,
        norm: str = "batch",
        noise_channels: int = 0,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations must be at least 1 or None, got {iterations}")
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm must be 'batch' or 'layer', got {norm!r}")
        encoder, decoder = encoder or RELEASED_ENCODER, decoder or RELEASED_DECODER
        if len(decoder) != 2 or len(encoder) < 2:
            raise ValueError(
                f"decoder must have 2 stages and encoder at least 2, got {len(decoder)} and "
                f"{len(encoder)}"
            )
        self.iterations, self.patch_size = iterations, patch_size
        self.noise = (noise_channels, noise_scale)
        self.encoder = Encoder(encoder, norm)
        *_, fine, coarse = self.encoder.widths  # E', E
        first = BlockStack(feature_dim + coarse + noise_channels, decoder[0], norm)
        second = BlockStack(first.width + fine + noise_channels, decoder[1], norm)
        self.decoder = nn.ModuleDict({"block_0": first, "up_1": Up(first.width), "block_1": second})
        self.attender = LocalAttender(second.width, taps)
        self.refiner: BlockStack | None = None
        if refiner is not None:
            self.refiner = BlockStack(feature_dim + coarse + noise_channels, refiner, norm)
            self.ref_outc = nn.Conv2d(self.refiner.width, feature_dim, 1)
            self.info = self.info.with_abilities(linear=False, mixes_values=False)

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Encode the image, then double the features as often as it takes."""
        if self.patch_size == 14:
            size = (image.shape[2] * 16 // 14, image.shape[3] * 16 // 14)
            image = resize_antialiased(image, size)
        fine, coarse = self.encoder(image)
        shared = values is features
        noise = _Noise(*self.noise, self.training)
        count = self._count(features, output_size)
        for iteration in range(count):
            guide = self._guide(features, fine, coarse, noise)
            values = self.attender(guide, values)
            if self.refiner is not None:
                values = self._refine(values, coarse, noise)
            if shared:
                features = values
            elif iteration + 1 < count:
                features = self.attender(guide, features)
        return (
            values if values.shape[-2:] == output_size else resize_antialiased(values, output_size)
        )

    def _count(self, features: Tensor, output_size: tuple[int, int]) -> int:
        """Doublings: the given number, or the least whose grid covers the output."""
        if self.iterations is not None:
            return self.iterations
        count = 1
        while any(n << count < out for n, out in zip(features.shape[2:], output_size, strict=True)):
            count += 1
        return count

    def _guide(self, x: Tensor, fine: Tensor, coarse: Tensor, noise: "_Noise") -> Tensor:
        """The decoder: features (B, C, h, w) and the encoder's maps -> guide (B, G, 2h, 2w)."""
        coarse = F.interpolate(coarse, x.shape[2:], mode="nearest")
        x = self.decoder["block_0"](torch.cat(noise.beside(x, coarse), dim=1))
        x = self.decoder["up_1"](x)
        fine = F.interpolate(fine, x.shape[2:], mode="nearest")
        return self.decoder["block_1"](torch.cat(noise.beside(x, fine), dim=1))

    def _refine(self, x: Tensor, coarse: Tensor, noise: "_Noise") -> Tensor:
        """The refiner: (B, C, h, w) -> (B, C, h, w)."""
        assert self.refiner is not None  # asked by the caller
        coarse = F.interpolate(coarse, x.shape[2:], mode="nearest")
        return self.ref_outc(self.refiner(torch.cat(noise.beside(x, coarse), dim=1)))

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths, blocks and norm; ``iterations``, ``patch_size`` and pooling are untold."""
        encoder: list[dict[str, Any]] = []
        while f"encoder.block_{len(encoder)}.blocks.0.conv.0.weight" in state:
            encoder.append(_read_stage(state, f"encoder.block_{len(encoder)}") | {"pool": False})
        decoder = [_read_stage(state, f"decoder.block_{index}") for index in range(2)]
        first, second = (
            state[f"decoder.block_{index}.blocks.0.conv.0.weight"].shape[1] for index in range(2)
        )
        noise = second - decoder[0]["widths"][-1] - encoder[-2]["widths"][-1]
        batch = "encoder.block_0.blocks.0.conv.1.running_mean" in state
        refined = "refiner.blocks.0.conv.0.weight" in state
        return {
            "feature_dim": first - encoder[-1]["widths"][-1] - noise,
            "taps": state["attender.conv1.weight"].shape[0],
            "encoder": encoder,
            "decoder": decoder,
            "refiner": _read_stage(state, "refiner") if refined else None,
            "norm": "batch" if batch else "layer",
            "noise_channels": noise,
        }


class _Noise:
    """Noise of one call: fresh in training, the same in every call in eval mode."""

    def __init__(self, channels: int, scale: float, training: bool) -> None:
        self.channels, self.scale = channels, scale
        fixed = channels > 0 and not training
        self.generator = torch.Generator().manual_seed(0) if fixed else None

    def beside(self, *maps: Tensor) -> list[Tensor]:
        """The maps, and noise of their size behind them."""
        if not self.channels:
            return list(maps)
        like = maps[0]
        # Fixed noise is the same for every image, so that a batch equals its parts.
        batch = len(like) if self.generator is None else 1
        drawn = torch.randn(batch, self.channels, *like.shape[2:], generator=self.generator)
        return [*maps, self.scale * drawn.to(like).expand(len(like), -1, -1, -1)]


def _read_stage(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Blocks and widths of a stage from its tensors."""
    widths: list[int] = []
    while not widths or f"{prefix}.blocks.{len(widths)}.conv.0.weight" in state:
        widths.append(state[f"{prefix}.blocks.{len(widths)}.conv.0.weight"].shape[0])
    double = state[f"{prefix}.blocks.0.conv.3.weight"].shape[-1] == 3  # a 3x3, else the last 1x1
    return {"block": "double" if double else "single", "widths": widths}
