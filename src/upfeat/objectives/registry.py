"""Names of objectives: register, list, create."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from upfeat.errors import UnknownNameError
from upfeat.objectives.base import Objective, ObjectiveConfig

__all__ = ["create_objective", "list_objectives", "register_objective"]

_CONFIGS: dict[str, type[ObjectiveConfig]] = {}
ObjectiveClass = TypeVar("ObjectiveClass", bound=type[Objective])


def register_objective(
    name: str, config: type[ObjectiveConfig]
) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """Return a class decorator that enters an objective and its config class into the registry.

    Args:
        name: under which :func:`create_objective` finds it.
        config: its own dataclass, a subclass of :class:`ObjectiveConfig`.

    Raises:
        ValueError: the name or the config class is taken.

    Example:
        >>> import upfeat.objectives
        >>> try:
        ...     register_objective("crops", ObjectiveConfig)
        ... except ValueError as error:
        ...     print(error)
        an objective named 'crops' is registered already; choose another name
    """
    if name in _CONFIGS:
        raise ValueError(f"an objective named {name!r} is registered already; choose another name")
    if config.objective is not None:
        raise ValueError(f"{config.__name__} belongs to another objective; give each its own")

    def decorate(cls: ObjectiveClass) -> ObjectiveClass:
        cls.name = name
        config.objective = cls
        _CONFIGS[name] = config
        return cls

    return decorate


def list_objectives() -> list[str]:
    """Return the names that :func:`create_objective` takes, sorted."""
    return sorted(_CONFIGS)


def create_objective(name: str, **options: Any) -> Objective:
    """Build an objective from its name and the fields of its config.

    Args:
        name: one of :func:`list_objectives`.
        **options: fields of its config class; unknown ones are an error.

    Raises:
        UnknownNameError: no such objective or field.
        ValueError: a field's value makes no sense.

    Example:
        >>> from upfeat.objectives import create_objective
        >>> create_objective("mask_refined", alpha=0.5).config.alpha
        0.5
    """
    if name not in _CONFIGS:
        raise UnknownNameError("objective", name, _CONFIGS)
    config = _CONFIGS[name]
    fields = [field.name for field in dataclasses.fields(config)]
    for option in options:
        if option not in fields:
            raise UnknownNameError(f"option of {name}", option, fields)
    return config(**options).build()
