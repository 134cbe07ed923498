"""What a file that should hold weights is instead, told from its first bytes.

A download that was answered by a web page, a repository cloned without Git LFS, an archive that was
not unpacked: each has the name of a weight file, and a loader's own message about it misleads.
"""

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HEAD = 1024
UNPACK = "unpack it and give the file in it"
EXPECTED = "expected a .safetensors file or a PyTorch checkpoint"

# What the first bytes say, and what to do.
_LEADING = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which stands for the weights and does not hold them; fetch them with "
        "git lfs pull",
    ),
    (b"\x1f\x8b", f"a gzip archive; {UNPACK}"),
    (b"BZh", f"a bzip2 archive; {UNPACK}"),
    (b"\xfd7zXZ\x00", f"an xz archive; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive; {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {UNPACK}"),
    (b"Rar!", f"a RAR archive; {UNPACK}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras and MATLAB write them; {EXPECTED}"),
    (b"\x93NUMPY", f"a NumPy array (.npy); {EXPECTED}"),
    (b"GGUF", f"a GGUF file; {EXPECTED}"),
    (b"%PDF", f"a PDF document; {EXPECTED}"),
    (b"\x89PNG\r\n", f"a PNG picture; {EXPECTED}"),
    (b"\xff\xd8\xff", f"a JPEG picture; {EXPECTED}"),
    (b"\x7fELF", f"a program or library (ELF); {EXPECTED}"),
)
_PAGE = "; a server answered with it instead of the weights: download the file itself"
# Fields that may follow the version of the format, the first field of an ONNX model.
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"


def foreign_kind(path: Path) -> str | None:
    """Return what the file is, with its article and advice, or None where it may hold weights."""
    if path.is_dir():
        own = (path / "config.json").is_file() and (path / "model.safetensors").is_file()
        advice = "load it with upfeat.Upsampler.from_pretrained" if own else "give the file in it"
        return f"a folder; {advice}"
    if not path.is_file():
        return f"no regular file; {EXPECTED}"
    with open(path, "rb") as stream:
        head = stream.read(HEAD)
    if not head:
        return "an empty file (0 bytes); fetch it again"
    for start, kind in _LEADING:
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return f"a tar archive; {UNPACK}"
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[:1] == b"\x08" and 0 < head[1] < 32 and head[2:3] and head[2] in _ONNX_FIELDS:
        return f"an ONNX model; {EXPECTED}"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")):
        return f"an HTML page{_PAGE}"
    if text.startswith(b"<?xml"):
        return f"an HTML page{_PAGE}" if b"<html" in text else f"an XML document{_PAGE}"
    if text.startswith((b"{", b"[")) and text[1:].lstrip()[:1] in (b'"', b"{", b"[", b"}", b"]"):
        if b'"weight_map"' in text:
            return "the JSON index of weights in several files; join them in one .safetensors file"
        return f"a JSON document; {EXPECTED}"
    return None


def _kind_of_zip(path: Path) -> str | None:
    """Tell PyTorch's own archives from others by the names in them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        size = path.stat().st_size
        return (
            f"a truncated or damaged zip archive ({size:,} bytes, its directory at the end cannot "
            "be read): the copy or download stopped early; fetch it again"
        )
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return "a TorchScript archive, which holds code; save model.state_dict() instead"
    if any(name.endswith("archive_format") for name in names):
        return "an exported program of torch.export; save model.state_dict() instead"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz); {EXPECTED}"
    if any(name.endswith("model.weights.h5") for name in names):
        return f"a Keras model; {EXPECTED}"
    held = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive of other files ({held or 'none'}); {UNPACK}"


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a header, then JSON."""
    with open(path, "rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8


def safetensors_shortage(path: Path) -> str | None:
    """Return how much of a safetensors file is missing at its end, or None if nothing is."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > 10**8:
            return None
        expected = 8 + length
        if size >= expected:
            try:
                entries = json.loads(stream.read(length)).values()
                expected += max(
                    (e["data_offsets"][1] for e in entries if "data_offsets" in e), default=0
                )
            except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
                return None
    if size >= expected:
        return None
    return f"truncated ({size:,} of {expected:,} bytes); fetch it again"


def pickle_globals(path: Path) -> tuple[set[str], bool]:
    """Return the globals that a pickle names, and whether its end can be read; none is run."""
    names: set[str] = set()
    try:
        with _pickle_stream(path) as stream:
            for name in _globals(stream):
                names.add(name)
    except Exception:  # noqa: BLE001  (a disassembler's errors over arbitrary bytes: no pickle)
        return names, False
    return names, True


def _pickle_stream(path: Path) -> IO[bytes]:
    if not zipfile.is_zipfile(path):
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return io.BytesIO(archive.read(name))


def _globals(stream: IO[bytes]) -> Iterator[str]:
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def begins(path: Path) -> str:
    """Return how a file begins, for messages about what no other function here knows."""
    with open(path, "rb") as stream:
        head = stream.read(40)
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return f"begins with {head[:16].hex(' ')}"
    return f"is text that begins with {text!r}" if text.isprintable() else f"begins with {text!r}"
