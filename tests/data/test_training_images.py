from __future__ import annotations

import io
import json
import logging
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from upfeat.checkpoints import write_safetensors
from upfeat.data import (
    CropTransform,
    Sa1bMaskSource,
    SuperpixelMaskSource,
    TarRecords,
    TrainingImages,
    TrainingLoader,
    find_images,
    image_folder,
    image_list,
    imagenet_folder,
    sa1b_folder,
)
from upfeat.data.depth import DepthMapFolder
from upfeat.data.feature_cache import FeatureMapFolder
from upfeat.data.mask_sets import mask_to_rle
from upfeat.data.records import (
    FileRecords,
    JoinedRecords,
    Records,
    SelectedRecords,
    random_subset,
    shorter_sides,
    with_min_side,
)
from upfeat.data.tar_shards import find_shards
from upfeat.data.training_images import ImageBatch, collate, sample_generator

TRANSFORM = CropTransform(24, 16, "random", flip=0.5)


def encoded(number: int, size: tuple[int, int] = (26, 34), kind: str = "png") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def folder(tmp_path: Path, count: int = 11, broken: tuple[int, ...] = ()) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(count):
        content = encoded(number)
        root.joinpath(f"{number:02d}.png").write_bytes(
            content[: len(content) // 2] if number in broken else content
        )
    return root


@pytest.mark.parametrize("size", [(26, 34), (34, 26), (8, 60), (16, 24)])
def test_the_smallest_size_that_holds_a_crop(size: tuple[int, int]) -> None:
    transform = CropTransform("cover", (16, 24), "random", scale=(1.0, 1.5))
    for seed in range(10):
        geometry = transform.geometry(size, torch.Generator().manual_seed(seed))
        assert geometry.image(torch.rand(3, *size)).shape == (3, 16, 24)
        factor = min(full / part for full, part in zip(geometry.resized, (16, 24), strict=True))
        assert 1 <= factor < 1.6
    tight = CropTransform("cover", (16, 24)).geometry(size, torch.Generator()).resized
    assert tight[0] == 16 or tight[1] == 24
    with pytest.raises(ValueError, match="crop to cover"):
        CropTransform("cover")


def dataset(root: Path, **options: Any) -> TrainingImages:
    return TrainingImages(image_folder(root), TRANSFORM, **options)


def take(loader: TrainingLoader, count: int) -> list[ImageBatch]:
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def assert_equal(batches: list[ImageBatch], others: list[ImageBatch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["name"] == other["name"]
        assert batch["skipped"] == other["skipped"]
        assert batch.keys() == other.keys()
        for name in ("image", "index", "masks"):
            if name in batch:
                assert torch.equal(batch[name], other[name]), name  # type: ignore[literal-required]


# -- the stream ----------------------------------------------------------------------------------


def test_batches_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    images = dataset(
        folder(tmp_path, broken=(3, 7)), masks=SuperpixelMaskSource("slic", segments=6), seed=5
    )
    runs = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)  # global states must not matter
        random.seed(workers)
        np.random.seed(workers)
        loader = TrainingLoader(images, 4, workers=workers, samples=24)
        runs.append(list(loader))
        assert loader.position == 24
        assert set(loader.skipped) == {"03", "07"}
    assert len(runs[0]) == 6
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
    assert runs[0][0]["masks"].dtype == torch.bool
    assert runs[0][0]["masks"].sum(1).eq(1).all()


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path))
    before = torch.get_rng_state()
    take(TrainingLoader(images, 4), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path, 12))
    names = [name for batch in take(TrainingLoader(images, 4), 6) for name in batch["name"]]
    first, second = names[:12], names[12:]
    assert sorted(first) == sorted(second) == sorted(f"{n:02d}" for n in range(12))
    assert first != second
    assert first != sorted(first)
    other = TrainingLoader(dataset(tmp_path / "images", seed=1), 4)
    assert [name for batch in take(other, 3) for name in batch["name"]] != first


def test_an_image_is_cut_differently_in_each_epoch(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path, 1))
    first, second = take(TrainingLoader(images, 1), 2)
    assert first["name"] == second["name"]
    assert not torch.equal(first["image"], second["image"])
    assert_equal(take(TrainingLoader(images, 1), 2), [first, second])


def test_without_shuffling_the_order_is_the_folders(tmp_path: Path) -> None:
    loader = TrainingLoader(dataset(folder(tmp_path, 5)), 2, shuffle=False, samples=5)
    batches = list(loader)
    assert [batch["name"] for batch in batches] == [["00", "01"], ["02", "03"], ["04"]]
    assert len(loader) == 3
    with pytest.raises(TypeError, match="endless"):
        len(TrainingLoader(loader.dataset, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_the_stream(tmp_path: Path, workers: int) -> None:
    images = dataset(folder(tmp_path, broken=(2,)), seed=3)
    whole = take(TrainingLoader(images, 3, workers=workers), 8)
    # Workers have read ahead when the loop is left; only what was handed out counts.
    loader = TrainingLoader(images, 3, workers=workers)
    assert_equal(take(loader, 3), whole[:3])
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["position"] == 9
    resumed = TrainingLoader(images, 3)
    resumed.load_state_dict(state)
    assert_equal(take(resumed, 5), whole[3:])
    assert_equal(take(loader, 5), whole[3:])  # the same object continues as well
    assert resumed.epoch == pytest.approx(24 / 11)
    assert list(resumed.skipped) == ["02"]


def test_resuming_with_another_batch_size_continues_at_the_sample(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path))
    names = [name for batch in take(TrainingLoader(images, 1), 12) for name in batch["name"]]
    loader = TrainingLoader(images, 3)
    take(loader, 2)
    other = TrainingLoader(images, 2)
    other.load_state_dict(loader.state_dict())
    assert [name for batch in take(other, 3) for name in batch["name"]] == names[6:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"length": 10}, {"shuffle": False}])
def test_state_of_another_stream_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    loader = TrainingLoader(dataset(folder(tmp_path)), 2)
    with pytest.raises(ValueError, match=next(iter(change))):
        loader.load_state_dict({**loader.state_dict(), **change})


def test_processes_share_the_batch_of_one(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path))
    whole = list(TrainingLoader(images, 4, samples=18))
    parts = [
        list(TrainingLoader(images, 2, samples=18, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for number, batch in enumerate(whole[:-1]):
        joined = parts[0][number]["name"] + parts[1][number]["name"]
        assert joined == batch["name"]
        images_of_both = torch.cat([part[number]["image"] for part in parts])
        assert torch.equal(images_of_both, batch["image"])
    assert parts[0][-1]["name"] == whole[-1]["name"]  # the last two samples, all of rank 0


# -- broken files --------------------------------------------------------------------------------


def test_broken_images_are_replaced_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = dataset(folder(tmp_path, 6, broken=(1, 4)))
    loader = TrainingLoader(images, 3, samples=18)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert all(len(batch["name"]) == 3 for batch in batches)
    shown = {name for batch in batches for name in batch["name"]}
    assert shown == {"00", "02", "03", "05"}
    assert sum(len(batch["skipped"]) for batch in batches) >= 6
    assert set(loader.skipped) == {"01", "04"}
    assert "truncated" in loader.skipped["01"]
    assert len([r for r in caplog.records if "skipped 01" in r.getMessage()]) == 1


def test_only_broken_images_are_an_error(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path, 2, broken=(0, 1)), attempts=3)
    with pytest.raises(ValueError, match="3 images in a row"):
        images[0]


def test_missing_files_small_images_and_masks_of_another_shape_are_skipped(
    tmp_path: Path,
) -> None:
    root = folder(tmp_path, 3)
    records = image_folder(root)
    (root / "00.png").unlink()
    (root / "01.png").write_bytes(encoded(1, (8, 30)))
    images = TrainingImages(records, CropTransform(None, 16))
    loader = TrainingLoader(images, 2, samples=6)
    assert {name for batch in loader for name in batch["name"]} == {"02"}
    assert "smaller than the crop" in loader.skipped["01"]
    assert "00.png" in loader.skipped["00"]

    mask = mask_to_rle(np.ones((34, 26), bool))  # the image is (26, 34)
    (root / "02.json").write_text(json.dumps({"annotations": [{"segmentation": mask}]}))
    with pytest.raises(ValueError, match="cannot lie on each other"):
        TrainingImages(records[2:], TRANSFORM, masks=Sa1bMaskSource(), attempts=1)[0]


def test_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    images = dataset(folder(tmp_path, 1))
    for options in ({"batch_size": 0}, {"batch_size": 1, "workers": -1}):
        with pytest.raises(ValueError, match="positive"):
            TrainingLoader(images, **options)
    with pytest.raises(ValueError, match="rank"):
        TrainingLoader(images, 1, rank=1)
    with pytest.raises(ValueError, match="no training images"):
        TrainingImages([], TRANSFORM)
    with pytest.raises(ValueError, match="attempts"):
        TrainingImages(images.records, TRANSFORM, attempts=0)
    with pytest.raises(IndexError):
        images[1]


def test_batches_of_different_sizes_are_refused_with_advice(tmp_path: Path) -> None:
    root = folder(tmp_path, 2)
    (root / "01.png").write_bytes(encoded(1, (30, 30)))
    loader = TrainingLoader(TrainingImages(image_folder(root), CropTransform(None)), 2)
    with pytest.raises(ValueError, match="crop"):
        take(loader, 1)


def test_collate_fills_up_with_empty_masks() -> None:
    samples = [
        {
            "image": torch.rand(3, 4, 5),
            "masks": torch.ones(count, 4, 5, dtype=torch.bool),
            **{"name": str(count), "index": count, "skipped": []},
        }
        for count in (2, 0, 3)
    ]
    batch = collate(samples)  # type: ignore[arg-type]
    assert batch["masks"].shape == (3, 3, 4, 5)
    assert batch["masks"].all(-1).all(-1).int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert batch["index"].tolist() == [2, 0, 3]


def test_sample_generators_differ_and_are_the_same_everywhere() -> None:
    keys = [(0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 0, 11, 0), (0, 0, 1, 10)]
    drawn = {float(torch.rand((), generator=sample_generator(*key))) for key in keys}
    assert len(drawn) == len(keys)
    # Written down: a change would silently change every recipe's order.
    order = torch.randperm(6, generator=sample_generator(0, 0))
    assert order.tolist() == [3, 1, 0, 4, 2, 5]


# -- layouts -------------------------------------------------------------------------------------


def names(records: Records) -> list[str]:
    return [record.name for record in records]


def test_lists(tmp_path: Path) -> None:
    root = folder(tmp_path, 3)
    text = tmp_path / "train.txt"
    text.write_text("# two images\n\nimages/02.png\tlabels/02.png\r\nimages/a b.png\n")
    (root / "02.png").rename(root / "a b.png")
    records = image_list(text)
    assert names(records) == ["images/02", "images/a b"]
    assert records[0].parts["label"].path == tmp_path / "labels/02.png"
    assert not records[1].parts
    assert records[1].read_image().shape == (3, 26, 34)
    assert names(image_list(text, root=root)) == names(records)
    assert image_list(text, root=root)[0].image.path == root / "images/02.png"
    assert names(find_images(text)) == names(records)
    text.write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        image_list(text)
    with pytest.raises(FileNotFoundError):
        image_list(tmp_path / "other.txt")


def test_imagenet(tmp_path: Path) -> None:
    for name in ("n02000000/b.JPEG", "n01000000/z.JPEG", "n01000000/a.JPEG", "notes/x.JPEG"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(0, kind="jpeg"))
    expected = ["n01000000/a", "n01000000/z", "n02000000/b"]
    for records in (
        imagenet_folder(tmp_path),
        imagenet_folder(tmp_path / "train"),
        find_images(tmp_path),
        find_images(tmp_path / "train"),
    ):
        assert names(records) == expected
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    assert names(imagenet_folder(tmp_path, "val")) == ["ILSVRC2012_val_00000001"]
    for missing in (tmp_path / "none", tmp_path / "train" / "notes" / "none"):
        with pytest.raises(FileNotFoundError, match="none"):
            imagenet_folder(missing)


def sa1b_files() -> dict[str, bytes]:
    files = {}
    for number in range(3):
        mask = np.zeros((26, 34), bool)
        mask[: number + 14] = True
        annotations = [{"segmentation": mask_to_rle(mask), "area": int(mask.sum())}]
        files[f"sa_{number}.jpg"] = encoded(number, kind="jpeg")
        files[f"sa_{number}.json"] = json.dumps({"annotations": annotations}).encode()
    return files


def test_sa1b(tmp_path: Path) -> None:
    part = tmp_path / "sa_000000"
    part.mkdir()
    for name, content in sa1b_files().items():
        (part / name).write_bytes(content)
    (part / "sa_9.jpg").write_bytes(encoded(9, kind="jpeg"))
    for records in (sa1b_folder(tmp_path), find_images(tmp_path)):
        assert names(records) == [f"sa_000000/sa_{number}" for number in range(3)]
    with pytest.raises(FileNotFoundError, match="no sa_"):
        sa1b_folder(tmp_path / "none")


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tar_shards_give_what_the_folder_gives(tmp_path: Path) -> None:
    unpacked = tmp_path / "folder"
    unpacked.mkdir()
    files = sa1b_files()
    for name, content in files.items():
        (unpacked / name).write_bytes(content)
    shards = tmp_path / "shards"
    shards.mkdir()
    items = list(files.items())
    write_tar(shards / "b-001.tar", dict(items[4:]))
    write_tar(shards / "b-000.tar", {"./readme": b"text", **dict(items[:4])})
    runs = []
    for records in (
        sa1b_folder(unpacked),
        find_images(shards),
        find_images(shards / "b-*.tar"),
        find_images(shards / "b-{000..001}.tar"),
    ):
        images = TrainingImages(records, TRANSFORM, masks=Sa1bMaskSource())
        runs.append(list(TrainingLoader(images, 2, samples=6)))
    for run in runs[1:]:
        assert_equal(run, runs[0])
    assert runs[0][0]["masks"].shape == (2, 1, 16, 16)


def test_tar_members_are_grouped_by_key(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {
            "x/0001.seg.png": b"s",
            "x/0001.png": b"label",
            "x/0001.JPG": b"image",
            "x/.hidden.jpg": b"",
            "0002.txt": b"no image",
            "y.z/0003.webp": b"w",
        },
    )
    records = TarRecords([path])
    assert names(records) == ["x/0001", "y.z/0003"]
    assert records[0].image.read() == b"image"
    assert {role: part.read() for role, part in records[0].parts.items()} == {
        "seg.png": b"s",
        "png": b"label",
    }


def test_tar_that_ends_early_keeps_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{n}.png": encoded(n) for n in range(4)})
    place = TarRecords([path])[2].image
    path.write_bytes(path.read_bytes()[: place.offset + 100])
    records = TarRecords([path])
    assert "ends early" in caplog.text
    assert names(records) == ["0", "1", "2"]
    loader = TrainingLoader(TrainingImages(records, TRANSFORM), 3, samples=9)
    assert {name for batch in loader for name in batch["name"]} == {"0", "1"}
    assert "cut off" in loader.skipped["2"]


def test_tar_index_is_used_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": encoded(0)})
    index = tmp_path / "index"
    assert names(TarRecords([path], index)) == ["0"]
    with monkeypatch.context() as patch:
        patch.setattr("upfeat.data.tar_shards._scan", lambda shard: pytest.fail("scanned again"))
        records = TarRecords([path], index)
    assert records[0].read_image().shape == (3, 26, 34)
    write_tar(path, {"0.png": encoded(0), "1.png": encoded(1)})
    assert names(TarRecords([path], index)) == ["0", "1"]
    next(index.iterdir()).write_text("broken")
    assert names(TarRecords([path], index)) == ["0", "1"]


def test_shards_that_cannot_be_read_at_random_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(ValueError, match="uncompressed"):
        TarRecords([tmp_path / "a.tar"])
    write_tar(tmp_path / "b.tar", {"a.txt": b""})
    with pytest.raises(ValueError, match="no image"):
        TarRecords([tmp_path / "b.tar"])
    with pytest.raises(FileNotFoundError):
        TarRecords([tmp_path / "c.tar"])
    with pytest.raises(FileNotFoundError):
        find_shards(tmp_path / "c-*.tar")


def test_find_images_falls_back_to_a_folder(tmp_path: Path) -> None:
    assert len(find_images(folder(tmp_path, 2))) == 2
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "none")


# -- collections ---------------------------------------------------------------------------------


def test_collections_join_slice_and_count_from_the_end() -> None:
    letters = FileRecords(["x/ä.jpg", "b.jpg"], ["ä", "b"])
    digits = FileRecords(["1.jpg", "2.jpg", "3.jpg"], ["1", "2", "3"])
    empty = FileRecords([], [])
    joined = JoinedRecords([letters, empty, digits])
    assert names(joined) == ["ä", "b", "1", "2", "3"]
    assert joined[-1].name == "3"
    assert names(joined[1:4]) == ["b", "1", "2"]
    assert names(SelectedRecords(joined, [4, 0])) == ["3", "ä"]
    assert letters[0].image.path == Path("x/ä.jpg")
    for index in (5, -6):
        with pytest.raises(IndexError):
            joined[index]
    with pytest.raises(ValueError, match="2 images, but 1 names"):
        FileRecords(["a", "b"], ["a"])


def test_small_images_are_left_out_by_their_headers(tmp_path: Path) -> None:
    root = folder(tmp_path, 4)
    (root / "01.png").write_bytes(encoded(1, (60, 40)))
    (root / "02.png").write_bytes(b"broken")
    records = image_folder(root)
    file = tmp_path / "sides" / "a.npy"
    seen: list[str] = []
    chosen = with_min_side(records, 40, file=file, on_record=lambda r: seen.append(r.name))
    assert names(chosen) == ["01", "02"]  # what is broken is reported when it is read
    assert seen == names(records)
    (root / "01.png").unlink()
    assert shorter_sides(records, file=file).tolist() == [26, 40, -1, 26]
    with pytest.raises(ValueError, match="sides of 4 images"):
        shorter_sides(image_folder(root), file=file)
    (root / "02.png").unlink()
    with pytest.raises(ValueError, match="largest has 26"):
        with_min_side(image_folder(root), 100)
    shard = write_tar(tmp_path / "a.tar", {"0.png": encoded(0)})
    assert shorter_sides(TarRecords([shard])).tolist() == [26]


def test_depth_is_cut_with_its_image(tmp_path: Path) -> None:
    ramp = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) + 1
    ramp[0, 0] = 0  # missing
    (tmp_path / "images").mkdir()
    Image.fromarray((ramp % 256).astype(np.uint8)).convert("RGB").save(tmp_path / "images/a.png")
    Image.fromarray(ramp).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.where(ramp, ramp / 10, np.inf))
    records = image_folder(tmp_path / "images")
    transform = CropTransform(40, 40, flip=1.0)
    pictures = DepthMapFolder(tmp_path, units=10)
    numbers = DepthMapFolder(tmp_path, "{stem}.npy")
    first, second = (
        collate([TrainingImages(records, transform, depth=source)[0]])["depth"]
        for source in (pictures, numbers)
    )
    assert first.shape == (1, 1, 40, 40)
    torch.testing.assert_close(first, second)
    middle = torch.from_numpy(ramp[:, 10:50].astype(np.float32) / 10).flip(1)
    torch.testing.assert_close(first[0, 0], middle)
    with pytest.raises(ValueError, match="no depth of a"):
        TrainingImages(records, transform, depth=DepthMapFolder(tmp_path, "{stem}.tiff"))[0]
    np.save(tmp_path / "a.npy", np.ones((7, 60)))
    with pytest.raises(ValueError, match="the depth of a"):
        TrainingImages(records, transform, depth=numbers)[0]


def test_stored_features_are_cut_with_their_image(tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.uint8)[:, None].repeat(60, 1)
    (tmp_path / "images").mkdir()
    Image.fromarray(rows).convert("RGB").save(tmp_path / "images/a.png")
    stored = torch.arange(20.0)[None, :, None].expand(3, 20, 30)  # the number of its row
    write_safetensors(tmp_path / "a.safetensors", {"high": stored.contiguous().half()})
    records, transform = image_folder(tmp_path / "images"), CropTransform(40, 40, flip=1.0)
    images = TrainingImages(records, transform, features=FeatureMapFolder(tmp_path))
    target = collate([images[0]])["target"]
    assert target.shape == (1, 3, 40, 40)
    expected = torch.arange(40) // 2
    torch.testing.assert_close(target[0, 1, :, 7], expected.float())
    write_safetensors(tmp_path / "a.safetensors", {"low": torch.ones(3, 2, 3)})
    with pytest.raises(ValueError, match="must hold 'high'"):
        images[0]
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ValueError, match="upfeat upsample IMAGES"):
        images[0]


def test_a_limit_is_a_seeded_subset(tmp_path: Path) -> None:
    records = image_folder(folder(tmp_path))
    first, again, other = (names(random_subset(records, 4, seed)) for seed in (0, 0, 1))
    assert first == again == sorted(first)
    assert first != other
    assert names(random_subset(records, 99, 0)) == names(records)
