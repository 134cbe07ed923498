"""What objectives ask of backbones and upsamplers, by their contracts alone.

Legend: ``B`` batch, ``C`` channels, ``H W`` image, ``h w`` feature grid.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
from torch import Tensor, nn

from upfeat.errors import UnsupportedError
from upfeat.objectives.draws import draw_integer
from upfeat.ops.images import Size, normalize, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

Backbones = Union["Backbone", Sequence["Backbone"]]


class Call(NamedTuple):
    """Sizes of one call of the upsampler: guidance image, feature grid, output."""

    image: Size
    grid: Size
    output: Size


class Calls(NamedTuple):
    """The calls that a step makes, at their extremes; what ``check`` tries out."""

    backbone_images: Sequence[Size]
    calls: Sequence[Call]


def size_of(x: Tensor) -> Size:
    """Return the size of a map (B, C, h, w)."""
    return x.shape[2], x.shape[3]


def one_call(image_size: Size, backbone: "Backbone", output_scale: float = 1.0) -> Calls:
    """Return the plan of a step whose one call has an output of a share of the image's size."""
    output = scale_size(image_size, output_scale)
    return Calls([image_size], [Call(image_size, backbone.grid_size(image_size), output)])


def unwrap(upsampler: nn.Module) -> Any:
    """Return the upsampler inside wrappers of parallel training, which call it ``module``."""
    while not hasattr(upsampler, "info") and isinstance(
        getattr(upsampler, "module", None), nn.Module
    ):
        upsampler = upsampler.module  # type: ignore[assignment]
    if not hasattr(upsampler, "info"):
        raise ValueError(f"expected an upfeat.Upsampler, got {type(upsampler).__name__}")
    return upsampler


def as_backbones(backbone: Backbones) -> list["Backbone"]:
    """Return one backbone or several as a list."""
    backbones = [backbone] if isinstance(backbone, nn.Module) else list(backbone)
    if not backbones:
        raise ValueError("no backbone was given; give at least one")
    return backbones


def normalises_features(upsampler: "Upsampler") -> bool:
    """Return whether features are normalised over their channels on the way into the method.

    Either by a first layer of its own (its option ``channel_norm``), or by the contract
    (``info.feature_norm``).
    """
    return upsampler.info.feature_norm or bool(upsampler.config.get("channel_norm"))


def try_call(upsampler: "Upsampler", backbone: "Backbone", call: Call, name: str) -> None:
    """Raise what the method would refuse about a call, on placeholders that take no memory."""
    seed = next(upsampler.parameters()).new_zeros(1, 1, 1, 1)
    image, features = seed.expand(1, 3, *call.image), seed.expand(1, backbone.dim, *call.grid)
    try:
        upsampler._check(image, features, call.output, None)
    except ValueError as error:
        raise UnsupportedError(
            f"{name} would call {upsampler.info.name} with an image {call.image}, features "
            f"{call.grid} and output {call.output}, which it refuses: {error}"
        ) from error


def draw_backbone(backbones: Sequence["Backbone"], generator: torch.Generator) -> "Backbone":
    """Draw a patch size among those present, then a backbone with it."""
    if len(backbones) == 1:
        return backbones[0]
    patches = sorted({backbone.patch_size for backbone in backbones})
    patch = patches[draw_integer(generator, len(patches))]
    fitting = [backbone for backbone in backbones if backbone.patch_size == patch]
    return fitting[draw_integer(generator, len(fitting))]


def backbone_features(backbone: "Backbone", image: Tensor) -> Tensor:
    """Return the features (B, C, h, w) of an image in [0, 1], without gradients."""
    with torch.no_grad():
        return backbone(normalize(image, backbone.image_mean, backbone.image_std))


def guidance_norm(upsampler: nn.Module, backbone: "Backbone") -> tuple[Any, Any]:
    """Return mean and deviation of the guidance: the method's own, else the backbone's."""
    return unwrap(upsampler).guidance_statistics(backbone)


def guidance_image(upsampler: nn.Module, backbone: "Backbone", image: Tensor) -> Tensor:
    """Normalise an image in [0, 1] as the upsampler wants its guidance."""
    return unwrap(upsampler).guidance_image(image, backbone)


def frozen_copy(module: nn.Module) -> Any:
    """Return a copy in evaluation mode that takes no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)
