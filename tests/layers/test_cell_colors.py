"""Colours of cells as tokens get them."""

import torch

from upfeat.layers.cell_colors import CellColors, cell_colors


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
