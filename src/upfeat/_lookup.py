"""Where weight files are looked for: in four places, in this order.

1. the file that the caller names,
2. the folder in the environment variable ``UPFEAT_WEIGHTS``, or several, separated as in ``PATH``,
3. the local cache (``UPFEAT_CACHE``, else ``$XDG_CACHE_HOME/upfeat``, else ``~/.cache/upfeat``),
4. the hub: a Hugging Face repository or the address that the record holds.

Nothing is downloaded unless a caller asks for weights that the first three places lack; setting
``UPFEAT_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` disables the hub.
"""

import hashlib
import logging
import os
import shutil
import threading
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from upfeat._file_kinds import foreign_kind
from upfeat._files import new_file, sha256_of
from upfeat.errors import CheckpointError, WeightsNotFoundError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a server may take for its first answer.
ANSWER_SECONDS = 5

SUFFIXES = (".safetensors", ".fp16.safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class HubFile:
    """A file in the fourth place of the lookup.

    Attributes:
        filename: the file's name in the repository, and its name in the local folders.
        repository: Hugging Face repository id, such as ``"haiwen/loftup-dinov2s"``; or None.
        url: a plain address, where the file is not on Hugging Face; or None.
        sha256: hash of the file where it is known; checked after a download.
        place: where the file is, in words, if it cannot be downloaded.
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
    """Return the folder of downloaded weights; it need not exist yet."""
    if folder := os.environ.get("UPFEAT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upfeat"


def offline() -> bool:
    """Return whether the environment forbids downloads."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no")
        for name in ("UPFEAT_OFFLINE", "HF_HUB_OFFLINE")
    )


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
    """
    if file is not None:
        path = Path(file).expanduser()
        if path.is_dir():
            raise CheckpointError(f"weights for {what}: {path} is {foreign_kind(path)}")
        if not path.is_file():
            raise WeightsNotFoundError(f"weights for {what}: no file at {path}; check the path")
        return path
    folders = os.environ.get("UPFEAT_WEIGHTS", "")
    for folder in filter(None, folders.split(os.pathsep)):
        if found := _search(Path(folder).expanduser(), names):
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
        f"  2. $UPFEAT_WEIGHTS ({folders or 'not set'}): no file {expected} "
        "[.safetensors, .pth, …]; put one there\n"
        f"  3. the local cache ({cache_dir()}): no such file\n"
        f"  4. the hub: {reason}"
    )


def download(hub: HubFile) -> Path:
    """Download a file into the local cache, whole or not at all, and check its hash."""
    if hub.repository:
        path = _from_hugging_face(hub.repository, hub.filename)
        _check_hash(sha256_of(path), hub)
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
