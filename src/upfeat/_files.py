"""Writing files: whole or not at all, and never over a file that upfeat did not write.

A file is written to a part beside its target, which is then renamed. The part is locked while its
process lives, so a later process knows what a killed one left behind and removes it.

What upfeat wrote into a folder is kept in ``.upfeat/files.jsonl`` in that folder: name, size and
SHA-256 of each file, and the command. Only a file that is still what a line says may be replaced
or removed, and such files are left out when images are searched.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any, NamedTuple

from upfeat.errors import ForeignFileError, check_file

try:
    import fcntl
except ImportError:  # no such locks on this system: parts of killed processes stay
    fcntl = None  # type: ignore[assignment]

STATE = ".upfeat"
LEDGER = "files.jsonl"
MARK = {"upfeat": 1}  # in every line: whose it is, and the version of the format
_LONGEST_NAME = 150  # of a part's name: a target may have the longest name that there is

# The second form is that of earlier versions.
_PART = re.compile(r"\..*\.upfeat-[0-9a-f]{8}\.part|\..+\.\d+-\d+\.part", re.DOTALL)
_tidied: set[str] = set()  # folders whose stale parts this process has removed


# -- whole or not at all ---------------------------------------------------------------------------


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file through a part and a rename, so that no reader sees half of it."""
    with new_file(path) as stream:
        stream.write(content)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BufferedRandom]:
    """Yield a stream that becomes the file at ``path`` if the block ends without an exception."""
    path = Path(path)
    _tidy(path.parent)
    part = _part_of(path)
    try:
        with os.fdopen(_make_locked(part, folder=False), "w+b") as stream:
            yield stream
            stream.flush()
            os.replace(part, path)
    except OSError as error:
        # The system names the part, or on a full disk nothing at all; users know the target.
        if error.errno is not None and error.filename in (None, os.fspath(part)):
            error.filename = os.fspath(path)
            del error.filename2  # of a rename
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def part_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder for files that are renamed one by one; what is left in it is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    _tidy(parent)
    folder = _part_of(parent / "folder")
    try:
        descriptor = _make_locked(folder, folder=True)
        try:
            yield folder
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove the parts in a folder that no living process holds."""
    try:
        parts = [entry for entry in os.scandir(folder) if _PART.fullmatch(entry.name)]
    except OSError:
        return
    for part in parts:
        if part.is_symlink() or not (part.is_file() or part.is_dir()):
            continue
        # Held by its process (BlockingIOError), gone, or on a disk without locks: left alone.
        with suppress(OSError):
            descriptor = os.open(part.path, os.O_RDONLY if part.is_dir() else os.O_RDWR)
            try:
                _lock(descriptor, wait=False)
                shutil.rmtree(part.path) if part.is_dir() else os.unlink(part.path)
            finally:
                os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Remove stale parts, once a folder and process."""
    key = os.path.abspath(folder)
    if key not in _tidied:
        _tidied.add(key)
        remove_stale_parts(folder)


def _part_of(path: Path) -> Path:
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    return path.with_name(f".{name}.upfeat-{secrets.token_hex(4)}.part")


def _make_locked(path: Path, *, folder: bool) -> int:
    """Create a file or folder and lock it; return the descriptor, whose closing unlocks it."""
    while True:
        if folder:
            path.mkdir()
            descriptor = os.open(path, os.O_RDONLY)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a disk without locks
            _lock(descriptor, wait=True)
        if path.exists():
            return descriptor
        os.close(descriptor)  # another process took it for a stale one before it was locked


def _lock(descriptor: int, *, wait: bool) -> None:
    if fcntl is None:
        raise OSError("no file locks on this system")
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file as 64 hexadecimal digits."""
    check_file(path, "file")
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- whose it is -----------------------------------------------------------------------------------


class _Claim(NamedTuple):
    """What was written under a name: size in bytes, and by which command."""

    size: int
    maker: str


class OwnFiles:
    """The files of one folder, which need not exist, that upfeat wrote.

    ``state`` is the hidden folder with what upfeat knows about its files; free for more of that.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.state = self.folder / STATE
        self._ledger = self.state / LEDGER
        self._read_bytes = -1
        self._all = False
        self._claims: dict[str, dict[str, _Claim]] = {}  # by name, by SHA-256

    @property
    def all(self) -> bool:
        """Whether everything in the folder and below counts as written by upfeat."""
        self._refresh()
        return self._all

    def wrote(self, name: str, maker: str | None = None) -> bool:
        """Whether a file of this name, by this command or by any, is there in its size."""
        self._refresh()
        if name not in self._claims:
            return False
        path = self.folder / name
        try:
            size = os.lstat(path).st_size
        except OSError:
            return False
        return any(
            claim.size == size and maker in (None, claim.maker)
            for claim in self._claims[name].values()
        )

    def check(self, name: str, maker: str) -> None:
        """Refuse a name under which there is anything but what ``maker`` wrote there.

        Raises:
            ForeignFileError: something else is there; it stays as it is.
        """
        path = self.folder / name
        if not os.path.lexists(path):
            return
        claims = self._claims_of(name) if path.is_file() and not path.is_symlink() else {}
        claim = claims.get(sha256_of(path)) if claims else None
        if claim is None:
            raise ForeignFileError(
                f"{path} is there already and was not written by upfeat; move it away, or choose "
                "another folder for the results"
            )
        if claim.maker != maker:
            raise ForeignFileError(
                f"{path} is there already, written by {claim.maker}; choose another folder for the "
                f"results of {maker}"
            )

    def write(self, name: str, content: bytes, maker: str) -> Path:
        """Write a file, whole or not at all, unless something else has its name."""
        self.check(name, maker)
        self._claim(name, len(content), hashlib.sha256(content).hexdigest(), maker)
        write_bytes(self.folder / name, content)
        return self.folder / name

    @contextmanager
    def parts(self) -> Iterator[Path]:
        """Yield a folder on the same disk, for files that :meth:`take` moves to their places."""
        with part_folder(self.state) as folder:
            try:
                yield folder
            except OSError as error:
                # Users know the places, not the parts.
                if isinstance(error.filename, str) and Path(error.filename).parent == folder:
                    error.filename = os.fspath(self.folder / Path(error.filename).name)
                raise

    def take(self, part: Path, name: str, maker: str) -> Path:
        """Rename a finished file on the same disk to ``name``, unless something else has it."""
        self.check(name, maker)
        self._claim(name, part.stat().st_size, sha256_of(part), maker)
        os.replace(part, self.folder / name)
        return self.folder / name

    def adopt(self, name: str, maker: str) -> None:
        """Let what is there under a name count as written by ``maker``, who knows that it is."""
        path = self.folder / name
        if path.is_file() and not path.is_symlink():
            self._claim(name, path.stat().st_size, sha256_of(path), maker)

    def remove(self, name: str, maker: str) -> None:
        """Remove what ``maker`` wrote under a name, if it is still that."""
        if self.wrote(name):
            with suppress(ForeignFileError):
                self.check(name, maker)
                (self.folder / name).unlink(missing_ok=True)

    def claim_all(self, maker: str) -> None:
        """Let everything in the folder count as written by upfeat, if it is new or empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.all and not any(self.folder.iterdir()):
            self._append({"all": True, "maker": maker})

    def _claims_of(self, name: str) -> dict[str, _Claim]:
        self._refresh()
        return self._claims.get(name, {})

    def _claim(self, name: str, size: int, digest: str, maker: str) -> None:
        known = self._claims_of(name).get(digest)
        if known is None or known.maker != maker:
            self._append({"file": name, "bytes": size, "sha256": digest, "maker": maker})

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line; several processes may do so at a time, and a torn line is no line."""
        self.state.mkdir(parents=True, exist_ok=True)
        with open(self._ledger, "ab+") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(end - 1, 0))
            torn = stream.read(1) not in (b"", b"\n")
            stream.write(b"\n" * torn + json.dumps(MARK | line).encode() + b"\n")

    def _refresh(self) -> None:
        """Read the lines if there are new ones."""
        try:
            size = os.stat(self._ledger).st_size
            if size == self._read_bytes:
                return
            lines = self._ledger.read_bytes().splitlines()
        except OSError:
            self._all, self._claims, self._read_bytes = False, {}, -1
            return
        self._all, self._claims, self._read_bytes = False, {}, size
        for content in map(_parsed, lines):
            self._all = self._all or content.get("all") is True
            with suppress(KeyError):
                claim = _Claim(content["bytes"], content["maker"])
                self._claims.setdefault(content["file"], {})[content["sha256"]] = claim


class OwnFolders(dict[Path, OwnFiles]):
    """:class:`OwnFiles` by folder, each made when it is first asked for."""

    def __missing__(self, folder: Path) -> OwnFiles:
        """Make and keep the record of a folder."""
        self[folder] = OwnFiles(folder)
        return self[folder]

    def holds_result(self, path: Path, root: Path) -> bool:
        """Whether upfeat wrote the file, or all that is in a folder above it up to ``root``."""
        if self[path.parent].wrote(path.name):
            return True
        return any(self[root / parent].all for parent in path.relative_to(root).parents)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return what a line says, or nothing if it is torn or not upfeat's."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    known = isinstance(content, dict) and content.items() >= MARK.items()
    return content if known else {}
