"""Inputs and targets of every objective live in one space, and the trained method stays in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upfeat
from tests.objectives.setups import CONFIGS, DIM, UPSAMPLERS, tiny_batch
from upfeat.errors import UnsupportedError
from upfeat.objectives import (
    MaskRefinedConfig,
    MaskTransferConfig,
    ObjectiveConfig,
    RepeatedDoublingConfig,
)
from upfeat.upsamplers.registry import get_class

STAGE = {"block": "single", "widths": [8]}
SMALL: dict[str, dict[str, Any]] = {
    **UPSAMPLERS,
    "carafe": {"feature_dim": DIM, "stages": 2, "compressed_channels": 8},
    "dysample": {"feature_dim": DIM, "stages": 2},
    "featup_jbu": {"feature_dim": DIM},
    "ifa": {"feature_dim": DIM},
    "joint_bilateral_learned": {"key_dim": 8, "radius": 1},
    "kin": {"dim": 8, "radius": 2},
    "lift": {"feature_dim": DIM},
    "liif": {"feature_dim": DIM, "hidden_dim": 16, "num_hidden": 1},
    "pixelup": {
        "d_enc": 16, "num_heads_encoder": 2, "num_heads_decoder": 2, "rope_directions": 2,
        "kernel_size": 3, "smallest_side": 96, "encoder": "test_convnext",
    },
    "raysup": {"qk_dim": 32, "num_heads": 2},
    "resfu": {"feature_dim": DIM, "embedding_dim": 8, "radius": 2},
    "resize_conv": {"feature_dim": DIM},
    "sapa": {"feature_dim": DIM, "stages": 2, "embedding_dim": 8},
    "uplift": {
        "feature_dim": DIM, "taps": 9, "encoder": [STAGE, STAGE], "decoder": [STAGE, STAGE],
    },
    "vit_up": {"feature_dim": DIM, "num_blocks": 1, "num_heads": 1, "patch_size": 4},
    "wrc": {"feature_dim": DIM},
}  # fmt: skip
TARGETS: dict[str, ObjectiveConfig] = {
    name: config for name, config in CONFIGS.items() if "released" not in name
} | {
    "mask_transfer": MaskTransferConfig(samples=16, transfer_weight=0.0),
    "repeated_doubling": RepeatedDoublingConfig(levels=1),
}


def shifted_backbone() -> upfeat.Backbone:
    """Features far from mean 0 and standard deviation 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Conv2d(3, DIM, 4, stride=4)
    return upfeat.CallableBackbone(lambda x: 4 + 7 * net(x), DIM, 4, name="shifted")


def build(name: str, **options: Any) -> upfeat.Upsampler:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return upfeat.create_upsampler(name, **SMALL[name], **options).train()


def is_normal(features: Tensor) -> bool:
    """Whether each position has mean 0 and standard deviation 1 over the channels."""
    mean, std = features.mean(1), features.std(1, unbiased=False)
    return bool(mean.abs().max() < 1e-3 and (std - 1).abs().max() < 1e-2)


def watched(config: ObjectiveConfig, upsampler: upfeat.Upsampler) -> tuple[list[Tensor], ...]:
    """Run a step; return what the upsampler computed from, and the targets."""
    backbone, objective = shifted_backbone(), config.build()
    objective.prepare(upsampler, backbone)
    given, targets = [], []
    target, cast = objective.target, upsampler._cast

    def watch_target(features: Tensor) -> Tensor:
        targets.append(target(features))
        return targets[-1]

    def watch_cast(image: Tensor, features: Tensor, values: Tensor | None) -> Any:
        image, features, values = cast(image, features, values)
        given.append(features.detach())
        return image, features, values

    objective.target, upsampler._cast = watch_target, watch_cast  # type: ignore[method-assign]
    # raysup needs six cells, of the image at half its size as well
    batch = tiny_batch(side=96) if upsampler.info.name == "raysup" else tiny_batch()
    terms = objective.step(batch, backbone, upsampler, torch.Generator().manual_seed(0))
    assert torch.isfinite(terms["loss"])
    del upsampler._cast
    return given, targets


def learns(name: str) -> bool:
    cls = get_class(name)
    if cls.info.abilities.per_image:
        return False
    extra = SMALL.get(name, {})
    return any(True for _ in upfeat.create_upsampler(name, **extra).parameters())


def test_every_trainable_method_is_among_them() -> None:
    assert sorted(SMALL) == [name for name in upfeat.list_upsamplers() if learns(name)]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("objective", TARGETS)
def test_inputs_and_targets_live_in_one_space(objective: str, name: str) -> None:
    upsampler = build(name)
    given, targets = watched(TARGETS[objective], upsampler)
    assert given
    regresses = not upsampler.info.abilities.mixes_values
    own_norm = bool(upsampler.config.get("channel_norm"))
    assert all(is_normal(features) == (regresses and not own_norm) for features in given)
    assert all(is_normal(features) == regresses for features in targets)
    assert targets or objective == "self_distillation"  # there the teacher makes the targets


@pytest.mark.parametrize("name", ["dysample", "resize_conv", "liif", "lift", "ifa"])
def test_what_was_trained_on_normal_features_gets_them_ever_after(
    name: str, tmp_path: Path
) -> None:
    """The trained method reads any scale and offset of the features alike, saved or not."""
    upsampler = build(name)
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, DIM, 8, 8)

    def agree(up: Callable[..., Tensor]) -> bool:
        with torch.no_grad():
            return torch.allclose(up(image, 5 * features + 3), up(image, features), atol=1e-3)

    assert not agree(upsampler.eval())
    MaskRefinedConfig().build().prepare(upsampler, shifted_backbone())
    assert agree(upsampler)
    upsampler.save_pretrained(tmp_path)
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    assert loaded.info.feature_norm
    assert agree(loaded)
    MaskRefinedConfig(feature_space="raw").build().prepare(upsampler, shifted_backbone())
    assert not agree(upsampler)


def test_a_network_that_normalises_its_inputs_gets_them_as_they_come() -> None:
    for name in ("loftup", "featup_jbu"):
        upsampler = build(name)
        MaskRefinedConfig().build().prepare(upsampler, shifted_backbone())
        assert not upsampler.info.feature_norm
        bare = build(name, channel_norm=False)
        MaskRefinedConfig().build().prepare(bare, shifted_backbone())
        assert bare.info.feature_norm


def test_options_that_end_the_mixing_end_the_raw_space() -> None:
    """Abilities belong to the instance: grouped weights and embedded values mix no others."""
    for name, options in (("carafe", {"up_group": 2}), ("sapa", {"v_embed": True})):
        upsampler = build(name, **options)
        assert not upsampler.info.abilities.mixes_values
        objective = MaskRefinedConfig().build()
        objective.prepare(upsampler, shifted_backbone())
        assert objective.feature_space == "channel_norm"
        image, features = torch.rand(1, 3, 16, 16), torch.rand(1, DIM, 4, 4)
        with pytest.raises(UnsupportedError, match="values"):
            upsampler(image, features, values=features)


def test_the_records_of_abilities_contradict_themselves_nowhere() -> None:
    with pytest.raises(ValueError, match="linear"):
        upfeat.Abilities(linear=True, mixes_values=False)
    for name in upfeat.list_upsamplers():
        abilities = dataclasses.asdict(get_class(name).info.abilities)
        assert set(abilities.pop("export").values()) <= {"dynamic", "static", "no"}
        assert all(type(value) is bool for value in abilities.values())
