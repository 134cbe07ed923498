"""Weight files: where they are looked for, how they are read and written.

Used by upsamplers and backbones alike. A file is looked for in four places, in this order:

1. the file that the caller names,
2. the folder in the environment variable ``UPFEAT_WEIGHTS``,
3. the local cache (``UPFEAT_CACHE``, else ``$XDG_CACHE_HOME/upfeat``, else ``~/.cache/upfeat``),
4. the hub: a Hugging Face repository or the address that the record holds.

Nothing is downloaded unless a caller asks for weights that the first three places lack; setting
``UPFEAT_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` disables the hub.
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from upfeat._file_kinds import (
    begins,
    foreign_kind,
    is_safetensors,
    pickle_globals,
    safetensors_shortage,
)
from upfeat._files import new_file, sha256_of, write_bytes
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

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a server may take for its first answer.
ANSWER_SECONDS = 5

SUFFIXES = (".safetensors", ".fp16.safetensors", ".pth", ".pt", ".ckpt", ".bin")

# What training scripts nest the state dict in, best first.
CONTAINERS = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "checkpoint",
    "teacher",
    "model_ema",
    "state_dict_ema",
    "ema",
    "ema_state_dict",
    "ema_model",
    "module",
    "net",
    "network",
    "params_ema",
    "params",
    "weights",
)
# What wrappers put before the names of a whole network (DataParallel, torch.compile, Lightning).
_PREFIXES = ("module.", "model.")
# What wrappers put anywhere into a name (torch.compile, FSDP, activation checkpointing).
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class HubFile:
    """A file in the fourth place of the lookup.

    Attributes:
        repository: Hugging Face repository id, such as ``"haiwen/loftup-dinov2s"``; or None.
        filename: the file's name in that repository, and its name in the local folders.
        url: a plain address, where the file is not on Hugging Face; or None.
        sha256: hash of the file where it is known; checked after a download.
        place: where the file is, in words, if it cannot be downloaded.

    Example:
        >>> from upfeat.checkpoints import HubFile
        >>> HubFile(filename="anyup_paper.pth", url="https://example.org/anyup_paper.pth").filename
        'anyup_paper.pth'
    """

    filename: str
    repository: str | None = None
    url: str | None = None
    sha256: str | None = None
    place: str | None = None

    @property
    def local_name(self) -> str:
        """Name in a local folder: behind the repository's where file names repeat across them."""
        if self.repository is None:
            return self.filename
        return f"{self.repository.rsplit('/', 1)[-1]}/{self.filename}"

    def __str__(self) -> str:
        """Return the address, or the place in words, for messages."""
        if self.repository:
            return f"{self.repository}/{self.filename}"
        return self.url or f"{self.filename} in {self.place or 'a place that is not known'}"


def cache_dir() -> Path:
    """Return the folder of downloaded weights; it need not exist yet.

    Example:
        >>> import os
        >>> from upfeat.checkpoints import cache_dir
        >>> old = os.environ.get("UPFEAT_CACHE")
        >>> os.environ["UPFEAT_CACHE"] = "some-folder"
        >>> cache_dir().name
        'some-folder'
        >>> _ = (
        ...     os.environ.pop("UPFEAT_CACHE")
        ...     if old is None
        ...     else os.environ.update(UPFEAT_CACHE=old)
        ... )
    """
    if folder := os.environ.get("UPFEAT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upfeat"


def offline() -> bool:
    """Return whether the environment forbids downloads."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no")
        for name in ("UPFEAT_OFFLINE", "HF_HUB_OFFLINE")
    )


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.checkpoints import file_sha256
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "empty")
        ...     _ = path.write_bytes(b"")
        ...     file_sha256(path)[:8]
        'e3b0c442'
    """
    return sha256_of(path)


def _search(folder: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    return None


def find_weights(
    what: str,
    names: Sequence[str],
    *,
    file: str | os.PathLike[str] | None = None,
    hub: HubFile | None = None,
) -> Path:
    """Return the path of a weight file, after the lookup of this module's docstring.

    Args:
        what: what the weights are for, in words, for the message.
        names: file names, with or without suffix, in order of preference.
        file: an explicit file; if given, no other place is tried.
        hub: where to download from; None if nothing is published.

    Raises:
        WeightsNotFoundError: no place has the file; the message lists the four places.
        CheckpointError: ``file`` is a folder.

    Example:
        >>> import os
        >>> from upfeat.checkpoints import find_weights
        >>> try:
        ...     find_weights("a test", ["no-such-file"])
        ... except FileNotFoundError as error:
        ...     print(str(error).splitlines()[0])
        no weights found for a test; looked in four places:
    """
    if file is not None:
        path = Path(file).expanduser()
        if path.is_dir():
            raise CheckpointError(f"weights for {what}: {path} is {foreign_kind(path)}")
        if not path.is_file():
            raise WeightsNotFoundError(f"weights for {what}: no file at {path}; check the path")
        return path
    folder = os.environ.get("UPFEAT_WEIGHTS")
    if folder and (found := _search(Path(folder).expanduser(), names)):
        return found
    if found := _search(cache_dir(), names):
        return found
    reason = "nothing is published there"
    if hub is not None and hub.place is not None:
        reason = f"it is not there, but {hub}"
    elif hub is not None:
        if offline():
            reason = f"{hub} not asked: UPFEAT_OFFLINE or HF_HUB_OFFLINE is set"
        else:
            try:
                return download(hub)
            except CheckpointError:
                raise
            except Exception as error:  # noqa: BLE001  (any failure of the hub is a miss)
                reason = f"{hub} failed: {type(error).__name__}: {error}".splitlines()[0]
    expected = " or ".join(names)
    raise WeightsNotFoundError(
        f"no weights found for {what}; looked in four places:\n"
        "  1. an explicit file: none was given; pass weights=FILE (--weights FILE)\n"
        f"  2. $UPFEAT_WEIGHTS ({folder or 'not set'}): no file {expected} "
        "[.safetensors, .pth, …]; put one there\n"
        f"  3. the local cache ({cache_dir()}): no such file\n"
        f"  4. the hub: {reason}"
    )


def download(hub: HubFile) -> Path:
    """Download a file into the local cache, whole or not at all, and check its hash."""
    if hub.repository:
        path = _from_hugging_face(hub.repository, hub.filename)
        _check_hash(file_sha256(path), hub)
        return path
    if not hub.url:
        raise WeightsNotFoundError(f"no address is known for {hub.filename}")
    target = cache_dir() / hub.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", hub.url)
    with new_file(target) as stream:
        with answer(lambda: urllib.request.urlopen(str(hub.url), timeout=60)) as response:
            shutil.copyfileobj(response, stream)
        stream.seek(0)
        _check_hash(hashlib.file_digest(stream, "sha256").hexdigest(), hub)
    return target


def _from_hugging_face(repository: str, filename: str) -> Path:
    """Return a file of a repository, from Hugging Face's own cache where the hub is out of reach.

    Its download tries an unreachable hub again and again for 25 seconds, so one request asks first.
    """
    import huggingface_hub
    from huggingface_hub.utils import HfHubHTTPError

    url = huggingface_hub.hf_hub_url(repository, filename)
    try:
        answer(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS))
    except HfHubHTTPError:  # the hub answers; the download reports what is wrong with the file
        pass
    except Exception:
        cached = huggingface_hub.try_to_load_from_cache(repository, filename)
        if not isinstance(cached, str):
            raise
        logger.warning("%s is not reachable; using the copy in %s", url, cached)
        return Path(cached)
    return Path(huggingface_hub.hf_hub_download(repository, filename))


def answer(request: Callable[[], T]) -> T:
    """Return what a request of the network returns; ``TimeoutError`` after ``ANSWER_SECONDS``.

    The limits of HTTP clients hold for each address of a name in turn, and not for its lookup.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(request())
        except BaseException as error:  # noqa: BLE001  (raised where the answer is awaited)
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(ANSWER_SECONDS)
    except TimeoutError:
        if result.done():  # the request's own
            raise
        raise TimeoutError(f"no answer in {ANSWER_SECONDS} s; is there a network?") from None


def _check_hash(got: str, hub: HubFile) -> None:
    if hub.sha256 and got != hub.sha256:
        raise CheckpointError(
            f"{hub} has SHA-256 {got}, expected {hub.sha256}; the file was changed or the download "
            "is broken; delete it from the cache and try again"
        )


class _Inert:
    """Stands in for a foreign class in a checkpoint: takes any state and does nothing with it."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def inert_globals(names: Sequence[str]) -> list[tuple[type, str]]:
    """Return stand-ins for foreign classes, as ``torch.serialization.safe_globals`` takes them.

    Training scripts like to save their configuration object beside the weights. Such a file can be
    read without importing, or even installing, the configuration's package: each named class is
    replaced by an inert one whose content is dropped.

    Args:
        names: full names, such as ``"omegaconf.dictconfig.DictConfig"``.

    Example:
        >>> from upfeat.checkpoints import inert_globals
        >>> [name for _, name in inert_globals(["a.B"])]
        ['a.B']
    """
    return [(type(name.rsplit(".", 1)[-1], (_Inert,), {}), name) for name in names]


# What a pickled OmegaConf configuration names; two of the original trainers save one beside the
# weights. The classes are replaced by inert ones, so OmegaConf need not be installed.
OMEGACONF_GLOBALS: tuple[Any, ...] = (
    *inert_globals(
        (
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.nodes.AnyNode",
        )
    ),
    Any,
    defaultdict,
    dict,
    int,
    list,
)


def read_checkpoint(
    path: str | os.PathLike[str], *, allowed_globals: Sequence[Any] = ()
) -> dict[str, Any]:
    """Read a safetensors file, or a pickle with ``weights_only=True``, onto the CPU.

    The one reader of weight files. What the file is, its content decides, not its name.

    Args:
        path: the file.
        allowed_globals: further classes that the pickle may name, as
            ``torch.serialization.safe_globals`` takes them.

    Returns:
        What the file holds: a flat state dict, or a dict that contains one.

    Raises:
        WeightsNotFoundError: there is no such file.
        UnsafeCheckpointError: the pickle names anything else; nothing of it was run.
        CheckpointError: the file is broken, is something else (a Git LFS pointer, a web page, an
            archive, a folder, ...) or holds no dict; the message says what it is.

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

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.checkpoints import read_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "config.json")
        ...     _ = path.write_text('{"architecture": "jafar"}')
        ...     read_config(path)
        {'architecture': 'jafar'}
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
    state: dict[str, Any] = {}
    for key, value in content.items():
        name = key
        for wrapper in _WRAPPERS if isinstance(key, str) else ():
            name = name.replace(wrapper, "")
        state[name] = value
    while prefix := _common_prefix(state):
        state = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key != "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
        }
    return state


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

    Example:
        >>> import torch
        >>> from upfeat.checkpoints import load_strictly
        >>> try:
        ...     load_strictly(torch.nn.Linear(2, 1), {}, origin="a.pth", name="a line")
        ... except ValueError as error:
        ...     print(error)
        a.pth does not fit a line: expected 2 tensors, got 0; missing keys bias, weight
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
    kinds = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        f"{'' if _is_plain(state[key]) else f' ({state[key].layout}, {state[key].device})'} "
        f"instead of {str(own[key].dtype).removeprefix('torch.')}"
        for key in common
        if not _is_plain(state[key]) or not _takes(own[key], state[key])
    ]
    if kinds:
        problems.append(f"kinds of numbers {some_names(kinds)}")
    return problems


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and holds its numbers."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _takes(own: Tensor, given: Tensor) -> bool:
    """Return whether numbers of this kind mean the same in a tensor of ours."""
    if given.is_complex():
        return own.is_complex()
    return given.is_floating_point() or not own.is_floating_point()  # whole: quantised weights


def some_names(names: Sequence[str]) -> str:
    """Join the first six of some names, and say how many more there are."""
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

    Example:
        >>> import pathlib, tempfile, torch
        >>> from upfeat.checkpoints import write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_safetensors(pathlib.Path(folder, "a.safetensors"), {"w": torch.zeros(1)})
        ...     [p.name for p in pathlib.Path(folder).iterdir()]
        ['a.safetensors']
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
