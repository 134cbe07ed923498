"""The square cut of the probes against Pillow's own resizing and plain index arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.trees import write
from upfeat.data import resize_and_crop

SIDES = st.integers(1, 60)


@given(SIDES, SIDES, st.integers(1, 40))
def test_shapes_and_centre(height: int, width: int, size: int) -> None:
    # Two ramps say which row and column every pixel was taken from.
    rows = torch.arange(height)[:, None].expand(height, width)
    cols = torch.arange(width).expand(height, width)
    image, row_of = resize_and_crop(torch.rand(3, height, width), rows, size)
    depth, col_of = resize_and_crop(torch.rand(3, height, width), cols.float(), size)
    assert image.shape == depth.shape == (3, size, size)
    assert row_of.shape == col_of.shape == (size, size)
    assert (row_of.dtype, col_of.dtype) == (torch.int64, torch.float32)
    assert torch.equal(row_of, row_of[:, :1].expand(size, size))
    short = min(height, width)
    for taken, side in ((row_of[:, 0], height), (col_of[0].long(), width)):
        resized = size * side // short
        start = round((resized - size) / 2)
        expected = (torch.arange(start, start + size) + 0.5) * side / resized
        assert ((taken + 0.5 - expected).abs() <= 0.5 + 1e-3).all()


def test_image_is_pillows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 47, 3)).astype(np.uint8)
    path = write(tmp_path / "a.png", pixels)
    image, label = resize_and_crop(path, None, 16)
    resized = Image.fromarray(pixels).resize((25, 16), Image.Resampling.BILINEAR)
    expected = np.array(resized.crop((4, 0, 20, 16)))
    assert label is None
    assert np.array_equal((image * 255).round().numpy(), expected.transpose(2, 0, 1))
    untouched, _ = resize_and_crop(path, None, 30)
    assert np.array_equal((untouched * 255).round().numpy(), pixels[:, 8:38].transpose(2, 0, 1))


def test_labels_stay_labels() -> None:
    label = torch.tensor([[3, 255, 7], [7, 3, 255]]).repeat_interleave(20, 0).repeat(1, 5)
    _, cut = resize_and_crop(torch.rand(3, *label.shape), label, 13)
    assert set(cut.unique().tolist()) <= {3, 7, 255}


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"image is \(4, 6\).* label \(6, 4\)"):
        resize_and_crop(torch.rand(3, 4, 6), torch.zeros(6, 4), 2)
    with pytest.raises(ValueError, match="size must be positive"):
        resize_and_crop(torch.rand(3, 4, 6), None, 0)
