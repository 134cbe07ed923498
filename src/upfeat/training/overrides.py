"""Changing a configuration by text: ``optimizer.lr=1e-4``."""

import json
from collections.abc import Iterable
from typing import Any

from upfeat.errors import UnknownNameError
from upfeat.training.config import TrainConfig

__all__ = ["apply_overrides"]

_WORDS = {"None": None, "none": None, "True": True, "False": False}


def apply_overrides(config: TrainConfig, overrides: Iterable[str]) -> TrainConfig:
    """Return a configuration with some fields replaced, checked as a whole.

    Args:
        config: where to start.
        overrides: ``path=value``; a path names sections and fields with dots, an item of a list by
            its number (``backbones.0.name``). A value is JSON, or else plain text. Dictionaries
            such as ``objective.settings`` take new keys; sections do not.

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
    content = config.model_dump()
    for override in overrides:
        path, sign, text = override.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ValueError(
                f"an override is written path=value, such as optimizer.lr=1e-4, got {override!r}"
            )
        *parents, last = keys
        place: Any = content
        for depth, key in enumerate(parents):
            place = _child(place, key, keys[:depth], open_ended=False)
        _assign(place, last, parents, _value(text.strip()))
    return TrainConfig.parse(content)


def _value(text: str) -> Any:
    """Read JSON, Python's None/True/False, or plain text."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _child(place: Any, key: str, above: list[str], *, open_ended: bool) -> Any:
    """Return ``place[key]``; ``open_ended`` lets a free dictionary lack the key."""
    path = ".".join([*above, key])
    if isinstance(place, list | tuple):
        if not key.isdecimal() or int(key) >= len(place):
            raise ValueError(
                f"{'.'.join(above)} is a list of {len(place)}; name an item by its number from 0, "
                f"got {path!r}"
            )
        return place[int(key)]
    if not isinstance(place, dict):
        raise ValueError(f"{'.'.join(above)} is a single value, so there is no {path!r} in it")
    if key not in place:
        if open_ended:
            return None
        raise UnknownNameError("setting", path, [".".join([*above, name]) for name in place])
    return place[key]


def _assign(place: Any, key: str, above: list[str], value: Any) -> None:
    free = isinstance(place, dict) and bool(above) and above[-1] in TrainConfig.FREE_FIELDS
    _child(place, key, above, open_ended=free)
    if isinstance(place, dict):
        place[key] = value
        return
    place[int(key)] = value
