"""The contract of every backbone, and the registry of the providers that make them.

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid. Sizes are
``(height, width)``.

A backbone is named ``provider/name``: ``timm/vit_small_patch14_dinov2.lvd142m``. A provider is a
function that builds a backbone from the part after the slash; :func:`register_provider` puts it on
the list. The module of a built-in provider is imported on first use, and not before.
"""

import fnmatch
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from upfeat._compat import is_exporting
from upfeat._settings import read_call
from upfeat.errors import (
    UnknownNameError,
    UnsupportedError,
    check_map,
    check_normalization,
    check_size,
    shape_text,
)
from upfeat.layers.raw_images import warn_of_raw_image

Weights = str | os.PathLike[str] | None

# Mean and deviation of images, RGB in [0, 1], that networks were trained with.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Backbone(nn.Module):
    """A frozen network that turns an image into a coarse map of features.

    A subclass calls ``super().__init__(...)``, stores its network, calls :meth:`freeze` and
    implements ``_extract``. Parameters need no gradient and :meth:`train` leaves everything in
    evaluation mode, but nothing runs under ``no_grad``: gradients flow from the features to the
    image.

    Args:
        name: the spec that made it, such as ``"timm/resnet18.a1_in1k"``.
        dim: number of feature channels C.
        patch_size: distance of two neighbouring features in image pixels, the total stride.
        image_mean, image_std: normalisation of the image, per channel, RGB in [0, 1].
        size_multiple: height and width of the image must be multiples of it; default
            ``patch_size``.
        layer: index of the layer that the features come from, counted from 0; None if there is no
            choice.
        fixed_size: the only image size (H, W) that the network takes; None if it takes any.

    The arguments are attributes of the same names.
    """

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        patch_size: int | float,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_multiple: int | None = None,
        layer: int | None = None,
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_normalization(image_mean, image_std)
        multiple = patch_size if size_multiple is None else size_multiple
        if dim < 1 or patch_size <= 0 or multiple < 1 or multiple != int(multiple):
            raise ValueError(
                "dim, patch_size and size_multiple must be positive and size_multiple whole, got "
                f"{dim}, {patch_size} and {multiple}"
            )
        self._warned_of: set[str] = set()
        self.name = name
        self.dim = dim
        self.patch_size = patch_size
        self.image_mean = tuple(float(value) for value in image_mean)
        self.image_std = tuple(float(value) for value in image_std)
        self.size_multiple = int(multiple)
        self.layer = layer
        self.fixed_size = fixed_size

    def freeze(self) -> Self:
        """Put everything in evaluation mode and ask no parameter for a gradient."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever ``mode`` is, also as a part of a model in training."""
        return super().train(False)

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return the feature grid (h, w) of an image of size (H, W)."""
        height, width = image_size
        return int(height / self.patch_size), int(width / self.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the features of an image.

        Args:
            image: (B, 3, H, W), normalised with ``image_mean`` and ``image_std`` (see
                ``Upsampler.prepare``), H and W multiples of ``size_multiple``. It is cast to the
                dtype of the weights. An image in [0, 1] or [0, 255] where that is wrong is warned
                of once.

        Returns:
            Features (B, C, h, w) in the dtype of the weights, C = ``dim``, (h, w) = ``grid_size((H,
            W))``.

        Raises:
            ValueError: wrong rank, channels, dtype, size or device; the message says what would
                work.
        """
        exporting = is_exporting()  # sizes may be symbols
        if not exporting:
            self._check(image)
        features = self._extract(self._ready(image))
        if not exporting:
            self._check_features(image, features)
        return features

    def class_token(self, image: Tensor) -> Tensor:
        """Compute the token (B, C) that stands for the whole image, of the same layer and norm.

        Args:
            image: as :meth:`forward` takes it.

        Raises:
            UnsupportedError: the network has none, as convolutional ones.
            ValueError: as :meth:`forward`.
        """
        self._check(image)
        return self._class_token(self._ready(image))

    def _extract(self, image: Tensor) -> Tensor:
        """Compute (B, C, h, w) from a checked image (B, 3, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must implement _extract")

    def _class_token(self, image: Tensor) -> Tensor:
        """Compute (B, C) from a checked image; networks with a class token override it."""
        raise UnsupportedError(
            f"{self.name} has no class token; choose a transformer with one, or do without"
        )

    def _ready(self, image: Tensor) -> Tensor:
        """Warn of an image that is not normalised; return it in the dtype of the weights."""
        warn_of_raw_image(self._warned_of, image, self.image_mean, self.image_std, self.name)
        dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
        return image.to(next(dtypes, image.dtype))

    def _check(self, image: Tensor) -> None:
        check_map(image, "image", "(B, 3, H, W)")
        if image.shape[1] != 3:
            channels_last = image.shape[-1] == 3
            fit = "permute (B, H, W, 3) to (B, 3, H, W)" if channels_last else "convert it to RGB"
            raise ValueError(
                f"image must have 3 channels (B, 3, H, W), got {shape_text(image)}; {fit}"
            )
        self.check_image_size(tuple(image.shape[-2:]))
        weight = next(self.parameters(), None)
        if weight is not None and weight.device != image.device:
            raise ValueError(
                f"the weights of {self.name} are on {weight.device}, the image is on "
                f"{image.device}; move one of them with .to(device)"
            )

    def check_image_size(self, image_size: Sequence[int]) -> None:
        """Raise ``ValueError``, naming sizes that would work, unless the backbone takes (H, W)."""
        size = check_size(image_size, "image_size")
        if self.fixed_size is not None:
            if size != self.fixed_size:
                raise ValueError(
                    f"{self.name} takes images of {self.fixed_size} only, got {size}; resize the "
                    "image or build the backbone with image_size=(height, width)"
                )
            return
        multiple = self.size_multiple
        if size[0] % multiple or size[1] % multiple:
            below = tuple(max(n // multiple, 1) * multiple for n in size)
            above = tuple(-(-n // multiple) * multiple for n in size)
            works = f"{above} would work" if below == above else f"{below} and {above} would work"
            raise ValueError(
                f"{self.name} needs image sizes that are multiples of {multiple}, got {size}; "
                f"{works}: crop, pad or resize, or let upfeat.Pipeline do it"
            )

    def _check_features(self, image: Tensor, features: Any) -> None:
        expected = (image.shape[0], self.dim, *self.grid_size(tuple(image.shape[-2:])))
        if not isinstance(features, Tensor) or tuple(features.shape) != expected:
            got = shape_text(features) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"{self.name} must return a tensor (B, C, h, w) of shape {expected} for an image "
                f"{shape_text(image)}, but returned {got}; correct dim={self.dim} or "
                f"patch_size={self.patch_size}, drop prefix tokens and reshape tokens to a grid"
            )

    def extra_repr(self) -> str:
        """Show name, width, stride and layer in ``print(backbone)``."""
        return f"{self.name!r}, dim={self.dim}, patch_size={self.patch_size}, layer={self.layer}"


# -- providers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Provider:
    create: Callable[..., Backbone]
    names: Callable[[bool], list[str]]


# The modules that register the built-in prefixes when they are imported.
_BUILT_IN = {
    "clip": "upfeat.backbones.clip_backbone",
    "image": "upfeat.backbones.wrapping",
    "radio": "upfeat.backbones.radio_backbone",
    "timm": "upfeat.backbones.timm_backbone",
    "upfeat": "upfeat.backbones.upfeat_vit",
}
_providers: dict[str, _Provider] = {}


def register_provider(
    prefix: str, names: Callable[[bool], list[str]]
) -> Callable[[Callable[..., Backbone]], Callable[..., Backbone]]:
    """Register a function as the maker of all backbones called ``prefix/...``.

    The function is called as ``function(name, weights=weights, **options)`` with the part of the
    spec after the slash and must refuse options that it does not know.

    Args:
        prefix: the part before the slash.
        names: ``names(pretrained)`` returns the names, without prefix, that the provider knows, or
            only those with published weights.

    Raises:
        ValueError: the prefix is taken or holds a slash.

    Example:
        >>> from upfeat.backbones import CallableBackbone, create_backbone, register_provider
        >>> @register_provider("doctest", names=lambda pretrained: ["rgb"])
        ... def make(name, weights=None):
        ...     return CallableBackbone(lambda image: image, 3, 1, name=f"doctest/{name}")
        >>> create_backbone("doctest/rgb").dim
        3
    """
    if "/" in prefix or not prefix:
        raise ValueError(f"a provider's prefix must be a word without a slash, got {prefix!r}")

    def decorate(create: Callable[..., Backbone]) -> Callable[..., Backbone]:
        known = _providers.get(prefix)
        if known is not None and known.create.__qualname__ != create.__qualname__:
            raise ValueError(f"the prefix {prefix!r} is taken by {known.create.__qualname__}")
        _providers[prefix] = _Provider(create, names)
        return create

    return decorate


def _provider(prefix: str) -> _Provider | None:
    if prefix not in _providers and prefix in _BUILT_IN:
        importlib.import_module(_BUILT_IN[prefix])
    return _providers.get(prefix)


def create_backbone(
    spec: str,
    weights: Weights = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Backbone:
    """Build a frozen backbone from its name.

    Args:
        spec: ``provider/name`` or ``provider/name(option=value)``; ``timm/<any timm name>``,
            ``clip/<name of open_clip>``, ``radio/<version>``, ``upfeat/vit_compact_patch16``, or
            what :func:`register_provider` added. :func:`list_backbones` lists them.
        weights: a file (safetensors or a plain PyTorch state dict); None looks in the folder
            ``$UPFEAT_WEIGHTS``, the local cache and the hub, in this order; ``"random"`` keeps the
            random initialisation (seed it with ``torch.manual_seed``), for tests of an
            architecture.
        device: where the backbone goes; None: the CPU.
        dtype: its floating point type; None: float32.
        **options: what the provider takes; those written in ``spec`` win. ``timm/``: ``layer=-1``,
            ``norm=True``, ``image_size=None`` and the constructor arguments of the network.

    Raises:
        UnknownNameError: no such provider or name; the message lists close matches.
        WeightsNotFoundError: no weights in any of the four places.
        CheckpointError: the file does not fit.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone
        >>> backbone = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=2)
        >>> backbone(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 192, 4, 6])
    """
    text, written = read_call(str(spec), "a backbone")
    weights = written.pop("weights", weights)
    prefix, slash, name = text.partition("/")
    if not slash or not name:
        raise UnknownNameError("backbone", text, _likely_specs(prefix))
    provider = _provider(prefix)
    if provider is None:
        known = [f"{p}/{name}" for p in {*_BUILT_IN, *_providers}]
        raise UnknownNameError("backbone provider", spec, known)
    try:
        backbone = provider.create(name, weights=weights, **{**options, **written})
    except TypeError as error:
        if not written or "keyword argument" not in str(error):
            raise
        raise ValueError(f"{spec} does not fit: {error}") from error
    return backbone.to(device=device, dtype=dtype)


def _likely_specs(name: str) -> list[str]:
    """Return specs that a name without a provider may mean, and the form of all."""
    architecture, _, tag = name.casefold().partition(".")
    likely = []
    for prefix in sorted({*_BUILT_IN, *_providers}):
        provider = _provider(prefix)
        for known in () if provider is None else provider.names(False):
            if known.casefold() in (architecture, name.casefold()):
                with_tag = f"{known}.{tag}" if tag and known.casefold() == architecture else known
                likely.append(f"{prefix}/{with_tag}")
    return [*likely, *(f"{prefix}/<name>" for prefix in {*_BUILT_IN, *_providers})]


def list_backbones(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """List the names that :func:`create_backbone` takes.

    Args:
        pattern: shell wildcards, matched with the whole name.
        pretrained: list only names with published weights; for timm ``architecture.tag``.

    Example:
        >>> from upfeat.backbones import list_backbones
        >>> "timm/vit_tiny_patch16_224" in list_backbones("timm/vit_tiny*")
        True
    """
    specs: list[str] = []
    for prefix in sorted({*_BUILT_IN, *_providers}):
        # A pattern whose prefix is spelled out needs no other provider, whose import may be slow.
        if "/" in pattern and not fnmatch.fnmatchcase(prefix, pattern.partition("/")[0]):
            continue
        provider = _provider(prefix)
        if provider is not None:
            specs += [f"{prefix}/{name}" for name in provider.names(pretrained)]
    return fnmatch.filter(specs, pattern)
