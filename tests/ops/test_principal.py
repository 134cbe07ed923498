"""Images of any number of channels as guidance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import upfeat
from upfeat.ops.principal import three_channels


@given(st.integers(1, 17), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_any_number_of_channels_gives_three_in_the_range_of_colours(
    channels: int, height: int, width: int, seed: int
) -> None:
    image = 1e4 * torch.randn(
        2, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )
    mapped = three_channels(image)
    assert mapped.shape == (2, 3, height, width)
    assert mapped.dtype == image.dtype
    assert mapped.min() >= 0
    assert mapped.max() <= 1


def test_units_and_offsets_of_bands_do_not_matter() -> None:
    image = torch.randn(1, 5, 24, 32, dtype=torch.float64)
    units = torch.tensor([1.0, 1000.0, 0.01, 3.0, 50.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(three_channels(image * units + 7 * units), three_channels(image))


def test_one_channel_is_repeated_and_keeps_its_order() -> None:
    slice_of_ct = torch.linspace(-1000, 3000, 64).view(1, 1, 8, 8)
    mapped = three_channels(slice_of_ct)
    assert torch.equal(mapped[:, 0], mapped[:, 1])
    assert torch.equal(mapped[:, 0], mapped[:, 2])
    assert bool((mapped[0, 0].flatten().diff() >= 0).all())
    assert mapped.min() == 0
    assert mapped.max() == 1


def test_first_component_is_the_common_signal_and_weak_ones_stay_weak() -> None:
    signal = torch.linspace(0, 1, 400).view(1, 1, 20, 20)
    noise = 0.01 * torch.randn(1, 6, 20, 20, generator=torch.Generator().manual_seed(0))
    mapped = three_channels(signal * torch.arange(1.0, 7.0)[:, None, None] + noise)[0].flatten(1)
    assert torch.corrcoef(torch.stack([mapped[0], signal.flatten()]))[0, 1].abs() > 0.999
    assert mapped[1:].std(1).max() < 0.05 * mapped[0].std()


def test_a_constant_image_is_grey_and_images_of_a_batch_do_not_mix() -> None:
    constant, other = torch.full((1, 4, 5, 5), 3.0), torch.rand(1, 4, 5, 5)
    assert torch.equal(three_channels(constant), torch.full((1, 3, 5, 5), 0.5))
    together = three_channels(torch.cat([constant, other]))
    torch.testing.assert_close(together[1:], three_channels(other))


@pytest.mark.parametrize("name", ["kin", "anyup", "guided_filter"])
def test_methods_are_guided_by_sixteen_bands_or_one(name: str) -> None:
    up = upfeat.create_upsampler(name, pretrained=False).eval()
    values = torch.rand(1, 7, 4, 4)
    for channels in (16, 1):
        guidance = up.guidance_image(torch.rand(1, channels, 32, 32))
        assert up(guidance, values).shape == (1, 7, 32, 32)


def test_guidance_of_other_channels_is_refused_with_the_way_out() -> None:
    up = upfeat.create_upsampler("kin", pretrained=False).eval()
    with pytest.raises(ValueError, match=r"upsampler\.guidance_image\(image\)"):
        up(torch.rand(1, 16, 32, 32), torch.rand(1, 7, 4, 4))
