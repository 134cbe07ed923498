"""What each signal compares with what, on cases whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.setups import DIM, tiny_backbone, tiny_batch, tiny_upsampler
from upfeat.objectives import (
    CropsConfig,
    DoubledInputConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    SelfDistillationConfig,
    ema_update,
    naf_config,
    released_stage1_config,
    released_stage2_config,
)
from upfeat.objectives.draws import cut_part, disturb_image
from upfeat.objectives.losses import cosine_mse, mse
from upfeat.objectives.multi_view import Jitter, draw_jitter, jitter_map
from upfeat.objectives.self_distillation import output_span
from upfeat.ops.images import gaussian_blur, normalize, scale_size
from upfeat.upsamplers.base import UpsamplerInfo, WholeMapUpsampler


class Recorder(WholeMapUpsampler):
    """Repeats the nearest features, times a learned number, and keeps the sizes of its calls."""

    info = UpsamplerInfo(name="recorder", summary="for tests")

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.sizes: list[tuple[Any, ...]] = []

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        sizes = (image.shape[-2:], features.shape[-2:], output_size)
        self.sizes.append(tuple(tuple(size) for size in sizes))
        return self.gain * nn.functional.interpolate(values, output_size, mode="nearest")


def recorded(config: Any, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Recorder]:
    upsampler, backbone = Recorder(), tiny_backbone()
    objective = config.build()
    objective.prepare(upsampler, backbone)
    return objective.step(batch, backbone, upsampler, torch.Generator().manual_seed(0)), upsampler


def features(image: Tensor) -> Tensor:
    return tiny_backbone()(normalize(image, (0.5,) * 3, (0.25,) * 3))


def test_multi_resolution_by_hand() -> None:
    batch = tiny_batch()
    config = MultiResolutionConfig(scale=(0.5, 0.5), regulariser_weight=0.0)
    terms, upsampler = recorded(config, batch)
    assert upsampler.sizes == [((24, 24), (6, 6), (12, 12))]
    small = nn.functional.interpolate(batch["image"], (24, 24), mode="bilinear")
    pred = features(small).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(terms["loss"], cosine_mse(pred, features(batch["image"])))
    terms, upsampler = recorded(naf_config(), batch)
    assert upsampler.sizes == [((48, 48), (6, 6), (12, 12))]  # 4 pixels for each of 12 cells
    torch.testing.assert_close(terms["loss"], mse(pred, features(batch["image"])))


def test_multi_resolution_draws_sizes_of_whole_patches() -> None:
    backbone, upsampler = tiny_backbone(), Recorder()
    objective = MultiResolutionConfig(blur=1.0).build()
    objective.prepare(upsampler, backbone)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        objective.step(tiny_batch(1), backbone, upsampler, generator)
    grids = {sizes[1][0] for sizes in upsampler.sizes if sizes[2] == (12, 12)}
    assert grids <= {3, 4, 5, 6}
    assert len(grids) > 2
    # The regulariser goes from the target's features up to the guidance's size, twice a step.
    assert upsampler.sizes.count(((24, 24), (12, 12), (24, 24))) == 40


def test_scale_size_rounds_half_to_even() -> None:
    assert scale_size((56, 40), 0.25, 4) == (16, 8)  # 14 / 4 = 3.5 and 10 / 4 = 2.5


def test_disturbed_image_stays_valid_or_does_what_was_released() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.rand(2, 3, 16, 16)
    image[:, :, :8] = (image[:, :, :8] > 0.5).float()
    normal = normalize(image, mean, std)
    draws = {"blur": 0.0, "noise": 1.0}
    noisy, clean = disturb_image(normal, torch.Generator(), mean, std, **draws)
    back = noisy * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert clean is normal
    assert back.min() > -1e-5
    assert back.max() < 1 + 1e-5
    assert (back - image).abs().max() < 0.05
    noisy, clean = disturb_image(normal, torch.Generator(), mean, std, clamp="released", **draws)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert 0 < (clean - normal).abs().max() < 0.2  # the released code noises the clean image too
    assert clean.min() < -1
    both = {"blur": 1.0, "noise": 1.0}
    _, clean = disturb_image(normal, torch.Generator(), mean, std, clamp="released", **both)
    assert clean is normal
    none = {"blur": 0.0, "noise": 0.0}
    noisy, clean = disturb_image(normal, torch.Generator(), mean, std, **none)
    assert noisy is clean


def test_blur_is_a_normalised_gaussian() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    blurred = gaussian_blur(point, 1.0)[0, 0]
    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    taps = taps / taps.sum()
    torch.testing.assert_close(blurred[2:7, 2:7], taps[:, None] * taps)
    assert blurred.sum().item() == pytest.approx(1)


def test_mask_refined_by_hand() -> None:
    batch = tiny_batch(1)
    batch["masks"] = torch.zeros(1, 1, 48, 48)
    batch["masks"][0, 0, :10, :20] = 1
    terms, upsampler = recorded(MaskRefinedConfig(alpha=0.8), batch)
    assert upsampler.sizes == [((48, 48), (12, 12), (48, 48))]
    low = features(batch["image"])
    target = nn.functional.interpolate(low, (48, 48), mode="bicubic")
    window = target[:, :, :10, :20]
    target[:, :, :10, :20] = 0.2 * window + 0.8 * window.mean((2, 3), keepdim=True)
    pred = nn.functional.interpolate(low, (48, 48), mode="nearest")
    torch.testing.assert_close(terms["loss"], mse(pred, target))


def test_mask_refined_on_inputs_of_several_sizes() -> None:
    batch = tiny_batch(2)
    batch["masks"] = torch.zeros(2, 1, 48, 48)
    sizes = ((24, 48), (32, 32))
    seen = set()
    for seed in range(8):
        config = MaskRefinedConfig(input_sizes=sizes, output_scale=0.5)
        objective, upsampler = config.build(), Recorder()
        objective.prepare(upsampler, tiny_backbone(), (48, 48))
        upsampler.sizes.clear()
        generator = torch.Generator().manual_seed(seed)
        objective.step(batch, tiny_backbone(), upsampler, generator)
        seen |= set(upsampler.sizes)
    assert seen == {((24, 48), (6, 12), (12, 24)), ((32, 32), (8, 8), (16, 16))}
    with pytest.raises(ValueError, match=r"input_sizes\.0\.1 must be greater"):
        MaskRefinedConfig(input_sizes=((24, 0),))


def test_a_part_is_cut_from_images_and_masks_alike() -> None:
    image = torch.rand(1, 3, 12, 12)
    masks = image[:, :1] > 0.5
    places = set()
    for seed in range(20):
        part, cut = cut_part(image, masks, (6, 12), torch.Generator().manual_seed(seed))
        top = next(i for i in range(7) if torch.equal(part, image[:, :, i : i + 6]))
        assert torch.equal(cut, masks[:, :, top : top + 6])
        places.add(top)
    assert len(places) > 3


def test_released_configurations_hold_the_documented_numbers() -> None:
    one, two = released_stage1_config(), released_stage2_config(16)
    assert one.multi_view is not None
    assert (one.alpha, one.projection, one.multi_view.views) == (0.8, 64, 4)
    assert (two.alpha, two.weight, two.decay, two.every, two.crops) == (0.5, 20.0, 0.99, 10, 2)
    assert two.input_sizes[-1] == 512


@pytest.mark.parametrize("distance", ["affinity_l2", "affinity_l1", "mse", "l1"])
def test_distillation_of_a_uniform_image_is_at_its_floor(distance: str) -> None:
    """Where crops look like the whole, teacher and student agree from the start."""
    batch = {"image": torch.full((1, 3, 48, 48), 0.3), "masks": torch.ones(1, 1, 48, 48)}
    backbone = tiny_backbone()
    upsampler = tiny_upsampler("jafar").eval()
    # Zero padding at the borders would tell a crop from the whole.
    backbone.function[2] = nn.Conv2d(DIM, DIM, 1)
    objective = SelfDistillationConfig(scale=2.0, distance=distance).build()  # type: ignore[arg-type]
    objective.prepare(upsampler, backbone)
    loss = objective.step(batch, backbone, upsampler, torch.Generator())["loss"]
    assert loss.item() < 1e-5


def test_regions_match_the_released_arithmetic() -> None:
    # image 896, student 224: corner 176 -> int(176 * 224 / 896), side int(224 * 224 / 896)
    assert output_span(176, 224, 896, 224) == slice(44, 100)
    assert output_span(896 - 518, 518, 896, 518) == slice(218, 517)


def test_distillation_looks_at_crops_of_the_large_image() -> None:
    terms, upsampler = recorded(SelfDistillationConfig(scale=2.0, refine=False), tiny_batch())
    assert upsampler.sizes == [((24, 24), (6, 6), (24, 24))]
    assert terms["loss"] > 0


def test_teacher_follows_as_a_moving_average() -> None:
    backbone, upsampler = tiny_backbone(), tiny_upsampler("loftup")
    objective = SelfDistillationConfig(scale=2.0, decay=0.75, every=3).build()
    objective.prepare(upsampler, backbone)
    objective.train()
    assert objective.teacher is not None
    assert not objective.teacher.training
    start = [p.clone() for p in objective.teacher.parameters()]
    assert all(a.equal(b) for a, b in zip(start, upsampler.parameters(), strict=True))
    with torch.no_grad():
        for parameter in upsampler.parameters():
            parameter.add_(1)
        upsampler.batch_norm1.running_mean.add_(2)
    for step in (1, 2):
        objective.after_step(step, upsampler)
    for before, now in zip(start, objective.teacher.parameters(), strict=True):
        assert now.equal(before)
    objective.after_step(3, upsampler)
    for before, now in zip(start, objective.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, before + 0.25)
        assert not now.requires_grad
    assert objective.teacher.batch_norm1.running_mean.equal(upsampler.batch_norm1.running_mean)
    objective.after_step(6, upsampler)
    for before, now in zip(start, objective.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, before + 1 - 0.75**2)


def test_ema_extremes() -> None:
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    kept = average.weight.clone()
    ema_update(average, model, 1.0)
    assert average.weight.equal(kept)
    ema_update(average, model, 0.0)
    torch.testing.assert_close(average.weight, model.weight)


def test_doubled_input_by_hand() -> None:
    batch = tiny_batch(1)
    terms, upsampler = recorded(DoubledInputConfig(distance="mse"), batch)
    assert upsampler.sizes == [((24, 24), (6, 6), (12, 12)), ((12, 12), (3, 3), (6, 6))]
    half = batch["image"][:, :, ::2, ::2]
    pred = features(half).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(terms["level_1"], mse(pred, features(batch["image"])))
    torch.testing.assert_close(terms["loss"], terms["level_1"] + terms["level_2"])


def test_crops_are_cut_where_they_were_taken() -> None:
    """With features that do not look around, a perfect map agrees with every crop."""
    backbone, upsampler = tiny_backbone(), Recorder()
    backbone.function[2] = nn.Conv2d(DIM, DIM, 1)
    image = nn.functional.interpolate(torch.rand(2, 3, 6, 6), (48, 48), mode="nearest")

    def exact(guidance: Tensor, low: Tensor, size: tuple[int, int]) -> Tensor:
        del guidance, low
        full = backbone(normalize(image, (0.5,) * 3, (0.25,) * 3))
        return upsampler.gain * full[:, :, : size[0], : size[1]]

    objective = CropsConfig(augmented_weight=0.0, downsample_weight=0.0).build()
    objective.prepare(upsampler, backbone)
    upsampler.forward = exact  # type: ignore[assignment, method-assign]
    loss = objective.step({"image": image}, backbone, upsampler, torch.Generator())["loss"]
    assert loss.item() < 1e-5
    with torch.no_grad():
        upsampler.gain.mul_(2)
    loss = objective.step({"image": image}, backbone, upsampler, torch.Generator())["loss"]
    assert loss.item() > 0.01


# -- the multi-view term -------------------------------------------------------------------------


def test_jitter_moves_image_and_map_alike() -> None:
    rows = torch.arange(16.0)[:, None].expand(16, 16)
    columns = torch.arange(16.0).expand(16, 16)
    x = torch.stack((rows, columns))[None]
    moved = jitter_map(x, Jitter((0.5 + 2 / 16, 0.5 - 3 / 16), (0.5, 0.5)))
    # the window's side is 8, its first pixel's centre lies a quarter pixel inside
    assert moved[0, 0, 0, 0].item() == pytest.approx(8 + 2 - 4 + 0.25 - 0.5)
    assert moved[0, 1, 0, 0].item() == pytest.approx(8 - 3 - 4 + 0.25 - 0.5, abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        center, extent = draw_jitter(generator, (32, 64), max_pad=8, zoom=0.1)
        for c, e, side in zip(center, extent, (32, 64), strict=True):
            assert 1 / 1.1 - 1e-9 <= e <= 1 / 0.9 + 1e-9
            assert -8 / side - 1e-6 <= c - e / 2 or e > 1 + 16 / side
            assert c + e / 2 <= 1 + 8 / side + 1e-6 or e > 1 + 16 / side
