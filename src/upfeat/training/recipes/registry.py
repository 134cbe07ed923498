"""Names of recipes: register, list, create."""

import fnmatch
import inspect
from collections.abc import Callable, Iterable

from upfeat.errors import UnknownNameError
from upfeat.training.config import TrainConfig, apply_overrides

__all__ = ["create_recipe", "describe_recipe", "list_recipes", "register_recipe"]

Recipe = Callable[[], TrainConfig]

_RECIPES: dict[str, Recipe] = {}


def register_recipe(recipe: Recipe) -> Recipe:
    """Enter a function that returns a full configuration under its name.

    Args:
        recipe: takes no argument; its docstring says where each field comes from.

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
    name = recipe.__name__
    known = _RECIPES.get(name)
    if known is not None and known.__module__ != recipe.__module__:
        raise ValueError(f"a recipe named {name!r} is registered already; choose another name")
    _RECIPES[name] = recipe
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
