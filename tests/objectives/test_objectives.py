"""Every objective trains every upsampler, repeats itself, and refuses what cannot work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import upfeat
from tests.objectives.setups import (
    CONFIGS,
    DIM,
    UPSAMPLERS,
    tiny_backbone,
    tiny_batch,
    tiny_upsampler,
)
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.objectives import (
    CropsConfig,
    DepthTargetConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    MultiViewConfig,
    Objective,
    ObjectiveConfig,
    SelfDistillationConfig,
    create_objective,
    list_objectives,
    register_objective,
)
from upfeat.objectives._networks import draw_backbone

TRAINABLE = tuple(UPSAMPLERS)


def run(
    config: ObjectiveConfig, name: str, steps: int = 2, seed: int = 5
) -> tuple[list[dict[str, Tensor]], nn.Module, Objective]:
    torch.manual_seed(0)  # NAF's own jitter, and the start of parts that the objective builds
    backbone, upsampler, batch = tiny_backbone(), tiny_upsampler(name), tiny_batch()
    objective = config.build()
    objective.prepare(upsampler, backbone, tuple(batch["image"].shape[-2:]))
    parameters = [*upsampler.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    history = []
    for step in range(1, steps + 1):
        terms = objective.step(batch, backbone, upsampler, generator)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        objective.after_step(step, upsampler)
        history.append(terms)
    return history, upsampler, objective


@pytest.mark.parametrize("upsampler", TRAINABLE)
@pytest.mark.parametrize("objective", CONFIGS)
def test_two_steps(objective: str, upsampler: str) -> None:
    history, trained, built = run(CONFIGS[objective], upsampler)
    for terms in history:
        assert terms["loss"].dim() == 0
        assert terms["loss"].dtype == torch.float32
        assert all(torch.isfinite(term) for term in terms.values())
        assert not any(term.requires_grad for key, term in terms.items() if key != "loss")
    moved = [
        not torch.equal(now, before)
        for now, before in zip(
            trained.parameters(), tiny_upsampler(upsampler).parameters(), strict=True
        )
    ]
    # LoftUp's last bias and the like may stay where a loss does not see them; most must move.
    assert sum(moved) > 0.8 * len(moved)
    own = [p for p in built.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)


@pytest.mark.parametrize("upsampler", ["jafar", "naf"])
@pytest.mark.parametrize("objective", CONFIGS)
def test_the_generator_decides(objective: str, upsampler: str) -> None:
    config = CONFIGS[objective]
    one, first, _ = run(config, upsampler)
    two, second, _ = run(config, upsampler)
    assert all(a["loss"].equal(b["loss"]) for a, b in zip(one, two, strict=True))
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    draw_nothing = ("mask_refined", "doubled_input", "depth_target", "stored_target")
    if objective not in draw_nothing:
        other, _, _ = run(config, upsampler, steps=1, seed=6)
        assert not other[0]["loss"].equal(one[0]["loss"])


@pytest.mark.parametrize("objective", CONFIGS)
def test_nothing_given_is_changed(objective: str) -> None:
    backbone, upsampler, batch = tiny_backbone(), tiny_upsampler("jafar"), tiny_batch()
    kept = {key: value.clone() for key, value in batch.items()}
    weights = copy.deepcopy(backbone.state_dict())
    built = CONFIGS[objective].build()
    built.prepare(upsampler, backbone)
    built.step(batch, backbone, upsampler, torch.Generator())["loss"].backward()
    assert all(value.equal(kept[key]) for key, value in batch.items())
    assert all(value.equal(weights[key]) for key, value in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("objective", CONFIGS)
def test_other_shapes(objective: str) -> None:
    """Images neither square nor a whole number of patches; integer masks of another dtype."""
    batch = tiny_batch()
    batch = {key: value[..., :47, :38] for key, value in batch.items()}
    batch["masks"] = (batch["masks"] > 0).to(torch.uint8)
    backbone, upsampler = tiny_backbone(), tiny_upsampler("anyup")
    built = CONFIGS[objective].build()
    built.prepare(upsampler, backbone)
    assert torch.isfinite(built.step(batch, backbone, upsampler, torch.Generator())["loss"])


@pytest.mark.parametrize("objective", CONFIGS)
def test_half_precision(objective: str) -> None:
    """Under autocast, as the papers train, a loss is float32 and close to the exact one."""
    backbone, batch = tiny_backbone(), tiny_batch()
    losses = []
    for half in (False, True):
        torch.manual_seed(0)
        model, built = tiny_upsampler("jafar"), CONFIGS[objective].build()
        built.prepare(model, backbone)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = built.step(batch, backbone, model, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=2e-3)


def test_state_resumes_a_run() -> None:
    config = CONFIGS["self_distillation_released"]
    _, upsampler, objective = run(config, "jafar")
    fresh = config.build()
    fresh.prepare(tiny_upsampler("jafar", seed=9), tiny_backbone())
    fresh.load_state_dict(objective.state_dict())
    losses = [
        item.step(tiny_batch(), tiny_backbone(), upsampler, torch.Generator().manual_seed(8))[
            "loss"
        ]
        for item in (objective, fresh)
    ]
    assert losses[0].equal(losses[1])


@pytest.mark.parametrize("objective", ["multi_resolution", "crops", "self_distillation"])
def test_several_backbones(objective: str) -> None:
    backbones = [tiny_backbone(8, 4), tiny_backbone(12, 4, seed=1), tiny_backbone(10, 6, seed=2)]
    seen: list[str] = []
    for backbone in backbones:
        name = f"{backbone.dim}"
        backbone.register_forward_hook(lambda *_, name=name: seen.append(name))
    upsampler = tiny_upsampler("anyup")
    built = CONFIGS[objective].build()
    built.prepare(upsampler, backbones, (48, 48))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        assert torch.isfinite(built.step(tiny_batch(1), backbones, upsampler, generator)["loss"])
    assert len(set(seen)) > 1
    drawn = [draw_backbone(backbones, generator).dim for _ in range(400)]
    # First the patch size, then the backbone: the only one with patch 6 takes half of the steps.
    assert 160 < drawn.count(10) < 240
    assert 70 < drawn.count(8) < 130


def test_wrapped_upsampler_is_called_through_its_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *args: Tensor) -> Tensor:
            self.calls += 1
            return self.module(*args)

    wrapper = Wrapper(tiny_upsampler("jafar"))
    built = CONFIGS["multi_resolution"].build()
    built.prepare(wrapper, tiny_backbone())
    built.step(tiny_batch(), tiny_backbone(), wrapper, torch.Generator())
    assert wrapper.calls == 3


def test_guidance_and_backbone_get_their_own_normalisation() -> None:
    backbone, upsampler = tiny_backbone(), tiny_upsampler("anyup")
    images: dict[str, Tensor] = {}
    backbone.register_forward_pre_hook(lambda _, args: images.update(backbone=args[0]))
    upsampler.register_forward_pre_hook(lambda _, args: images.update(guidance=args[0]))
    built = MaskRefinedConfig().build()
    built.prepare(upsampler, backbone)
    batch = tiny_batch()
    built.step(batch, backbone, upsampler, torch.Generator())
    torch.testing.assert_close(images["backbone"], (batch["image"] - 0.5) / 0.25)
    mean = torch.tensor(upfeat.create_upsampler("anyup").info.image_mean)[:, None, None]
    std = torch.tensor(upfeat.create_upsampler("anyup").info.image_std)[:, None, None]
    torch.testing.assert_close(images["guidance"], (batch["image"] - mean) / std)


def test_targets_live_where_the_method_puts_its_output() -> None:
    spaces = {}
    for name in TRAINABLE:
        built = MaskRefinedConfig().build()
        built.prepare(tiny_upsampler(name), tiny_backbone())
        spaces[name] = built.feature_space
    assert spaces == {"jafar": "raw", "loftup": "channel_norm", "anyup": "raw", "naf": "raw"}
    features = torch.randn(2, DIM, 3, 4) * 5 + 2
    built = MaskRefinedConfig(feature_space="channel_norm").build()
    built.prepare(tiny_upsampler("loftup"), tiny_backbone())
    normed = built.target(features)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(1, correction=0), torch.ones(2, 3, 4), atol=1e-4, rtol=0)
    scaled = MaskRefinedConfig().build()
    model = tiny_upsampler("loftup")
    model.feature_scale = 2.5
    scaled.prepare(model, tiny_backbone())
    torch.testing.assert_close(scaled.target(features), 2.5 * normed)


# -- refusals ------------------------------------------------------------------------------------


def refused(config: ObjectiveConfig, upsampler: nn.Module, backbone: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config.build().prepare(upsampler, backbone, (48, 48))  # type: ignore[arg-type]


def test_refuses_upsamplers_without_weights() -> None:
    for name in ("bilinear", "joint_bilateral"):
        refused(MaskRefinedConfig(), upfeat.create_upsampler(name), tiny_backbone(), "no parameter")
    frozen = tiny_upsampler("jafar").requires_grad_(False)
    refused(CropsConfig(), frozen, tiny_backbone(), "no parameter that takes a gradient")


def test_refuses_widths_that_do_not_fit() -> None:
    refused(MaskRefinedConfig(), tiny_upsampler("jafar"), tiny_backbone(dim=8), "feature_dim=12")
    both = [tiny_backbone(), tiny_backbone(dim=8)]
    refused(MultiResolutionConfig(), tiny_upsampler("loftup"), both, "feature_dim=12")
    refused(MaskRefinedConfig(), tiny_upsampler("naf"), tiny_backbone(dim=9), "group of channels")


def test_refuses_sizes_before_the_first_step() -> None:
    naf = upfeat.create_upsampler("naf", dim=32, kernel_size=9)
    refused(MultiResolutionConfig(), naf, tiny_backbone(), "kernel_size=3")
    built = MultiResolutionConfig().build()
    built.prepare(naf, tiny_backbone())  # without sizes it cannot know
    with pytest.raises(UnsupportedError, match="multi_resolution would call naf"):
        built.step(tiny_batch(), tiny_backbone(), naf, torch.Generator())
    config = SelfDistillationConfig(input_sizes=(48,))
    refused(config, tiny_upsampler("jafar"), tiny_backbone(), "must be larger")
    config = SelfDistillationConfig(input_sizes=(4,))
    refused(config, tiny_upsampler("jafar"), tiny_backbone(), "covers only")
    config = DepthTargetConfig(output_scale=0.1)
    refused(config, tiny_upsampler("jafar"), tiny_backbone(), "enlarge output_scale")


def test_refuses_parts_for_one_backbone_with_several() -> None:
    both, upsampler = [tiny_backbone(), tiny_backbone(8)], tiny_upsampler("anyup")
    refused(DepthTargetConfig(), upsampler, both, "built for one backbone")
    for config in (
        MaskRefinedConfig(multi_view=MultiViewConfig()),
        SelfDistillationConfig(scale=2.0, multi_view=MultiViewConfig()),
    ):
        refused(config, upsampler, both, "learns a downsampler for one backbone")
    refused(CropsConfig(), upsampler, [], "no backbone")


def test_refuses_a_space_that_the_method_cannot_reach() -> None:
    config = MaskRefinedConfig(feature_space="channel_norm")
    refused(config, tiny_upsampler("naf"), tiny_backbone(), "mixes the features")


def test_refuses_backbones_of_one_size() -> None:
    backbone = tiny_backbone()
    backbone.fixed_size = (48, 48)
    refused(MultiResolutionConfig(), tiny_upsampler("jafar"), backbone, r"\(48, 48\) only")


def test_refuses_broken_batches() -> None:
    backbone, upsampler, batch = tiny_backbone(), tiny_upsampler("jafar"), tiny_batch()
    built = MaskRefinedConfig().build()
    generator = torch.Generator()
    with pytest.raises(ValueError, match="not prepared"):
        built.step(batch, backbone, upsampler, generator)
    built.prepare(upsampler, backbone)
    with pytest.raises(ValueError, match=r"without \['masks'\]"):
        built.step({"image": batch["image"]}, backbone, upsampler, generator)
    with pytest.raises(ValueError, match="3 channels"):
        built.step({**batch, "image": batch["image"][:, :1]}, backbone, upsampler, generator)
    with pytest.raises(ValueError, match="do not normalise"):
        built.step({**batch, "image": batch["image"] - 0.5}, backbone, upsampler, generator)
    with pytest.raises(ValueError, match="masks must be"):
        built.step({**batch, "masks": batch["masks"][:1]}, backbone, upsampler, generator)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("multi_resolution", {"scale": (0.0, 0.5)}),
        ("multi_resolution", {"clamp": "none"}),
        ("multi_resolution", {"distance": "l7"}),
        ("multi_resolution", {"guidance_scale": 0.0}),
        ("multi_resolution", {"guidance_cells": 0}),
        ("mask_refined", {"order": "any"}),
        ("mask_refined", {"projection": 0}),
        ("self_distillation", {"every": 0}),
        ("self_distillation", {"scale": 1.0}),
        ("self_distillation", {"decay": 2.0}),
        ("self_distillation", {"distance": "affinity_l3"}),
        ("self_distillation", {"input_sizes": ()}),
        ("doubled_input", {"levels": 0}),
        ("doubled_input", {"reduce": "area"}),
        ("depth_target", {"depth_weight": 0.0}),
        ("crops", {"crops": 0}),
        ("crops", {"normalization": "imagenet"}),
        ("crops", {"feature_space": "other"}),
        ("crops", {"crop": 3}),
    ],
)
def test_refuses_settings_without_sense(config: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[-1]):
        create_objective(config, **options)


def test_registry() -> None:
    names = list_objectives()
    # These take some upsamplers or one backbone only; their own files test them.
    own = {"mask_transfer", "repeated_doubling", "restoration"}
    assert {key.removesuffix("_released") for key in CONFIGS} | own == set(names)
    for name in names:
        built = create_objective(name)
        assert built.name == name
        assert type(built.config)().build().config == built.config
    with pytest.raises(UnknownNameError, match="did you mean 'crops'"):
        create_objective("crop")
    with pytest.raises(UnknownNameError, match="did you mean 'crops'"):
        ObjectiveConfig(name="cops").build()


def test_weighted_sum() -> None:
    term = torch.tensor(2.0, requires_grad=True)
    total = Objective.weighted_sum({"a": (3.0, term), "b": (0.5, torch.tensor(4.0))})
    assert {key: value.item() for key, value in total.items()} == {"loss": 8.0, "a": 2.0, "b": 4.0}
    total["loss"].backward()
    assert term.grad == 3


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="named 'crops' is registered already"):
        register_objective(CropsConfig)
