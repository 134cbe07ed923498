"""CARAFE: each pixel's mixing weights are predicted from the coarse features around it.

Paper: Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, arXiv 1905.02188.
Original: github.com/myownskyW7/CARAFE at aae89996, and the same module in mmcv (Apache-2.0). No
weights are published apart from detectors'.

A stage predicts k_up x k_up weights for each of the s x s pixels of a cell (kernel prediction
module, section 3.2) and mixes the window of cells with them (reassembly, equation 3). The image is
not looked at. JAFAR's and FeatUp's comparisons stack four stages of factor two; what comes out is
then resized bilinearly to the asked size.

Legend: B batch, C feature channels, K value channels, h w low-resolution grid, s factor of a stage,
g groups, k window.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import window_reassembly
from upfeat.upsamplers.base import Abilities, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import DEFAULT_STAGES, StageStack, count_stages, stage_keys


class CARAFEStage(nn.Module):
    """One CARAFE module: (B, C, h, w) to (B, C, s * h, s * w)."""

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        up_kernel: int = 5,
        up_group: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
    ) -> None:
        super().__init__()
        self.scale_factor, self.up_kernel, self.up_group = scale_factor, up_kernel, up_group
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            scale_factor**2 * up_group * up_kernel**2,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for layer in (self.channel_compressor, self.content_encoder):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def predict_weights(self, features: Tensor) -> Tensor:
        """Return the weights (B, g, k * k, s * h, s * w), which sum to 1 over the taps."""
        encoded = self.content_encoder(self.channel_compressor(features))
        logits = F.pixel_shuffle(encoded, self.scale_factor)  # (B, g * k * k, s * h, s * w)
        return logits.unflatten(1, (self.up_group, -1)).softmax(2)

    def forward(self, features: Tensor, values: Tensor | None = None) -> Tensor:
        """Mix ``values`` (default the features) with the weights that the features predict."""
        weights = self.predict_weights(features)
        mixed = features if values is None else values
        before = (self.up_kernel - 1) // 2
        after = self.up_kernel - 1 - before
        padded = F.pad(mixed, (before, after, before, after))
        return window_reassembly(padded, weights, self.up_kernel)


@register_upsampler("carafe")
class CARAFE(StageStack):
    """CARAFE (arXiv 1905.02188): a stack of content-aware reassembly modules.

    A published single module loads as a stack of one stage: ``upfeat.from_official("carafe",
    state, scale_factor=3, up_group=4)`` (what the tensors do not tell, by the original's names).
    Taps outside the map count as zero without renormalisation, as in the original, so that values
    darken towards the borders and a head must not go first.

    Args:
        feature_dim: channels C of the features.
        stages: modules in the stack.
        scale_factor: factor s of each.
        up_kernel: side of the window that is mixed (5 by default, 3 in FeatUp's comparison).
        up_group: groups of channels with weights of their own.
        encoder_kernel: side of the convolution that predicts the weights.
        encoder_dilation: its dilation.
        compressed_channels: its input channels.

    Raises:
        ValueError: a size that does not fit: groups that do not divide the channels, even kernels
            for the encoder.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("carafe", feature_dim=16)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)).shape
        torch.Size([1, 16, 28, 42])
    """

    info = UpsamplerInfo(
        name="carafe",
        summary="Mixing weights from the coarse features; four x2 stages, then bilinear.",
        when="It is trained inside your network, together with the task.",
        claim=(
            "Mixing weights predicted from the content upsample better than interpolation at small "
            "cost, in detection, segmentation and inpainting."
        ),
        as_baseline={
            "JAFAR": "trained jointly with the linear probe, per dataset and task, as a x16 stack"
        },
        paper="CARAFE: Content-Aware ReAssembly of FEatures",
        year=2019,
        arxiv="1905.02188",
        code="https://github.com/myownskyW7/CARAFE",
        code_license="see the repository; the same module in mmcv is Apache-2.0",
        task_agnostic=False,
        abilities=Abilities(any_size=False),
        factor=16,
    )

    def __init__(
        self,
        feature_dim: int,
        stages: int = DEFAULT_STAGES,
        scale_factor: int = 2,
        up_kernel: int = 5,
        up_group: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
    ) -> None:
        super().__init__()
        if up_group < 1 or feature_dim % up_group:
            raise ValueError(f"up_group={up_group} does not divide feature_dim={feature_dim}")
        if encoder_kernel % 2 == 0:
            raise ValueError(f"encoder_kernel must be odd, got {encoder_kernel}")
        self.add_stages(
            stages,
            scale_factor,
            lambda: CARAFEStage(
                feature_dim,
                scale_factor,
                up_kernel,
                up_group,
                encoder_kernel,
                encoder_dilation,
                compressed_channels,
            ),
        )
        if up_group > 1:  # each group of feature channels has weights of its own
            self.info = self.info.with_abilities(mixes_values=False)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths and stages; the rest are the original's defaults."""
        stack = stage_keys(state)
        compressed_channels, feature_dim = stack["up1.channel_compressor.weight"].shape[:2]
        return {
            "feature_dim": feature_dim,
            "stages": count_stages(stack),
            "encoder_kernel": stack["up1.content_encoder.weight"].shape[-1],
            "compressed_channels": compressed_channels,
        }
