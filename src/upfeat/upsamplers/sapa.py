"""SAPA: each pixel of a sharp guide attends to the coarse features around it.

Paper: Lu et al., "SAPA: Similarity-Aware Point Affiliation for Feature Upsampling", NeurIPS 2022,
arXiv 2209.12866. Original: github.com/poppinace/sapa at 5530ef8b. No weights are published apart
from segmenters'.

A stage normalises guide and features, projects both to a shared space and mixes the k x k window
of raw features around a pixel with the softmax of the inner products (section 3, "SAPA-B"). Here
the guide is the image, pooled to the size of the stage's output, as in FeatUp's comparison, whose
stack of four stages of factor two this is; what comes out is then resized bilinearly to the asked
size.

Legend: B batch, C feature channels, K value channels, h w low-resolution grid, s factor of a stage,
d embedding channels, k window.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import CheckpointError
from upfeat.ops import window_products, window_reassembly
from upfeat.ops.images import average_areas
from upfeat.upsamplers.base import Abilities, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.stages import DEFAULT_STAGES, StageStack, count_stages, stage_keys

QueryMode = Literal["encoder_only", "cat", "gate"]


class SAPAStage(nn.Module):
    """One SAPA module: guide (B, dim_y, s * h, s * w) and features (B, dim_x, h, w).

    ``q_mode`` says what queries are made of: the guide ("encoder_only", the paper's SAPA-B), guide
    and features side by side ("cat"), or a gated sum of both ("gate", SAPA-G).
    """

    def __init__(
        self,
        dim_y: int,
        dim_x: int,
        out_dim: int | None = None,
        up_kernel_size: int = 5,
        embedding_dim: int = 64,
        qkv_bias: bool = True,
        q_mode: QueryMode = "encoder_only",
        v_embed: bool = False,
    ) -> None:
        super().__init__()
        out_dim = dim_x if out_dim is None else out_dim
        self.up_kernel_size, self.q_mode, self.dim_y = up_kernel_size, q_mode, dim_y
        self.norm_y = nn.LayerNorm(dim_y)
        self.norm_x = nn.LayerNorm(dim_x)
        if q_mode == "gate":
            self.qy = nn.Linear(dim_y, embedding_dim, bias=qkv_bias)
            self.qx = nn.Linear(dim_x, embedding_dim, bias=qkv_bias)
            self.gate = nn.Linear(dim_x, 1, bias=qkv_bias)
        else:
            wide = dim_y + dim_x if q_mode == "cat" else dim_y
            self.q = nn.Linear(wide, embedding_dim, bias=qkv_bias)
        self.k = nn.Linear(dim_x, embedding_dim, bias=qkv_bias)
        projected = v_embed or out_dim != dim_x
        self.v = nn.Linear(dim_x, out_dim, bias=qkv_bias) if projected else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def queries(self, guide: Tensor, features: Tensor, normed: Tensor) -> Tensor:
        """Return (B, s * h, s * w, d) of channel-last inputs; a cell's part is made once a cell."""
        scale = (guide.shape[1] // features.shape[1], guide.shape[2] // features.shape[2])

        def spread(cells: Tensor) -> Tensor:
            return cells.repeat_interleave(scale[0], 1).repeat_interleave(scale[1], 2)

        if self.q_mode == "encoder_only":
            return self.q(guide)
        if self.q_mode == "cat":
            weight = self.q.weight
            cells = F.linear(features, weight[:, self.dim_y :])
            return F.linear(guide, weight[:, : self.dim_y], self.q.bias) + spread(cells)
        gate = self.gate(normed).sigmoid()
        return spread(gate) * self.qy(guide) + spread((1 - gate) * self.qx(features))

    def forward(self, guide: Tensor, features: Tensor, values: Tensor | None = None) -> Tensor:
        """Mix ``values`` (default features, projected if the stage does so): (B, K, s h, s w)."""
        last = features.permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)
        normed = self.norm_x(last)
        query = self.queries(self.norm_y(guide.permute(0, 2, 3, 1)), last, normed)
        if values is None:
            values = features if self.v is None else self.v(normed).permute(0, 3, 1, 2)
        key = self.k(normed).permute(0, 3, 1, 2)  # (B, d, h, w)
        return similarity_attention(query.permute(0, 3, 1, 2), key, values, self.up_kernel_size)


def similarity_attention(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Mix the k x k cells around each pixel's own with the softmax of its inner products.

    Queries (B, d, s_y h, s_x w), keys (B, d, h, w), values (B, K, h, w): (B, K, s_y h, s_x w).
    Beyond the border keys and values are zero: such taps have the logit 0 and give nothing.

    Example:
        >>> import torch
        >>> query, ones = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 2, 2)
        >>> out = similarity_attention(query, ones, ones[:, :1], kernel_size=3)
        >>> round(out[0, 0, 0, 0].item(), 3)  # four of nine taps are inside
        0.444
    """
    border = (kernel_size // 2,) * 4
    logits = window_products(query, F.pad(key, border), kernel_size)  # (B, k * k, H', W')
    weights = logits.softmax(1)[:, None]  # (B, 1, k * k, H', W')
    return window_reassembly(F.pad(value, border), weights, kernel_size)


@register_upsampler("sapa")
class SAPA(StageStack):
    """SAPA (arXiv 2209.12866): a stack of modules, guided by the image.

    A published single module with a guide of three channels loads as a stack of one stage. Taps
    outside the map take their share of the softmax and give zero, as in the original, so that
    values darken towards the borders and a head must not go first.

    Args:
        feature_dim: channels C of the features.
        stages: modules in the stack.
        up_factor: factor s of each.
        up_kernel_size: side of the window, odd.
        embedding_dim: channels d of queries and keys.
        qkv_bias: whether the projections have biases.
        q_mode: what queries are made of: ``"encoder_only"``, ``"cat"`` or ``"gate"``.
        v_embed: mix projected, normalised features instead of raw ones.

    Raises:
        ValueError: an even window or an unknown mode.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("sapa", feature_dim=16)
        >>> up(torch.rand(1, 3, 28, 42), torch.rand(1, 16, 2, 3)).shape
        torch.Size([1, 16, 28, 42])
    """

    info = UpsamplerInfo(
        name="sapa",
        summary="Image pixels attend to a window of features; four x2 stages, then bilinear.",
        when=(
            "It is trained inside your network, together with the task, with the image as a guide."
        ),
        claim=(
            "Every fine point is assigned to the coarse cells it resembles, so that regions stay "
            "smooth and edges sharp."
        ),
        as_baseline={
            "JAFAR": (
                "four x2 modules, trained jointly with the linear probe, per dataset and task; "
                "default settings"
            )
        },
        paper="SAPA: Similarity-Aware Point Affiliation for Feature Upsampling",
        year=2022,
        arxiv="2209.12866",
        code="https://github.com/poppinace/sapa",
        code_license="see the repository",
        task_agnostic=False,
        abilities=Abilities(any_size=False),
        factor=16,
    )

    def __init__(
        self,
        feature_dim: int,
        stages: int = DEFAULT_STAGES,
        up_factor: int = 2,
        up_kernel_size: int = 5,
        embedding_dim: int = 64,
        qkv_bias: bool = True,
        q_mode: QueryMode = "encoder_only",
        v_embed: bool = False,
    ) -> None:
        super().__init__()
        if up_kernel_size % 2 == 0:
            raise ValueError(f"up_kernel_size must be odd, got {up_kernel_size}")
        if q_mode not in ("encoder_only", "cat", "gate"):
            raise ValueError(f"q_mode must be 'encoder_only', 'cat' or 'gate', got {q_mode!r}")
        self.up_factor = up_factor
        self.add_stages(
            stages,
            up_factor,
            lambda: SAPAStage(
                3,
                feature_dim,
                up_kernel_size=up_kernel_size,
                embedding_dim=embedding_dim,
                qkv_bias=qkv_bias,
                q_mode=q_mode,
                v_embed=v_embed,
            ),
        )
        if v_embed:  # the features are projected before they are mixed
            self.info = self.info.with_abilities(mixes_values=False)

    def run_stage(
        self, stage: nn.Module, image: Tensor, features: Tensor, values: Tensor | None
    ) -> Tensor:
        """Guide the stage by the image, averaged to its output size."""
        size = (self.up_factor * features.shape[2], self.up_factor * features.shape[3])
        return stage(average_areas(image, size), features, values)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read widths, mode and stages; factor and window are the original's defaults."""
        stack = stage_keys(state)
        feature_dim = stack["up1.norm_x.weight"].shape[0]
        guide = stack["up1.norm_y.weight"].shape[0]
        if guide != 3:
            raise CheckpointError(
                f"the sapa state dict was trained with a guide of {guide} channels; upfeat guides "
                "it by the image, which has 3"
            )
        embedding_dim = stack["up1.k.weight"].shape[0]
        mode = "gate" if "up1.gate.weight" in stack else "encoder_only"
        if mode != "gate" and stack["up1.q.weight"].shape[1] > guide:
            mode = "cat"
        return {
            "feature_dim": feature_dim,
            "stages": count_stages(stack),
            "embedding_dim": embedding_dim,
            "qkv_bias": "up1.k.bias" in stack,
            "q_mode": mode,
            "v_embed": "up1.v.weight" in stack,
        }
