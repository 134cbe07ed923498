"""Whatever gives feature maps as a backbone: a name, a network, a function, the image itself.

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from upfeat.backbones.base import IMAGENET, Backbone, Weights, create_backbone, register_provider
from upfeat.errors import UnknownNameError, shape_text

__all__ = ["AnyBackbone", "CallableBackbone", "RgbBackbone", "as_backbone", "create_rgb_backbone"]

AnyBackbone: TypeAlias = Backbone | nn.Module | Callable[[Tensor], Any] | str

PROBE_SIDE = 224  # a multiple of the usual patches: 7, 8, 14, 16, 28, 32


class CallableBackbone(Backbone):
    """A function or module that returns (B, C, h, w), with the facts that it does not carry itself.

    A module is registered, moved by ``.to`` and frozen; a plain function keeps its own state, and
    its input is passed on in the dtype in which it comes.

    Args:
        function: maps an image (B, 3, H, W) to features (B, C, h, w).
        dim: number of feature channels C.
        patch_size: H / h, in pixels.
        image_mean, image_std: the normalisation that the function expects; default: none, RGB in
            [0, 1].
        size_multiple: what H and W must be multiples of; default ``patch_size``.
        layer: for the record only.
        name: how messages and reports call it.

    Example:
        >>> import torch
        >>> from upfeat.backbones import CallableBackbone
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=4, stride=4)
        >>> CallableBackbone(conv, dim=8, patch_size=4)(torch.rand(1, 3, 32, 64)).shape
        torch.Size([1, 8, 8, 16])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        patch_size: int,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        size_multiple: int | None = None,
        layer: int | None = None,
        name: str = "callable",
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"function must map an image to features, got {type(function).__name__}; "
                "pass a function, a lambda or an nn.Module"
            )
        if patch_size != int(patch_size):
            raise ValueError(f"patch_size must be a whole number of pixels, got {patch_size}")
        super().__init__(
            name=name,
            dim=dim,
            patch_size=patch_size,
            image_mean=image_mean,
            image_std=image_std,
            size_multiple=size_multiple,
            layer=layer,
        )
        # nn.Module registers the function if it is a module itself.
        self.function = function
        if isinstance(function, nn.Module):
            self.freeze()

    def _extract(self, image: Tensor) -> Tensor:
        return self.function(image)


class RgbBackbone(Backbone):
    """Gives back the image in [0, 1] from one with ImageNet's mean and deviation: ``image/rgb``.

    An upsampler at ratio 1 then filters the image under its own guidance, as NAF (arXiv 2511.18452)
    restores images.
    """

    def __init__(self) -> None:
        mean, std = IMAGENET
        super().__init__(name="image/rgb", dim=3, patch_size=1, image_mean=mean, image_std=std)

    def _extract(self, image: Tensor) -> Tensor:
        deviation = image.new_tensor(self.image_std)[:, None, None]
        return image * deviation + image.new_tensor(self.image_mean)[:, None, None]


@register_provider("image", names=lambda pretrained: ["rgb"])
def create_rgb_backbone(name: str, weights: Weights = None) -> RgbBackbone:
    """Build ``image/rgb``; called through :func:`upfeat.create_backbone`."""
    if name != "rgb":
        raise UnknownNameError("backbone", f"image/{name}", ["image/rgb"])
    if weights not in (None, "random"):
        raise ValueError(f"image/rgb has no weights, got {weights}; leave them out")
    return RgbBackbone()


def as_backbone(source: AnyBackbone) -> Backbone:
    """Return a frozen backbone made of what a user has.

    * A backbone is returned as it is; a name goes to ``upfeat.create_backbone``.
    * A network of timm gives the features of its last layer, with the final norm, and is
      normalised as its ``pretrained_cfg`` says. Plain transformers built for one size take any.
    * A backbone of transformers (``AutoBackbone``) gives ``feature_maps[-1]``. Nothing in it says
      which normalisation it wants; ImageNet's mean and deviation are taken.
    * Any other function or module maps an image (B, 3, H, W) in [0, 1] to features (B, C, h, w);
      one call with a gray image of 224 x 224 tells C and the stride. Wrap it in
      ``upfeat.CallableBackbone`` to give them, a normalisation and a name.

    Modules are frozen, not copied: their parameters no longer ask for gradients.

    Raises:
        ValueError: ``source`` is none of these, or what it returns is no map.

    Example:
        >>> import torch
        >>> from upfeat.backbones import as_backbone
        >>> backbone = as_backbone(torch.nn.AvgPool2d(8))
        >>> backbone.dim, backbone.patch_size
        (3, 8)
    """
    if isinstance(source, Backbone):
        return source
    if isinstance(source, str):
        return create_backbone(source)
    if hasattr(source, "forward_intermediates") and hasattr(source, "feature_info"):
        return _timm_backbone(source)
    if hasattr(source, "channels") and hasattr(source, "out_features"):
        return _transformers_backbone(source)
    if not callable(source):
        raise ValueError(
            f"a backbone is a name such as 'timm/resnet18.a1_in1k', an upfeat.Backbone, a network "
            f"of timm or transformers, or a function, got {type(source).__name__}"
        )
    name = type(source).__name__ if isinstance(source, nn.Module) else source.__name__
    dim, stride = _probe(source, name)
    return CallableBackbone(source, dim, stride, name=name)


def _timm_backbone(model: Any) -> Backbone:
    from upfeat.backbones.timm_backbone import TimmBackbone, data_config, tied_size

    config = getattr(model, "pretrained_cfg", None) or {}
    parts = (config.get("architecture"), config.get("tag"))
    name = ".".join(part for part in parts if part) or type(model).__name__
    model = _with_any_size(model)
    statistics = data_config(model)
    return TimmBackbone(
        model,
        name=f"timm/{name}",
        image_mean=statistics["mean"],
        image_std=statistics["std"],
        fixed_size=tied_size(model),
    )


def _with_any_size(model: Any) -> Any:
    """Return a plain transformer of timm that resizes its position table, sharing all weights.

    timm decides that when it builds the network (``dynamic_img_size``); what depends on it are the
    three attributes below. Rotary positions are made for one grid, so such networks stay as is.
    """
    embed = getattr(model, "patch_embed", None)
    fixed = getattr(model, "dynamic_img_size", None) is False
    if not fixed or getattr(embed, "flatten", None) is not True or getattr(model, "rope", None):
        return model
    from timm.layers.format import Format

    model, embed = _shallow(model), _shallow(embed)
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    model.dynamic_img_size, model.patch_embed = True, embed
    return model


def _shallow(module: Any) -> Any:
    """Return a copy of a module with the same parameters and children, which it may replace."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other


class _LastMap(nn.Module):
    """The last feature map of a backbone of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model(image).feature_maps[-1]


def _transformers_backbone(model: Any) -> Backbone:
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    network = _LastMap(model)
    dim, stride = _probe(network, name)
    return CallableBackbone(network, dim, stride, *IMAGENET, name=name)


def _probe(function: Callable[[Tensor], Any], name: str) -> tuple[int, int]:
    """Return channels and stride of what a function makes of a gray square."""
    module = function if isinstance(function, nn.Module) else nn.Identity()
    weight = next(module.parameters(), torch.empty(0))
    was_training = module.training
    side = PROBE_SIDE
    gray = torch.full((1, 3, side, side), 0.5, dtype=weight.dtype, device=weight.device)
    advice = (
        "give a function that maps (B, 3, H, W) to (B, C, h, w) in "
        "upfeat.CallableBackbone(function, dim=C, patch_size=H // h); of transformers, load "
        "transformers.AutoBackbone"
    )
    module.eval()
    try:
        with torch.no_grad():
            found = function(gray)
    except Exception as error:
        raise ValueError(
            f"{name} does not take an image (1, 3, {side}, {side}) ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'}); {advice}"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(found, Tensor) or found.dim() != 4 or len(found) != 1:
        got = shape_text(found) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} returned {got} for one image, wanted (1, C, h, w); {advice}")
    stride, rest = divmod(side, found.shape[-1])
    if rest or found.shape[-2] != found.shape[-1]:
        raise ValueError(
            f"{name} returned {shape_text(found)} for an image of {side} x {side}, which is no "
            f"whole stride; {advice}"
        )
    return found.shape[1], stride
