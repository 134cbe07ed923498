"""Joint bilateral upsampling: the formula of the paper, written out."""

import pytest
import torch

import upfeat
from tests.upsamplers.contract import UpsamplerContract


class TestJointBilateral(UpsamplerContract):
    name = "joint_bilateral"
    config = {"sigma_color": 0.5}  # noqa: RUF012


def written_out(
    image: torch.Tensor,
    cells: torch.Tensor,
    values: torch.Tensor,
    size: tuple[int, int],
    sigmas: tuple[float, float],
    radius: float,
) -> torch.Tensor:
    """Kopf's sum, pixel by pixel: image (3, H', W'), cells (3, h, w), values (K, h, w)."""
    output = torch.zeros(values.shape[0], *size, dtype=values.dtype)
    grid = values.shape[1:]
    for i in range(size[0]):
        for j in range(size[1]):
            row, col = (i + 0.5) * grid[0] / size[0] - 0.5, (j + 0.5) * grid[1] / size[1] - 0.5
            total = 0.0
            for r in range(grid[0]):
                for c in range(grid[1]):
                    if abs(r - row) > radius or abs(c - col) > radius:
                        continue
                    color = (image[:, i, j] - cells[:, r, c]).square().sum()
                    place = (r - row) ** 2 + (c - col) ** 2
                    weight = torch.exp(-color / (2 * sigmas[0] ** 2) - place / (2 * sigmas[1] ** 2))
                    output[:, i, j] += weight * values[:, r, c]
                    total += weight
            output[:, i, j] /= total
    return output


@pytest.mark.parametrize("radius", [1.3, 2.0, 9.0])
def test_equals_the_sum_of_the_paper(radius: float) -> None:
    image = torch.rand(1, 3, 12, 15, dtype=torch.float64)
    values = torch.randn(1, 4, 4, 5, dtype=torch.float64)
    upsampler = upfeat.create_upsampler(
        "joint_bilateral", sigma_color=0.3, sigma_space=0.9, radius=radius
    )
    cells = torch.nn.functional.adaptive_avg_pool2d(image, (4, 5))
    expected = written_out(image[0], cells[0], values[0], (12, 15), (0.3, 0.9), radius)
    torch.testing.assert_close(upsampler(image, values)[0], expected, atol=1e-10, rtol=1e-8)


def test_follows_an_edge_that_bilinear_blurs() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1.0
    features = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]).expand(1, 1, 4, 4)
    step = (image[:, :1] > 0.5).float()
    errors = {
        name: (upfeat.create_upsampler(name)(image, features) - step).abs().mean().item()
        for name in ("joint_bilateral", "bilinear")
    }
    assert errors["joint_bilateral"] < 1e-3
    assert errors["bilinear"] > 0.05


@pytest.mark.parametrize("name", ["sigma_color", "sigma_space", "radius"])
def test_parameters_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        upfeat.create_upsampler("joint_bilateral", **{name: 0.0})
