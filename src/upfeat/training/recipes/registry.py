"""Names of recipes: register, list, create."""

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import overload

from upfeat.errors import UnknownNameError
from upfeat.training.config import TrainConfig, apply_overrides

__all__ = ["create_recipe", "describe_recipe", "list_recipes", "register_recipe", "when_to_take"]

Recipe = Callable[[], TrainConfig]

_RECIPES: dict[str, Recipe] = {}
_WHEN: dict[str, str] = {}


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
    if recipe is None:
        return lambda function: _register(function, when)
    return _register(recipe, when)


def _register(recipe: Recipe, when: str) -> Recipe:
    name = recipe.__name__
    known = _RECIPES.get(name)
    if known is not None and known.__module__ != recipe.__module__:
        raise ValueError(f"a recipe named {name!r} is registered already; choose another name")
    _RECIPES[name] = recipe
    _WHEN[name] = when
    return recipe


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the recipes, sorted.

    Args:
        pattern: shell wildcard, matched against the whole name.
    """
    return sorted(fnmatch.filter(_RECIPES, pattern))


def describe_recipe(name: str) -> str:
    """Return the first line of a recipe's description."""
    return (inspect.getdoc(_get(name)) or "").split("\n", 1)[0]


def when_to_take(name: str) -> str:
    """Return when to take a recipe; nothing for those that few people start with.

    Example:
        >>> from upfeat.training import when_to_take
        >>> when_to_take("jafar_small")[:40]
        'One backbone of yours, any images, sharp'
    """
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
