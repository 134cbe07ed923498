"""Recipes: complete, the papers' numbers, a few steps of the small ones."""

from __future__ import annotations

import inspect
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import upfeat
from tests.training.tiny import Images, tiny_config
from upfeat.backbones import Backbone
from upfeat.errors import UnknownNameError
from upfeat.training import (
    Parts,
    TrainConfig,
    Trainer,
    create_recipe,
    describe_recipe,
    list_recipes,
    read_log,
    recipes,
)
from upfeat.upsamplers import list_upsamplers

NAMES = list_recipes()
SOURCES = ("aper", "eleased", "riginal", "* As ``", "hosen")  # who says what a field is


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete(name: str) -> None:
    config = create_recipe(name)
    assert config.recipe == name
    assert config.upsampler.name in list_upsamplers()
    assert config.objective.build().name == config.objective.name
    assert TrainConfig.from_json(config.to_json()) == config
    assert describe_recipe(name).endswith(".")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("bundled_")])
def test_a_recipe_says_where_its_fields_come_from(name: str) -> None:
    description = inspect.getdoc(getattr(recipes, name)) or ""
    assert any(source in description.split("\n", 1)[1] for source in SOURCES)


CARDS = sorted(
    card
    for folder in (files("upfeat.upsamplers") / "bundled", Path(__file__).parents[2] / "weights")
    for card in Path(str(folder)).glob("*.md")
)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_model_card_names_recipes_that_exist_and_settings_that_can_be_read(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    assert set(re.findall(r"`(bundled_\w+)`", text)) <= set(list_recipes())
    config = TrainConfig.from_json(re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)[-1])
    assert config.recipe in {*list_recipes(), "custom"}


def test_an_unknown_recipe_names_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="'jafar_paper'"):
        create_recipe("jafar_papr")


def test_numbers_of_jafar_naf_and_loftup() -> None:
    jafar, naf = create_recipe("jafar_paper"), create_recipe("naf_paper")
    assert (jafar.optimizer.lr, jafar.optimizer.weight_decay) == (2e-4, 1e-5)
    assert (jafar.steps, jafar.batch_size, jafar.precision) == (100_000, 4, "bf16")
    assert (naf.steps, naf.data.crop) == (25_000, 512)
    stage1, stage2 = create_recipe("loftup_stage1_paper"), create_recipe("loftup_stage2_paper")
    assert (stage1.optimizer.lr, stage2.optimizer.lr) == (1e-3, 1e-4)
    assert stage1.clip.limit(10) == 1e-4
    assert stage1.clip.limit(11) == math.inf


def test_numbers_of_lift_and_uplift() -> None:
    lift, uplift = create_recipe("lift_paper"), create_recipe("uplift_paper")
    for config in (lift, uplift):
        assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-3)
        assert config.optimizer.weight_decay == 0
        assert config.data.crop == 448
    assert (lift.batch_size, uplift.batch_size) == (256, 32)
    assert lift.steps == round(5 * 1_281_167 / 256)
    assert uplift.steps == -(-1_281_167 // 32)


def test_numbers_of_the_comparisons() -> None:
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
def test_a_baseline_learns_raw_features_of_small_images(name: str) -> None:
    config = create_recipe(name)
    assert config.objective.feature_space == "raw"
    assert 64 <= config.data.crop <= 128


@pytest.mark.parametrize("name", SMALL)
def test_two_steps_change_every_weight(name: str, tmp_path: Path) -> None:
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
