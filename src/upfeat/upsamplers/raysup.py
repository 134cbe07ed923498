"""RaysUp: neighbourhood attention between directions of view, in 100,000 parameters.

Paper: "RaysUp", ECCV 2026, arXiv 2606.22749. Original: github.com/MAP-RaysUp/RaysUp (Apache-2.0),
without published weights.

Four small convolutional branches look at the image: at the pixel, along its row, along its column
and at its diagonal neighbours. Pooled to the output's and the features' grid they give queries and
keys, which are rotated by the direction in which a camera sees each position. The features enter as
values only, so one model serves every backbone. Channel group g takes the weights of head g.

Legend: B batch, K value channels, h w feature grid, H W image, H' W' output, D query channels.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import shape_text
from upfeat.ops import cross_scale_neighborhood_attention, stream
from upfeat.ops.images import reflect_pad
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD, Abilities, Upsampler, UpsamplerInfo
from upfeat.upsamplers.registry import register_upsampler
from upfeat.upsamplers.weights import NOT_COMPARED

GROUPS = 8  # of the group norms
KERNEL = 6  # side of the neighbourhood, in cells: one cell more above and left than below and right
# Name, kernel, dilation and blocks of each branch.
BRANCHES = (
    ("center", (1, 1), 1, 2),
    ("horizontal", (1, 3), 1, 1),
    ("vertical", (3, 1), 1, 1),
    ("corners", (2, 2), 2, 1),
)
SLOWEST_ORIGIN, SLOWEST_DIRECTION = 2 * math.pi / 4, 2 * math.pi / 8  # angles per unit
_OFFICIAL = {"enc_center": 0, "enc_horiz": 1, "enc_vert": 2, "enc_corners": 3}


class BranchConvolution(nn.Conv2d):
    """A convolution that keeps the size of a map; borders are reflected."""

    def __init__(self, in_dim: int, dim: int, kernel: tuple[int, int], step: int) -> None:
        super().__init__(in_dim, dim, kernel, dilation=step)
        self.border = step * (kernel[0] - 1) // 2, step * (kernel[1] - 1) // 2  # rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D/4, H, W)."""
        padded = reflect_pad(x, self.border)
        return F.conv2d(padded, self.weight, self.bias, dilation=self.dilation)


class BranchBlock(nn.Module):
    """Group norm, SiLU, convolution, twice; no residual."""

    def __init__(self, dim: int, kernel: tuple[int, int], step: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, dim), nn.GroupNorm(GROUPS, dim)
        self.conv1 = BranchConvolution(dim, dim, kernel, step)
        self.conv2 = BranchConvolution(dim, dim, kernel, step)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D/4, H, W) to the same."""
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class PinholeCamera(NamedTuple):
    """Poses (B, 3 or 4, 4), camera to world, and fx, fy, cx, cy (B, 4) in pixels of the image."""

    pose: Tensor
    intrinsics: Tensor


class RaysUpState(NamedTuple):
    """The image's code at the output, (B, D, H', W'), and rotated keys (B, D, h, w)."""

    code: stream.Map
    key: Tensor


@register_upsampler("raysup")
class RaysUp(Upsampler):
    """RaysUp (arXiv 2606.22749): neighbourhood attention with a code of viewing directions.

    Without a camera, the stand-in of the released evaluation is used: no rotation, a focal length
    of one image width and height, the principal point in the middle. :meth:`with_camera` takes
    others.

    Args:
        qk_dim: D, channels of queries and keys, a quarter from each branch.
        num_heads: attention heads; must divide D and the channels of the values.
        use_spe: the four branches; False: one 1x1 convolution (the paper's ablation).
        use_rope: rotate queries and keys by the viewing directions.
        rope_freq_base: ratio of neighbouring frequencies.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("raysup", qk_dim=64).eval()
        >>> up(torch.randn(1, 3, 48, 64), torch.randn(1, 8, 6, 8)).shape
        torch.Size([1, 8, 48, 64])
    """

    info = UpsamplerInfo(
        name="raysup",
        summary="Neighbourhood attention with a code of viewing directions, 0.1 M parameters.",
        when="You want the smallest universal attention model, or know the cameras of your images.",
        claim="Above AnyUp on most of its tables with a fraction of the parameters.",
        as_baseline=NOT_COMPARED,
        paper="RaysUp",
        year=2026,
        arxiv="2606.22749",
        code="https://github.com/MAP-RaysUp/RaysUp",
        code_license="Apache-2.0",
        weights_license="none published",
        abilities=Abilities(universal=True, tiles=True),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    streams = True

    def __init__(
        self,
        qk_dim: int = 256,
        num_heads: int = 4,
        use_spe: bool = True,
        use_rope: bool = True,
        rope_freq_base: float = 3.0,
    ) -> None:
        super().__init__()
        if qk_dim % (2 * num_heads) or (use_spe and qk_dim % (4 * GROUPS)):
            raise ValueError(
                f"qk_dim={qk_dim} must be divisible by {4 * GROUPS} (four branches of {GROUPS} "
                f"norm groups) and by 2 x num_heads={2 * num_heads}"
            )
        self.num_heads, self.use_rope, self.rope_freq_base = num_heads, use_rope, rope_freq_base
        self.camera: PinholeCamera | None = None
        if num_heads == 1:  # one set of weights for all channels
            self.info = self.info.with_abilities(linear=True)
        self.branches = nn.ModuleList()
        for _, kernel, step, blocks in BRANCHES if use_spe else ():
            stem = BranchConvolution(3, qk_dim // 4, kernel, step)
            self.branches.append(
                nn.Sequential(
                    stem, *(BranchBlock(qk_dim // 4, kernel, step) for _ in range(blocks))
                )
            )
        if not use_spe:
            self.branches.append(nn.Conv2d(3, qk_dim, 1, bias=False))

    def with_camera(self, pose: Tensor, intrinsics: Tensor) -> Self:
        """Return this upsampler, sharing its weights, for images seen by known cameras.

        Args:
            pose: (B, 3 or 4, 4), camera to world. Translations do not change the output: only
                differences of the code count, and all positions share one origin.
            intrinsics: (B, 4), fx, fy, cx, cy in pixels. The image's size is taken from the largest
                principal point of the batch.

        Raises:
            ValueError: another shape.
        """
        if pose.shape[-2:] not in ((3, 4), (4, 4)) or intrinsics.shape != (len(pose), 4):
            raise ValueError(
                f"a camera is a pose (B, 3 or 4, 4) and intrinsics (B, 4), got {shape_text(pose)} "
                f"and {shape_text(intrinsics)}"
            )
        other = copy.copy(self)
        other.camera = PinholeCamera(pose, intrinsics)
        other.streams = False  # a batch is encoded at once, each image with its own camera
        return other

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        for name, tensor in (("features", features), ("values", values)):
            if tensor is not None and tensor.shape[1] % self.num_heads:
                channels = tensor.shape[1]
                raise ValueError(
                    f"raysup gives each of its {self.num_heads} heads a group of channels; {name} "
                    f"{shape_text(tensor)} have {channels}: pad them with zeros to "
                    f"{channels + -channels % self.num_heads} and drop the surplus of the output"
                )
        if self.config["use_spe"] and min(image.shape[-2:]) < 2:
            raise ValueError(
                f"raysup reflects the borders of the guidance image and needs at least 2x2 pixels, "
                f"got {shape_text(image)}; enlarge the image"
            )
        if self.camera is not None and len(self.camera.pose) != len(image):
            raise ValueError(
                f"raysup has cameras of {len(self.camera.pose)} images and got {len(image)}; pass "
                "one camera for each image to with_camera"
            )
        for axis, name in enumerate(("rows", "columns")):
            reach = KERNEL * max(1, output_size[axis] // features.shape[2 + axis])
            if reach > output_size[axis]:
                raise ValueError(
                    f"raysup looks at {KERNEL} cells along each axis, the feature grid has "
                    f"{features.shape[2 + axis]} {name} and the output {output_size[axis]}; "
                    f"enlarge the backbone's image until both have {KERNEL}"
                )

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> RaysUpState:
        """Average the image's code over the output's pixels and over the cells of the features."""
        code = stream.lazy(image)
        code = torch.cat([branch(code) for branch in self.branches], dim=1)  # (B, D, H, W)
        key = F.adaptive_avg_pool2d(code, (features.shape[2], features.shape[3]))
        key = self.rotated(stream.whole(key), (features.shape[2], features.shape[3]))
        return RaysUpState(F.adaptive_avg_pool2d(code, output_size), key)

    def decode(self, state: RaysUpState, values: Tensor, rows: slice) -> Tensor:
        """Attend to the neighbourhood of every pixel; channel group g takes head g's weights."""
        size = (state.code.shape[2], state.code.shape[3])
        cells = (values.shape[2], values.shape[3])
        return cross_scale_neighborhood_attention(
            self.rotated(state.code[:, :, rows], size, rows),
            state.key,
            values,
            self.num_heads,
            kernel_size=KERNEL,
            output_size=size,
            dilation=(max(1, size[0] // cells[0]), max(1, size[1] // cells[1])),
            rows=(rows.start, rows.stop),
        )

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Count a row of values and one of queries."""
        return output_size[1] * (values.shape[1] + self.config["qk_dim"])

    def rays(self, like: Tensor, size: tuple[int, int], rows: slice = slice(None)) -> Tensor:
        """Return the unit direction of view of each cell, (1 or B, 3, R, w), float32 at least.

        The grid has ``size`` (h, w); device and type are those of ``like``.
        """
        height, width = size
        wide = torch.promote_types(like.dtype, torch.float32)
        if self.camera is None:  # one focal length a side: image sizes cancel
            scale = like.new_tensor([width, height, width / 2, height / 2], dtype=wide)
            fx, fy, cx, cy = scale.unbind()
        else:
            intrinsics = self.camera.intrinsics.to(like.device, wide)
            broad, tall = (int(2 * intrinsics[:, axis].max()) for axis in (2, 3))
            scale = intrinsics.new_tensor([width / broad, height / tall] * 2)
            fx, fy, cx, cy = (intrinsics * scale)[..., None, None].unbind(1)  # (B, 1, 1) each
        col = torch.arange(width, device=like.device, dtype=wide)[None] + 0.5
        row = torch.arange(height, device=like.device, dtype=wide)[rows, None] + 0.5
        across, down = torch.broadcast_tensors((col - cx) / fx, (row - cy) / fy)  # (B, R, w)
        seen = torch.stack((across, down, torch.ones_like(across)), dim=-3)  # (B, 3, R, w)
        if self.camera is None:
            seen = seen[None]
        else:
            turn = self.camera.pose[:, :3, :3].to(seen)
            seen = torch.einsum("bij,bjhw->bihw", turn, seen)
        return seen / seen.norm(dim=1, keepdim=True)

    def rotated(self, x: Tensor, size: tuple[int, int], rows: slice = slice(None)) -> Tensor:
        """Turn the pairs (j, j + half) of each head's channels by minus the rays' angles.

        ``x`` (B, D, R, w) holds rows of a map of ``size`` (h, w).
        The code has as many angles for the camera's place, all of them equal within an image: they
        turn queries and keys alike and are left out.
        """
        if not self.use_rope:
            return x
        rays = self.rays(x, size, rows)
        half = x.shape[1] // self.num_heads // 2
        count = half // 6  # frequencies, each with three angles of the place, three of the ray
        powers = torch.arange(count, device=x.device, dtype=rays.dtype)
        speed = SLOWEST_DIRECTION * self.rope_freq_base**powers
        angles = torch.einsum("f,bchw->bfchw", speed, rays)  # (B, count, 3, h, w)
        angles = F.pad(angles, (0, 0, 0, 0, 3, 0)).flatten(1, 2)  # (B, 6 count, h, w)
        angles = F.pad(angles, (0, 0, 0, 0, 0, half - 6 * count))  # (B, half, h, w)
        cos, sin = (wave(angles).to(x.dtype)[:, None] for wave in (torch.cos, torch.sin))
        pairs = x.unflatten(1, (self.num_heads, 2, half))  # (B, heads, 2, half, h, w)
        first, second = pairs.unbind(2)
        turned = (first * cos + second * sin, second * cos - first * sin)
        return torch.stack(turned, dim=2).flatten(1, 3)  # (B, D, h, w)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the width; ``num_heads`` leaves no trace in the tensors."""
        own = cls.convert_official(state)
        branched = any(key.startswith("branches.1.") for key in own)
        stem = own["branches.0.0.weight" if branched else "branches.0.weight"]
        return {"qk_dim": len(stem) * (4 if branched else 1), "use_spe": branched}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of an official state dict; ours pass unchanged."""
        return {_own_key(key): value for key, value in state.items()}


def _own_key(key: str) -> str:
    key = key.removeprefix("module.").removeprefix("image_tokenizer.").removeprefix("img_encoder.")
    name, _, rest = key.partition(".")
    if name in _OFFICIAL:
        return f"branches.{_OFFICIAL[name]}.{rest}"
    return f"branches.0.{key}" if key == "weight" else key
