"""Recipes of the task-dependent baselines: complete, and two steps of each change every weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import upfeat
from tests.training.tiny import Images, tiny_config
from upfeat.backbones import Backbone
from upfeat.training import Parts, TrainConfig, Trainer, create_recipe, describe_recipe, read_log
from upfeat.upsamplers import list_upsamplers

DIM = 8
SMALL: dict[str, dict[str, object]] = {
    "carafe_small": {"compressed_channels": 8, "up_kernel": 3},
    "dysample_small": {},
    "liif_small": {"hidden_dim": 16, "num_hidden": 2},
    "resfu_small": {},
    "resize_conv_small": {},
    "sapa_small": {"embedding_dim": 8},
}


class MaskedImages(Images):
    """Random images with halves as masks."""

    def batch(self, start: int, count: int) -> dict[str, object]:
        content = super().batch(start, count)
        side = content["image"].shape[-1]
        half = torch.zeros(side, side)
        half[:, : side // 2] = 1
        content["masks"] = torch.stack((half, 1 - half)).expand(count, -1, -1, -1)
        return content


def tiny_backbone() -> Backbone:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(DIM, 3, 4, 4, generator=generator)
    return upfeat.CallableBackbone(
        lambda x: torch.nn.functional.conv2d(x, weight.to(x), stride=4), dim=DIM, patch_size=4
    )


def tiny_parts(config: TrainConfig) -> Parts:
    torch.manual_seed(0)
    model = upfeat.create_upsampler(
        config.upsampler.name, feature_dim=DIM, **config.upsampler.config
    )
    return Parts([tiny_backbone()], model, config.objective.build(), MaskedImages())


@pytest.mark.parametrize("name", SMALL)
def test_the_recipe_is_complete(name: str) -> None:
    config = create_recipe(name)
    assert config.upsampler.name in list_upsamplers()
    assert config.objective.feature_space == "raw"
    assert 64 <= config.data.crop <= 128
    assert describe_recipe(name).endswith(".")
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", SMALL)
def test_two_steps(name: str, tmp_path: Path) -> None:
    recipe = create_recipe(name)
    config = tiny_config(
        upsampler={"name": recipe.upsampler.name, "config": SMALL[name]},
        objective=recipe.objective,
        steps=2,
    )
    parts = tiny_parts(config)
    before = {key: value.clone() for key, value in parts.upsampler.named_parameters()}
    Trainer(config, tmp_path, parts=parts).fit()
    trained = upfeat.Upsampler.from_pretrained(tmp_path / "model")
    for key, value in trained.named_parameters():
        assert not torch.equal(value, before[key]), key
    losses = [row["loss"] for row in read_log(tmp_path / "log.csv")]
    assert len(losses) == 2
    assert all(0 < loss < float("inf") for loss in losses)
