"""LoftUp's other start: it interpolates before its first step, and every weight can still learn."""

import pytest
import torch
from torch.nn import functional as F

import upfeat
from upfeat.ops.coordinates import pixel_centres, sample_at
from upfeat.upsamplers.loftup_ours import CellColors, cell_colors

DIM = 44


def started(seed: int = 0, **config):
    torch.manual_seed(seed)
    return upfeat.create_upsampler("loftup", feature_dim=DIM, start="interpolation", **config)


def smooth_features(grid, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, DIM, 5, 6, generator=generator)
    return F.interpolate(coarse, grid, mode="bicubic")


def normalised(features):
    return F.layer_norm(features.movedim(1, -1), (DIM,)).movedim(-1, 1)


@pytest.mark.parametrize("grid", [(14, 14), (22, 30), (30, 18)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_interpolates(grid, mode):
    model = started().train(mode == "train")
    features = smooth_features(grid)
    size = (8 * grid[0], 8 * grid[1])
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    chosen = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(2))[:500]
    coords = pixel_centres(size)[chosen].expand(2, -1, -1)
    with torch.no_grad():
        found = model.query(image, features, coords)
    wanted = sample_at(normalised(features), coords)
    assert F.cosine_similarity(found, wanted, dim=-1).mean() > 0.9
    far = sample_at(normalised(features), coords.flip(1))  # other places, as near as chance
    assert F.cosine_similarity(found, far, dim=-1).mean() < 0.5


def test_random_start_does_not_interpolate():
    torch.manual_seed(0)
    model = upfeat.create_upsampler("loftup", feature_dim=DIM).eval()
    features = smooth_features((14, 14))
    with torch.no_grad():
        found = model(torch.rand(2, 3, 56, 56), features)
    wanted = F.interpolate(normalised(features), (56, 56), mode="bilinear")
    assert F.cosine_similarity(found, wanted).mean() < 0.5


@torch.no_grad()
def test_with_colors_it_keeps_to_the_side_of_an_edge():
    """A border inside a column of cells: pixels take the features of those of their own colour."""
    sides = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(1, 3, 96, 96)
    image[..., 52:] = 1  # in the middle of the seventh of twelve columns
    share = torch.tensor([0.0] * 6 + [0.5] + [1.0] * 5)
    features = (sides[0, :, None] * (1 - share) + sides[1, :, None] * share)[None, :, None]
    features = features.expand(1, DIM, 12, 12)

    def certain(model):  # by how much more a pixel next to the border is like its own side
        found = model.eval()(image, features)
        like = [F.cosine_similarity(found, normalised(side[None, :, None, None])) for side in sides]
        apart = (like[0] - like[1])[0, 24:72].mean(0)
        return (apart[49:52].mean() - apart[52:55].mean()).item()

    assert certain(started(token_colors=True)) > 3 * certain(started())


@pytest.mark.parametrize("grid", [(14, 14), (22, 30)])
def test_with_colors_it_interpolates_over_one_color(grid):
    """No image, no edges: only nearness is left, of a wider reach than without colours."""
    model = started(token_colors=True).eval()
    features = smooth_features(grid)
    size = (8 * grid[0], 8 * grid[1])
    with torch.no_grad():
        found = model(torch.full((2, 3, *size), 0.5), features)
    wanted = F.interpolate(normalised(features), size, mode="bilinear")
    assert F.cosine_similarity(found, wanted).mean() > 0.8


@pytest.mark.parametrize(
    "config",
    [
        {"num_heads": 2},
        {"num_heads": 16},
        {"color_feats": False},
        {"n_freqs": 12},
        {"color_feats": False, "token_colors": True},
    ],
)
def test_it_holds_for_other_sizes(config):
    model = started(**config).eval()
    features = smooth_features((16, 16))
    with torch.no_grad():
        found = model(torch.rand(2, 3, 64, 64), features)
    wanted = F.interpolate(normalised(features), (64, 64), mode="bilinear")
    assert F.cosine_similarity(found, wanted).mean() > 0.9


def test_every_weight_learns():
    model = started().train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    image, features = torch.rand(2, 3, 32, 32), smooth_features((8, 8))
    target = torch.randn(2, DIM, 32, 32)
    for _ in range(3):  # weights behind a zero get their gradients in the second step
        optimizer.zero_grad()
        (model(image, features) - target).square().mean().backward()
        optimizer.step()
    same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert same == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"position": "learnable"}, "needs position='sine'"),
        ({"num_layers": 1}, "needs num_layers=2"),
        ({"num_heads": 32}, "heads of at least 4 channels"),
        ({"num_heads": 8, "token_colors": True}, "heads of at least 10 channels"),
    ],
)
def test_what_it_cannot_start_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        started(**config)


def test_unknown_start():
    with pytest.raises(ValueError, match="'random' or 'interpolation', got 'copy'"):
        upfeat.create_upsampler("loftup", feature_dim=DIM, start="copy")


def test_cell_colors_are_the_means_of_quarters() -> None:
    colors = torch.rand(2, 3, 12, 16) - 0.5
    described = cell_colors(colors, (3, 4))  # cells of 4x4 pixels
    assert described.shape == (2, 12, 30)
    cell = colors[1, :, 4:8, 8:12]  # row 1, column 2
    quarters = torch.stack(
        [cell[:, r : r + 2, c : c + 2].mean((1, 2)) for r in (0, 2) for c in (0, 2)], dim=1
    )
    angles = torch.cat([torch.pi * step * cell.mean((1, 2)) for step in (1, 2, 4)])
    wanted = torch.cat((quarters.flatten(), angles.sin(), angles.cos()))
    torch.testing.assert_close(described[1, 4 + 2], wanted, rtol=0, atol=1e-5)


def test_uneven_cells_and_tiny_images() -> None:
    assert cell_colors(torch.rand(1, 3, 7, 9), (3, 4)).shape == (1, 12, 30)
    constant = cell_colors(torch.full((1, 3, 2, 2), 0.25), (5, 6))  # fewer pixels than cells
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), rtol=0, atol=1e-6)


def test_it_adds_nothing_before_training_and_learns() -> None:
    layer = CellColors(8)
    added = layer(torch.rand(1, 3, 8, 8) - 0.5, (2, 2), torch.float32)
    assert torch.equal(added, torch.zeros(1, 4, 8))
    added.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() > 0
