"""Names of upsamplers: register, list, create.

A name is ``architecture`` or ``architecture.tag``; the tag names published weights, as in timm.
"""

import fnmatch
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from upfeat.errors import UnknownNameError
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.weights import Checkpoint, load_checkpoint, load_official

__all__ = [
    "create_upsampler",
    "from_official",
    "get_checkpoint",
    "get_class",
    "list_upsamplers",
    "needs_feature_dim",
    "register_upsampler",
]

_CLASSES: dict[str, type[Upsampler]] = {}
_CHECKPOINTS: dict[str, dict[str, Checkpoint]] = {}

UpsamplerClass = TypeVar("UpsamplerClass", bound=type[Upsampler])


def register_upsampler(
    name: str, *, checkpoints: Sequence[Checkpoint] = ()
) -> Callable[[UpsamplerClass], UpsamplerClass]:
    """Return a class decorator that enters an upsampler into the registry.

    Args:
        name: lower-case registry name without a dot; must equal ``info.name``.
        checkpoints: records of the published weights.

    Raises:
        ValueError: the name is taken, malformed or differs from ``info.name``, or a tag repeats.

    Example:
        >>> from upfeat.upsamplers.registry import register_upsampler
        >>> try:
        ...     register_upsampler("jafar")
        ... except ValueError as error:
        ...     print(error)
        an upsampler named 'jafar' is registered already; choose another name
    """
    if name in _registered():
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


def _registered() -> dict[str, type[Upsampler]]:
    """Return the registry after the package's own methods have entered themselves."""
    import upfeat.upsamplers  # noqa: F401  (its import registers the built-in methods)

    return _CLASSES


def _split(name: str) -> tuple[str, str | None]:
    """Split ``arch.tag`` and check both halves."""
    arch, _, tag = name.partition(".")
    if arch not in _registered():
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
    names = list(_registered())
    if pretrained:
        names = [f"{arch}.{tag}" for arch in names for tag in _CHECKPOINTS[arch]]
    return sorted(fnmatch.filter(names, pattern))


def get_class(name: str) -> type[Upsampler]:
    """Return the class behind a name, without building it.

    Example:
        >>> from upfeat.upsamplers.registry import get_class
        >>> get_class("jafar").info.year
        2025
    """
    return _registered()[_split(name)[0]]


def get_checkpoint(name: str) -> Checkpoint | None:
    """Return the record of the weights that ``arch.tag`` names, or None for a bare architecture.

    Example:
        >>> from upfeat.upsamplers.registry import get_checkpoint
        >>> get_checkpoint("jafar.dinov2_vits14").feature_dim
        384
    """
    arch, tag = _split(name)
    return None if tag is None else _CHECKPOINTS[arch][tag]


def needs_feature_dim(name: str) -> bool:
    """Return whether a method must be built for a feature width (``feature_dim=C``).

    Example:
        >>> from upfeat.upsamplers.registry import needs_feature_dim
        >>> needs_feature_dim("jafar"), needs_feature_dim("bilinear")
        (True, False)
    """
    return "feature_dim" in inspect.signature(get_class(name).__init__).parameters


def create_upsampler(
    name: str,
    pretrained: bool | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    **config: Any,
) -> Upsampler:
    """Build an upsampler by name.

    Args:
        name: ``"jafar.dinov2_vits14"`` for published weights, ``"jafar"`` for random ones.
        pretrained: whether to load the weights that the tag names, after the lookup explicit file →
            ``$UPFEAT_WEIGHTS`` → local cache → hub. None loads them where there is a tag;
            False builds what the tag describes with random weights; True insists on a tag.
        weights: an explicit file in the official or in upfeat's layout.
        **config: arguments of the method's class, such as ``feature_dim=384``.

    Returns:
        The upsampler: with loaded weights in eval mode, with random weights in training mode as any
        new ``nn.Module``.

    Raises:
        UnknownNameError: no such method or tag; the message lists close matches.
        WeightsNotFoundError: no place has the weights; the message names all four.
        CheckpointError: the file does not fit, or is none.
        ValueError: ``weights`` with ``pretrained=False``, or a width is missing.
        TypeError: an argument that the method does not take.

    Example:
        >>> import upfeat
        >>> upfeat.create_upsampler("kin.upfeat").training
        False
        >>> upfeat.create_upsampler("jafar", feature_dim=384).training
        True
    """
    arch, tag = _split(name)
    cls = _CLASSES[arch]
    if weights is not None and pretrained is False:
        raise ValueError(
            "weights= names a file to load and pretrained=False asks for none; drop one"
        )
    if weights is not None and tag is None:
        return load_official(cls, weights, config)
    if pretrained or weights is not None or (tag is not None and pretrained is None):
        if tag is None:
            tags = [f"{arch}.{t}" for t in _CHECKPOINTS[arch]]
            raise UnknownNameError("weights", name, tags or [f"(none are published for {arch})"])
        return load_checkpoint(cls, _CHECKPOINTS[arch][tag], weights, config)
    record = get_checkpoint(name)
    if record is not None:
        config = record.build_config(cls) | config
    missing = [
        p.name
        for p in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if p.name not in config
    ]
    if missing:
        raise ValueError(
            f"{arch} needs {', '.join(missing)}; for a backbone with C channels write "
            f"create_upsampler({arch!r}, {missing[0]}=C)"
        )
    return cls(**config)


def from_official(
    name: str,
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    **config: Any,
) -> Upsampler:
    """Build an upsampler from an official weight file or state dict.

    Sizes are read from the tensors; what tensors cannot tell (``num_heads``, ``window_ratio``, …)
    is given by keyword under the names of the original code, or takes the original's default.

    Args:
        name: the method, without tag.
        weights: a file (``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``) or a state dict.
        **config: constructor arguments that the tensors cannot tell.

    Raises:
        UnsafeCheckpointError: the pickle asks for more than the method's known globals.
        CheckpointError: keys or shapes do not fit; the message names them.

    Example:
        >>> import upfeat
        >>> state = upfeat.create_upsampler("jafar", feature_dim=24, qk_dim=32).state_dict()
        >>> upfeat.from_official("jafar", state, num_heads=4).config["feature_dim"]
        24
    """
    return load_official(get_class(name), weights, config)
