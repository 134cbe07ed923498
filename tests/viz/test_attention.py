"""Attended regions: the weights against dense references, the dots against the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.errors import UnsupportedError
from upfeat.ops.coordinates import pixel_centres
from upfeat.viz import (
    Attended,
    attended_regions,
    attention_panel,
    dot_picture,
    effective_cells,
    heat_picture,
    sample_dots,
)

SIZE, GRID = (24, 36), (3, 5)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 3, *SIZE), torch.randn(1, 12, *GRID)


def build(name: str) -> upfeat.Upsampler:
    settings = {
        "jafar": {"feature_dim": 12, "qk_dim": 16},
        "anyup": {"qk_dim": 16},
        "loftup": {"feature_dim": 12, "num_heads": 4, "n_freqs": 3},
        "naf": {"dim": 32, "kernel_size": 3, "heads_rope": 2},
    }
    return upfeat.create_upsampler(name, **settings.get(name, {})).eval()


@pytest.mark.parametrize(
    "name", ["nearest", "bilinear", "bicubic", "kin", "jafar", "anyup", "joint_bilateral_filter"]
)
def test_the_output_is_the_features_mixed_by_the_weights(name: str, inputs) -> None:
    image, features = inputs
    upsampler, size = build(name), (20, 30)
    with torch.no_grad():
        whole = upsampler(image, features, size)
    for row, col in ((0, 0), (7, 21), (19, 29)):
        weights = attended_regions(upsampler, image, features, (row, col), size)
        assert weights.shape == (1, *GRID)
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        mixed = (features[0] * weights).sum((1, 2))
        torch.testing.assert_close(mixed, whole[0, :, row, col], rtol=1e-4, atol=1e-5)


def test_jafar_is_the_softmax_of_its_queries_and_keys(inputs) -> None:
    image, features = inputs
    up = build("jafar")
    with torch.no_grad():
        encoded = up.encode(image, features, SIZE)
        queries, keys = up.attention.queries(encoded.query)[0], encoded.key[0]  # (N, d), (n, d)
        heads = up.attention.num_heads
        q, k = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (queries, keys))
        dense = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1).mean(0)  # (N, n)
    for row, col in ((0, 35), (13, 8)):
        weights = attended_regions(up, image, features, (row, col))
        expected = dense[row * SIZE[1] + col].view(1, *GRID)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_loftup_is_the_softmax_of_each_block(inputs) -> None:
    """Against projections and softmax by hand, in the pass over the whole map."""
    image, features = inputs
    up = build("loftup")
    seen: list[tuple[nn.MultiheadAttention, torch.Tensor]] = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda m, args: seen.append((m, args[0])))
        for layer in up.layers
    ]
    up(image, features)  # with gradients on, so as one plain pass
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    row, col = 11, 30
    weights = attended_regions(up, image, features, (row, col))
    assert weights.shape == (2, *GRID)
    for block, (module, queries) in enumerate(seen):
        with torch.no_grad():
            tokens = up.tokens(features, up.scale_colors(image, SIZE))
            tokens = up.layers[block].norm_tokens(tokens)
            q, k, _ = zip(module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
            one = F.linear(queries[0, row * SIZE[1] + col], *q).view(4, 1, -1)  # (heads, 1, d)
            keys = F.linear(tokens[0], *k).unflatten(1, (4, -1)).transpose(0, 1)  # (heads, n, d)
            dense = torch.softmax(one @ keys.mT / one.shape[-1] ** 0.5, dim=-1).mean(0)
            library = nn.MultiheadAttention.forward(module, queries, tokens, tokens)[1]
        expected = dense.view(GRID)
        torch.testing.assert_close(weights[block], expected, rtol=1e-4, atol=1e-6)
        at_pixel = library[0, row * SIZE[1] + col].view(GRID)
        torch.testing.assert_close(weights[block], at_pixel, rtol=1e-4, atol=1e-6)
        assert weights[block].sum().item() == pytest.approx(1, abs=1e-5)


def test_reading_leaves_the_upsampler_as_it_was(inputs) -> None:
    image, features = inputs
    up = build("loftup")
    centres = pixel_centres(SIZE, dtype=torch.float64)[None, :3]
    with torch.no_grad():
        before = up.query(image, features, centres)
        attended_regions(up, image, features, (1, 1))
        assert torch.equal(before, up.query(image, features, centres))
    assert not any(layer.attention._forward_pre_hooks for layer in up.layers)


def test_what_cannot_be_shown_is_refused(inputs) -> None:
    image, features = inputs
    with pytest.raises(UnsupportedError, match="naf has no single set of weights"):
        attended_regions(build("naf"), image, features, (0, 0))
    bilinear = build("bilinear")
    for position in ((24, 0), (0, -1), (0.5, 1)):
        with pytest.raises(ValueError, match="position must be a row and a column"):
            attended_regions(bilinear, image, features, position)
    with pytest.raises(ValueError, match="got a batch of 2"):
        attended_regions(bilinear, image.repeat(2, 1, 1, 1), features.repeat(2, 1, 1, 1), (0, 0))


def test_dots_are_the_same_each_time_and_follow_the_weights() -> None:
    weights = torch.zeros(4, 6)
    weights[1, 2], weights[3, 5], weights[0, 0] = 0.75, 0.25, -1.0
    dots = sample_dots(weights, count=4000, seed=3)
    assert torch.equal(dots, sample_dots(weights, count=4000, seed=3))
    assert not torch.equal(dots, sample_dots(weights, count=4000, seed=4))
    assert dots.min() >= 0
    assert dots.max() < 1
    cells = (dots * torch.tensor([4.0, 6.0], dtype=torch.float64)).floor().long()
    counted = torch.zeros(4, 6).index_put_(tuple(cells.T), torch.ones(4000), accumulate=True)
    assert set(map(tuple, counted.nonzero().tolist())) == {(1, 2), (3, 5)}
    assert counted[1, 2].item() / 4000 == pytest.approx(0.75, abs=0.03)
    inside = dots[cells[:, 0] == 1] * torch.tensor([4.0, 6.0]) - torch.tensor([1.0, 2.0])
    torch.testing.assert_close(inside.mean(0), torch.full((2,), 0.5).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(
        inside.std(0), torch.full((2,), 12**-0.5).double(), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("weights", [torch.zeros(2, 2), torch.full((2, 2), torch.nan)])
def test_no_distribution_no_dots(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite and not all zero"):
        sample_dots(weights)


def test_spread() -> None:
    assert effective_cells(torch.ones(3, 4)) == pytest.approx(12)
    assert effective_cells(torch.eye(1)) == pytest.approx(1)


def test_pictures_show_the_cells() -> None:
    photo, weights = torch.full((3, 40, 60), 0.5), torch.zeros(2, 3)
    weights[0, 2] = 1.0
    plain = heat_picture(photo, weights, (0.9, 0.1), side=120).float()
    bright = plain.sum(0) > 450
    assert bright[:38, 82:].all()
    assert not bright[:38, :78].any()
    dots = dot_picture(photo, weights, (0.9, 0.1), count=200, side=120).int()
    yellow = (dots[0] - dots[2]) > 80
    assert yellow[:40, 80:].any()
    assert not yellow[:, :76].any()
    assert not yellow[44:].any()
    again = dot_picture(photo, weights, (0.9, 0.1), count=200, side=120).int()
    assert torch.equal(dots, again)


def test_a_column_for_each_block() -> None:
    photo = torch.rand(3, 32, 32)
    one, two = Attended("one", torch.rand(1, 2, 2)), Attended("two", torch.rand(2, 2, 2))
    narrow, wide = (attention_panel(photo, m, (0.5, 0.5), side=100) for m in ([one], [one, two]))
    assert (narrow.width, wide.width) == (112, 324)
    assert narrow.height == wide.height


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["show", "attention", *map(str, arguments)]
    )
    return result.exit_code, result.output


def write_photo(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


NETWORK = ("--backbone", "upfeat/vit_compact_patch16", "--input-size", "32", "--side", "64")


def test_command(tmp_path: Path) -> None:
    photo, out = write_photo(tmp_path), tmp_path / "out"
    code, text = run(
        photo, "--at", "0.5,0.99", "--at", "3,4", "--upsampler",
        "bilinear,kin.upfeat,loft=loftup.vit_compact_patch16", "--out", out, *NETWORK,
    )  # fmt: skip
    assert code == 0, text
    names = [f"photo_attention_{place}" for place in ("20_59", "3_4")]
    assert sorted(p.name for p in out.iterdir() if p.is_file()) == sorted(
        name + suffix for name in names for suffix in (".png", ".json")
    )
    record = json.loads((out / f"{names[0]}.json").read_text())
    assert record["settings"]["pixel"] == [16, 47]
    shapes = {m["label"]: np.shape(m["cell_weights"]) for m in record["methods"]}
    assert shapes == {"bilinear": (1, 2, 3), "kin.upfeat": (1, 2, 3), "loft": (2, 2, 3)}
    np.testing.assert_allclose(np.sum(record["methods"][0]["cell_weights"], (1, 2)), 1, atol=1e-5)
    assert Image.open(out / f"{names[0]}.png").width > 4 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "40,0", "--upsampler", "bilinear"], "40 rows and 60 columns"),
        (["--at", "0.5,1.5", "--upsampler", "bilinear"], "two shares from 0 to 1"),
        (["--at", "1", "--upsampler", "bilinear"], "got '1'"),
        (["--at", "1,1", "--upsampler", "bilinear,lift"], "lift must be trained first"),
        (["--at", "1,1", "--upsampler", "featup_implicit"], "has no single set of weights"),
    ],
)
def test_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    code, text = run(write_photo(tmp_path), *arguments, "--out", out, *NETWORK)
    assert code == 2
    assert message in " ".join(text.split())
    assert not out.exists()
