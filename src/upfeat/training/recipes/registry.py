"""Names of recipes: register, list, create; and the settings that small recipes share."""

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import Any, overload

from upfeat.errors import UnknownNameError
from upfeat.objectives import ObjectiveConfig
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    UpsamplerConfig,
    ValidationConfig,
    apply_overrides,
)

Recipe = Callable[[], TrainConfig]

_RECIPES: dict[str, Recipe] = {}
_WHEN: dict[str, str] = {}

BUNDLED = BackboneConfig(name="upfeat/vit_compact_patch16")
DINO_SMALL = BackboneConfig(name="timm/vit_small_patch16_224.dino")
DINOV2_SMALL = BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m")
CLIP = ClipConfig(max_norm=1.0)


@overload
def register_recipe(recipe: Recipe) -> Recipe: ...


@overload
def register_recipe(*, when: str) -> Callable[[Recipe], Recipe]: ...


def register_recipe(
    recipe: Recipe | None = None, *, when: str = ""
) -> Recipe | Callable[[Recipe], Recipe]:
    """Enter a function that returns a full configuration under its name.

    Args:
        recipe: takes no argument; its docstring says where each field comes from.
        when: when to take it, in a line, of a recipe that people start with: the short list holds
            these.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> from upfeat.training import create_recipe, register_recipe
        >>> @register_recipe
        ... def my_recipe():
        ...     '''JAFAR with a smaller batch.'''
        ...     return create_recipe("jafar_paper", ["batch_size=2"])
        >>> create_recipe("my_recipe").recipe
        'my_recipe'
    """

    def enter(function: Recipe) -> Recipe:
        name = function.__name__
        known = _RECIPES.get(name)
        if known is not None and known.__module__ != function.__module__:
            raise ValueError(f"a recipe named {name!r} is registered already; choose another name")
        _RECIPES[name] = function
        _WHEN[name] = when
        return function

    return enter if recipe is None else enter(recipe)


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the recipes that match a shell wildcard, sorted."""
    return sorted(fnmatch.filter(_RECIPES, pattern))


def describe_recipe(name: str) -> str:
    """Return the first line of a recipe's description."""
    return (inspect.getdoc(_get(name)) or "").split("\n", 1)[0]


def when_to_take(name: str) -> str:
    """Return when to take a recipe; nothing for those that few people start with."""
    _get(name)
    return _WHEN[name]


def create_recipe(name: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """Return the configuration of a recipe.

    Args:
        name: see :func:`list_recipes`.
        overrides: changes, see :func:`upfeat.training.apply_overrides`.

    Raises:
        UnknownNameError: no such recipe; the message lists close matches.
        ValueError: an override does not fit.

    Example:
        >>> from upfeat.training import create_recipe
        >>> create_recipe("jafar_paper", ["steps=500"]).steps
        500
    """
    config = _get(name)().model_copy(update={"recipe": name})
    return apply_overrides(config, overrides)


def _get(name: str) -> Recipe:
    if name not in _RECIPES:
        raise UnknownNameError("recipe", name, _RECIPES)
    return _RECIPES[name]


def cosine(warmup_steps: int) -> ScheduleConfig:
    """A learning rate that rises for some steps and falls to 0."""
    return ScheduleConfig(name="cosine", warmup_steps=warmup_steps)


def random_crops(crop: int | tuple[int, int], **settings: Any) -> DataConfig:
    """Random mirrored crops, for data that are few."""
    return DataConfig(crop=crop, position="random", flip=0.5, **settings)


def small_recipe(
    upsampler: UpsamplerConfig,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    data: DataConfig,
    *,
    warmup_steps: int = 50,
    every: int = 250,
    **settings: Any,
) -> TrainConfig:
    """What small recipes share: the bundled encoder, and what they choose instead of the papers'.

    That is a cosine schedule and 1,000 steps of 4 images, unless told otherwise. They cut random
    mirrored crops, because the data are few.
    """
    shared: dict[str, Any] = {
        "validation": ValidationConfig(),
        "backbones": (BUNDLED,),
        "steps": 1000,
        "batch_size": 4,
    }
    return TrainConfig(
        upsampler=upsampler,
        objective=objective,
        optimizer=optimizer,
        data=data,
        schedule=cosine(warmup_steps),
        checkpoint=CheckpointConfig(every=every),
        **shared | settings,
    )
