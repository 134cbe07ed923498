"""Malicious pickles: none of what they ask for may run."""

import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import upfeat
from tests.faults.figures import Figures
from upfeat.checkpoints import read_checkpoint
from upfeat.errors import CheckpointError, UpfeatError


class Calls:
    """Pickles as a call: whoever unpickles it calls ``module.name(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def written(text: str) -> bytes:
    """Return a pickle of protocol 0 from its opcodes."""
    return text.encode()


def attacks(canary: Path) -> dict[str, bytes]:
    """Return pickles each of which makes the file ``canary`` if it runs, by what they call."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    spec: Mapping[str, tuple[str, str, tuple[Any, ...]]] = {
        "os.system": ("os", "system", (touch,)),
        "posix.system": ("posix", "system", (touch,)),
        "os.popen": ("os", "popen", (touch,)),
        "subprocess.call": ("subprocess", "call", (["touch", str(canary)],)),
        "subprocess.Popen": ("subprocess", "Popen", (["touch", str(canary)],)),
        "subprocess.check_output": ("subprocess", "check_output", (["touch", str(canary)],)),
        "builtins.eval": ("builtins", "eval", (code,)),
        "builtins.exec": ("builtins", "exec", (code,)),
        "builtins.open": ("builtins", "open", (str(canary), "w")),
        "io.open": ("io", "open", (str(canary), "w")),
        "builtins.getattr": ("builtins", "getattr", (canary, "touch")),
        "builtins.__import__": ("builtins", "__import__", ("antigravity",)),
        "importlib": ("importlib", "import_module", ("this",)),
        "runpy": ("runpy", "_run_code", (code, {})),
        "code": ("code", "interact", ()),
        "pty.spawn": ("pty", "spawn", (["touch", str(canary)],)),
        "timeit": ("timeit", "timeit", (code,)),
        "cProfile": ("cProfile", "run", (code,)),
        "pathlib": ("pathlib", "Path.touch", (canary,)),
        "shutil": ("shutil", "copyfile", (__file__, str(canary))),
        "os.open": ("os", "open", (str(canary), 0o101)),
        "os.mkdir": ("os", "mkdir", (str(canary),)),
        "os.link": ("os", "symlink", (__file__, str(canary))),
        "tempfile": ("tempfile", "mkstemp", ("", canary.name, str(canary.parent))),
        "logging": ("logging", "FileHandler", (str(canary),)),
        "numpy": ("numpy", "memmap", (str(canary), "uint8", "w+", 0, (8,))),
        "numpy.tofile": ("numpy", "ndarray.tofile", (str(canary),)),
        "torch.save": ("torch", "save", ({}, str(canary))),
        "torch.load": ("torch", "load", (str(canary),)),
        "torch.hub": ("torch.hub", "load", ("a/b", "c")),
        "torch.from_file": ("torch", "from_file", (str(canary), True, 8)),
        "torch.storage": ("torch", "UntypedStorage.from_file", (str(canary), True, 8)),
        "torch.compile": ("torch._inductor.codecache", "CppCodeCache.load", (code,)),
        "torch.utils": ("torch.utils.cpp_extension", "load_inline", ("a", code)),
        "torch.jit": ("torch.jit", "load", (str(canary),)),
        "torch rebuild": ("torch._utils", "_rebuild_tensor", (0, 0, (2,), (1,))),
        "multiprocessing": ("multiprocessing.util", "spawnv_passfds", (b"/bin/touch", [], ())),
        "ctypes": ("ctypes", "CDLL", (str(canary),)),
        "webbrowser": ("webbrowser", "open", ("file:///",)),
        "functools": ("functools", "partial", (print, code)),
        "operator": ("operator", "methodcaller", ("touch",)),
        "upfeat": ("upfeat._files", "write_bytes", (str(canary), b"")),
        "upfeat safetensors": ("upfeat.checkpoints", "write_safetensors", (str(canary), {})),
    }
    return {name: _call_pickle(*call) for name, call in spec.items()} | _opcodes(canary)


def _call_pickle(module: str, name: str, arguments: tuple[Any, ...]) -> bytes:
    """Return a pickle that calls ``module.name``, without importing it here."""
    inner = pickle.dumps(arguments, protocol=4)
    body = inner[inner.index(b"\x95") + 9 : -1] if b"\x95" in inner[:4] else inner[2:-1]
    names = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    return b"\x80\x04" + names + b"\x93" + body + b"R."


def _opcodes(canary: Path) -> dict[str, bytes]:
    """Return the same call by other opcodes: GLOBAL, INST, OBJ, BUILD, NEWOBJ, extensions."""
    command = f"touch {canary}"
    return {
        "GLOBAL": written(f"cos\nsystem\n(S'{command}'\ntR."),
        "INST": written(f"(S'{command}'\nios\nsystem\n."),
        "OBJ": written(f"(cos\nsystem\nS'{command}'\no."),
        "dict entry": written(f"(dS'a'\ncos\nsystem\n(S'{command}'\ntRs."),
        "BUILD": written(f"ccollections\nOrderedDict\n)R(S'x'\ncos\nsystem\n(S'{command}'\ntRdb."),
        "persistent": written(f"cos\nsystem\n(S'{command}'\ntRQ."),
        "nested name": written(f"cbuiltins\n__dict__\n(S'eval'\nS'{command}'\ntR."),
        "hidden below": written(f"(lp0\ncos\nsystem\n(S'{command}'\ntRa."),
        "extension": b"\x80\x02\x82\x01.",
        "memo": written(f"cos\nsystem\np1\n0g1\n(S'{command}'\ntR."),
    }


def _inside_checkpoint(attack: bytes, sound: Path, target: Path) -> None:
    """Write a sound zip checkpoint whose pickle is the attack."""
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, attack if name.endswith("data.pkl") else old.read(name))


def malicious_pickles(folder: Path, seed: int = 0, noise: int = 0) -> Figures:
    """Load every attack in every wrapping; ``noise`` further copies have bytes changed."""
    figures, rng = Figures("malicious pickles"), random.Random(seed)
    canary = folder / "canary"
    sound, target = folder / "sound.pth", folder / "attack.pth"
    torch.save({"weight": torch.zeros(2)}, sound)
    wrappings: dict[str, Callable[[bytes], None]] = {
        "plain": target.write_bytes,
        "zip": lambda data: _inside_checkpoint(data, sound, target),
        # The formats before 1.6: a magic number, a version, the system, then the content.
        "legacy": lambda data: target.write_bytes(_legacy_start(sound, folder) + data),
    }
    loaders: dict[str, Callable[[], object]] = {
        "read_checkpoint": lambda: read_checkpoint(target),
        "from_official": lambda: upfeat.from_official("jafar", target),
        "create_upsampler": lambda: upfeat.create_upsampler("anyup.paper", weights=target),
        "featup": lambda: upfeat.from_official("featup_implicit", target),
    }
    variants = [(name, data) for name, data in attacks(canary).items()]
    base = list(variants)
    for _ in range(noise):
        name, data = rng.choice(base)
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        variants.append((f"{name}, one bit", bytes(changed)))
    for name, data in variants:
        for wrapping, write in wrappings.items():
            write(data)
            for loader, load in loaders.items():
                label = f"{name}, {wrapping}, {loader}"
                try:
                    load()
                    figures.count("loaded")
                    if "one bit" not in name:
                        figures.find(f"{label}: loaded")
                except CheckpointError:
                    figures.count("refused")
                except UpfeatError as error:
                    figures.find(f"{label}: {type(error).__name__}: {str(error)[:150]}")
                except Exception as error:
                    figures.find(f"{label}: {type(error).__name__}: {str(error)[:150]}")
                if canary.exists() or canary.is_symlink():
                    figures.find(f"{label}: IT RAN")
                    canary.rmdir() if canary.is_dir() else canary.unlink()
    return figures


def _legacy_start(sound: Path, folder: Path) -> bytes:
    """Return what a file of the old format begins with, before its pickle."""
    old = folder / "legacy.pth"
    if not old.exists():
        torch.save(torch.load(sound, weights_only=True), old, _use_new_zipfile_serialization=False)
    with open(old, "rb") as stream:
        for _ in range(3):
            pickle.load(stream)
        return old.read_bytes()[: stream.tell()]
