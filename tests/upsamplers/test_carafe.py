"""CARAFE against the stored outputs of the original, and its limits."""

from pathlib import Path

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError, UnsupportedError
from upfeat.upsamplers.carafe import CARAFE

NAMES = {"scale_factor", "up_kernel", "up_group", "encoder_dilation"}


class TestCARAFE(UpsamplerContract):
    name = "carafe"
    config = {"compressed_channels": 8, "up_kernel": 3, "stages": 2}  # noqa: RUF012
    guided = False


@pytest.mark.golden
@pytest.mark.parametrize("case", ["default_x2", "featup_x2_up3", "group4_enc5_dil2_x3"])
def test_golden(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "carafe" / f"{case}.safetensors")
    options = {k: v for k, v in meta["arguments"]["kw"].items() if k in NAMES}
    upsampler = upfeat.from_official("carafe", golden_state(tensors), **options)
    features, expected = tensors["input.feats"], tensors["output"]
    image = torch.zeros(len(features), 3, 8, 8)
    output = upsampler(image, features, expected.shape[2:])
    assert max_abs_difference(output, expected) < GOLDEN_ATOL
    stage = upsampler.up1
    weights = stage.predict_weights(features).flatten(1, 2)
    stored = tensors["intermediate.mask"]
    assert weights.shape == stored.shape
    assert max_abs_difference(weights, stored) < GOLDEN_ATOL


def test_four_stages_of_two_by_default() -> None:
    upsampler = CARAFE(16, compressed_channels=8)
    assert upsampler.info.factor == 16
    features = torch.randn(1, 16, 3, 4)
    assert upsampler(torch.zeros(1, 3, 40, 50), features, (48, 64)).shape == (1, 16, 48, 64)


def test_counts_of_parameters() -> None:
    for options, count in (({"stages": 1}, 82_340), ({"up_kernel": 3}, 181_648)):
        upsampler = upfeat.create_upsampler("carafe", feature_dim=384, **options)
        assert sum(p.numel() for p in upsampler.parameters()) == count


def test_a_stack_keeps_its_keys_and_reads_its_depth() -> None:
    stack = CARAFE(16, stages=3, up_kernel=3, compressed_channels=8)
    loaded = upfeat.from_official("carafe", stack.state_dict(), up_kernel=3)
    assert loaded.config["stages"] == 3
    assert loaded.info.factor == 8
    with pytest.raises(CheckpointError, match="content_encoder"):
        upfeat.from_official("carafe", stack.state_dict())


def test_weights_sum_to_one_and_borders_darken() -> None:
    upsampler = CARAFE(8, stages=1).eval()
    output = upsampler(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, 8), (16, 16))
    torch.testing.assert_close(output[..., 4:-4, 4:-4], torch.ones(1, 8, 8, 8))
    assert output[0, 0, 0, 0].item() == pytest.approx(9 / 25, abs=0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"up_group": 3}, "up_group=3"),
        ({"encoder_kernel": 2}, "encoder_kernel"),
        ({"stages": 0}, "stages"),
    ],
)
def test_refuses_sizes_that_do_not_fit(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        upfeat.create_upsampler("carafe", feature_dim=16, **options)


def test_groups_mix_no_other_values() -> None:
    upsampler = CARAFE(16, stages=1, up_group=2)
    features = torch.randn(1, 16, 3, 3)
    assert upsampler(torch.zeros(1, 3, 9, 9), features).shape == (1, 16, 9, 9)
    with pytest.raises(UnsupportedError, match="mixes no other values"):
        upsampler(torch.zeros(1, 3, 9, 9), features, values=features[:, :4])
