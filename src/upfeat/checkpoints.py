"""Weight files of upsamplers and backbones: how they are found, read, checked and written."""

import json
import os
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upfeat._file_kinds import (
    begins,
    foreign_kind,
    is_safetensors,
    pickle_globals,
    safetensors_shortage,
)
from upfeat._files import sha256_of as file_sha256
from upfeat._files import write_bytes
from upfeat._lookup import HubFile, cache_dir, find_weights
from upfeat.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError

__all__ = [
    "OMEGACONF_GLOBALS",
    "HubFile",
    "cache_dir",
    "file_sha256",
    "find_weights",
    "inert_globals",
    "load_strictly",
    "read_checkpoint",
    "read_config",
    "unwrap_state",
    "write_safetensors",
]

# What training scripts nest the state dict in, best first.
CONTAINERS = (
    *("state_dict", "model", "model_state", "model_state_dict", "checkpoint", "teacher"),
    *("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model"),
    *("module", "net", "network", "params_ema", "params", "weights"),
)
# What wrappers put before the names of a whole network (DataParallel, torch.compile, Lightning).
_PREFIXES = ("module.", "model.")
# What wrappers put anywhere into a name (torch.compile, FSDP, activation checkpointing).
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class _Inert:
    """Stands in for a foreign class in a checkpoint: takes any state and does nothing with it."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def inert_globals(names: Sequence[str]) -> list[tuple[type, str]]:
    """Return stand-ins for foreign classes, as ``torch.serialization.safe_globals`` takes them.

    Training scripts like to save their configuration object beside the weights. Such a file can be
    read without its package: each named class (``"omegaconf.dictconfig.DictConfig"``) is replaced
    by an inert one whose content is dropped.
    """
    return [(type(name.rsplit(".", 1)[-1], (_Inert,), {}), name) for name in names]


# What a pickled OmegaConf configuration names; two of the original trainers save one beside the
# weights. The classes are replaced by inert ones, so OmegaConf need not be installed.
OMEGACONF_GLOBALS: tuple[Any, ...] = (
    *inert_globals(
        [f"omegaconf.{each}" for each in ("dictconfig.DictConfig", "listconfig.ListConfig")]
        + [f"omegaconf.base.{each}" for each in ("ContainerMetadata", "Metadata")]
        + ["omegaconf.nodes.AnyNode"]
    ),
    *(Any, defaultdict, dict, int, list),
)


def read_checkpoint(
    path: str | os.PathLike[str], *, allowed_globals: Sequence[Any] = ()
) -> dict[str, Any]:
    """Read a safetensors file, or a pickle with ``weights_only=True``, onto the CPU.

    The one reader of weight files. What the file is, its content decides, not its name. It holds a
    flat state dict, or a dict that contains one.

    Args:
        path: the file.
        allowed_globals: further classes that the pickle may name, as
            ``torch.serialization.safe_globals`` takes them.

    Raises:
        WeightsNotFoundError: there is no such file.
        UnsafeCheckpointError: the pickle names anything else; nothing of it was run.
        CheckpointError: the file is broken, is something else (a Git LFS pointer, a web page, an
            archive, a folder, ...) or holds no dict; the message names what it is.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from upfeat.checkpoints import read_checkpoint, write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.safetensors")
        ...     write_safetensors(path, {"w": torch.ones(2)})
        ...     read_checkpoint(path)["w"].tolist()
        [1.0, 1.0]
    """
    path = Path(path)
    if not path.exists():
        raise WeightsNotFoundError(f"no file at {path}; check the path")
    try:
        kind = foreign_kind(path)
        safetensors = path.suffix == ".safetensors" or is_safetensors(path) if not kind else False
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if kind:
        raise CheckpointError(f"{path} is {kind}")
    content = _read_safetensors(path) if safetensors else _read_pickle(path, allowed_globals)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict of tensors; save "
            "model.state_dict()"
        )
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # a reader's errors over arbitrary bytes
        reason = safetensors_shortage(path) or f"{_first_line(error)}; it {begins(path)}"
        raise CheckpointError(f"{path} is not a readable safetensors file: {reason}") from error


def _read_pickle(path: Path, allowed_globals: Sequence[Any]) -> Any:
    try:
        with torch.serialization.safe_globals(list(allowed_globals)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:  # a reader's errors over arbitrary bytes
        raise CheckpointError(
            f"{path} is not a readable PyTorch checkpoint ({_first_line(error)}): it is truncated "
            f"or damaged, or something else; it {begins(path)}"
        ) from error


def _refusal(path: Path, text: str) -> CheckpointError:
    """Tell a pickle that asks for code from one that is broken or is none."""
    marker = "GLOBAL "
    if marker in text:
        asked = {text.split(marker, 1)[1].split(" ", 1)[0]}
        complete = True
    else:
        asked, complete = pickle_globals(path)
    if asked and complete:
        names = ", ".join(repr(name) for name in sorted(asked)[:3])
        return UnsafeCheckpointError(
            f"{path} was refused: it asks for the global {names}, which is not on the list of this "
            "method. Nothing of it was run. If you trust the file, load it yourself and pass the "
            "state dict instead of the path."
        )
    if complete:
        return CheckpointError(
            f"{path} is a plain pickle, expected a PyTorch checkpoint; write it with "
            "torch.save(model.state_dict(), path)"
        )
    return CheckpointError(
        f"{path} is not a readable PyTorch checkpoint: it is truncated or damaged, or something "
        f"else; it {begins(path)}"
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:200]}"


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object such as a model's ``config.json``.

    Raises:
        CheckpointError: the file cannot be read, is no JSON, or holds something else than an
            object; the message names it.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError too
        kind = foreign_kind(Path(path))
        reason = f"it is {kind}" if kind and "JSON" not in kind else _first_line(error)
        raise CheckpointError(f"{path} is no valid JSON: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a JSON object {{...}}"
        )
    return content


def unwrap_state(content: Mapping[str, Any], containers: Sequence[str] = ()) -> dict[str, Any]:
    """Take the state dict out of what training scripts nest it in, under a network's own names.

    Keys such as ``state_dict``, ``model`` or ``ema`` are followed, and so is a sole state dict
    under any name. Where all tensors' names begin with ``module.`` or ``model.``, in any
    combination, the prefix goes; what ``torch.compile`` and FSDP insert goes everywhere.

    Args:
        content: what :func:`read_checkpoint` returned, or a state dict.
        containers: further keys to follow, tried first.

    Example:
        >>> import torch
        >>> from upfeat.checkpoints import unwrap_state
        >>> state = {"module._orig_mod.conv.weight": torch.ones(1)}
        >>> list(unwrap_state({"state_dict": state, "epoch": 3}))
        ['conv.weight']
    """
    found: Mapping[str, Any] | None = _sole(content)
    while found is not None:
        content = found
        keys = (*containers, *CONTAINERS)
        found = next((v for key in keys if isinstance(v := content.get(key), Mapping)), None)
    state = {_unwrapped(key): value for key, value in content.items()}
    while prefix := _common_prefix(state):
        state = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key != "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
        }
    return state


def _unwrapped(key: Any) -> Any:
    """Return a tensor's name without what wrappers put into it."""
    for wrapper in _WRAPPERS if isinstance(key, str) else ():
        key = key.replace(wrapper, "")
    return key


def _sole(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the only state dict in a dictionary without own tensors, else the dictionary."""
    holding = [
        value
        for value in content.values()
        if isinstance(value, Mapping) and any(isinstance(t, Tensor) for t in value.values())
    ]
    bare = not any(isinstance(value, Tensor) for value in content.values())
    return holding[0] if bare and len(holding) == 1 else content


def _common_prefix(state: Mapping[str, Any]) -> str | None:
    names = [
        key
        for key, value in state.items()
        if isinstance(value, Tensor) and isinstance(key, str) and key != "n_averaged"
    ]
    return next((p for p in _PREFIXES if names and all(n.startswith(p) for n in names)), None)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, origin: str, name: str, advice: str = ""
) -> None:
    """Load a state dict whose keys, shapes and kinds of numbers all fit, or load nothing.

    Args:
        module: what to load into; it keeps its dtype and device.
        state: name to tensor.
        origin: the file, for messages.
        name: what it should fit, for messages.
        advice: what to do about a mismatch, a sentence.

    Raises:
        CheckpointError: something does not fit, or a weight is NaN or infinite; the message names
            the keys.
    """
    own = module.state_dict()
    problems = _mismatches(own, state)
    if not problems:
        learned = [key for key, _ in module.named_parameters() if key in state]
        broken = [key for key in learned if not bool(state[key].isfinite().all())]
        problems = [f"NaN or infinite values in {some_names(broken)}"] if broken else []
    if problems:
        raise CheckpointError(
            f"{origin} does not fit {name}: expected {len(own)} tensors, got {len(state)}; "
            + "; ".join(problems)
            + (f". {advice}" if advice else "")
        )
    module.load_state_dict(state)


def _mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    problems = []
    if missing := sorted(own.keys() - state.keys()):
        problems.append(f"missing keys {some_names(missing)}")
    if unexpected := sorted(map(str, state.keys() - own.keys())):
        problems.append(f"unexpected keys {some_names(unexpected)}")
    common = [key for key in own if key in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in common
        if own[key].shape != state[key].shape
    ]
    if shapes:
        problems.append(f"shapes {some_names(shapes)}")
    kinds = [f"{key} {kind}" for key in common if (kind := _other_kind(own[key], state[key]))]
    if kinds:
        problems.append(f"kinds of numbers {some_names(kinds)}")
    return problems


def _other_kind(own: Tensor, given: Tensor) -> str:
    """Return in words how the kind of numbers differs from ours where they mean something else."""
    plain = given.layout == torch.strided and not given.is_meta and not given.is_quantized
    if given.is_complex():
        fits = own.is_complex()
    else:  # whole numbers for floating point ones: quantised weights
        fits = given.is_floating_point() or not own.is_floating_point()
    if plain and fits:
        return ""
    kind, ours = (str(each.dtype).removeprefix("torch.") for each in (given, own))
    return f"{kind}{'' if plain else f' ({given.layout}, {given.device})'} instead of {ours}"


def some_names(names: Sequence[str]) -> str:
    """Join the first six of some names, and count the rest."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a ``.safetensors`` file, whole or not at all.

    Args:
        path: the target; its folder must exist.
        tensors: name to tensor; made contiguous and moved to the CPU.
        metadata: strings for the file's header.
    """
    from safetensors.torch import save

    data = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, _in_order(save(data, dict(metadata) if metadata else None)))


def _in_order(content: bytes) -> bytes:
    """Sort the metadata in a safetensors header: the library's order differs from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" not in header:
        return content
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the format wants it
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
