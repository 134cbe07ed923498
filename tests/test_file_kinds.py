"""What stands in a weight file's place: the reader names it, and runs none of it."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import upfeat
from upfeat.checkpoints import (
    load_strictly,
    read_checkpoint,
    read_config,
    unwrap_state,
    write_safetensors,
)
from upfeat.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError

STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def torch_bytes(content: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return stream.getvalue()


def numpy_archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.ones(2))
    return stream.getvalue()


FOREIGN = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "HTML page": b"\n  <!DOCTYPE html><html><title>404</title></html>",
    "XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "empty file": b"",
    "gzip archive": gzip.compress(torch_bytes(STATE)),
    "tar archive": tarred(),
    "zip archive of other files": zipped("model.pth", "README.md"),
    "NumPy archive": numpy_archive(),
    "NumPy array": b"\x93NUMPY\x01\x00",
    "JSON document": json.dumps({"error": "not found"}).encode(),
    "JSON index": json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(),
    "ONNX model": b"\x08\x07\x12\x07pytorch\x1a\x03",
    "HDF5 file": b"\x89HDF\r\n\x1a\n",
    "GGUF file": b"GGUF\x03\x00",
    "PNG picture": b"\x89PNG\r\n\x1a\n",
    "TorchScript archive": zipped("m/data.pkl", "m/code/m.py", "m/constants.pkl"),
    "exported program": zipped("m/archive_format", "m/models/model.json"),
    "truncated or damaged zip": torch_bytes(STATE)[:200],
    "text that begins": b"Access denied",
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
def test_the_message_says_what_the_file_is(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(FOREIGN[kind])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / name)
    assert not isinstance(caught.value, UnsafeCheckpointError), "no attack"
    assert kind in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def read_upsampler(path: Path) -> object:
    return upfeat.create_upsampler("anyup.paper", weights=path)


def read_official(path: Path) -> object:
    return upfeat.from_official("jafar", path)


def read_backbone(path: Path) -> object:
    return upfeat.create_backbone("timm/vit_tiny_patch16_224", weights=path, depth=1)


def read_encoder(path: Path) -> object:
    return upfeat.create_backbone("upfeat/vit_compact_patch16", weights=path)


def read_folder(path: Path) -> object:
    folder = path.parent / "folder"
    upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8).save_pretrained(folder)
    path.rename(folder / "model.safetensors")
    return upfeat.Upsampler.from_pretrained(folder)


READERS = [read_upsampler, read_official, read_backbone, read_encoder, read_folder]


@pytest.mark.parametrize("read", READERS)
def test_every_way_in_goes_through_the_one_reader(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(FOREIGN["Git LFS pointer"])
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read(path)


@pytest.mark.parametrize("read", READERS[:4])
def test_a_folder_is_no_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(CheckpointError, match="a folder; give the file in it"):
        read(tmp_path)
    upfeat.create_upsampler("bilinear").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="from_pretrained"):
        read(tmp_path)


@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_cut_at_any_length(tmp_path: Path, old_format: bool) -> None:
    whole = torch_bytes({"model": STATE, "epoch": 3}, _use_new_zipfile_serialization=not old_format)
    path = tmp_path / "w.pth"
    for length in (*range(0, 64), *range(64, len(whole), 61), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"w\.pth"):
            read_checkpoint(path)


def test_safetensors_cut_at_any_length(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", STATE)
    whole = (tmp_path / "a.safetensors").read_bytes()
    for name in ("t.safetensors", "t.pth"):
        for length in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"t\.(safetensors|pth)"):
                read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=rf"truncated \({len(whole) - 5} of {len(whole)} b"):
        read_checkpoint(tmp_path / name)


def test_bytes_changed_anywhere_never_leave_the_family(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    write_safetensors(tmp_path / "a.safetensors", STATE)
    for whole in (
        torch_bytes(STATE),
        torch_bytes(STATE, _use_new_zipfile_serialization=False),
        (tmp_path / "a.safetensors").read_bytes(),
    ):
        for _ in range(150):
            damaged = bytearray(whole)
            for place in generator.integers(0, len(whole), 3):
                damaged[place] = generator.integers(0, 256)
            path.write_bytes(damaged)
            with pytest.raises(
                CheckpointError, match="damaged"
            ):  # whole or not: no weights of JAFAR
                upfeat.from_official("jafar", path)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", STATE)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["w"], STATE["w"])


def test_absent_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no file at .*absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")


def test_a_plain_pickle_is_no_attack(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=4))
    with pytest.raises(CheckpointError, match=r"plain pickle.*torch\.save") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert not isinstance(caught.value, UnsafeCheckpointError)


# -- what wrappers and trainers add ----------------------------------------------------------------

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "model.module.",
    "model._orig_mod.",
)
NESTS = ((), ("state_dict",), ("model",), ("ema",), ("model_state_dict",), ("checkpoint", "model"))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nest", NESTS)
def test_wrapped_and_nested_names_are_understood(prefix: str, nest: tuple[str, ...]) -> None:
    content: dict[str, object] = {prefix + key: tensor for key, tensor in STATE.items()}
    for key in reversed(nest):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {}}}}
    assert unwrap_state(content).keys() == STATE.keys()


def test_wrappers_within_names_and_averaged_models() -> None:
    names = ["a._orig_mod.w", "b._fsdp_wrapped_module.w", "c._checkpoint_wrapped_module.w"]
    assert list(unwrap_state(dict.fromkeys(names, STATE["w"]))) == ["a.w", "b.w", "c.w"]
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 1))
    assert unwrap_state(averaged.state_dict()).keys() == {"weight", "bias"}


def test_a_prefix_of_some_names_only_stays() -> None:
    names = ("model.1.norm.weight", "upsampler.up1.weight")
    assert tuple(unwrap_state(dict.fromkeys(names, STATE["w"]))) == names


@pytest.mark.parametrize("prefix", PREFIXES)
def test_backbones_and_encoder_understand_them(tmp_path: Path, prefix: str) -> None:
    for spec, options in (
        ("timm/vit_tiny_patch16_224", {"depth": 1}),
        ("upfeat/vit_compact_patch16", {}),
    ):
        source = upfeat.create_backbone(spec, weights="random", **options)
        state = source.model.state_dict()  # type: ignore[union-attr]
        torch.save({"ema": {prefix + k: v for k, v in state.items()}}, tmp_path / "w.pth")
        loaded = upfeat.create_backbone(spec, weights=tmp_path / "w.pth", **options)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, source.state_dict()[key])


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 3), torch.nan), "NaN or infinite values in weight"),
        (torch.full((2, 3), -torch.inf), "NaN or infinite values in weight"),
        (torch.ones(2, 3, dtype=torch.int8), "weight int8 instead of float32"),
        (torch.ones(2, 3, dtype=torch.complex64), "weight complex64 instead of float32"),
        (torch.ones(2, 3).to_sparse(), "torch.sparse_coo"),
        (torch.empty(2, 3, device="meta"), "meta"),
        (torch.ones(3, 2), r"weight (3, 2) instead of (2, 3)"),
        (torch.tensor(1.0), r"weight () instead of (2, 3)"),
    ],
)
def test_weights_that_hold_no_weights(weight: torch.Tensor, message: str) -> None:
    module = nn.Linear(3, 2)
    before = module.bias.detach().clone()
    state = {"weight": weight, "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, state, origin="w.pth", name="a line")
    assert message in str(caught.value)
    assert torch.equal(module.bias, before), "all or nothing"


# -- configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"{", b"3", b'"x"', b"\xff\xfe\x00", b'{"a":' * 100_000,
        b"[" * 100_000, b"9" * 5000, FOREIGN["Git LFS pointer"], FOREIGN["HTML page"],
    ],
)  # fmt: skip
def test_a_broken_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path / "config.json")
