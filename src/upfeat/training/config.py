"""The settings of a training run: one nested, checked, frozen object that JSON can hold.

A recipe returns a :class:`TrainConfig`; ``--set a.b=c`` changes it through
:func:`upfeat.training.apply_overrides`; the run folder keeps it as ``config.json``.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from upfeat._files import write_bytes

__all__ = [
    "BackboneConfig",
    "CheckpointConfig",
    "ClipConfig",
    "DataConfig",
    "DepthConfig",
    "EmaConfig",
    "LogConfig",
    "MaskConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "StopConfig",
    "TrainConfig",
    "UpsamplerConfig",
]


class Section(BaseModel):
    """Common behaviour: unknown fields are errors, values are checked, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class BackboneConfig(Section):
    """One frozen backbone that the upsampler is trained for.

    Attributes:
        name: spec of ``upfeat.create_backbone``.
        weights: a file, ``"random"`` or None for the usual lookup.
        options: further arguments of ``create_backbone``, such as ``{"layer": 8}``.
    """

    name: str
    weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class UpsamplerConfig(Section):
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


class MaskConfig(Section):
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

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        if self.kind == "sam" and self.cache is None:
            raise ValueError(
                "masks of kind sam take seconds to minutes an image; name a folder that keeps them "
                "(cache)"
            )
        return self


class DepthConfig(Section):
    """Where depth maps of training images come from; arguments of ``upfeat.data.DepthMapFolder``.

    Attributes:
        root: folder of the depth maps.
        pattern: name of an image's map below it.
        units: stored numbers per unit of depth.
    """

    root: str
    pattern: str = "{stem}.png"
    units: float = Field(default=1.0, gt=0)


class DataConfig(Section):
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
        depth: source of depth maps, for the objective ``depth_target``.
        feature_cache: folder that keeps the backbones' features of whole crops, as float16; only
            for centre crops that are the same each time. Its size is logged first.
        prefetch: micro-batches that are read ahead, by as many threads; it changes no number.
    """

    paths: tuple[str, ...] = ()
    crop: PositiveInt | tuple[PositiveInt, PositiveInt]
    resize: int | None = Field(default=None, ge=1)
    position: Literal["center", "random"] = "center"
    flip: float = Field(default=0.0, ge=0, le=1)
    scale: tuple[float, float] = (1.0, 1.0)
    min_side: int | None = Field(default=None, ge=1)
    sides_file: str | None = None
    masks: tuple[MaskConfig, ...] = ()
    depth: DepthConfig | None = None
    feature_cache: str | None = None
    prefetch: int = Field(default=2, ge=0)

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


class ObjectiveConfig(Section):
    """The training signal.

    Attributes:
        name: registry name of the objective, such as ``"multi_resolution"``.
        settings: its constructor arguments.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class OptimizerConfig(Section):
    """The optimiser of ``torch.optim``.

    Attributes:
        name: ``adamw``, ``adam``, ``nadam`` or ``sgd``.
        lr: learning rate at factor 1 of the schedule.
        betas: of the Adam family; ``sgd`` takes the first one as its momentum.
        weight_decay: applied to every parameter; decoupled for ``adamw``.
        eps: of the Adam family.
    """

    name: Literal["adamw", "adam", "nadam", "sgd"] = "adamw"
    lr: float = Field(default=2e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Section):
    """How the learning rate changes; see :func:`upfeat.training.learning_rate_factor`.

    Attributes:
        name: ``constant``, ``cosine`` or ``linear`` (the last two fall to ``final``).
        warmup_steps: linear rise from 1 / ``warmup_steps``.
        final: factor at the last step of a falling schedule.
    """

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)


class ClipConfig(Section):
    """Clipping of the gradient's norm.

    Attributes:
        max_norm: the largest norm; None for no clipping.
        first_steps: clip only during so many first steps, as LoftUp does; None for all steps.

    Example:
        >>> from upfeat.training import ClipConfig
        >>> ClipConfig(max_norm=1.0, first_steps=2).limit(1), ClipConfig().limit(1)
        (1.0, inf)
    """

    max_norm: float | None = Field(default=None, gt=0)
    first_steps: int | None = Field(default=None, ge=1)

    def limit(self, step: int) -> float:
        """Return the largest norm at a step, counted from 1; infinity for no clipping."""
        late = self.first_steps is not None and step > self.first_steps
        return float("inf") if self.max_norm is None or late else self.max_norm


class EmaConfig(Section):
    """Exponential moving average of the upsampler's weights, exported instead of the last ones.

    Attributes:
        decay: share of the old average at each update; None for no average.
        every: steps between updates.
    """

    decay: float | None = Field(default=None, gt=0, lt=1)
    every: int = Field(default=1, ge=1)


class CheckpointConfig(Section):
    """When the state of the run is written and what is kept.

    Attributes:
        every: steps between checkpoints; the last step always writes one.
        keep_last: how many of them stay.
        keep_best: also keep the one after the interval with the lowest mean loss, ``best.pt``.
    """

    every: int = Field(default=1000, ge=1)
    keep_last: int = Field(default=2, ge=1)
    keep_best: bool = True


class LogConfig(Section):
    """What is written while training.

    Attributes:
        every: steps between rows of ``log.csv``; a row holds means since the row before.
        tensorboard: also write TensorBoard events (extra ``[tensorboard]``).
    """

    every: int = Field(default=20, ge=1)
    tensorboard: bool = False


class StopConfig(Section):
    """When a run counts as failed; NaN and infinite losses always do.

    Attributes:
        divergence_factor: stop when the smoothed loss is this many times its lowest value so far;
            None never stops. Losses that can be negative are not judged.
        skipped_steps: stop after so many steps in a row whose gradient was not finite. Such steps
            change nothing; half precision has them while its loss scale settles.
    """

    divergence_factor: float | None = Field(default=100.0, gt=1)
    skipped_steps: int = Field(default=20, ge=1)


class TrainConfig(Section):
    """Everything that decides a training run.

    Attributes:
        recipe: the name of the recipe that it started from.
        backbones: for one, or for several in one run.
        upsampler, objective, data, optimizer, schedule, clip, ema, stop: see their classes.
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

    # Dictionaries whose keys belong to what they configure.
    FREE_FIELDS: ClassVar[tuple[str, ...]] = ("options", "config", "settings")

    recipe: str = "custom"
    backbones: tuple[BackboneConfig, ...] = Field(min_length=1)
    upsampler: UpsamplerConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: ClipConfig = ClipConfig()
    ema: EmaConfig = EmaConfig()
    stop: StopConfig = StopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LogConfig = LogConfig()
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        self.micro_batch(self.devices)
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

    @classmethod
    def parse(cls, content: Any) -> Self:
        """Build from plain dictionaries, with the errors of all fields in one message."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(_readable(error)) from error

    def to_json(self) -> str:
        """Return the whole configuration as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: no JSON, or fields that do not fit.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(_readable(error)) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration to a file, whole or not at all."""
        write_bytes(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of :meth:`save`."""
        return cls.from_json(Path(path).read_bytes())


@contextmanager
def naming_setting(name: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Say which free dictionary of the settings it is whose content a constructor refuses.

    Args:
        name: dotted path of the dictionary.
        values: its content.

    Raises:
        ValueError: the block raised a ``TypeError``: an unknown argument, or a value of a wrong
            type.

    Example:
        >>> from upfeat.training.config import naming_setting
        >>> try:
        ...     with naming_setting("upsampler.config", {"a": 1}):
        ...         dict.fromkeys(a=1)
        ... except ValueError as error:
        ...     print(str(error).split(";")[0])
        upsampler.config={'a': 1} does not fit: dict.fromkeys() takes no keyword arguments
    """
    try:
        yield
    except TypeError as error:
        raise ValueError(f"{name}={dict(values)} does not fit: {error}") from error


def _readable(error: ValidationError) -> str:
    """Name each wrong field with its dotted path, what came and what is expected."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            lines.append(f"{path} is missing")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{path} is no setting")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{path}={item['input']!r}: {message}" if path else message)
    return "the configuration does not fit: " + "; ".join(lines)
