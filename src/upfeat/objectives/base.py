"""The contract of every training objective.

An objective turns a batch of images, a frozen backbone and an upsampler into a loss. It knows the
contracts of the two, never a method's name; it holds no optimiser and no loop.

The life of an objective in a training run::

    objective = MaskRefinedConfig(alpha=0.8).build()
    objective.prepare(upsampler, backbone)  # refuses what cannot work, builds its parts
    parameters = [*upsampler.parameters(), *objective.parameters()]  # those that take gradients
    for step, batch in enumerate(batches, start=1):
        terms = objective.step(batch, backbone, upsampler, generator)
        terms["loss"].backward()  # and the optimiser's step
        objective.after_step(step, upsampler)

Everything that an objective keeps (a teacher, a learned downsampler) is in its ``state_dict()``;
load it after ``prepare``. All draws come from the ``generator``, so that its state beside the
weights resumes a run exactly; an upsampler with draws of its own (NAF's jitter of positions) takes
them from torch's global generator.

Legend: ``B`` batch, ``C`` channels, ``M`` masks, ``H W`` image, ``h w`` feature grid.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat._settings import Settings
from upfeat.errors import UnknownNameError, UnsupportedError, check_map, shape_text
from upfeat.objectives._networks import (
    Backbones,
    Calls,
    as_backbones,
    backbone_features,
    draw_backbone,
    guidance_image,
    normalises_features,
    one_call,
    size_of,
    try_call,
    unwrap,
)
from upfeat.objectives.losses import to_float32
from upfeat.objectives.masks import check_masks, resize_masks
from upfeat.ops import channel_norm
from upfeat.ops.images import Size, resize_bilinear, scale_size

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.base import Upsampler

__all__ = [
    "Batch",
    "Calls",
    "Objective",
    "ObjectiveConfig",
    "configure_objective",
    "create_objective",
    "list_objectives",
    "register_objective",
]

Batch = Mapping[str, Any]
"""``"image"`` (B, 3, H, W) in [0, 1]; some objectives also ``"masks"`` (B, M, H, W), positive
inside, padded with maps of -1; ``"depth"`` (B, 1, H, W); stored ``"target"`` (B, C, H, W)."""

FeatureSpace = Literal["auto", "raw", "channel_norm"]

RANGE_SLACK = 1e-3  # resizing may step over the ends of [0, 1] by rounding


class ObjectiveConfig(Settings):
    """What all objectives have in common; :meth:`build` makes the objective.

    A subclass narrows ``name`` to its own and gives it as the default.

    Attributes:
        name: of the objective.
        feature_space: where the upsampler's inputs and the targets live. ``"raw"``: the backbone's
            features as they come. ``"channel_norm"``: each pixel's features with mean 0 and
            standard deviation 1 over the channels, as in LoftUp's training, whose network begins
            and ends in such a norm. ``"auto"``: the latter for methods that regress features
            (``info.abilities.mixes_values`` is False), the former for those that mix the features
            they are given. The targets of a method with a ``feature_scale`` have that standard
            deviation instead of 1. A method without a norm of its own that is trained in the
            ``"channel_norm"`` space keeps ``info.feature_norm``: its inputs are normalised
            wherever it is called from then on.
    """

    name: str
    feature_space: FeatureSpace = "auto"

    def build(self) -> "Objective":
        """Return the objective that this configures."""
        return _registered(self.name)[1](self)


class Objective(nn.Module):
    """Base class of all training objectives.

    A subclass implements ``_step``, ``_plan`` unless it makes one call to the image's size, and
    ``_prepare`` if it has parts to build.

    Args:
        config: what it does, an instance of its own config class.

    Attributes:
        name: under which it is registered.
        batch_keys: what a batch must hold.
        several_backbones: whether one run may use more than one backbone.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.objectives import create_objective
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> upsampler = upfeat.create_upsampler("anyup", qk_dim=8)
        >>> objective = create_objective("multi_resolution")
        >>> objective.prepare(upsampler, backbone)
        >>> batch = {"image": torch.rand(2, 3, 48, 48)}
        >>> sorted(objective.step(batch, backbone, upsampler, torch.Generator()))
        ['loss', 'main', 'regulariser']
    """

    name: ClassVar[str]
    batch_keys: ClassVar[tuple[str, ...]] = ("image",)
    several_backbones: ClassVar[bool] = True
    config: ObjectiveConfig

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self._prepared = False
        self.feature_space: FeatureSpace = config.feature_space
        self.feature_scale = 1.0
        self.normalise_inputs = False
        self._admitted: set[tuple[Any, ...]] = set()

    # -- calling ---------------------------------------------------------------------------------

    def check(
        self, upsampler: nn.Module, backbone: Backbones, image_size: Sequence[int] | None = None
    ) -> None:
        """Raise before the first step what could only fail in it.

        Args:
            upsampler: what shall be trained.
            backbone: one, or several to draw from.
            image_size: (H, W) of the batches; without it sizes are checked in the first step.

        Raises:
            UnsupportedError: this objective cannot train that upsampler.
            ValueError: widths or sizes do not fit.
        """
        model, backbones = unwrap(upsampler), as_backbones(backbone)
        self._check_model(model, backbones)
        if image_size is None:
            return
        height, width = image_size
        for chosen in backbones:
            plan = self._plan(scale_size((height, width), 1.0, self._multiple(chosen)), chosen)
            for backbone_size in plan.backbone_images:
                chosen.check_image_size(backbone_size)
            for call in plan.calls:
                try_call(model, chosen, call, self.name)

    def prepare(
        self, upsampler: nn.Module, backbone: Backbones, image_size: Sequence[int] | None = None
    ) -> None:
        """Check and build everything that depends on the networks; call it once, before training.

        Arguments and errors are those of :meth:`check`. The upsampler has the weights that it
        starts from; its ``info.feature_norm`` is set as the space of the features asks.
        """
        self.check(upsampler, backbone, image_size)
        model, backbones = unwrap(upsampler), as_backbones(backbone)
        if self.config.feature_space == "auto":
            mixes = model.info.abilities.mixes_values
            self.feature_space = "raw" if mixes else "channel_norm"
        model.info = dataclasses.replace(model.info, feature_norm=False)
        normed = normalises_features(model)
        self.normalise_inputs = self.feature_space == "channel_norm" and not normed
        model.info = dataclasses.replace(model.info, feature_norm=self.normalise_inputs)
        self.feature_scale = model.feature_scale
        self._prepare(model, backbones)
        self.to(device=next(model.parameters()).device)
        self._prepared = True

    def step(
        self, batch: Batch, backbone: Backbones, upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the loss of one batch.

        Args:
            batch: holds ``batch_keys``; the images are not normalised, that is done here, for the
                backbone and for the upsampler. Sides that are no multiples of what the backbone
                takes are resized to the nearest ones.
            backbone: one, or several: first a patch size is drawn among those present, then one
                of the backbones with it (AnyUp's rule).
            upsampler: called as it is given, so it may be wrapped for parallel training.
            generator: source of all draws; on the CPU they are the same for every device.

        Returns:
            ``"loss"``, a scalar to call ``backward`` on, and its detached terms before weighting.

        Raises:
            ValueError: not prepared, a key is missing, or shapes do not fit.
        """
        if not self._prepared:
            raise ValueError(
                f"{self.name} is not prepared; call objective.prepare(upsampler, backbone) before "
                "the first step, and before the optimiser is built"
            )
        backbones = as_backbones(backbone)
        self._admit(batch, backbones, upsampler)
        chosen = draw_backbone(backbones, generator)
        return self._step(_fitted(batch, self._multiple(chosen)), chosen, upsampler, generator)

    def after_step(self, step: int, upsampler: nn.Module) -> None:
        """Do what follows the optimiser's step number ``step``, counted from 1; default nothing."""

    # -- for subclasses --------------------------------------------------------------------------

    def _step(
        self, batch: Batch, backbone: "Backbone", upsampler: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must implement _step")

    def _plan(self, image_size: Size, backbone: "Backbone") -> Calls:
        """Return the calls of a step with images of that (fitted) size; default one to its size."""
        return one_call(image_size, backbone)

    def _upsampled(
        self, image: Tensor, backbone: "Backbone", upsampler: nn.Module, size: Size | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return an image's features (B, C, h, w) and their map (B, C, H', W'), by default (H, W).

        The image (B, 3, H, W) in [0, 1] is the guidance.
        """
        features = backbone_features(backbone, image)
        guidance = guidance_image(upsampler, backbone, image)
        return features, upsampler(guidance, self.source(features), size)

    def _prepare(self, upsampler: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        """Build parts that need the networks."""

    def _multiple(self, backbone: "Backbone") -> int:
        """What the sides of the batch's images must be multiples of."""
        return backbone.size_multiple

    @staticmethod
    def weighted_sum(terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
        """Return ``"loss"`` = sum of weight x term, and each term, detached and unweighted."""
        loss = torch.stack([weight * to_float32(term) for weight, term in terms.values()]).sum()
        return {"loss": loss, **{name: term.detach() for name, (_, term) in terms.items()}}

    def source(self, features: Tensor) -> Tensor:
        """Bring backbone features (B, C, h, w) into the space in which the upsampler reads them.

        A method whose own first layer normalises them gets them as they come.
        """
        return channel_norm(features).to(features.dtype) if self.normalise_inputs else features

    def target(self, features: Tensor) -> Tensor:
        """Bring backbone features (B, C, h, w) into the space of the targets."""
        if self.feature_space != "channel_norm":
            return features
        return channel_norm(features) * self.feature_scale

    # -- checks ----------------------------------------------------------------------------------

    def _check_model(self, model: "Upsampler", backbones: Sequence["Backbone"]) -> None:
        info = model.info
        if info.abilities.per_image:
            raise UnsupportedError(
                f"{info.name} optimises one image at test time; there is nothing to train before"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise UnsupportedError(
                f"{info.name} has no parameter that takes a gradient, so {self.name} cannot train "
                "it; choose a method with weights, or unfreeze it with requires_grad_(True)"
            )
        if len(backbones) > 1 and not self.several_backbones:
            raise UnsupportedError(
                f"{self.name} has parts built for one backbone, got {len(backbones)}; train with "
                "one, or switch those parts off"
            )
        width = model.config.get("feature_dim")
        for backbone in backbones:
            if width not in (None, backbone.dim):
                raise UnsupportedError(
                    f"{info.name} was built for feature_dim={width}, {backbone.name} has "
                    f"{backbone.dim} channels; build it for that width, or train a universal "
                    "method on several backbones"
                )
            if backbone.fixed_size is not None:
                raise UnsupportedError(
                    f"{backbone.name} takes images of {backbone.fixed_size} only, {self.name} "
                    "needs several sizes; build the backbone without a fixed size"
                )
        if self.config.feature_space == "channel_norm" and info.abilities.mixes_values:
            raise UnsupportedError(
                f"{info.name} mixes the features it is given, so its output cannot live in the "
                "channel-normalised space; use feature_space='raw' or 'auto'"
            )

    def _admit(self, batch: Batch, backbones: Sequence["Backbone"], upsampler: nn.Module) -> None:
        """Check keys and shapes of every batch; values and sizes once for each image size."""
        missing = [key for key in self.batch_keys if key not in batch]
        if missing:
            raise ValueError(
                f"{self.name} needs the batch keys {self.batch_keys}, got {tuple(batch)} without "
                f"{missing}; choose a data set with them"
            )
        image = batch["image"]
        check_map(image, "image", "(B, 3, H, W)")
        if image.shape[1] != 3:
            raise ValueError(f"image must have 3 channels (B, 3, H, W), got {shape_text(image)}")
        if "masks" in self.batch_keys:
            check_masks(batch["masks"], len(image))
        key = (tuple(image.shape[-2:]), *map(id, backbones))
        if key in self._admitted:
            return
        low, high = image.amin().item(), image.amax().item()
        if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
            raise ValueError(
                f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]; do not normalise them, "
                "the objective does it for the backbone and for the upsampler"
            )
        self.check(upsampler, backbones, tuple(image.shape[-2:]))
        self._admitted.add(key)


def _fitted(batch: Batch, multiple: int) -> Batch:
    """Resize image, masks and depth to the nearest multiples, if they are none."""
    image = batch["image"]
    size_given = size_of(image)
    size = scale_size(size_given, 1.0, multiple)
    if size == size_given:
        return batch
    fitted = {**batch, "image": resize_bilinear(image, size)}
    if "masks" in batch:
        fitted["masks"] = resize_masks(batch["masks"], size)
    if "depth" in batch:
        fitted["depth"] = F.interpolate(batch["depth"], size, mode="nearest")
    return fitted


# -- registry ----------------------------------------------------------------------------------

_OBJECTIVES: dict[str, tuple[type[ObjectiveConfig], type[Objective]]] = {}
ObjectiveClass = TypeVar("ObjectiveClass", bound=type[Objective])


def register_objective(config: type[ObjectiveConfig]) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """Return a class decorator that enters an objective under the name that its config has.

    Args:
        config: its own settings, with the name as the default of ``name``.

    Raises:
        ValueError: the name is taken.
    """
    name = config.model_fields["name"].default
    if name in _OBJECTIVES:
        raise ValueError(f"an objective named {name!r} is registered already; choose another name")

    def decorate(cls: ObjectiveClass) -> ObjectiveClass:
        cls.name = name
        _OBJECTIVES[name] = (config, cls)
        return cls

    return decorate


def _registered(name: str) -> tuple[type[ObjectiveConfig], type[Objective]]:
    if name not in _OBJECTIVES:
        raise UnknownNameError("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name]


def list_objectives() -> list[str]:
    """Return the names that :func:`create_objective` takes, sorted."""
    return sorted(_OBJECTIVES)


def configure_objective(name: str, **options: Any) -> ObjectiveConfig:
    """Return the settings of the objective of a name.

    Args:
        name: one of :func:`list_objectives`.
        **options: those that differ from the defaults; lists stand for tuples, dictionaries for
            nested settings, as JSON has them.

    Raises:
        UnknownNameError: no such objective or option; the message names the nearest ones.
        ValueError: an option's value does not fit.

    Example:
        >>> from upfeat.objectives import configure_objective
        >>> configure_objective("multi_resolution", scale=[0.5, 0.5]).scale
        (0.5, 0.5)
    """
    return _registered(name)[0](**options)


def create_objective(name: str, **options: Any) -> Objective:
    """Build an objective; arguments and errors are those of :func:`configure_objective`."""
    return configure_objective(name, **options).build()
