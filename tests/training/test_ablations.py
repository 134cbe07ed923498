"""Recipes of the papers' comparisons: complete, what they change, and the data they read."""

from __future__ import annotations

import pytest

from upfeat.training import TrainConfig, create_recipe, describe_recipe
from upfeat.training.recipes import ablations
from upfeat.upsamplers import list_upsamplers


@pytest.mark.parametrize("name", ablations.__all__)
def test_a_recipe_is_complete(name: str) -> None:
    config = create_recipe(name)
    assert config.recipe == name
    assert config.upsampler.name in list_upsamplers()
    assert config.objective.build().name == config.objective.name
    assert TrainConfig.from_json(config.to_json()) == config
    assert describe_recipe(name).endswith(".")
    description = getattr(ablations, name).__doc__
    assert "hosen" in description
    assert "aper" in description or "* As ``" in description


def test_papers_numbers() -> None:
    featup = create_recipe("featup_jbu_imagenet_50k")
    assert (featup.steps, featup.batch_size, featup.optimizer.name) == (50_000, 4, "nadam")
    for name in ("resize_conv", "liif", "featup_jbu"):
        first = create_recipe(f"{name}_loftup_objective")
        assert first.objective == create_recipe("loftup_stage1_paper").objective
        second = create_recipe(f"{name}_loftup_objective_stage2")
        assert second.objective == create_recipe("loftup_stage2_paper").objective
        assert second.upsampler.start_from == f"runs/{name}_loftup_objective/model"
    assert create_recipe("jafar_distilled").upsampler.name == "jafar"


def test_sources_of_depth_exclude_each_other() -> None:
    changes = ['data.depth={"root": "maps", "teacher": "network", "cache": "kept"}']
    with pytest.raises(ValueError, match="or from a teacher; name one"):
        create_recipe("loftup_depth_small", changes)
    with pytest.raises(ValueError, match="keeps its maps"):
        create_recipe("loftup_depth_small", ['data.depth={"teacher": "network"}'])


def test_ablations_are_changes_of_a_recipe() -> None:
    changes = ['upsampler.config.position="none"', "upsampler.config.conv_kernel=1", "data.limit=9"]
    config = create_recipe("loftup_stage1_paper", changes)
    assert config.upsampler.config == {"position": "none", "conv_kernel": 1}
    assert config.data.limit == 9
    keys = create_recipe("jafar_paper", ['upsampler.config.keys="concat"'])
    assert keys.upsampler.config == {"keys": "concat"}
