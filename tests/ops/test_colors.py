"""Colours of classes."""

from __future__ import annotations

import pytest
import torch

from upfeat.ops.colors import class_colors, class_palette


def test_classes_keep_their_colours() -> None:
    palette = class_palette(150)
    assert len(set(palette)) == 150
    colors = class_colors(torch.tensor([[0, 1, -1]]), palette, -1)
    assert [tuple(colors[:, 0, i].tolist()) for i in range(2)] == list(palette[:2])
    with pytest.raises(ValueError, match="as many colours"):
        class_colors(torch.tensor([[150]]), palette)
