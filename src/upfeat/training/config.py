"""The settings of a training run: one nested, checked, frozen object that JSON can hold.

A recipe returns a :class:`TrainConfig`; ``a.b=c`` changes it through :func:`apply_overrides`; the
run folder keeps it as ``config.json``. It is typed down to the arguments of the objective, of the
upsampler and of the sources of masks: what they would refuse is refused here.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from upfeat._files import write_bytes
from upfeat._settings import Settings, Share, Sides, check_arguments
from upfeat.data.masks import LabelMaskSource, Sa1bMaskSource, SuperpixelMaskSource
from upfeat.data.sam_masks import SamMaskSource
from upfeat.errors import UnknownNameError
from upfeat.objectives import ObjectiveConfig, configure_objective
from upfeat.upsamplers.registry import get_class

MASK_SOURCES: dict[str, type] = {
    "sa1b": Sa1bMaskSource,
    "labels": LabelMaskSource,
    "superpixels": SuperpixelMaskSource,
    "sam": SamMaskSource,
}


class BackboneConfig(Settings):
    """One frozen backbone that the upsampler is trained for.

    Attributes:
        name: spec of ``upfeat.create_backbone``.
        weights: a file, ``"random"`` or None for the usual lookup.
        options: further arguments of ``create_backbone``, such as ``{"layer": 8}``.
    """

    name: str
    weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class UpsamplerConfig(Settings):
    """What is trained.

    Attributes:
        name: architecture, or ``arch.tag`` to start from published weights.
        config: constructor arguments; ``feature_dim`` is filled in from the backbone.
        start_from: a file or a folder of ``save_pretrained`` with the weights to start from, as
            LoftUp's second stage does; None for random ones (published ones behind a tag).
        freeze_batch_norm: batch norms normalise with their running averages, which stay as they
            are; for batches of a few images, whose own statistics are noisy.
    """

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    start_from: str | None = None
    freeze_batch_norm: bool = False

    @field_validator("name")
    @classmethod
    def _known_name(cls, value: str) -> str:
        get_class(value)
        return value

    @field_validator("config")
    @classmethod
    def _arguments(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")
        return value if name is None else check_arguments(get_class(name), value)


class MaskConfig(Settings):
    """Where masks of training images come from.

    Attributes:
        kind: ``sa1b`` (json files beside the images), ``labels`` (label images), ``superpixels``,
            or ``sam`` (a network of transformers, from a folder of weights).
        options: arguments of the source in ``upfeat.data``, such as ``{"root": "labels"}``.
        cache: folder that keeps computed masks; None computes them each time, which ``sam`` is too
            slow for.
    """

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    cache: str | None = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in MASK_SOURCES:
            raise UnknownNameError("mask source", value, MASK_SOURCES)
        return value

    @field_validator("options")
    @classmethod
    def _arguments(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        kind = info.data.get("kind")
        return value if kind is None else check_arguments(MASK_SOURCES[kind], value)

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        if self.kind == "sam" and self.cache is None:
            raise ValueError(
                "masks of kind sam take seconds to minutes an image; name a folder that keeps them "
                "(cache)"
            )
        return self


class DepthConfig(Settings):
    """Where depth maps of training images come from: a folder of them, or a network.

    Attributes:
        root: folder of the depth maps, see ``upfeat.data.DepthMapFolder``.
        pattern: name of an image's map below it.
        units: stored numbers per unit of depth.
        teacher: folder with Depth Anything V2, which makes the maps instead, see
            ``upfeat.data.depth``.
        cache: folder that keeps the teacher's maps.
    """

    root: str | None = None
    pattern: str = "{stem}.png"
    units: PositiveFloat = 1.0
    teacher: str | None = None
    cache: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.root is None) == (self.teacher is None):
            raise ValueError("depth maps come from a folder (root) or from a teacher; name one")
        if (self.teacher is None) != (self.cache is None):
            raise ValueError("a depth teacher needs a folder that keeps its maps (cache)")
        return self


class FeatureMapConfig(Settings):
    """Where stored features of training images lie; see ``upfeat.data.feature_cache``.

    Attributes:
        root: folder of the files.
        pattern: name of an image's file below it.
    """

    root: str
    pattern: str = "{name}.safetensors"


class DataConfig(Settings):
    """The training images and how they are cut.

    Attributes:
        paths: folders, lists (``.txt``), tar shards; ImageNet and SA-1B layouts are recognised.
        crop: side of the square crop, or its (height, width), in pixels.
        resize: shorter side before the crop; None for the smallest size that holds the crop.
        position: of the crop, ``center`` or ``random``.
        flip: probability of mirroring left to right.
        scale: range of a random factor on ``resize``.
        min_side: images with a smaller shorter side are left out; None takes all.
        sides_file: a ``.npy`` file that keeps the sizes that ``min_side`` asks for, so that the
            headers of a large collection are read once.
        masks: sources of masks; the first one that has some for an image is taken.
        limit: so many images, drawn once by the run's seed; None takes all. The number of steps
            stays.
        depth: source of depth maps, for the objective ``depth_target``.
        features: source of stored features, for the objective ``stored_target``.
        feature_cache: folder that keeps the backbones' features of whole crops, as float16; only
            for centre crops that are the same each time. Its size is logged first.
        prefetch: micro-batches that are read ahead, by as many threads; it changes no number.
    """

    paths: tuple[str, ...] = ()
    crop: PositiveInt | Sides
    resize: PositiveInt | None = None
    position: Literal["center", "random"] = "center"
    flip: Share = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    min_side: PositiveInt | None = None
    sides_file: str | None = None
    masks: tuple[MaskConfig, ...] = ()
    limit: PositiveInt | None = None
    depth: DepthConfig | None = None
    features: FeatureMapConfig | None = None
    feature_cache: str | None = None
    prefetch: NonNegativeInt = 2

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    @model_validator(mode="after")
    def _repeating(self) -> Self:
        fixed = self.position == "center" and not self.flip and self.scale == (1.0, 1.0)
        if self.feature_cache is not None and not fixed:
            raise ValueError(
                "feature_cache keeps features of crops that come again; use position=center, "
                "flip=0 and scale=[1, 1], or no cache"
            )
        return self


def _typed_objective(value: Any) -> Any:
    """Return the settings of the objective that a dictionary names."""
    if not isinstance(value, dict) or "name" not in value:
        return value
    return configure_objective(**value)


class OptimizerConfig(Settings):
    """The optimiser of ``torch.optim``.

    Attributes:
        name: ``adamw``, ``adam``, ``nadam`` or ``sgd``.
        lr: learning rate at factor 1 of the schedule.
        betas: of the Adam family; ``sgd`` takes the first one as its momentum.
        weight_decay: applied to every parameter; decoupled for ``adamw``.
        eps: of the Adam family.
    """

    name: Literal["adamw", "adam", "nadam", "sgd"] = "adamw"
    lr: PositiveFloat = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01
    eps: PositiveFloat = 1e-8


class ScheduleConfig(Settings):
    """How the learning rate changes; see :func:`upfeat.training.learning_rate_factor`.

    Attributes:
        name: ``constant``, ``cosine`` or ``linear`` (the last two fall to ``final``).
        warmup_steps: linear rise from 1 / ``warmup_steps``.
        final: factor at the last step of a falling schedule.
    """

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final: Share = 0.0


class ClipConfig(Settings):
    """Clipping of the gradient's norm.

    Attributes:
        max_norm: the largest norm; None for no clipping.
        first_steps: clip only during so many first steps, as LoftUp does; None for all steps.

    Example:
        >>> from upfeat.training import ClipConfig
        >>> ClipConfig(max_norm=1.0, first_steps=2).limit(1), ClipConfig().limit(1)
        (1.0, inf)
    """

    max_norm: PositiveFloat | None = None
    first_steps: PositiveInt | None = None

    def limit(self, step: int) -> float:
        """Return the largest norm at a step, counted from 1; infinity for no clipping."""
        late = self.first_steps is not None and step > self.first_steps
        return float("inf") if self.max_norm is None or late else self.max_norm


class EmaConfig(Settings):
    """Exponential moving average of the upsampler's weights, exported instead of the last ones.

    Attributes:
        decay: share of the old average at each update; None for no average.
        every: steps between updates.
    """

    decay: float | None = Field(default=None, gt=0, lt=1)
    every: PositiveInt = 1


class CheckpointConfig(Settings):
    """When the state of the run is written and what is kept.

    Attributes:
        every: steps between checkpoints; the last step always writes one.
        keep_last: how many of them stay.
        keep_best: also keep the one after the interval with the lowest mean loss, ``best.pt``.
    """

    every: PositiveInt = 1000
    keep_last: PositiveInt = 2
    keep_best: bool = True


class LogConfig(Settings):
    """What is written while training.

    Attributes:
        every: steps between rows of ``log.csv``; a row holds means since the row before.
        tensorboard: also write TensorBoard events (extra ``[tensorboard]``).
    """

    every: PositiveInt = 20
    tensorboard: bool = False


class ValidationConfig(Settings):
    """Images that a run does not train on, and how often the loss on them is measured.

    Attributes:
        paths: folders, lists, shards; without any, images are held out of the training images.
        images: so many, drawn by the run's seed; of those held out at most a tenth of all, so that
            collections of less than ten lose none.
        every: steps between two measurements; None for each checkpoint. The last step has one.
    """

    paths: tuple[str, ...] = ()
    images: PositiveInt = 16
    every: PositiveInt | None = None


class StopConfig(Settings):
    """When a run counts as failed; NaN and infinite losses always do.

    Attributes:
        divergence_factor: stop when the smoothed loss is this many times its lowest value so far;
            None never stops. Losses that can be negative are not judged.
        skipped_steps: stop after so many steps in a row whose gradient was not finite. Such steps
            change nothing; half precision has them while its loss scale settles.
    """

    divergence_factor: float | None = Field(default=100.0, gt=1)
    skipped_steps: PositiveInt = 20


class TrainConfig(Settings):
    """Everything that decides a training run.

    Attributes:
        recipe: the name of the recipe that it started from.
        backbones: for one, or for several in one run.
        objective: settings of an objective; their ``name`` says of which.
        upsampler, data, optimizer, schedule, clip, ema, stop: see their classes.
        validation: which images are held out, and how often the loss on them is measured; None for
            no validation.
        checkpoint, logging: what is written; they do not change the weights.
        steps: optimiser steps.
        batch_size: images of one optimiser step, over all processes and accumulation.
        accumulate: forward passes of a process whose gradients are added up in one step.
        precision: ``fp32``, or ``bf16`` / ``fp16`` autocast with float32 weights.
        seed: of weights, order of images and every random draw.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        devices: processes on this machine; under ``torchrun`` its number counts.

    Example:
        >>> from upfeat.training import TrainConfig, create_recipe
        >>> config = create_recipe("jafar_small")
        >>> TrainConfig.from_json(config.to_json()) == config
        True
    """

    # Dictionaries whose keys are the arguments of what they configure.
    FREE_FIELDS: ClassVar[tuple[str, ...]] = ("options", "config")

    recipe: str = "custom"
    backbones: tuple[BackboneConfig, ...] = Field(min_length=1)
    upsampler: UpsamplerConfig
    objective: Annotated[SerializeAsAny[ObjectiveConfig], BeforeValidator(_typed_objective)]
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: ClipConfig = ClipConfig()
    ema: EmaConfig = EmaConfig()
    stop: StopConfig = StopConfig()
    validation: ValidationConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LogConfig = LogConfig()
    steps: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        self.micro_batch(self.devices)
        return self

    @model_validator(mode="after")
    def _warmed_up(self) -> Self:
        warmup = self.schedule.warmup_steps
        if warmup > self.steps:
            raise ValueError(
                f"schedule.warmup_steps={warmup} is longer than the run, steps={self.steps}: it "
                "would end before its full learning rate; lower schedule.warmup_steps or raise "
                "steps"
            )
        return self

    def micro_batch(self, processes: int) -> int:
        """Return how many images go through the networks at once.

        Raises:
            ValueError: the batch cannot be shared out evenly.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared evenly by {processes} processes "
                f"with accumulate={self.accumulate}; make it a multiple of {parts}"
            )
        return self.batch_size // parts

    def to_json(self) -> str:
        """Return the whole configuration as indented JSON."""
        # A later option: without it, settings read and compare as they always did.
        unused = {"validation"} if self.validation is None else None
        return self.model_dump_json(indent=2, exclude=unused) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: no JSON, or settings that do not fit.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"settings are JSON, and this is none: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"settings are a JSON object, got {type(content).__name__}")
        return cls(**content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration to a file, whole or not at all."""
        write_bytes(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of :meth:`save`."""
        return cls.from_json(Path(path).read_bytes())


# -- overrides -------------------------------------------------------------------------------------

_WORDS = {"None": None, "none": None, "True": True, "False": False}
_OBJECTIVE = "objective.name"


def apply_overrides(config: TrainConfig, overrides: Iterable[str]) -> TrainConfig:
    """Return a configuration with some fields replaced, checked as a whole.

    Args:
        config: where to start.
        overrides: ``path=value``; a path names sections and fields with dots, an item of a list by
            its number (``backbones.0.name``). A value is JSON, or else plain text. Another
            ``objective.name`` starts from that objective's defaults, wherever it stands. A
            warm-up that nobody names is shortened to a run of fewer ``steps``.

    Raises:
        UnknownNameError: no such field; the message lists close matches.
        ValueError: not of the form ``path=value``, or a value that the field does not take.

    Example:
        >>> from upfeat.training import apply_overrides, create_recipe
        >>> config = apply_overrides(
        ...     create_recipe("jafar_paper"), ["steps=10", "optimizer.lr=1e-3"]
        ... )
        >>> config.steps, config.optimizer.lr
        (10, 0.001)
    """
    content, overrides = config.model_dump(), list(overrides)
    # Which settings an objective has depends on its name, so that the name comes first.
    for override in sorted(overrides, key=lambda text: not text.startswith(_OBJECTIVE)):
        path, sign, text = (part.strip() for part in override.partition("="))
        keys = path.split(".")
        if not sign or not all(keys):
            raise ValueError(
                f"an override is written path=value, such as optimizer.lr=1e-4, got {override!r}"
            )
        value, place = _value(text), content
        if path == _OBJECTIVE and value != config.objective.name:
            content["objective"] = configure_objective(value).model_dump()
            continue
        for depth, key in enumerate(keys[:-1]):
            place = place[_index(place, key, keys[:depth])]
        above = keys[:-1]
        free = bool(above) and above[-1] in TrainConfig.FREE_FIELDS
        place[_index(place, keys[-1], above, free=free)] = value
    steps, schedule = content["steps"], content["schedule"]
    if isinstance(steps, int) and not any(one.startswith("schedule") for one in overrides):
        schedule["warmup_steps"] = min(schedule["warmup_steps"], max(steps, 0))
    return TrainConfig(**content)


def _value(text: str) -> Any:
    """Read JSON, Python's None/True/False, or plain text."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _index(place: Any, key: str, above: list[str], *, free: bool = False) -> Any:
    """Return under which index ``place`` holds ``key``; a free dictionary need not hold it yet."""
    if isinstance(place, list | tuple):
        if not key.isdecimal() or int(key) >= len(place):
            raise ValueError(
                f"{'.'.join(above)} is a list of {len(place)}; name an item by its number from 0, "
                f"got {'.'.join([*above, key])!r}"
            )
        return int(key)
    if not isinstance(place, dict):
        raise ValueError(
            f"{'.'.join(above)} is a single value, so there is no {'.'.join([*above, key])!r} in it"
        )
    if key not in place and not free:
        raise UnknownNameError("setting", key, place, prefix="".join(f"{k}." for k in above))
    return key
