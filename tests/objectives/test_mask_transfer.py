"""The universal model's signal: regions, sampled pixels, targets, refusals."""

from __future__ import annotations

import pytest
import torch

from tests.objectives.setups import tiny_backbone, tiny_batch, tiny_upsampler
from upfeat import CallableBackbone, create_upsampler
from upfeat.errors import UnsupportedError
from upfeat.objectives import MaskTransferConfig
from upfeat.objectives.mask_transfer import (
    region_edges,
    region_map,
    region_shares,
    squared_distances,
)

CONFIG = MaskTransferConfig(samples=64, projection=6)


def small(name: str) -> torch.nn.Module:
    if name == "kin":
        torch.manual_seed(0)
        return create_upsampler("kin", dim=8).train()
    return tiny_upsampler(name)


def losses(
    name: str, config: MaskTransferConfig, steps: int, seed: int = 0, lr: float = 1e-3
) -> list[float]:
    backbone, upsampler, batch = tiny_backbone(), small(name), tiny_batch()
    objective = config.build()
    objective.prepare(upsampler, backbone, tuple(batch["image"].shape[-2:]))
    optimizer = torch.optim.Adam(upsampler.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(steps):
        terms = objective.step(batch, backbone, upsampler, generator)
        assert not terms["features"].requires_grad
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        out.append(terms["loss"].item())
    return out


@pytest.mark.parametrize("name", ["kin", "jafar", "anyup"])
def test_two_steps_repeat_with_the_generator(name: str) -> None:
    first = losses(name, CONFIG, 2)
    assert torch.isfinite(torch.tensor(first)).all()
    assert first == losses(name, CONFIG, 2)
    assert first[0] != losses(name, CONFIG, 1, seed=1)[0]


def test_one_batch_is_learnt() -> None:
    run = losses("kin", CONFIG, 40, lr=2e-3)
    assert sum(run[-5:]) < 0.9 * sum(run[:5])


def test_methods_that_show_no_weights_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="transfer_weight=0"):
        CONFIG.build().prepare(tiny_upsampler("naf"), tiny_backbone())


def test_an_attention_learns_where_regions_lie() -> None:
    config = CONFIG.model_copy(update={"feature_weight": 0.0, "samples": 256})
    run = losses("loftup", config, 40, lr=3e-3)
    assert sum(run[-5:]) < 0.8 * sum(run[:5])


@pytest.mark.parametrize("locality", [None, 1.0])
def test_what_an_attention_finds_of_a_region(locality: float | None) -> None:
    """The mean over layers of -log(share + floor), near cells alone where there is a locality."""
    shares = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])  # (1, 2, 1, 4)
    coords = torch.tensor([[[0.0, -0.75], [0.0, 0.75]]])  # centres of the first and last cell
    region = torch.tensor([[0, 1]])
    layers = [torch.tensor([[[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]]]), torch.ones(1, 2, 4) / 4]
    objective = MaskTransferConfig(locality=locality).build()
    found = objective._attended(layers, shares, coords, region)
    near = 1.0 if locality is None else float(torch.tensor(-0.5).exp())  # of the second cell
    sums = torch.tensor([0.5, 0.5 + 0.5 * near, 0.25 + 0.25 * near, 0.25 + 0.25 * near])
    torch.testing.assert_close(found, -(sums + 0.01).log().mean())


@pytest.mark.parametrize("locality", [None, 1.0])
def test_what_likeness_finds_of_a_region(locality: float | None) -> None:
    """Cells count exp(-distance / width), relative to the variance, less the further they are."""
    shares = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # (1, 2, 1, 3)
    channels = torch.tensor([[[[0.0, 2.0, 4.0]], [[0.0, 0.0, 0.0]]]])  # (1, 2, 1, 3)
    output = torch.tensor([[[1.0, 0.0], [4.0, 1.0]]])  # (1, 2, 2)
    apart = squared_distances(output, channels)
    torch.testing.assert_close(apart, torch.tensor([[[1.0, 1.0, 9.0], [17.0, 5.0, 1.0]]]))
    coords = torch.tensor([[[0.0, -2 / 3], [0.0, 2 / 3]]])  # centres of the first and last cell
    region = torch.tensor([[0, -1]])  # the second pixel lies in none
    objective = MaskTransferConfig(locality=locality, match_width=2.0).build()
    found = objective._matched(apart, shares, coords, region)
    steps = torch.tensor([0.0, 1.0, 2.0]).square() * (0.5 if locality else 0.0)
    weight = (-torch.tensor([0.5, 0.5, 4.5]) - steps).softmax(0)
    torch.testing.assert_close(found, -(weight[:2].sum() + 0.01).log())


def test_features_without_variance_give_finite_terms() -> None:
    backbone = CallableBackbone(
        lambda x: 0 * torch.nn.functional.avg_pool2d(x, 4), dim=3, patch_size=4
    )
    config = MaskTransferConfig(samples=16, transfer_weight=0.0, match_weight=1.0, projection=None)
    objective = config.build()
    upsampler = small("kin")
    objective.prepare(upsampler, backbone, (48, 48))
    terms = objective.step(tiny_batch(), backbone, upsampler, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("settings", [{"match_weight": -1.0}, {"match_width": 0.0}])
def test_impossible_settings_of_likeness(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MaskTransferConfig(**settings)


@pytest.mark.parametrize("name", ["loftup", "naf"])
def test_regressing_methods_learn_to_take_a_side(name: str) -> None:
    config = CONFIG.model_copy(
        update={
            "transfer_weight": 0.0,
            "feature_weight": 0.0,
            "match_weight": 1.0,
            "projection": None,
            "samples": 256,
        }
    )
    run = losses(name, config, 40, lr=3e-3)
    assert sum(run[-5:]) < 0.9 * sum(run[:5])
    assert sorted(losses_of_one_step(name, config)) == ["features", "loss", "match"]


@pytest.mark.parametrize("name", ["naf", "loftup"])
def test_methods_that_do_not_commute_learn_the_features_alone(name: str) -> None:
    config = CONFIG.model_copy(update={"transfer_weight": 0.0, "samples": 256})
    run = losses(name, config, 30, lr=3e-3)
    assert sum(run[-5:]) < 0.9 * sum(run[:5])
    terms = losses_of_one_step(name, config)
    assert sorted(terms) == ["features", "loss"]


def losses_of_one_step(name: str, config: MaskTransferConfig) -> dict[str, torch.Tensor]:
    backbone, upsampler, batch = tiny_backbone(), small(name), tiny_batch()
    objective = config.build()
    objective.prepare(upsampler, backbone, tuple(batch["image"].shape[-2:]))
    return objective.step(batch, backbone, upsampler, torch.Generator().manual_seed(0))


def test_all_channels_and_a_regressing_method() -> None:
    """The perfect answer to regions without masks is bicubic interpolation: no error is left."""

    class Bicubic(torch.nn.Module):
        info = create_upsampler("bicubic").info

        def guidance_image(self, image: torch.Tensor, backbone: object) -> torch.Tensor:
            return image

        def forward(
            self,
            image: torch.Tensor,
            features: torch.Tensor,
            size: None = None,
            values: torch.Tensor | None = None,
        ) -> torch.Tensor:
            mixed = features if values is None else values
            return torch.nn.functional.interpolate(mixed, image.shape[-2:], mode="bicubic")

    regressing = Bicubic()
    regressing.info = Bicubic.info.with_abilities(linear=False)
    batch = {**tiny_batch(), "masks": torch.zeros(2, 0, 48, 48, dtype=torch.bool)}
    for upsampler in (Bicubic(), regressing):
        config = MaskTransferConfig(samples=32, projection=None, transfer_weight=0.0)
        generator = torch.Generator().manual_seed(0)
        terms = config.build()._step(batch, tiny_backbone(), upsampler, generator)
        assert terms["features"] < 1e-9


def test_the_mean_of_a_region_near_a_pixel() -> None:
    """Cells of the pixel's own region count, less the further away they are."""
    channels = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])  # (1, 1, 1, 4), a cell is two pixels wide
    regions = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1]]])
    shares = region_shares(regions, (1, 4), torch.float32)
    coords = torch.tensor([[[0.0, -0.75], [0.0, 0.75]]])  # centres of the first and last cell
    region = torch.tensor([[0, 1]])
    found = {}
    for locality in (None, 0.1, 1.0):
        objective = MaskTransferConfig(alpha=1.0, locality=locality).build()
        found[locality] = objective._refined(channels, shares, coords, region).flatten()
    weight = torch.tensor([0.0, 1.0, 2.0]).square().div(-2).exp()
    near = (weight * torch.tensor([0.0, 1.0, 2.0])).sum() / weight.sum()
    torch.testing.assert_close(found[None], torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found[0.1], torch.tensor([0.0, 3.0]))
    torch.testing.assert_close(found[1.0], torch.stack([near, torch.tensor(3.0)]))


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_brings_the_directions_together(whitening: float) -> None:
    torch.manual_seed(0)
    scales = torch.tensor([4.0, 2.0, 1.0])[:, None, None]
    features = torch.randn(2, 3, 16, 16) * scales
    features = features - features.mean((2, 3), keepdim=True)
    objective = MaskTransferConfig(projection=None, whitening=whitening).build()
    matrix = objective._projection(features, torch.Generator())
    cells = torch.einsum("pc,bchw->pbhw", matrix, features).flatten(1)
    before = features.transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(cells.std(1), before ** (1 - whitening), rtol=0.15, atol=0)


@pytest.mark.parametrize("settings", [{"whitening": 1.5}, {"locality": 0.0}])
def test_impossible_targets_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MaskTransferConfig(**settings)


def test_inputs_of_several_sizes() -> None:
    config = MaskTransferConfig(samples=16, input_sizes=((24, 48), (32, 32)))
    objective, upsampler = config.build(), small("kin")
    objective.prepare(upsampler, tiny_backbone(), (48, 48))
    seen = set()
    query = upsampler.query

    def recorded(image: torch.Tensor, *args: object) -> torch.Tensor:
        seen.add(tuple(image.shape[2:]))
        return query(image, *args)

    upsampler.query = recorded
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        objective.step(tiny_batch(), tiny_backbone(), upsampler, generator)
    assert seen == {(24, 48), (32, 32)}
    with pytest.raises(ValueError, match=r"input_sizes\.0\.1 must be greater"):
        MaskTransferConfig(input_sizes=((24, 0),))


def test_sampling_gives_what_the_whole_map_gives() -> None:
    """A method with query() and the same one without read the same values."""
    backbone, upsampler, batch = tiny_backbone(), small("kin").eval(), tiny_batch()
    results = []
    for supported in (True, False):
        upsampler.info = upsampler.info.with_abilities(query=supported)
        objective = CONFIG.build()
        objective.prepare(upsampler, backbone)
        generator = torch.Generator().manual_seed(0)
        results.append(objective.step(batch, backbone, upsampler, generator)["loss"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_images_of_other_scales_and_without_masks() -> None:
    config = MaskTransferConfig(samples=16, input_scales=(0.5, 1.0), projection=None)
    batch = {**tiny_batch(), "masks": torch.zeros(2, 0, 48, 48, dtype=torch.bool)}
    objective = config.build()
    upsampler = small("kin")
    objective.prepare(upsampler, tiny_backbone(), (48, 48))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        terms = objective.step(batch, tiny_backbone(), upsampler, generator)
        assert terms["transfer"] == 0
        assert torch.isfinite(terms["loss"])


def test_the_smallest_mask_counts() -> None:
    masks = torch.zeros(1, 3, 2, 4)
    masks[0, 0] = 1
    masks[0, 1, :, 1:3] = 1
    assert region_map(masks).tolist() == [[[0, 1, 1, 0], [0, 1, 1, 0]]]


def test_edges_lie_around_the_borders() -> None:
    regions = torch.zeros(1, 30, 30, dtype=torch.long)
    regions[:, :, 15:] = 1
    edges = region_edges(regions)
    assert edges[0, 0].nonzero().flatten().tolist() == list(range(10, 20))
