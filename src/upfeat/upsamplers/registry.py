"""Names of upsamplers: register, list, look up.

A name is ``architecture`` or ``architecture.tag``; the tag names published weights, as in timm.
"""

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from upfeat.errors import UnknownNameError
from upfeat.upsamplers.weights import Checkpoint

if TYPE_CHECKING:
    from upfeat.upsamplers.base import Upsampler

__all__ = [
    "get_checkpoint",
    "get_class",
    "list_upsamplers",
    "needs_feature_dim",
    "register_upsampler",
]

_CLASSES: dict[str, type["Upsampler"]] = {}
_CHECKPOINTS: dict[str, dict[str, Checkpoint]] = {}

UpsamplerClass = TypeVar("UpsamplerClass", bound="type[Upsampler]")


def register_upsampler(
    name: str, *, checkpoints: Sequence[Checkpoint] = ()
) -> Callable[[UpsamplerClass], UpsamplerClass]:
    """Return a class decorator that enters an upsampler into the registry.

    Args:
        name: lower-case registry name without a dot; must equal ``info.name``.
        checkpoints: records of the published weights.

    Raises:
        ValueError: the name is taken, malformed or differs from ``info.name``, or a tag repeats.
    """
    if name in _CLASSES:
        raise ValueError(f"an upsampler named {name!r} is registered already; choose another name")
    if "." in name or name != name.lower():
        raise ValueError(f"an upsampler's name is lower-case and has no dot, got {name!r}")
    tags = [record.tag for record in checkpoints]
    if len(set(tags)) != len(tags):
        raise ValueError(f"the checkpoints of {name!r} repeat a tag: {sorted(tags)}")

    def decorate(cls: UpsamplerClass) -> UpsamplerClass:
        if cls.info.name != name:
            raise ValueError(f"{cls.__name__}.info.name is {cls.info.name!r}, expected {name!r}")
        _CLASSES[name] = cls
        _CHECKPOINTS[name] = {record.tag: record for record in checkpoints}
        return cls

    return decorate


def _split(name: str) -> tuple[str, str | None]:
    """Split ``arch.tag`` and check both halves."""
    arch, _, tag = name.partition(".")
    if arch not in _CLASSES:
        raise UnknownNameError("upsampler", arch, _CLASSES)
    if tag and tag not in _CHECKPOINTS[arch]:
        known = [f"{arch}.{t}" for t in _CHECKPOINTS[arch]]
        raise UnknownNameError("weights", name, known or [f"(none are published for {arch})"])
    return arch, tag or None


def list_upsamplers(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Return the names of the upsamplers, sorted.

    Args:
        pattern: shell wildcard, matched against the whole name.
        pretrained: list ``arch.tag`` names, one for each set of published weights.

    Example:
        >>> import upfeat
        >>> upfeat.list_upsamplers("bi*")
        ['bicubic', 'bilinear']
        >>> "jafar.dinov2_vits14" in upfeat.list_upsamplers("jafar*", pretrained=True)
        True
    """
    names = list(_CLASSES)
    if pretrained:
        names = [f"{arch}.{tag}" for arch in names for tag in _CHECKPOINTS[arch]]
    return sorted(fnmatch.filter(names, pattern))


def get_class(name: str) -> type["Upsampler"]:
    """Return the class behind a name, without building it."""
    return _CLASSES[_split(name)[0]]


def get_checkpoint(name: str) -> Checkpoint | None:
    """Return the record of the weights that ``arch.tag`` names, or None for a bare architecture."""
    arch, tag = _split(name)
    return None if tag is None else _CHECKPOINTS[arch][tag]


def needs_feature_dim(name: str) -> bool:
    """Return whether a method must be built for a feature width (``feature_dim=C``)."""
    return "feature_dim" in inspect.signature(get_class(name).__init__).parameters
