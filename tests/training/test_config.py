"""Settings: overrides, round trips, schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.tiny import tiny_config
from upfeat.training import (
    EmaConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    WeightAverage,
    apply_overrides,
    derive_seed,
    learning_rate_factor,
    make_optimizer,
)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("steps=7", "steps", 7),
        ("precision=bf16", "precision", "bf16"),
        ("clip.max_norm=None", "clip.max_norm", None),
        ("logging.tensorboard=true", "logging.tensorboard", True),
        ('data.paths=["a", "b"]', "data.paths", ("a", "b")),
        ("objective.scale=[0.5, 0.5]", "objective.scale", (0.5, 0.5)),
        ("data.crop=[32,48]", "data.crop_size", (32, 48)),
        ("data.crop=32", "data.crop_size", (32, 32)),
        ("upsampler.config.num_heads=2", "upsampler.config", {"qk_dim": 8, "num_heads": 2}),
    ],
)
def test_overrides(override: str, path: str, value: object) -> None:
    found: object = apply_overrides(tiny_config(), [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_an_override_reaches_into_lists() -> None:
    config = apply_overrides(tiny_config(), ["backbones.0.options.layer=3"])
    assert config.backbones[0].options == {"layer": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("steps", "written path=value"),
        ("steps.more=1", "single value"),
        ("backbones.4.name=x", "list of 1"),
        ("steps=0", "steps must be greater than 0, got 0"),
        ("optimizer.name=adamax", "optimizer.name must be 'adamw', .*got 'adamax'"),
        ("batch_size=3 ", None),
        ("accumulate=4", "multiple of 4"),
    ],
)
def test_wrong_overrides_say_what_to_do(override: str, message: str | None) -> None:
    if message is None:
        assert apply_overrides(tiny_config(), [override]).batch_size == 3
        return
    with pytest.raises(ValueError, match=message):
        apply_overrides(tiny_config(), [override])


def test_a_broken_file_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="steps is missing"):
        TrainConfig.from_json(tiny_config().model_dump_json(exclude={"steps"}))
    with pytest.raises(ValueError, match="unknown setting 'frobnicate'"):
        TrainConfig(**tiny_config().model_dump() | {"frobnicate": 1})


@given(
    name=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 5),
    final=st.floats(0, 1),
    steps=st.integers(6, 40),
)
def test_schedules_rise_then_fall(name: str, warmup: int, final: float, steps: int) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, final=final)  # type: ignore[arg-type]
    factors = [learning_rate_factor(schedule, step, steps) for step in range(1, steps + 1)]
    peak = max(warmup, 1) - 1
    assert factors[peak] == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(1 if name == "constant" else final, abs=1e-12)


@pytest.mark.parametrize("name", ["adamw", "adam", "nadam", "sgd"])
def test_every_optimizer_steps(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.1), [weight])  # type: ignore[arg-type]
    (weight**2).sum().backward()
    optimizer.step()
    assert (weight < 1).all()


def test_the_average_follows_on_its_interval() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer, EmaConfig(decay=0.5, every=2))
    start = layer.weight.item()
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(1, layer)
    assert next(average.module.parameters()).item() == start
    average.update(2, layer)
    assert next(average.module.parameters()).item() == pytest.approx(start + 0.5)


def test_derived_seeds_differ() -> None:
    seeds = {derive_seed(a, b, c) for a in range(3) for b in range(20) for c in range(3)}
    assert len(seeds) == 180
