"""Normals of the user's own images, stored or derived from depth, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.trees import write, write_image
from upfeat.data import folder_surfaces
from upfeat.data.card import CARD

SIZE = (8, 12)


def stored(root: Path, count: int = 5) -> Path:
    """Pictures whose normals point at the camera on the left and up on the right; a black row."""
    for number in range(count):
        write_image(root / "images" / f"{number}.png", size=SIZE)
        normals = np.full((*SIZE, 3), (128, 128, 0), np.uint8)
        normals[:, 6:] = (128, 0, 128)
        normals[0] = 0
        write(root / "normals" / f"{number}.png", normals)
    return root


def test_stored_normals_of_the_middle_square(tmp_path: Path) -> None:
    data = folder_surfaces(stored(tmp_path / "mine"), "train")
    assert (data.name, len(data), len(folder_surfaces(tmp_path / "mine", "val"))) == (
        "mine/train",
        4,
        1,
    )
    image, depth, normals = data[0]
    assert (image.shape, depth.shape) == ((3, 8, 8), (8, 8))
    assert normals is not None
    torch.testing.assert_close(normals[:, 4, 0], torch.tensor([0.0, 0, -1]), atol=0.01, rtol=0)
    torch.testing.assert_close(normals[:, 4, 7], torch.tensor([0.0, -1, 0]), atol=0.01, rtol=0)
    assert depth[0].eq(0).all()
    assert depth[1:].eq(1).all()
    assert normals[:, 0].eq(0).all()


def test_normals_from_depth(tmp_path: Path) -> None:
    """A wall that recedes to the right: 1 m in depth for each metre to the side."""
    focal, center = 20.0, 6.0
    x = (np.arange(SIZE[1]) + 0.5 - center) / focal
    depth = np.tile(2000 / (1 - x), (SIZE[0], 1)).round().astype(np.uint16)
    for split in ("train", "val"):
        write_image(tmp_path / split / "images" / "a.png", size=SIZE)
        write(tmp_path / split / "depth" / "a.png", depth)
    with pytest.raises(ValueError, match=r"write focal: .* in upfeat-data\.yaml"):
        folder_surfaces(tmp_path)
    (tmp_path / CARD).write_text(f"name: wall\nfocal: {focal}\n")
    data = folder_surfaces(tmp_path)
    assert data.name == "wall/train"
    normals = data[0].normals
    assert normals is not None
    expected = torch.tensor([-(0.5**0.5), 0, 0.5**0.5])
    torch.testing.assert_close(normals[:, 4, 4], expected, atol=0.02, rtol=0)
    before = data.fingerprint()
    (tmp_path / CARD).write_text(f"name: wall\nfocal: [{focal}, 19]\n")
    assert folder_surfaces(tmp_path).fingerprint() != before


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    root = stored(tmp_path / "mine")
    write(root / "normals" / "2.png", np.zeros((8, 11, 3), np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is \(8, 11\), its image"):
        folder_surfaces(root)
    (root / "normals" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png has no label") as problem:
        folder_surfaces(root)
    assert "normals/NAME.png" in str(problem.value)
    with pytest.raises(ValueError, match="split"):
        folder_surfaces(root, "test")
