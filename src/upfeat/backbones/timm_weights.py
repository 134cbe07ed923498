"""Finding and loading weight files of timm's networks."""

import inspect
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from upfeat._compat import ensure_torchvision_operators
from upfeat.checkpoints import (
    CONTAINERS,
    HubFile,
    find_weights,
    load_strictly,
    read_checkpoint,
    some_names,
    unwrap_state,
)
from upfeat.errors import CheckpointError, WeightsNotFoundError

logger = logging.getLogger(__name__)


def locate_timm_weights(
    architecture: str, tag: str, file: str | os.PathLike[str] | None
) -> tuple[str, Path]:
    """Return the tag that the weights belong to and the path of their file.

    Local files are called ``<architecture>.<tag>`` or, for timm's default tag, ``<architecture>``,
    with one of the suffixes of :mod:`upfeat.checkpoints`. If no tag is given and no file of the
    default one is there, the only local file of another tag is taken.

    Args:
        architecture: a name of timm without tag.
        tag: a known tag, or an empty string for the default.
        file: an explicit file, or None.

    Raises:
        WeightsNotFoundError: no place has them, or several local files would do.
    """
    ensure_torchvision_operators()
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    default = get_pretrained_cfg(architecture)
    default_tag = (default.tag or "") if default is not None else ""
    chosen = tag or default_tag
    full_name = f"{architecture}.{chosen}" if chosen else architecture
    if file is not None:
        return chosen, find_weights(f"timm/{full_name}", [full_name], file=file)
    names = [full_name]
    if chosen == default_tag and full_name != architecture:
        names.append(architecture)
    if not tag:
        others = [str(name).partition(".")[2] for name in get_arch_pretrained_cfgs(architecture)]
        local = _only_local(architecture, names, [other for other in others if other != chosen])
        if local is not None:
            return local
    return chosen, find_weights(f"timm/{full_name}", names, hub=_hub_file(full_name))


def _only_local(
    architecture: str, names: list[str], other_tags: list[str]
) -> tuple[str, Path] | None:
    """Return the one local file of another tag, if there is none of the default tag."""
    if _local(names) is not None:
        return None
    found = {tag: path for tag in other_tags if (path := _local([f"{architecture}.{tag}"]))}
    if len(found) > 1:
        raise WeightsNotFoundError(
            f"no weights of the default tag of timm/{architecture} are here, but those of "
            f"{', '.join(sorted(found))}; name the one you mean, such as "
            f"timm/{architecture}.{min(found)}"
        )
    if not found:
        return None
    tag, path = next(iter(found.items()))
    logger.info("timm/%s without tag: using the only local file %s", architecture, path)
    return tag, path


def _local(names: list[str]) -> Path | None:
    try:
        return find_weights("a look at the local folders", names)
    except WeightsNotFoundError:
        return None


def _hub_file(full_name: str) -> HubFile | None:
    """Return where timm publishes the weights; None if it does not, or not in a form we read."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(full_name)
    if config is None:
        return None
    if config.hf_hub_id:
        filename = config.hf_hub_filename or "model.safetensors"
        return HubFile(filename=filename, repository=str(config.hf_hub_id))
    url = config.url
    if isinstance(url, str) and url and not url.endswith(".npz"):
        return HubFile(filename=full_name + (Path(url).suffix or ".pth"), url=url)
    return None


def load_timm_weights(model: nn.Module, path: str | os.PathLike[str], name: str) -> None:
    """Load a file into a network of timm, strictly but for the classifier, in the network's dtype.

    Layouts that timm converts itself are converted by its own filter of the architecture, which
    also resizes position tables of another grid. Classifier weights that the network has no place
    for are dropped. Everything else must match.

    Raises:
        CheckpointError: the file is unreadable, holds no state dict, or keys or shapes do not
            match; the message names them.
    """
    state = _filtered(model, _flat(read_checkpoint(path), path), path)
    tensors = model.state_dict()
    heads = _classifiers(model, tensors)
    state = {key: t for key, t in state.items() if key in tensors or not key.startswith(heads)}
    advice = (
        "Use the file of this architecture, or the name of the architecture that the file was made "
        "for"
    )
    load_strictly(model, state, origin=str(path), name=name, advice=advice)


def _flat(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict in what a file holds."""
    content = unwrap_state(content)
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not state or len(state) < len(content):
        strange = [str(key) for key in content if key not in state]
        raise CheckpointError(
            f"{path} holds no state dict: expected names with tensors, or one nested in "
            f"{some_names(CONTAINERS)}; got {some_names(strange) if strange else 'nothing'}. Save "
            "model.state_dict() on its own"
        )
    return state


def _filtered(
    model: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """Apply the key conversion of timm's module of this network, where it has one."""
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return state
    # Renames the layer scales of DeiT III; other files have none under the old name.
    adapts = "adapt_layer_scale" in inspect.signature(filter_fn).parameters
    options = {"adapt_layer_scale": True} if adapts else {}
    try:
        return dict(filter_fn(state, model, **options))
    except Exception as error:  # whatever timm's conversion raises for a file of another network
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: timm's conversion failed with "
            f"{type(error).__name__}: {error}"
        ) from error


def _classifiers(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return what the names of the classifier's tensors start with."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = []
    for name in (names,) if isinstance(names, str) else names:
        # Some families name only the last layer of a head that has more, such as a norm before it:
        # go up as long as nothing that the network keeps lies there.
        parent = name.rpartition(".")[0]
        while parent and not any(key.startswith(f"{parent}.") for key in tensors):
            name, parent = parent, parent.rpartition(".")[0]
        heads.append(f"{name}.")
    return tuple(heads)
