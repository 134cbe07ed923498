"""Stores: what they hold, resumed runs, failures, what is refused."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import upfeat
from upfeat.data import image_files
from upfeat.errors import (
    CheckpointError,
    ForeignFileError,
    MissingPackageError,
    UnknownNameError,
    UnsupportedError,
)
from upfeat.extraction import Job, StorePlan, Summary, plan_store, write_store
from upfeat.extraction.shards import SHARD_FORMATS

SIZES = ((24, 40), (24, 40), (21, 30), (40, 24), (24, 40))  # not all multiples of 8


@pytest.fixture
def pipe() -> upfeat.Pipeline:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 70, kernel_size=8, stride=8)
    backbone = upfeat.CallableBackbone(network, dim=70, patch_size=8, name="a convolution")
    return upfeat.Pipeline(backbone, "guided_filter", batch_size=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        below = "more" if number == 4 else "."
        Image.fromarray(pixels).save(folder / below / f"{number}.png")
    return folder


def planned(photos: Path, pipe: upfeat.Pipeline, out: Path, **options: Any) -> StorePlan:
    jobs = [Job(path, name) for path, name in image_files(photos)]
    return plan_store(jobs, pipe, out, **{"upsampler": "guided_filter", "shards": 2, **options})


def extracted(photos: Path, pipe: upfeat.Pipeline, out: Path, **options: Any) -> Summary:
    return write_store(planned(photos, pipe, out, **options), pipe)


def contents(store: Path) -> dict[str, bytes]:
    """The files that users see; inner names of Lance are random."""
    files = (path for path in store.rglob("*") if path.is_file())
    below = {path.relative_to(store): path for path in files}
    return {str(name): path.read_bytes() for name, path in below.items() if name.parts[0][0] != "."}


# -- what a store holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", SHARD_FORMATS)
def test_a_store_holds_what_the_pipeline_computes(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "store"
    plan = planned(photos, pipe, out, store=form, dtype=torch.float32)
    assert plan.bytes_left() == 70 * 4 * (3 * (3 * 5) + 5 * 3 + 3 * 4)
    assert write_store(plan, pipe).count("done") == 5
    assert plan.bytes_left() == 0
    store = upfeat.open_store(out)
    assert list(store) == ["0", "1", "2", "3", "more/4"]
    assert (len(store), store.dtype) == (5, torch.float32)
    assert [features.key for features in store[1:3]] == ["1", "2"]
    for key, features in store.items():
        expected = pipe(photos / f"{key}.png")
        torch.testing.assert_close(features.tensor(), expected.low, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.upsample(), expected.high, atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(features), features.numpy())
        assert features.shape == tuple(expected.low.shape)
    features = store[2]
    whole = features.tensor()
    for index in (np.s_[3], np.s_[:, 1:], np.s_[2:60, :2, 1:3], np.s_[..., 0], np.s_[:, ::2]):
        assert torch.equal(features[index], whole[index])
    assert features.upsample((11, 12)).shape == (70, 11, 12)


def test_one_fingerprint_in_every_format_and_any_number_of_shards(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    pipe.batch_size = 1
    found = set()
    for shards, form in enumerate(SHARD_FORMATS, start=1):
        extracted(photos, pipe, tmp_path / form, store=form, shards=shards)
        found.add(upfeat.open_store(tmp_path / form).fingerprint())
    Image.new("RGB", (40, 24)).save(photos / "0.png")
    extracted(photos, pipe, tmp_path / "other")
    assert len(found) == 1
    assert upfeat.open_store(tmp_path / "other").fingerprint() not in found


def test_the_card_says_what_made_the_features(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    extracted(photos, pipe, tmp_path / "store")
    card = json.loads((tmp_path / "store" / "store.json").read_text())
    assert card["backbone"]["name"] == "a convolution"
    assert card["backbone"]["image_std"] == [1.0, 1.0, 1.0]
    assert card["upsampler"]["spec"] == "guided_filter"
    assert card["versions"].keys() == {"upfeat", "torch", "timm"}
    record = upfeat.open_store(tmp_path / "store")["2"].record
    assert (record.size, record.visible, record.shape) == ((21, 30), (3, 4), (70, 3, 4))


def test_sixty_four_components(photos: Path, pipe: upfeat.Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "store"
    extracted(photos, pipe, out, features="pca64", dtype=torch.float32)
    store = upfeat.open_store(out)
    features, basis = store["2"], store.basis
    assert basis is not None
    low = pipe(photos / "2.png").low
    assert features.shape == (64, 3, 4)
    torch.testing.assert_close(features.tensor(), basis.project(low))
    # The features have three channels of pixels behind them, so that 64 components hold them well.
    torch.testing.assert_close(basis.restore(features.tensor()), low, atol=0.02, rtol=0)
    expected = basis.project(pipe(photos / "2.png").high)
    assert (features.upsample() - expected).abs().max() < 0.02
    assert float(basis.explained.sum()) > 0.99
    narrow = upfeat.Pipeline(upfeat.CallableBackbone(torch.nn.AvgPool2d(8), 3, 8), "bilinear")
    with pytest.raises(ValueError, match="pca64 keeps 64 channels, and callable has 3"):
        planned(photos, narrow, tmp_path / "b", features="pca64")


def test_upsampled_features(photos: Path, pipe: upfeat.Pipeline, tmp_path: Path) -> None:
    pipe.output_size = 18
    plan = planned(photos, pipe, tmp_path / "store", features="high", dtype=torch.float32)
    assert plan.bytes_left() == 70 * 4 * 18 * (30 + 30 + 26 + 30 + 30)
    write_store(plan, pipe)
    features = upfeat.open_store(tmp_path / "store")["3"]
    torch.testing.assert_close(features.tensor(), pipe(photos / "3.png").high)
    with pytest.raises(UnsupportedError, match="holds upsampled features of"):
        features.upsample()


def test_pictures_in_the_store_replace_the_files(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    expected = pipe(photos / "0.png").high
    for form in SHARD_FORMATS:
        extracted(photos, pipe, tmp_path / form, store=form, pictures=True, dtype=torch.float32)
    extracted(photos, pipe, tmp_path / "without", dtype=torch.float32)
    moved = photos.rename(tmp_path / "moved")
    for form in SHARD_FORMATS:
        high = upfeat.open_store(tmp_path / form)["0"].upsample()
        torch.testing.assert_close(high, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(FileNotFoundError, match=r"no longer at .*images=FOLDER"):
        upfeat.open_store(tmp_path / "without")["0"].upsample()
    store = upfeat.open_store(tmp_path / "without", images=moved)
    torch.testing.assert_close(store["0"].upsample(), expected, atol=1e-5, rtol=1e-5)
    assert store["more/4"].image().shape == (3, 24, 40)
    Image.new("RGB", (40, 24)).save(moved / "0.png")
    with pytest.raises(ValueError, match="has changed since its features were stored"):
        store["0"].upsample()


def test_another_upsampler_and_other_processes(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    extracted(photos, pipe, tmp_path / "store", dtype=torch.float32)
    store = upfeat.open_store(tmp_path / "store", upsampler="bilinear")
    other = pipe.with_upsampler("bilinear")
    high = store["1"].upsample()
    torch.testing.assert_close(high, other(photos / "1.png").high, atol=1e-5, rtol=1e-5)
    assert torch.equal(pickle.loads(pickle.dumps(store))["1"].upsample(), high)
    assert "5 images, low features of a convolution, float32, 2 safetensors" in repr(store)
    with pytest.raises(KeyError, match="unknown image '7'"):
        store["7"]
    assert "7" not in store
    card = tmp_path / "store" / "store.json"
    changed = json.loads(card.read_text())
    changed["upsampler"] |= {"weights": "0" * 16}
    card.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="guided_filter has other weights"):
        upfeat.open_store(tmp_path / "store")["1"].upsample()
    changed["upsampler"] |= {"spec": None}
    card.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="does not record how to load its upsampler guided_filter"):
        upfeat.open_store(tmp_path / "store")["1"].upsample()


def test_names_that_formats_may_refuse(pipe: upfeat.Pipeline, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    names = [b"a.png", b"a.b.png", b"a/b.png", b"__init__.png", b"%2e.png", b"new\nline.png"]
    for name in (*names, "ü ß.png".encode(), b"\xff.png"):
        Image.new("RGB", (16, 8)).save(tmp_path / "one.png")
        Path(os.fsdecode(os.path.join(os.fsencode(photos), name))).write_bytes(
            (tmp_path / "one.png").read_bytes()
        )
    for form in SHARD_FORMATS:
        for state in ("done", "skipped"):
            assert extracted(photos, pipe, tmp_path / form, store=form).count(state) == 8
        store = upfeat.open_store(tmp_path / form)
        assert {"a", "a.b", "a/b", "__init__", "ü ß", "new\nline", "\\udcff"} < set(store)
        assert all(features.upsample().shape == (70, 8, 16) for features in store.values())


# -- runs that end and go on -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "zarr", "parquet"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path, form: str
) -> None:
    extracted(photos, pipe, tmp_path / "whole", store=form, shards=3)
    out, seen = tmp_path / "store", []

    def interrupt(outcome: Any) -> None:
        seen.append(outcome)
        if len(seen) == 4:
            raise KeyboardInterrupt

    plan = planned(photos, pipe, out, store=form, shards=3)
    with pytest.raises(KeyboardInterrupt):
        write_store(plan, pipe, on_outcome=interrupt)
    assert len([name for name in os.listdir(out) if name.startswith("shard")]) == 2
    with pytest.raises(ValueError, match="is not finished: 1 of 3 shards are missing"):
        upfeat.open_store(out)
    again = extracted(photos, pipe, out, store=form, shards=None)  # as many as there are
    assert [outcome.state for outcome in again.outcomes] == ["skipped"] * 3 + ["done"] * 2
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


def test_a_killed_run_goes_on_to_the_same_bytes(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    """The process is gone in the middle of a write, so that nothing can tidy up behind it."""
    program = f"""
import os, signal, torch, upfeat
from pathlib import Path
from upfeat.data import image_files
from upfeat.extraction import Job, plan_store, shards, write_store
torch.manual_seed(0)
network = torch.nn.Conv2d(3, 70, kernel_size=8, stride=8)
backbone = upfeat.CallableBackbone(network, dim=70, patch_size=8, name="a convolution")
pipe = upfeat.Pipeline(backbone, "guided_filter", batch_size=2)
jobs = [Job(path, name) for path, name in image_files({str(photos)!r})]
write, done = shards.ZarrShard.write, []
def half(path, content):
    write(path, content)
    done.append(path)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
shards.ZarrShard.write = half
plan = plan_store(
    jobs, pipe, Path({str(tmp_path / "store")!r}), store="zarr", upsampler="guided_filter", shards=3
)
write_store(plan, pipe)
"""
    killed = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    out = tmp_path / "store"
    assert sorted(os.listdir(out)) == [".upfeat", "shard-00000.zarr", "store.json"]
    assert list((out / ".upfeat").glob("*.part")), "what was half-written is not in the store"
    again = extracted(photos, pipe, out, store="zarr", shards=3)
    assert (again.count("skipped"), again.count("done")) == (1, 4)
    extracted(photos, pipe, tmp_path / "whole", store="zarr", shards=3)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize("form", SHARD_FORMATS)
def test_damaged_shards_and_changed_images_are_computed_again(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "store"
    extracted(photos, pipe, out, store=form)
    first = upfeat.open_store(out).fingerprint()
    (shard,) = out.glob("shard-00001.*")
    files = [shard] if shard.is_file() else [p for p in shard.rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(b"")
    again = extracted(photos, pipe, out, store=form)
    assert [outcome.state for outcome in again.outcomes] == ["skipped"] * 2 + ["done"] * 3
    assert upfeat.open_store(out).fingerprint() == first
    Image.new("RGB", (40, 24)).save(photos / "1.png")
    again = extracted(photos, pipe, out, store=form)
    assert [outcome.state for outcome in again.outcomes] == ["done"] * 2 + ["skipped"] * 3
    black = upfeat.open_store(out)["1"].tensor()
    torch.testing.assert_close(black, pipe(photos / "1.png").low.half())


def test_images_that_fail_are_named_and_left_out(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    whole = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(b"no image")
    for state in ("done", "skipped"):  # what cannot be read is not read twice
        summary = extracted(photos, pipe, out)
        assert (summary.count(state), summary.count("failed")) == (4, 1)
        assert summary.failures == out / "failures.jsonl"
    (line,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert line["file"] == str(photos / "2.png")
    store = upfeat.open_store(out)
    assert list(store) == ["0", "1", "3", "more/4"]
    assert "cannot be read" in store.failures["2"].error
    (photos / "2.png").write_bytes(whole)
    assert extracted(photos, pipe, out).count("done") == 3
    assert len(upfeat.open_store(out)) == 5
    assert not (out / "failures.jsonl").exists()


def test_numbers_beyond_float16_are_no_features(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    pipe.backbone.function.bias.data.fill_(1e5)  # type: ignore[union-attr,operator]
    summary = extracted(photos, pipe, tmp_path / "store")
    assert summary.count("failed") == 5
    assert "do not fit into float16; store float32" in (summary.outcomes[0].error or "")
    assert len(upfeat.open_store(tmp_path / "store")) == 0
    assert extracted(photos, pipe, tmp_path / "b", dtype=torch.float32).count("done") == 5


def test_an_image_that_the_backbone_refuses_stops_no_other(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    def refuse(image: torch.Tensor) -> torch.Tensor:
        if image.shape[-2:] == (40, 24):
            raise RuntimeError("no such grid")
        return torch.nn.functional.avg_pool2d(image, 8)

    picky = upfeat.Pipeline(upfeat.CallableBackbone(refuse, 3, 8), "bilinear", batch_size=5)
    summary = extracted(photos, picky, tmp_path / "store", upsampler="bilinear")
    assert [outcome.state for outcome in summary.outcomes].count("done") == 4
    assert summary.outcomes[3].error == "RuntimeError: no such grid"


# -- what is refused -------------------------------------------------------------------------------


def test_other_settings_and_other_images_are_refused(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    extracted(photos, pipe, out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"other settings \(dtype 'float16', now 'float32'\)"):
        planned(photos, pipe, out, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"upsampler\.name 'guided_filter', now 'bilinear'"):
        planned(photos, pipe.with_upsampler("bilinear"), out, upsampler="bilinear")
    with pytest.raises(ValueError, match="in 2 shards instead of 3"):
        planned(photos, pipe, out, shards=3)
    Image.new("RGB", (40, 24)).save(photos / "5.png")
    with pytest.raises(ValueError, match="a store of 5 images, and 6 are given"):
        planned(photos, pipe, out)
    (photos / "0.png").unlink()
    with pytest.raises(ValueError, match="a store of other images"):
        planned(photos, pipe, out)
    assert contents(out) == before


def test_folders_of_others_stay(photos: Path, pipe: upfeat.Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"holds notes\.txt and is not a store"):
        planned(photos, pipe, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    (tmp_path / "mine" / "store.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the card of a store"):
        planned(photos, pipe, tmp_path / "mine")


def test_a_store_below_the_images_is_none_of_them(photos: Path, pipe: upfeat.Pipeline) -> None:
    for state in ("done", "skipped"):
        assert extracted(photos, pipe, photos / "store", pictures=True).count(state) == 5


def test_arguments(
    photos: Path, pipe: upfeat.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown format of a store 'zar'.*'zarr'"):
        planned(photos, pipe, tmp_path / "a", store="zar")
    with pytest.raises(UnknownNameError, match="unknown features 'mid'"):
        planned(photos, pipe, tmp_path / "a", features="mid")
    with pytest.raises(ValueError, match="shards must be from 1 to 5, the number of images, got 6"):
        planned(photos, pipe, tmp_path / "a", shards=6)
    with pytest.raises(ValueError, match=r"float16 or float32, got torch\.bfloat16"):
        planned(photos, pipe, tmp_path / "a", dtype=torch.bfloat16)
    with pytest.raises(UnknownNameError, match="unknown engine 'dask'"):
        write_store(planned(photos, pipe, tmp_path / "a"), pipe, engine="dask")
    assert not (tmp_path / "a").exists()
    for form, package in (("zarr", "zarr"), ("parquet", "pyarrow"), ("lance", "pylance")):
        monkeypatch.setitem(sys.modules, SHARD_FORMATS[form].package or "", None)
        with pytest.raises(MissingPackageError, match=rf"'{package}'; .*'upfeat\[store\]'"):
            planned(photos, pipe, tmp_path / "a", store=form)
