"""Weight files: the lookup's order, safe reading, atomic writing."""

import fractions
import http.server
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from upfeat import checkpoints
from upfeat._files import write_bytes
from upfeat.checkpoints import (
    HubFile,
    file_sha256,
    find_weights,
    inert_globals,
    read_checkpoint,
    write_safetensors,
)
from upfeat.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An empty weights folder and an empty cache, and no hub."""
    folders = {"weights": tmp_path / "weights", "cache": tmp_path / "cache"}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(folders["weights"]))
    monkeypatch.setenv("UPFEAT_CACHE", str(folders["cache"]))
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    return folders


def test_explicit_file_wins_over_folder_and_cache(places: dict[str, Path], tmp_path: Path) -> None:
    explicit = tmp_path / "mine.pth"
    files = [explicit, places["weights"] / "a.pth", places["cache"] / "a.safetensors"]
    for file in files:
        file.touch()
    assert find_weights("a", ["a"], file=explicit) == explicit
    for expected in files[1:]:
        assert find_weights("a", ["a"]) == expected
        expected.unlink()
    with pytest.raises(WeightsNotFoundError, match="four places"):
        find_weights("a", ["a"])


def test_several_weight_folders_in_order(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    monkeypatch.setenv("UPFEAT_WEIGHTS", os.pathsep.join(map(str, (places["weights"], "", more))))
    (more / "a.pth").touch()
    (places["cache"] / "a.pth").touch()
    assert find_weights("a", ["a"]) == more / "a.pth"
    (places["weights"] / "a.pth").touch()
    assert find_weights("a", ["a"]) == places["weights"] / "a.pth"
    with pytest.raises(WeightsNotFoundError, match=f"{places['weights']}{os.pathsep}"):
        find_weights("b", ["b"])


def test_an_explicit_file_that_is_absent_is_not_replaced(places: dict[str, Path]) -> None:
    (places["weights"] / "a.pth").touch()
    with pytest.raises(WeightsNotFoundError, match=r"no file at .*absent\.pth"):
        find_weights("a", ["a"], file="absent.pth")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".fp16.safetensors", ".pth", ".bin"])
def test_suffixes(places: dict[str, Path], suffix: str) -> None:
    file = places["weights"] / f"name.tag{suffix}"
    file.touch()
    assert find_weights("x", ["absent", "name.tag"]) == file


def test_repositories_that_repeat_a_file_name_do_not_mix(places: dict[str, Path]) -> None:
    hub = HubFile("pytorch_model.bin", repository="someone/model-a")
    (places["weights"] / "pytorch_model.bin").touch()
    with pytest.raises(WeightsNotFoundError, match=r"model-a/pytorch_model\.bin"):
        find_weights("a", [hub.local_name], hub=hub)
    (places["weights"] / "model-a").mkdir()
    (places["weights"] / "model-a" / "pytorch_model.bin").touch()
    assert find_weights("a", [hub.local_name], hub=hub).parent.name == "model-a"


def test_no_hub_is_said(places: dict[str, Path]) -> None:
    with pytest.raises(WeightsNotFoundError, match="nothing is published there"):
        find_weights("x", ["x"])


@pytest.fixture
def address(tmp_path: Path) -> object:
    """A file behind a server on this machine."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "w.bin").write_bytes(b"weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/w.bin"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_fills_the_cache_once(
    places: dict[str, Path], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPFEAT_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    digest = "9ac2ca3e6f5bd7d3f4d0ef7ee5e2e4ba3a8a5bb2b6de4c60ba2d2e8cf0c1be21"
    with pytest.raises(CheckpointError, match="SHA-256"):
        find_weights("w", ["w"], hub=HubFile("w.bin", url=address, sha256=digest))
    assert list(places["cache"].iterdir()) == [], "a file with a wrong hash must not stay"
    path = find_weights("w", ["w"], hub=HubFile("w.bin", url=address))
    assert path == places["cache"] / "w.bin"
    assert path.read_bytes() == b"weights"
    right = HubFile("w.bin", url=address, sha256=file_sha256(path))
    path.unlink()
    assert find_weights("w", ["w"], hub=right) == path
    monkeypatch.setattr("upfeat._lookup.download", lambda hub: pytest.fail("asked twice"))
    assert find_weights("w", ["w"], hub=right) == path


@pytest.fixture
def _network(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPFEAT_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.usefixtures("_network")
def test_a_hub_out_of_reach_is_asked_once(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client would try for 25 seconds."""
    import huggingface_hub

    asked: list[str] = []

    def unreachable(url: str, timeout: float) -> None:
        asked.append(url)
        raise ConnectionError("Name or service not known")

    def missing(*_: object, **__: object) -> None:
        pytest.fail("the download was tried all the same")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    hub = HubFile("w.bin", repository="someone/model")
    with pytest.raises(WeightsNotFoundError, match=r"ConnectionError: Name or service not known$"):
        find_weights("w", ["w"], hub=hub)
    assert len(asked) == 1
    assert asked[0].endswith("someone/model/resolve/main/w.bin")
    copy = tmp_path / "copy.bin"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(copy))
    copy.touch()
    assert find_weights("w", ["w"], hub=hub) == copy


@pytest.mark.usefixtures("_network")
@pytest.mark.parametrize("hub", [HubFile("w", repository="a/b"), HubFile("w", url="http://x/w")])
def test_a_network_that_swallows_everything_is_given_up(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, hub: HubFile
) -> None:
    silent = threading.Event()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: silent.wait(60))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: silent.wait(60))
    monkeypatch.setattr("upfeat._lookup.ANSWER_SECONDS", 0.1)
    with pytest.raises(WeightsNotFoundError, match=r"no answer in 0\.1 s; is there a network\?"):
        find_weights("w", ["w"], hub=hub)
    silent.set()
    assert not any(path.is_file() for path in places["cache"].rglob("*w*"))


def test_failed_download_is_a_miss_with_its_reason(
    places: dict[str, Path], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPFEAT_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(WeightsNotFoundError, match=r"failed: HTTPError.*404"):
        find_weights("w", ["w"], hub=HubFile("absent.bin", url=address + "absent"))
    assert list(places["cache"].iterdir()) == []


# -- reading ---------------------------------------------------------------------------------------


def test_reads_state_dicts_of_both_kinds(tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["model"]["a"], state["a"])
    write_safetensors(tmp_path / "a.safetensors", state)
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(read["a"], state["a"])
    assert torch.equal(read["b"], state["b"])


class Evil:
    """Runs code when a careless loader opens it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system.*Nothing of it was run"):
        read_checkpoint(tmp_path / "evil.pth")
    with open(tmp_path / "plain.pth", "wb") as stream:
        pickle.dump(Evil(), stream)
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(tmp_path / "plain.pth")


def test_allowed_globals_are_a_list_not_a_door(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "c": fractions.Fraction(1, 2)}, tmp_path / "c.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"fractions\.Fraction"):
        read_checkpoint(tmp_path / "c.pth")
    read = read_checkpoint(
        tmp_path / "c.pth", allowed_globals=inert_globals(["fractions.Fraction"])
    )
    assert torch.equal(read["w"], torch.ones(1))
    assert not isinstance(read["c"], fractions.Fraction), "a stand-in, not the class itself"


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path / name)


def test_truncated_file(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:2000])
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pth")


def test_no_dict(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read_checkpoint(tmp_path / "a.pth")


# -- writing ---------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    write_bytes(target, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no temporary file stays"


def test_safetensors_take_views_and_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensor = torch.randn(4, 6)
    write_safetensors(tmp_path / "a.safetensors", {"t": tensor.T}, {"note": "x"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("t"), tensor.T)
        assert file.metadata() == {"note": "x"}


def test_a_file_with_metadata_is_the_same_in_every_run(tmp_path: Path) -> None:
    from safetensors import safe_open

    metadata = {name: f"{name} \N{GREEK SMALL LETTER ALPHA}" for name in "hgfedcba"}
    tensors = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.float16)}
    checkpoints.write_safetensors(tmp_path / "a.safetensors", tensors, metadata)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content.index(b'"a":') < content.index(b'"b":"b') < content.index(b'"h":')
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), one) for name, one in tensors.items())
