from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import upfeat.data.layouts
from upfeat.data.feature_cache import FeatureCache, image_hash, weights_fingerprint

KEY = {"backbone": "test/pool", "weights": "00", "layer": -1}


class Counting(nn.Module):
    """A backbone that remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 8, 8)
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return self.conv(image)


def test_second_time_is_read_from_disk(tmp_path: Path) -> None:
    backbone, images = Counting(), torch.rand(3, 3, 16, 24)
    cold = FeatureCache(tmp_path, KEY)(images, backbone)
    warm_cache = FeatureCache(tmp_path, KEY)
    warm = warm_cache(images, backbone)
    assert torch.equal(cold, warm)
    assert cold.shape == (3, 5, 2, 3)
    assert cold.dtype == images.dtype
    assert not cold.requires_grad
    torch.testing.assert_close(cold, backbone(images).detach(), atol=2e-3, rtol=1e-3)
    assert (warm_cache.hits, warm_cache.misses) == (3, 0)
    assert backbone.batches == [3, 3]  # the second one is this test's own


def test_partly_known_batch_is_computed_whole_but_keeps_what_is_stored(tmp_path: Path) -> None:
    backbone, images = Counting(), torch.rand(4, 3, 16, 16)
    cache = FeatureCache(tmp_path, KEY)
    known = cache(images[:2], backbone)
    other = Counting()  # would give other numbers
    mixed = cache(images, other)
    assert torch.equal(mixed[:2], known)
    assert (cache.hits, cache.misses, other.batches) == (2, 4, [4])
    assert torch.equal(cache(images.flip(0), backbone), mixed.flip(0))


@pytest.mark.parametrize(
    "key", [{**KEY, "layer": -2}, {**KEY, "weights": "01"}, {**KEY, "backbone": "test/other"}]
)
def test_another_key_is_another_cache(tmp_path: Path, key: dict[str, str | int]) -> None:
    backbone, images = Counting(), torch.rand(1, 3, 16, 16)
    FeatureCache(tmp_path, KEY)(images, backbone)
    other = FeatureCache(tmp_path, key)
    other(images, backbone)
    assert other.misses == 1


def test_float32_is_kept_to_the_bit_in_a_folder_of_its_own(tmp_path: Path) -> None:
    backbone, images = Counting(), torch.rand(2, 3, 16, 16)
    exact = FeatureCache(tmp_path, KEY, torch.float32)
    cold = exact(images, backbone)
    assert torch.equal(cold, backbone(images).detach())
    assert torch.equal(FeatureCache(tmp_path, KEY, torch.float32)(images, backbone), cold)
    half = FeatureCache(tmp_path, KEY)
    assert half.folder != exact.folder
    assert torch.equal(half(images, backbone), cold.half().float())
    assert exact.estimate(1, 100, (10, 10)).bytes > 1.9 * half.estimate(1, 100, (10, 10)).bytes
    with pytest.raises(ValueError, match="float16 or float32"):
        FeatureCache(tmp_path, KEY, torch.bfloat16)


def test_order_of_the_key_does_not_matter(tmp_path: Path) -> None:
    backwards = dict(reversed(KEY.items()))
    images = torch.rand(1, 3, 8, 8)
    FeatureCache(tmp_path, KEY)(images, Counting())
    again = FeatureCache(tmp_path, backwards)
    again(images, Counting())
    assert again.hits == 1


def test_pixels_size_and_dtype_decide_the_hash() -> None:
    image = torch.rand(3, 8, 12)
    changed = image.clone()
    changed[2, 7, 11] += 1e-3
    others = [changed, image.reshape(3, 12, 8), image.double(), image.bfloat16()]
    assert len({image_hash(one) for one in [image, *others]}) == 5
    strided = image.transpose(1, 2).contiguous().transpose(1, 2)
    assert image_hash(strided) == image_hash(image)


def test_fingerprint_sees_names_shapes_and_values() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    same = {"b": torch.ones(1), "a": torch.zeros(2, 3)}
    assert weights_fingerprint(state) == weights_fingerprint(same)
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"c": torch.zeros(2, 3), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
        {"a": torch.zeros(2, 3).half(), "b": torch.ones(1)},
    ]
    assert weights_fingerprint(state) not in map(weights_fingerprint, others)


def test_estimate_is_what_is_written(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    estimate = cache.reserve(6, 5, (2, 3))
    cache(torch.rand(6, 3, 16, 24), Counting())
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == 6
    assert sum(file.stat().st_size for file in files) == estimate.bytes
    assert str(estimate).startswith("6 images")


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new", KEY)
    with pytest.raises(ValueError, match="does not fit"):
        cache.reserve(10**12, 768, (32, 32))
    assert not (tmp_path / "new").exists()


def test_interrupt_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = Counting(), torch.rand(4, 3, 16, 16)
    cache = FeatureCache(tmp_path, KEY)
    write, calls = upfeat.data.layouts.write_bytes, 0

    def stops(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # two features were written
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(upfeat.data.layouts, "write_bytes", stops)
        with pytest.raises(KeyboardInterrupt):
            cache(images, backbone)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert not list(tmp_path.rglob("*.part"))

    resumed = FeatureCache(tmp_path, KEY)
    result = resumed(images, backbone)
    assert (resumed.hits, resumed.misses) == (2, 2)
    # The same numbers as a run that was never interrupted.
    assert torch.equal(result, FeatureCache(tmp_path / "other", KEY)(images, backbone))


def test_broken_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone, images = Counting(), torch.rand(1, 3, 16, 16)
    cache = FeatureCache(tmp_path, KEY)
    first = cache(images, backbone)
    (file,) = tmp_path.rglob("*.npy")
    for content in (b"", file.read_bytes()[:-1]):
        file.write_bytes(content)
        assert torch.equal(cache(images, backbone), first)
    assert cache.misses == 3
    assert "not readable" in caplog.text


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    with pytest.raises(ValueError, match="7e\\+04 do not fit"):
        cache(torch.rand(1, 3, 8, 8), lambda image: torch.full((1, 2, 1, 1), 7e4))
    assert not list(tmp_path.rglob("*.npy"))


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key must say"):
        FeatureCache(tmp_path, {})
    with pytest.raises(ValueError, match=r"\(B, C, h, w\)"):
        FeatureCache(tmp_path, KEY)(torch.rand(2, 3, 8, 8), lambda image: image.flatten(1))
    with pytest.raises(ValueError, match="4 dimensions"):
        FeatureCache(tmp_path, KEY)(torch.rand(3, 8, 8), lambda image: image)
