"""Recipes of IFA, LiFT and UPLiFT: complete, published numbers, a few small steps."""

from __future__ import annotations

import pytest
import torch

import upfeat
from upfeat.training import TrainConfig, create_recipe, describe_recipe
from upfeat.upsamplers import list_upsamplers

RECIPES = ["ifa_small", "lift_paper", "lift_small", "uplift_paper", "uplift_small"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str) -> None:
    config = create_recipe(name)
    assert config.recipe == name
    assert config.upsampler.name in list_upsamplers()
    assert config.objective.build().name == config.objective.name
    assert TrainConfig.from_json(config.to_json()) == config
    assert describe_recipe(name).endswith(".")


def test_papers_numbers() -> None:
    lift, uplift = create_recipe("lift_paper"), create_recipe("uplift_paper")
    for config in (lift, uplift):
        assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-3)
        assert config.optimizer.weight_decay == 0
        assert config.data.crop == 448
    assert (lift.batch_size, uplift.batch_size) == (256, 32)
    assert lift.steps == round(5 * 1_281_167 / 256)
    assert uplift.steps == -(-1_281_167 // 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ifa_small", "lift_small", "uplift_small"])
def test_a_few_steps_of_the_small_recipe(name: str) -> None:
    config = create_recipe(name)
    torch.manual_seed(0)
    backbone = upfeat.create_backbone(config.backbones[0].name)
    model = upfeat.create_upsampler(config.upsampler.name, feature_dim=backbone.dim).train()
    objective = config.objective.build()
    objective.prepare(model, backbone, (64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
    image = torch.rand(2, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = objective.step({"image": image}, backbone, model, torch.Generator())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
