from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import upfeat.data.mask_cache
from upfeat.data import (
    CachedMaskSource,
    CropTransform,
    FirstOfMaskSource,
    LabelMaskSource,
    Sa1bMaskSource,
    SuperpixelMaskSource,
    TrainingImages,
    fill_mask_cache,
    image_folder,
    sa1b_folder,
)
from upfeat.data.mask_sets import (
    LabelMasks,
    RleMasks,
    counts_to_text,
    mask_runs,
    mask_to_rle,
    rle_counts,
    rle_to_mask,
    text_to_counts,
)
from upfeat.data.records import FilePart, ImageRecord
from upfeat.data.sam_masks import SamMaskSource, box_suppression
from upfeat.data.transforms import CropGeometry
from upfeat.errors import CheckpointError, MissingPackageError, WeightsNotFoundError

GENERATOR = torch.Generator()


def slow_text_to_counts(text: str) -> list[int]:
    """One character after the other, one bit after the other."""
    counts: list[int] = []
    bits: list[int] = []
    for character in text:
        code = ord(character) - 48
        bits += [(code >> place) & 1 for place in range(5)]
        if code < 32:
            value = sum(bit << place for place, bit in enumerate(bits[:-1]))
            value -= bits[-1] << (len(bits) - 1)  # the highest bit is the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            bits = []
    return counts


def slow_mask(size: tuple[int, int], counts: list[int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    position, value = 0, False
    for count in counts:
        for _ in range(count):
            mask[position % size[0], position // size[0]] = value
            position += 1
        value = not value
    assert position == mask.size
    return mask


masks_of_any_size = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: arrays(bool, size)
)


@given(masks_of_any_size)
def test_round_trip_agrees_with_a_slow_decoder(mask: np.ndarray) -> None:
    rle = mask_to_rle(mask)
    size = (rle["size"][0], rle["size"][1])
    np.testing.assert_array_equal(slow_mask(size, slow_text_to_counts(rle["counts"])), mask)
    np.testing.assert_array_equal(rle_to_mask(rle), mask)
    plain = {"size": rle["size"], "counts": slow_text_to_counts(rle["counts"])}
    np.testing.assert_array_equal(rle_to_mask(plain), mask)


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=30))
def test_large_counts_round_trip(counts: list[int]) -> None:
    text = counts_to_text(counts)
    assert slow_text_to_counts(text) == counts
    assert text_to_counts(text).tolist() == counts
    assert text_to_counts(text.encode()).tolist() == counts


def test_known_string_of_a_negative_difference() -> None:
    # 6 1 40 4 5 1 3: written by hand after the format's description; the fourth number and all
    # after it are differences to the number two places before (4 - 1, 5 - 40, 1 - 4, 3 - 5).
    assert counts_to_text([6, 1, 40, 4, 5, 1, 3]) == "61X13mNMN"
    assert text_to_counts("61X13mNMN").tolist() == [6, 1, 40, 4, 5, 1, 3]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[0, 0, 1, 1, 2, 2]], "polygons"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 4, got a sum of 3"),
        ({"size": [2, 2], "counts": [5, -1]}, "positive"),
        ({"size": [2, 2], "counts": "1P"}, "cut off"),
        ({"size": [2, 2], "counts": "1 3"}, "character"),
        ({"size": [2, 2], "counts": "é3"}, "character"),
    ],
)
def test_broken_segmentations_are_refused(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rle_counts(segmentation)


# -- SA-1B ---------------------------------------------------------------------------------------


def write_sa1b(folder: Path, masks: np.ndarray, size: tuple[int, int], name: str = "sa_1") -> Path:
    annotations = [
        {
            "id": number,
            # Both kinds of counts in one file.
            "segmentation": mask_to_rle(mask)
            if number % 2
            else {"size": list(mask.shape), "counts": mask_runs(mask).tolist()},
            "area": int(mask.sum()),
            "predicted_iou": 0.9,
            "stability_score": 0.97,
        }
        for number, mask in enumerate(masks)
    ]
    document = {"image": {"height": size[0], "width": size[1]}, "annotations": annotations}
    (folder / f"{name}.json").write_text(json.dumps(document))
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.jpg")
    return folder


def random_masks(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).random((count, *size)) > 0.7


def test_sa1b_masks_in_file_order(tmp_path: Path) -> None:
    masks = random_masks(5, (12, 17))
    (record,) = sa1b_folder(write_sa1b(tmp_path, masks, (12, 17)))
    image = record.read_image()
    found = Sa1bMaskSource()(record, image, GENERATOR)
    assert len(found) == 5
    np.testing.assert_array_equal(found.dense().numpy(), masks)
    first = Sa1bMaskSource(limit=2)(record, image, GENERATOR)
    np.testing.assert_array_equal(first.dense().numpy(), masks[:2])


def test_sa1b_limit_can_keep_the_largest_in_file_order(tmp_path: Path) -> None:
    masks = np.zeros((4, 6, 6), bool)
    for mask, rows in zip(masks, (1, 4, 2, 3), strict=True):
        mask[:rows] = True
    (record,) = sa1b_folder(write_sa1b(tmp_path, masks, (6, 6)))
    found = Sa1bMaskSource(limit=2, keep="largest")(record, record.read_image(), GENERATOR)
    np.testing.assert_array_equal(found.dense().numpy(), masks[[1, 3]])


def test_default_limit_is_the_released_codes(tmp_path: Path) -> None:
    masks = random_masks(160, (5, 4))
    (record,) = sa1b_folder(write_sa1b(tmp_path, masks, (5, 4)))
    assert len(Sa1bMaskSource()(record, record.read_image(), GENERATOR)) == 150
    assert len(Sa1bMaskSource(limit=None)(record, record.read_image(), GENERATOR)) == 160


def test_sa1b_file_without_masks_and_beside_any_image(tmp_path: Path) -> None:
    write_sa1b(tmp_path, np.zeros((0, 6, 6), bool), (6, 6))
    (record,) = image_folder(tmp_path)
    assert Sa1bMaskSource().has(record)
    found = Sa1bMaskSource()(record, record.read_image(), GENERATOR)
    assert len(found) == 0
    assert found.cut(CropGeometry((4, 4), 0, 0, (4, 4))).shape == (0, 4, 4)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"annotations": [{"segmentation": 3}]}'])
def test_broken_mask_files_name_the_record(tmp_path: Path, content: str) -> None:
    write_sa1b(tmp_path, random_masks(1, (6, 6)), (6, 6))
    (tmp_path / "sa_1.json").write_text(content)
    (record,) = sa1b_folder(tmp_path)
    with pytest.raises(ValueError, match="masks of sa_1 "):
        Sa1bMaskSource()(record, record.read_image(), GENERATOR)


def test_missing_masks_name_the_record(tmp_path: Path) -> None:
    record = ImageRecord("a", FilePart(tmp_path / "a.jpg"))
    assert not Sa1bMaskSource().has(record)
    with pytest.raises(ValueError, match="masks of a "):
        Sa1bMaskSource()(record, torch.zeros(3, 2, 2), GENERATOR)
    member = ImageRecord("a", FilePart(tmp_path / "a.tar", 0, 10))
    assert not Sa1bMaskSource().has(member)
    with pytest.raises(ValueError, match=r"no member \.json"):
        Sa1bMaskSource()(member, torch.zeros(3, 2, 2), GENERATOR)


# -- alignment -----------------------------------------------------------------------------------


@given(
    st.integers(20, 60),
    st.integers(20, 60),
    st.integers(8, 20),
    st.booleans(),
    st.integers(0, 5),
)
def test_masks_stay_on_the_image(height: int, width: int, crop: int, flip: bool, seed: int) -> None:
    """A picture that shows its own mask: after the cut both must still be the same."""
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 3 :] = True
    transform = CropTransform(20, crop, "random", flip=float(flip), scale=(1.0, 1.5))
    geometry = transform.geometry((height, width), torch.Generator().manual_seed(seed))
    picture = geometry.image(torch.from_numpy(mask).float().expand(3, -1, -1))[0]
    for masks in (
        RleMasks((height, width), [mask_runs(mask)]),
        LabelMasks(mask.astype(np.int64), ignore=(0,)),
    ):
        cut = masks.cut(geometry)
        shown = cut[0] if len(cut) else torch.zeros(crop, crop, dtype=torch.bool)
        # Pixels that the mask's edge runs through may go either way.
        sure = (picture < 0.3) | (picture > 0.7)
        torch.testing.assert_close(shown[sure], (picture > 0.5)[sure])
        assert sure.float().mean() > 0.5


def test_masks_of_half_the_resolution_lie_on_the_image() -> None:
    labels = np.kron(np.arange(6).reshape(2, 3), np.ones((4, 4), int))
    geometry = CropGeometry((16, 24), 4, 10, (8, 12), flip=True)
    full = LabelMasks(labels).cut(geometry)
    half = LabelMasks(labels[::2, ::2]).cut(geometry)
    torch.testing.assert_close(full, half)


def test_geometry_does_what_slicing_does() -> None:
    image = torch.rand(3, 10, 12)
    geometry = CropGeometry((10, 12), 2, 3, (5, 6), flip=True)
    expected = image[:, 2:7, 3:9].flip(-1)
    torch.testing.assert_close(geometry.image(image), expected)
    torch.testing.assert_close(geometry.labels(image), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"resize": 0},
        {"resize": 1.5},
        {"resize": 8, "crop": (3, 0)},
        {"resize": 8, "position": "left"},
        {"resize": 8, "flip": 2},
        {"resize": 8, "scale": (2, 1)},
        {"resize": 8, "interpolation": "nearest"},
    ],
)
def test_impossible_transforms_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        CropTransform(**options)


def test_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the crop"):
        CropTransform(None, 32).geometry((31, 64), GENERATOR)


def test_random_crops_reach_every_place() -> None:
    generator = torch.Generator().manual_seed(0)
    transform = CropTransform(None, 4, "random", flip=0.5)
    drawn = [transform.geometry((6, 5), generator) for _ in range(200)]
    assert {(g.top, g.left) for g in drawn} == {(y, x) for y in range(3) for x in range(2)}
    assert {g.flip for g in drawn} == {False, True}


# -- label images --------------------------------------------------------------------------------


def test_label_files_of_several_annotators(tmp_path: Path) -> None:
    for annotator in range(3):
        labels = np.full((4, 6), annotator, np.uint8)
        Image.fromarray(labels).save(tmp_path / f"a[1]_{annotator}.png")
    record = ImageRecord("train/a[1]", FilePart(tmp_path / "a[1].jpg"))
    source = LabelMaskSource(tmp_path, "{stem}_*.png")
    image = torch.zeros(3, 4, 6)
    drawn = {
        int(source(record, image, torch.Generator().manual_seed(seed)).labels[0, 0])
        for seed in range(30)
    }
    assert drawn == {0, 1, 2}
    again = [source(record, image, torch.Generator().manual_seed(7)).labels for _ in range(2)]
    np.testing.assert_array_equal(*again)
    other = ImageRecord("b", record.image)
    assert not source.has(other)
    with pytest.raises(ValueError, match="b has no label image"):
        source(other, image, GENERATOR)


def test_label_files_are_found_by_stem_or_name(tmp_path: Path) -> None:
    for name in ("x/a_0.png", "x/a_1.png", "x/a_1.txt", "x/ab_0.png", "x/a.png", "y/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(root: Path, pattern: str, name: str = "x/a") -> list[str]:
        record = ImageRecord(name, FilePart(Path("a.jpg")))
        files = LabelMaskSource(root, pattern).files(record)
        return [part.path.relative_to(tmp_path).as_posix() for part in files]

    assert found(tmp_path, "{name}_*.png") == ["x/a_0.png", "x/a_1.png"]
    assert found(tmp_path / "x", "{stem}_*.png") == ["x/a_0.png", "x/a_1.png"]
    assert found(tmp_path, "x/*_?.png") == ["x/a_0.png", "x/a_1.png", "x/ab_0.png"]
    assert found(tmp_path, "{name}.png") == ["x/a.png"]
    assert found(tmp_path, "y/{stem}.png") == ["y/a.png"]
    assert found(tmp_path, "{name}_*.png", "none/a") == []
    assert found(tmp_path, "{name}.png", "none/a") == []
    with pytest.raises(ValueError, match="file name only"):
        LabelMaskSource(tmp_path, "*/{stem}.png")


def test_palette_images_are_read_as_indices_and_values_ignored(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 255], [2, 2, 255]], np.uint8), mode="P")
    picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "a.png")
    record = ImageRecord("a", FilePart(tmp_path / "a.jpg"), {"label": FilePart(tmp_path / "a.png")})
    for source in (LabelMaskSource(tmp_path, ignore=(255,)), LabelMaskSource(ignore=(255,))):
        masks = source(record, torch.zeros(3, 2, 3), GENERATOR)
        assert masks.dense().int().tolist() == [
            [[1, 0, 0], [0, 0, 0]],
            [[0, 1, 0], [0, 0, 0]],
            [[0, 0, 0], [1, 1, 0]],
        ]
        assert len(masks) == 3


def test_colour_images_are_no_labels(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    record = ImageRecord("a", FilePart(tmp_path / "a.jpg"))
    with pytest.raises(ValueError, match="one channel"):
        LabelMaskSource(tmp_path)(record, torch.zeros(3, 2, 3), GENERATOR)


def test_bsds500(data_dir: Path) -> None:
    root = data_dir / "bsds500"
    human = LabelMaskSource(root / "segmentations" / "train", "{stem}_*.png")
    records = image_folder(root / "images" / "train")[:3]
    images = TrainingImages(records, CropTransform(224, 224), masks=human)
    for number, record in enumerate(records):
        assert 4 <= len(human.files(record)) <= 9
        masks = images[number]["masks"]
        # Regions of one annotator cover the image and do not overlap.
        assert 2 <= len(masks) <= 208
        assert (masks.sum(0) == 1).all()


# -- superpixels, cache --------------------------------------------------------------------------


def picture_folder(folder: Path, count: int = 2) -> Path:
    for number in range(count):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[:, 20 + number :] = (200, 40, 40)
        pixels[20:, 40:] = (40, 200, 40)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_superpixels_find_flat_regions(tmp_path: Path, method: Any) -> None:
    (record,) = image_folder(picture_folder(tmp_path, 1))
    source = SuperpixelMaskSource(
        method, segments=12, compactness=1, scale=50, sigma=0.1, min_size=5
    )
    image = record.read_image()
    masks = source(record, image, GENERATOR).dense()
    assert 3 <= len(masks) <= 24
    assert (masks.sum(0) == 1).all()
    # Each piece has one colour, but for a few pixels at the edges.
    for mask in masks:
        assert image[:, mask].std(1).max() < 0.15


def test_superpixels_of_large_images_are_computed_at_a_smaller_size() -> None:
    record = ImageRecord("a", FilePart(Path("a.jpg")))
    source = SuperpixelMaskSource("slic", segments=4, max_side=32)
    masks = source(record, torch.rand(3, 100, 150), GENERATOR)
    assert masks.size == (21, 32)
    assert masks.cut(CropGeometry((100, 150), 0, 0, (100, 150))).shape[1:] == (100, 150)


def test_first_source_that_has_masks_is_asked(tmp_path: Path) -> None:
    records = image_folder(picture_folder(tmp_path))
    labels = tmp_path / "labels"
    labels.mkdir()
    Image.fromarray(np.full((40, 60), 3, np.uint8)).save(labels / "0.png")
    source = FirstOfMaskSource([LabelMaskSource(labels), SuperpixelMaskSource("slic", segments=9)])
    counts = [len(source(r, r.read_image(), GENERATOR)) for r in records]
    assert counts[0] == 1
    assert counts[1] > 3
    assert all(source.has(record) for record in records)


def cached(tmp_path: Path, **options: Any) -> CachedMaskSource:
    return CachedMaskSource(SuperpixelMaskSource("slic", segments=9, **options), tmp_path / "cache")


def test_cache_computes_once_and_survives_renaming(tmp_path: Path) -> None:
    (record,) = image_folder(picture_folder(tmp_path, 1))
    image = record.read_image()
    first = cached(tmp_path)
    masks = first(record, image, GENERATOR)
    assert (first.hits, first.misses) == (0, 1)
    second = cached(tmp_path)
    renamed = ImageRecord("other name", record.image)
    torch.testing.assert_close(second(renamed, image, GENERATOR).dense(), masks.dense())
    assert (second.hits, second.misses) == (1, 0)
    other = cached(tmp_path, compactness=5)
    other(record, image, GENERATOR)
    assert other.misses == 1


def test_cached_run_lengths_are_sa1b_files(tmp_path: Path) -> None:
    masks = random_masks(3, (12, 17))
    (record,) = sa1b_folder(write_sa1b(tmp_path, masks, (12, 17)))
    source = CachedMaskSource(Sa1bMaskSource(), tmp_path / "cache")
    for _ in range(2):
        found = source(record, record.read_image(), GENERATOR)
        np.testing.assert_array_equal(found.dense().numpy(), masks)
    assert isinstance(found, RleMasks)
    assert found.scores == [0.9, 0.9, 0.9]
    assert (source.hits, source.misses) == (1, 1)


def test_cached_masks_below_the_images_are_no_images(tmp_path: Path) -> None:
    (record,) = image_folder(picture_folder(tmp_path, 1))
    cached(tmp_path)(record, record.read_image(), GENERATOR)
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert len(image_folder(tmp_path)) == len(image_folder(f"{tmp_path}/**/*.png")) == 1


def test_unreadable_cache_file_is_computed_again(tmp_path: Path) -> None:
    (record,) = image_folder(picture_folder(tmp_path, 1))
    source = cached(tmp_path)
    masks = source(record, record.read_image(), GENERATOR)
    (file,) = (tmp_path / "cache").rglob("*.png")
    file.write_bytes(file.read_bytes()[:40])
    again = source(record, record.read_image(), GENERATOR)
    torch.testing.assert_close(again.dense(), masks.dense())
    assert source.misses == 2
    assert source.stored(record) is not None


def test_filling_is_resumable_and_reports_broken_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = image_folder(picture_folder(tmp_path, 3))
    (tmp_path / "1.png").write_bytes(b"no image")
    source = cached(tmp_path)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upfeat.data.mask_cache, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill_mask_cache(records, source)
    assert not list((tmp_path / "cache").rglob("*.png"))

    seen: list[str] = []
    summary = fill_mask_cache(records, source, lambda record: seen.append(record.name))
    assert (summary.computed, summary.found, list(summary.failed)) == (2, 0, ["1"])
    assert seen == ["0", "1", "2"]
    summary = fill_mask_cache(records, source)
    assert (summary.computed, summary.found, list(summary.failed)) == (0, 2, ["1"])


# -- SAM -----------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_suppressed_boxes_overlap_a_better_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (12, 2), generator=generator)
    sides = torch.randint(1, 6, (12, 2), generator=generator)
    boxes = torch.cat([corners, corners + sides], 1)
    scores = torch.rand(12, generator=generator)
    kept = box_suppression(boxes, scores, 0.4)
    assert kept == sorted(kept, key=lambda index: -float(scores[index]))
    drawn = torch.zeros(12, 12, 12, dtype=torch.bool)
    for plane, (left, top, right, bottom) in zip(drawn, boxes.tolist(), strict=True):
        plane[top:bottom, left:right] = True
    shared = (drawn[:, None] & drawn[None]).sum((2, 3))
    overlap = shared / (drawn[:, None] | drawn[None]).sum((2, 3))
    for index in range(12):
        better = [k for k in kept if scores[k] > scores[index]]
        dropped = any(overlap[index, k] > 0.4 for k in better)
        assert dropped == (index not in kept)


def tiny_sam() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.SamModel(
        transformers.SamConfig(
            vision_config={
                **{"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2},
                **{"num_attention_heads": 2, "image_size": 64, "patch_size": 8},
                **{"window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8},
            },
            prompt_encoder_config={
                **{"hidden_size": 16, "image_size": 64, "patch_size": 8},
                **{"mask_input_channels": 4},
            },
            mask_decoder_config={
                **{"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2},
                **{"iou_head_hidden_dim": 16},
            },
        )
    )


def tiny_sam2() -> Any:
    transformers = pytest.importorskip("transformers")
    detector = {
        "model_type": "sam2_hiera_det_model",
        **{"hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64]},
        **{"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]},
        **{"num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [4, 4, 4, 4]},
        **{"global_attention_blocks": [3]},
        **{"window_positional_embedding_background_size": [4, 4]},
    }
    return transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config={
                "model_type": "sam2_vision_model",
                "backbone_config": detector,
                **{"backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32},
                **{"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
            },
            prompt_encoder_config={
                **{"hidden_size": 32, "image_size": 64, "patch_size": 16},
                **{"mask_input_channels": 4},
            },
            mask_decoder_config={
                **{"hidden_size": 32, "mlp_dim": 16, "num_attention_heads": 2},
                **{"iou_head_hidden_dim": 16},
            },
        )
    )


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2])
def test_sam_masks_of_a_tiny_random_network(tmp_path: Path, make: Any) -> None:
    make().eval().save_pretrained(tmp_path / "weights")
    options = {"points_per_side": 3, "points_per_batch": 4, "stability_offset": 0.0}
    source = SamMaskSource(
        tmp_path / "weights", iou_threshold=-1e9, stability_threshold=-1, **options
    )
    (record,) = image_folder(picture_folder(tmp_path, 1))
    image = record.read_image()
    masks = source(record, image, GENERATOR)
    assert masks.size == (40, 60)
    assert 1 <= len(masks) <= 27
    assert masks.scores == sorted(masks.scores or [], reverse=True)
    assert masks.dense().shape == (len(masks), 40, 60)

    store = CachedMaskSource(source, tmp_path / "cache")
    for _ in range(2):
        torch.testing.assert_close(store(record, image, GENERATOR).dense(), masks.dense())
    assert (store.hits, store.misses) == (1, 1)

    strict = SamMaskSource(tmp_path / "weights", iou_threshold=1e9, **options)
    assert len(strict(record, image, GENERATOR)) == 0
    assert strict.name != source.name


def test_sam_points_reach_the_network_as_its_processor_sends_them(tmp_path: Path) -> None:
    """Logits of one point equal those of the package's own call, cut and resized by hand."""
    torch.manual_seed(3)
    model = tiny_sam().eval()
    model.save_pretrained(tmp_path)
    source = SamMaskSource(tmp_path, points_per_side=1, iou_threshold=-1e9)
    image = torch.rand(3, 32, 64)
    pixels = torch.zeros(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels[0, :, :32] = (image - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = model(pixel_values=pixels, input_points=torch.tensor([[[[32.0, 16.0]]]]))
        inner = source._inner_size((32, 64), 64)
        embeddings = model.get_image_embeddings(source._input(image, inner, 64))
        proposals = list(
            source._propose(model, embeddings, torch.tensor([[32.0, 16.0]]), inner, 64, (32, 64))
        )
    assert inner == (32, 64)
    assert len(proposals) == 3
    low = expected.pred_masks[0, 0]
    whole = torch.nn.functional.interpolate(low[None], (64, 64), mode="bilinear")[0]
    for number, (logits, score) in enumerate(proposals):
        torch.testing.assert_close(logits, whole[number, :32])
        assert score == pytest.approx(float(expected.iou_scores[0, 0, number]))


def test_sam_weights_must_be_there_whole_and_of_the_kind(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(WeightsNotFoundError, match="no SAM weights"):
        SamMaskSource(tmp_path)
    tiny_sam().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["mask_decoder.iou_token.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="iou_token"):
        SamMaskSource(tmp_path)(ImageRecord("a", FilePart(file)), torch.rand(3, 8, 8), GENERATOR)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        SamMaskSource(tmp_path)


def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, image = ImageRecord("a", FilePart(tmp_path / "a.jpg")), torch.rand(3, 8, 8)
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingPackageError, match=r"transformers.*upfeat\[sam\]"):
        SamMaskSource(tmp_path)(record, image, GENERATOR)
    with pytest.raises(MissingPackageError, match=r"scikit-image.*upfeat\[train\]"):
        SuperpixelMaskSource()(record, image, GENERATOR)
