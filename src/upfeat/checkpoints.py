"""Weight files: where they are looked for, how they are read and written.

Used by upsamplers and backbones alike. A file is looked for in four places, in this order:

1. the file that the caller names,
2. the folder in the environment variable ``UPFEAT_WEIGHTS``,
3. the local cache (``UPFEAT_CACHE``, else ``$XDG_CACHE_HOME/upfeat``, else ``~/.cache/upfeat``),
4. the hub: a Hugging Face repository or the address that the record holds.

Nothing is downloaded unless a caller asks for weights that the first three places lack; setting
``UPFEAT_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` closes the fourth.
"""

import hashlib
import logging
import os
import pickle
import shutil
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upfeat._files import new_file, sha256_of, write_bytes
from upfeat.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError

__all__ = [
    "OMEGACONF_GLOBALS",
    "HubFile",
    "cache_dir",
    "file_sha256",
    "find_weights",
    "inert_globals",
    "read_checkpoint",
    "write_safetensors",
]

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".fp16.safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class HubFile:
    """A file in the fourth place of the lookup.

    Attributes:
        repository: Hugging Face repository id, such as ``"haiwen/loftup-dinov2s"``; or None.
        filename: the file's name in that repository, and its name in the local folders.
        url: a plain address, where the file is not on Hugging Face; or None.
        sha256: hash of the file where it is known; checked after a download.

    Example:
        >>> from upfeat.checkpoints import HubFile
        >>> HubFile(filename="anyup_paper.pth", url="https://example.org/anyup_paper.pth").filename
        'anyup_paper.pth'
    """

    filename: str
    repository: str | None = None
    url: str | None = None
    sha256: str | None = None

    @property
    def local_name(self) -> str:
        """Name in a local folder: behind the repository's where file names repeat across them."""
        if self.repository is None:
            return self.filename
        return f"{self.repository.rsplit('/', 1)[-1]}/{self.filename}"

    def __str__(self) -> str:
        """Return the address for messages."""
        return f"{self.repository}/{self.filename}" if self.repository else str(self.url)


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
        WeightsNotFoundError: no place has the file; the message names all four.

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
        if not path.is_file():
            raise WeightsNotFoundError(f"weights for {what}: no file at {path}; check the path")
        return path
    folder = os.environ.get("UPFEAT_WEIGHTS")
    if folder and (found := _search(Path(folder).expanduser(), names)):
        return found
    if found := _search(cache_dir(), names):
        return found
    reason = "nothing is published there"
    if hub is not None:
        if offline():
            reason = f"{hub} not asked: UPFEAT_OFFLINE or HF_HUB_OFFLINE is set"
        else:
            try:
                return download(hub)
            except CheckpointError:
                raise
            except Exception as error:  # noqa: BLE001  (any failure of the hub is a miss)
                reason = f"{hub} failed: {type(error).__name__}: {error}".splitlines()[0]
    wanted = " or ".join(names)
    raise WeightsNotFoundError(
        f"no weights found for {what}; looked in four places:\n"
        "  1. an explicit file: none was given; pass weights=FILE (--weights FILE)\n"
        f"  2. $UPFEAT_WEIGHTS ({folder or 'not set'}): no file {wanted} "
        "[.safetensors, .pth, …]; put one there\n"
        f"  3. the local cache ({cache_dir()}): no such file\n"
        f"  4. the hub: {reason}"
    )


def download(hub: HubFile) -> Path:
    """Download a file into the local cache, whole or not at all, and check its hash."""
    if hub.repository:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(hub.repository, hub.filename))
        _check_hash(file_sha256(path), hub)
        return path
    if not hub.url:
        raise WeightsNotFoundError(f"no address is known for {hub.filename}")
    target = cache_dir() / hub.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", hub.url)
    with new_file(target) as stream:
        with urllib.request.urlopen(hub.url, timeout=60) as response:
            shutil.copyfileobj(response, stream)
        stream.seek(0)
        _check_hash(hashlib.file_digest(stream, "sha256").hexdigest(), hub)
    return target


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
    """Read a ``.safetensors`` file, or a pickle with ``weights_only=True``, onto the CPU.

    Args:
        path: the file.
        allowed_globals: further classes that the pickle may name, as
            ``torch.serialization.safe_globals`` takes them.

    Returns:
        What the file holds: a flat state dict, or a dict that contains one.

    Raises:
        UnsafeCheckpointError: the pickle names anything else; nothing of it was run.
        CheckpointError: the file is broken or holds no dict.

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
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(list(allowed_globals)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        marker = "GLOBAL "
        named = text.split(marker, 1)[1].split(" ", 1)[0] if marker in text else None
        raise UnsafeCheckpointError(
            f"{path} was refused: it asks for "
            + (f"the global {named!r}" if named else "more than tensors")
            + ", which is not on the list of this method. Nothing of it was run. If you trust the "
            "file, load it yourself and pass the state dict instead of the path."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict of tensors"
        )
    return content


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
    write_bytes(path, save(data, dict(metadata) if metadata else None))
