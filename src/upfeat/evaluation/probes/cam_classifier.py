"""A classifier of timm that explains itself: activations of a layer, and gradients of a class.

Legend: ``B`` images, ``C`` channels of the layer, ``h w`` its grid, ``H W`` image, ``N`` tokens.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from upfeat._compat import ensure_torchvision_operators
from upfeat.backbones import Backbone, create_backbone
from upfeat.errors import UnsupportedError, shape_text
from upfeat.evaluation.metrics import gradcam_weights

Side = Literal["input", "output"]


class Explanation(NamedTuple):
    """What Grad-CAM needs of one image and class; ``weights`` are mean gradients of its logit."""

    activations: Tensor  # (1, C, h, w)
    weights: Tensor  # (1, C)
    probability: Tensor  # (1,) float64
    target: int


class CamClassifier:
    """A frozen network of timm with its classifier, and the layer of its maps.

    Args:
        backbone: ``timm/…`` built with its classifier, see :func:`create_classifier`.
        layer: path of a module in the network; negative numbers count from its last child. None
            for the last block of a transformer, or the last stage of another network.
        side: of that module; None for its output, or without ``layer`` the usual one: what enters
            a transformer's last block, behind which patch tokens reach no class token any more.

    Attributes:
        layer, side: the resolved choice.
        num_classes: of the classifier.
        crop_fraction: of the resized short side that the network was evaluated on.

    Raises:
        UnsupportedError: the backbone is not of timm or has no classifier.
        ValueError: no such layer; the message lists what is there.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone
        >>> from upfeat.evaluation.probes.cam_classifier import CamClassifier
        >>> options = {"depth": 2, "num_classes": 5}
        >>> vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", **options)
        >>> classifier = CamClassifier(vit)
        >>> classifier.layer, classifier.side
        ('blocks.1', 'input')
        >>> classifier.explain(torch.rand(1, 3, 32, 48)).activations.shape
        torch.Size([1, 192, 2, 3])
    """

    def __init__(
        self, backbone: Backbone, layer: str | None = None, side: Side | None = None
    ) -> None:
        model = getattr(backbone, "model", None)
        if not isinstance(model, nn.Module) or not getattr(model, "num_classes", 0):
            raise UnsupportedError(
                f"{backbone.name} has no classifier; take a network of timm that has one, and "
                "build it with upfeat.evaluation.probes.cam_classifier.create_classifier"
            )
        self.backbone, self.model = backbone, model
        self.num_classes = int(getattr(model, "num_classes", 0))
        chosen, usual = _default_layer(model)
        self.layer, self._module = _find(model, layer or chosen, backbone.name)
        self.side: Side = side or (usual if layer is None else "output")
        self.crop_fraction = _crop_fraction(model)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, 3, H, W)."""
        self.backbone.check_image_size(pixels.shape[-2:])
        with torch.no_grad():
            logits: Tensor = self.model(pixels)
        return logits

    def explain(self, pixels: Tensor, target: int | None = None) -> Explanation:
        """Return activations, weights and probability of a class; None is the most probable one.

        Raises:
            UnsupportedError: the layer has no map, or the class's score does not depend on it.
        """
        self.backbone.check_image_size(pixels.shape[-2:])
        with _Tap(self._module, self.side) as tap, torch.enable_grad():
            logits = self.model(pixels)
        if target is None:
            target = int(logits.argmax())
        found = tap.tensor
        (gradient,) = torch.autograd.grad(logits[0, target], found, materialize_grads=True)
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        activations, gradients = self._map(found.detach(), size), self._map(gradient, size)
        if not bool(gradients.any()):
            raise UnsupportedError(
                f"the score of a class does not depend on the {self.side} of {self.layer} in "
                f"{self.backbone.name}, but for its class token; choose an earlier layer"
            )
        probability = logits.detach().double().softmax(1)[:, target]
        return Explanation(activations, gradcam_weights(gradients), probability, target)

    @torch.no_grad()
    def activations(self, pixels: Tensor) -> Tensor:
        """Return the activations (B, C, h, w) of the layer for images (B, 3, H, W), normalised."""
        with _Tap(self._module, self.side) as tap:
            self.model(pixels)
        return self._map(tap.tensor.detach(), (int(pixels.shape[2]), int(pixels.shape[3])))

    def as_backbone(self, image_size: tuple[int, int]) -> Backbone:
        """Return the layer's activations as the features of a backbone, for images of one size."""
        weight = next(self.model.parameters())
        grid = self.activations(weight.new_zeros(1, 3, *image_size)).shape
        return _LayerBackbone(self, image_size, (int(grid[1]), int(grid[2]), int(grid[3])))

    def _map(self, tensor: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return (B, C, h, w) of what the layer holds: a map, or tokens (B, N, C)."""
        if tensor.dim() == 4:
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            # (B, h, w, C) -> (B, C, h, w)
            return tensor.permute(0, 3, 1, 2) if channels_last else tensor
        grid = self.backbone.grid_size(image_size)
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        if tensor.dim() != 3 or tensor.shape[1] != prefix + grid[0] * grid[1]:
            raise UnsupportedError(
                f"the {self.side} of {self.layer} in {self.backbone.name} is {shape_text(tensor)}, "
                f"neither a map nor {prefix} and {grid[0]} x {grid[1]} tokens; choose another layer"
            )
        # (B, N, C) -> (B, h w, C) -> (B, C, h w) -> (B, C, h, w)
        return tensor[:, prefix:].transpose(1, 2).unflatten(2, grid)


class _LayerBackbone(Backbone):
    """The activations (C, h, w) of a classifier's layer, for images of one size."""

    def __init__(
        self, classifier: CamClassifier, image_size: tuple[int, int], shape: tuple[int, int, int]
    ) -> None:
        backbone = classifier.backbone
        super().__init__(
            name=backbone.name,
            dim=shape[0],
            patch_size=image_size[0] / shape[1],
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            size_multiple=backbone.size_multiple,
            fixed_size=image_size,
        )
        self.classifier, self.grid = classifier, shape[1:]

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        return self.grid

    def _extract(self, image: Tensor) -> Tensor:
        return self.classifier.activations(image)


class _Tap:
    """Replace what enters or leaves a module by a leaf, so that gradients start there."""

    def __init__(self, module: nn.Module, side: Side) -> None:
        self.module, self.side = module, side
        self.found: Tensor | None = None

    def __enter__(self) -> "_Tap":
        if self.side == "input":
            self.handle = self.module.register_forward_pre_hook(
                lambda module, inputs: (self._take(inputs[0]), *inputs[1:])
            )
        else:
            self.handle = self.module.register_forward_hook(
                lambda module, inputs, output: self._take(output)
            )
        return self

    def __exit__(self, *problem: object) -> None:
        self.handle.remove()

    def _take(self, tensor: Any) -> Tensor:
        if not isinstance(tensor, Tensor) or self.found is not None:
            raise UnsupportedError(
                f"{type(self.module).__name__} gives a {type(tensor).__name__} or runs several "
                "times; choose a layer that gives one tensor, once"
            )
        self.found = tensor.detach().requires_grad_()
        return self.found

    @property
    def tensor(self) -> Tensor:
        """What the module was given or gave."""
        if self.found is None:
            raise UnsupportedError(
                f"{type(self.module).__name__} does not run when an image is classified; choose "
                "another layer"
            )
        return self.found


def create_classifier(spec: str, weights: str | os.PathLike[str] | None = None) -> Backbone:
    """Build a network of timm with the classifier that its weights come with.

    Args:
        spec: ``timm/NAME`` or ``timm/NAME.TAG``.
        weights: as for :func:`upfeat.create_backbone`.

    Raises:
        UnsupportedError: not of timm, or its weights have no classifier.
        UnknownNameError: timm has no such network.
        WeightsNotFoundError: no weights in any of the places of the lookup.

    Example:
        >>> from upfeat.evaluation.probes.cam_classifier import CamClassifier, create_classifier
        >>> resnet = CamClassifier(create_classifier("timm/resnet10t", "random"))
        >>> resnet.num_classes, resnet.layer, resnet.side
        (1000, 'layer4', 'output')
    """
    prefix, _, name = spec.partition("/")
    if prefix != "timm":
        raise UnsupportedError(f"class activation maps take a classifier, timm/NAME, got {spec!r}")
    ensure_torchvision_operators()
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    # A name that timm does not know is refused with a list of close ones when it is built.
    number = 1000 if config is None else int(config.num_classes)
    if number < 1:
        raise UnsupportedError(f"the weights of {spec} have no classifier; take another tag")
    return create_backbone(spec, weights=weights, num_classes=number)


def _default_layer(model: nn.Module) -> tuple[str, Side]:
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(model, "patch_embed"):
        return "blocks.-1", "input"
    infos: Any = getattr(model, "feature_info", None)
    last = list(getattr(infos, "info", infos))[-1]
    return str(last["module"]), "output"


def _find(model: nn.Module, path: str, name: str) -> tuple[str, nn.Module]:
    """Return the path without negative numbers, and its module."""
    parts: list[str] = []
    module = model
    for part in path.split("."):
        children = dict(module.named_children())
        key = part
        if part.startswith("-") and part[1:].isdigit() and 0 < int(part[1:]) <= len(children):
            key = list(children)[int(part)]
        if key not in children:
            raise ValueError(
                f"{name} has no layer {path!r}: {'.'.join(parts) or 'the network'} has "
                f"{', '.join(children) or 'no parts'}, and no {part!r}"
            )
        parts.append(key)
        module = children[key]
    return ".".join(parts), module


def _crop_fraction(model: nn.Module) -> float:
    from timm.data import resolve_model_data_config

    return float(resolve_model_data_config(model)["crop_pct"])
