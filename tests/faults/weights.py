"""Damaged and foreign weights and configurations: they load, or our errors say what they are."""

import io
import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import upfeat
from tests.faults.damage import damaged
from tests.faults.figures import Figures
from tests.fuzz.methods import instance
from upfeat.checkpoints import read_checkpoint
from upfeat.errors import CheckpointError, UpfeatError
from upfeat.upsamplers.registry import get_class

OFFICIAL = ("jafar", "anyup", "carafe", "liif", "sapa", "resize_conv", "lift", "featup_jbu")
LONGEST_MESSAGE = 900
"""A list of keys and shapes makes a long sentence."""


def _state(method: str) -> dict[str, torch.Tensor]:
    return instance(method, 8, torch.float32).state_dict()


def _bytes(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def judge(figures: Figures, what: str, action: Callable[[], Any], file: Path | None) -> None:
    """Count what an action does; anything but an error of ours that names the file is a finding."""
    try:
        action()
    except UpfeatError as error:
        figures.count("refused")
        text = str(error)
        if file is not None and file.name not in text and str(file.parent) not in text:
            figures.find(f"{what}: the message does not name {file.name}: {text[:200]}")
        if "\n" in text or len(text) > LONGEST_MESSAGE:
            figures.find(f"{what}: no sentence: {text[:300]!r}")
    except Exception as error:
        figures.find(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    else:
        figures.count("loaded")


def damaged_weights(count: int, folder: Path, seed: int = 0) -> Figures:
    """Load damaged checkpoints of both PyTorch's formats and safetensors."""
    from safetensors.torch import save

    figures, rng = Figures("damaged weights"), random.Random(seed)
    sound = {}
    for method in OFFICIAL:
        state = {key: value.contiguous() for key, value in _state(method).items()}
        sound[method, "new.pth"] = _bytes(state)
        sound[method, "old.pth"] = _bytes(state, zipped=False)
        sound[method, "a.safetensors"] = save(state)
    pairs = list(sound)
    for number in range(count):
        method, name = pairs[number % len(pairs)]
        what, data = damaged(sound[method, name], rng)
        if number % 3 == 0:  # where names, sizes and the pickle are
            what, start = damaged(sound[method, name][:400], rng)
            data = start + sound[method, name][400:]
        file = folder / name
        file.write_bytes(data)
        label = f"{method} {name} {what} ({number})"
        judge(figures, label, lambda m=method, f=file: upfeat.from_official(m, f), file)
    return figures


def foreign_weights(folder: Path) -> Figures:
    """Load what belongs to another method, or is no checkpoint at all."""
    figures = Figures("foreign weights")
    states = {m: _state(m) for m in upfeat.list_upsamplers()}
    odd: dict[str, object] = {
        "empty": {},
        "numbers": {"a": 1, "b": 2.0},
        "number keys": {1: torch.zeros(2)},
        "no axes": {k: torch.tensor(1.0) for k in states["jafar"]},
        "empty tensors": {k: torch.zeros(0) for k in states["jafar"]},
        "one more axis": {k: v[None] for k, v in states["jafar"].items()},
        "integers": {k: torch.zeros(v.shape, dtype=torch.int64) for k, v in states["sapa"].items()},
        "list": [torch.zeros(2)],
        "tensor": torch.zeros(2),
        "nested": {"model": {"state": {"a": torch.zeros(2)}}},
        "sparse": {"a": torch.eye(3).to_sparse()},
        "complex": {k: v.to(torch.complex64) for k, v in states["jafar"].items()},
    }
    methods = [m for m in states if _has_files(m)]
    for method in methods:
        for other, state in (states | odd).items():
            if other == method:
                continue
            if isinstance(state, Mapping):
                action = lambda m=method, s=state: upfeat.from_official(m, s)  # noqa: E731
                judge(figures, f"{method} from the state of {other}", action, None)
    for other, content in odd.items():
        file = folder / f"{other.replace(' ', '_')}.pth"
        file.write_bytes(_bytes(content))
        for method in methods:
            action = lambda m=method, f=file: upfeat.from_official(m, f)  # noqa: E731
            judge(figures, f"{method} from a file of {other}", action, file)
    for name, data in no_checkpoints().items():
        for suffix in (".pth", ".safetensors"):
            file = folder / (name.replace(" ", "_") + suffix)
            file.write_bytes(data)
            action = lambda f=file: upfeat.from_official("jafar", f)  # noqa: E731
            judge(figures, f"{name} as {suffix}", action, file)
            _says_no_attack(figures, name, file)
    return figures


def _has_files(method: str) -> bool:
    try:
        get_class(method).official_config({})
    except CheckpointError as error:
        return "no official weight files" not in str(error)
    except Exception:
        return True
    return True


def no_checkpoints() -> dict[str, bytes]:
    """Return files that are something else."""
    return {
        "nothing": b"",
        "one byte": b"P",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "web page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
        "web page in capitals": b"\n  <HTML><HEAD>",
        "json": b'{"error": "not found"}',
        "text": b"Access denied\n" * 20,
        "zip": b"PK\x05\x06" + bytes(18),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(40),
        "tar": b"weights".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "zeros": bytes(4096),
        "long header": (10**15).to_bytes(8, "little") + b"{}",
    }


def _says_no_attack(figures: Figures, name: str, file: Path) -> None:
    """A file that is no pickle is no attack."""
    try:
        read_checkpoint(file)
    except Exception as error:
        if re.search(r"more than tensors|was refused", str(error)):
            figures.find(f"{name} ({file.suffix}) is called an attack: {str(error)[:200]}")


def damaged_configs(count: int, folder: Path, seed: int = 0) -> Figures:
    """Load folders of save_pretrained whose configuration or weights are damaged."""
    figures, rng = Figures("damaged folders"), random.Random(seed)
    model = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=16)
    model.save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    sound = {file: file.read_bytes() for file in (config, weights)}
    changes = [("damage", None)] * count + [(k, v) for k, v in odd_configs(sound[config]).items()]
    for number, (what, data) in enumerate(changes):
        file = weights if data is None and number % 4 == 3 else config
        if data is None:
            what, data = damaged(sound[file], rng)
        for other, content in sound.items():
            other.write_bytes(data if other == file else content)

        def load() -> None:
            loaded = upfeat.Upsampler.from_pretrained(folder)
            image = torch.rand(1, 3, 16, 16)
            output = loaded(image, torch.rand(1, 16, 2, 2))
            std = loaded.info.image_std
            if std is not None and not all(0 < float(n) < float("inf") for n in std):
                raise AssertionError(f"image_std {std} was loaded")
            if loaded.info.image_mean is not None and len(loaded.info.image_mean) != 3:
                raise AssertionError(f"image_mean {loaded.info.image_mean} was loaded")
            if output.shape != (1, 16, 16, 16):
                raise AssertionError(f"shape {tuple(output.shape)}")

        judge(figures, f"{file.name} {what} ({number})", load, file)
    return figures


def odd_configs(sound: bytes) -> dict[str, bytes]:
    """Return configurations that are none, or say impossible things."""
    config = json.loads(sound)
    texts = {"": "", "list": "[]", "null": "null", "brace": "{", "number": "3", "text": '"a"'}
    odd = {f"config {name}": text.encode() for name, text in texts.items()}
    odd["config deep"] = b'{"a":' * 100_000
    odd["config no text"] = b"\xff\xfe\x00"
    changes: dict[str, dict[str, Any]] = {
        "architecture number": {"architecture": 3},
        "architecture list": {"architecture": ["jafar"]},
        "architecture unknown": {"architecture": "jafr"},
        "architecture path": {"architecture": "../../jafar"},
        "config list": {"config": []},
        "config null": {"config": None},
        "config text width": {"config": {"feature_dim": "x"}},
        "config negative": {"config": {"feature_dim": -4}},
        "config zero": {"config": {"feature_dim": 0}},
        "config huge": {"config": {"feature_dim": 10**12}},
        "config float": {"config": {"feature_dim": 16.5}},
        "config unknown word": {"config": {"feature_dim": 16, "sizes": 3}},
        "mean of two": {"image_mean": [0.1, 0.2]},
        "mean text": {"image_mean": "abc"},
        "mean number": {"image_mean": 3},
        "std zero": {"image_mean": [0, 0, 0], "image_std": [0, 0, 0]},
        "std negative": {"image_mean": [0, 0, 0], "image_std": [-1, 1, 1]},
        "std not a number": {"image_mean": [0, 0, 0], "image_std": [float("nan"), 1, 1]},
        "std nested": {"image_mean": [0, 0, 0], "image_std": [[1], [1], [1]]},
    }
    odd |= {what: json.dumps(config | change).encode() for what, change in changes.items()}
    for key in config:
        odd[f"without {key}"] = json.dumps({k: v for k, v in config.items() if k != key}).encode()
    return odd
