"""Pictures of similarities and of words."""

from __future__ import annotations

import pytest
import torch

from upfeat.ops.colors import class_palette
from upfeat.viz import AnswerMap, overlay_picture, similarity_panel, similarity_picture, words_panel
from upfeat.viz.panel import heat_colors


def test_maps_share_one_scale_of_colours() -> None:
    low, high = torch.full((8, 8), 0.2), torch.full((8, 8), 0.6)
    for values, share in ((low, 0.0), (high, 0.5)):
        picture = similarity_picture(values, (0.9, 0.9), (0.2, 1.0), side=80)
        expected = heat_colors(torch.tensor([[share]]))[:, 0, 0]
        assert picture[:, 2, 2].tolist() == expected.tolist()


def test_the_cross_lies_on_the_pixel() -> None:
    picture = similarity_picture(torch.zeros(40, 80), (0.75, 0.25), (0.0, 1.0), side=160)
    bright = (picture.float().mean(0) > 200).nonzero().float().mean(0)
    assert bright.tolist() == pytest.approx([60, 40], abs=1.5)


def test_panels_name_every_method() -> None:
    maps = [AnswerMap(str(i), torch.rand(8, 8)) for i in range(4)]
    photo = torch.rand(3, 16, 16)
    assert similarity_panel(photo, maps, (0.5, 0.5), side=100).width == 3 * 106 + 6  # 3 + 2
    for draw in (
        lambda: similarity_panel(photo, [], (0.5, 0.5)),
        lambda: words_panel(photo, [], ["a"]),
    ):
        with pytest.raises(ValueError, match="give at least one"):
            draw()


def test_the_overlay_shows_photo_and_class() -> None:
    palette = class_palette(2)
    labels = torch.tensor([[0, 0], [1, 1]])
    dark, light = (overlay_picture(torch.full((3, 4, 4), v), labels, palette) for v in (0.0, 1.0))
    assert bool((light.int() - dark.int() >= 95).all())
    assert not torch.equal(dark[:, 0, 0], dark[:, 1, 0])
    with pytest.raises(ValueError, match=r"wanted a photo \(3, H, W\)"):
        overlay_picture(torch.zeros(1, 3, 4, 4), labels, palette)
