"""From a name, or an official file, to an upsampler."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upfeat.errors import UnknownNameError, warn_user
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.files import load_checkpoint, load_official
from upfeat.upsamplers.registry import get_checkpoint, get_class, list_upsamplers

__all__ = ["create_upsampler", "from_official"]


def create_upsampler(
    name: str,
    pretrained: bool | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> Upsampler:
    """Build an upsampler by name.

    A name with a tag (``"kin.upfeat"``) means weights, a name without one (``"kin"``) the
    architecture with random weights, to be trained. ``create_upsampler("kin")`` alone warns that
    its weights are random; ``pretrained=False`` says that this is meant.

    Args:
        name: ``"jafar.dinov2_vits14"`` for published weights, ``"jafar"`` for random ones.
        pretrained: whether to load the weights that the tag names, after the lookup explicit file →
            ``$UPFEAT_WEIGHTS`` → local cache → hub. None loads them where there is a tag;
            False builds what the tag describes with random weights; True insists on a tag.
        weights: an explicit file in the official or in upfeat's layout.
        device: where the upsampler goes; None: the CPU.
        dtype: its floating point type; None: float32.
        **config: arguments of the method's class, such as ``feature_dim=384``.

    Returns:
        The upsampler: with loaded weights in eval mode, with random weights in training mode as any
        new ``nn.Module``.

    Raises:
        UnknownNameError: no such method or tag; the message lists close matches.
        WeightsNotFoundError: no place has the weights; the message lists the four places.
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
    upsampler = _build(name, pretrained, weights, config)
    return upsampler.to(device=device, dtype=dtype)


def _build(
    name: str,
    pretrained: bool | None,
    weights: str | os.PathLike[str] | None,
    config: dict[str, Any],
) -> Upsampler:
    cls, record = get_class(name), get_checkpoint(name)
    arch = cls.info.name
    if weights is not None and pretrained is False:
        raise ValueError(
            "weights= names a file to load and pretrained=False asks for none; drop one"
        )
    if weights is not None and record is None:
        return load_official(cls, weights, config)
    if pretrained or weights is not None or (record is not None and pretrained is None):
        if record is None:
            tags = list_upsamplers(f"{arch}.*", pretrained=True)
            raise UnknownNameError("weights", name, tags or [f"(none are published for {arch})"])
        return load_checkpoint(cls, record, weights, config)
    if record is not None:
        config = record.build_config(cls) | config
    missing = [
        p.name
        for p in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if p.name not in config
    ]
    tags = list_upsamplers(f"{arch}.*", pretrained=True)
    if missing:
        published = f", or name published ones: {', '.join(tags)}" if tags else ""
        raise ValueError(
            f"{arch} needs {', '.join(missing)}; for a backbone with C channels write "
            f"create_upsampler({arch!r}, {missing[0]}=C), which has random weights{published}"
        )
    if tags and not config and pretrained is None:
        warn_user(
            f"create_upsampler({arch!r}) has random weights, which must be trained; published "
            f"ones: {', '.join(tags)}; pretrained=False says that random ones are meant"
        )
    return cls(**config)


def from_official(
    name: str,
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> Upsampler:
    """Build an upsampler from an official weight file or state dict.

    Sizes are read from the tensors; what tensors cannot tell (``num_heads``, ``window_ratio``, …)
    is given by keyword under the names of the original code, or takes the original's default.

    Args:
        name: the method, without tag.
        weights: a file (``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``) or a state dict.
        device: as in :func:`create_upsampler`.
        dtype: as in :func:`create_upsampler`.
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
    upsampler = load_official(get_class(name), weights, config)
    return upsampler.to(device=device, dtype=dtype)
