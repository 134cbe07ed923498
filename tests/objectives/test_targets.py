"""UPLiFT's signal: the stored losses of the original, the sizes of its calls, two steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.objectives.setups import (
    DIM,
    tiny_backbone,
    tiny_batch,
    tiny_upsampler,
    two_steps_lower_the_loss,
)
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.objectives import RepeatedDoublingConfig
from upfeat.ops.images import resize_antialiased

SMALL = {
    "taps": 9,
    "encoder": [{"block": "single", "widths": [6]}, {"block": "single", "widths": [8]}],
    "decoder": [{"block": "double", "widths": [8]}, {"block": "double", "widths": [8]}],
}


@pytest.mark.golden
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_golden_loss(golden_dir: Path, training: bool) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "uplift_loss.safetensors")
    model = upfeat.from_official("uplift", golden_state(tensors)).train(training)
    image, kernel = tensors["input.image"], tensors["input.backbone"]
    for side in (16, 32, 64):
        small = resize_antialiased(image, (side, side))
        assert max_abs_difference(small, tensors[f"output.image_{side}"]) < GOLDEN_ATOL
    # The stored image is normalised already: name the normalisation that brings it back.
    low, span = image.amin(), image.amax() - image.amin()
    backbone = upfeat.CallableBackbone(
        lambda x: F.conv2d(x, kernel, stride=8),
        dim=16,
        patch_size=8,
        image_mean=(float(-low / span),) * 3,
        image_std=(float(1 / span),) * 3,
    )
    objective = RepeatedDoublingConfig().build()
    objective.prepare(model, backbone)
    batch = {"image": ((image - low) / span).clamp(0, 1)}
    terms = objective.step(batch, backbone, model, torch.Generator())
    mode = "train" if training else "eval"
    difference = max_abs_difference(terms.pop("loss"), tensors[f"output.{mode}.total"])
    assert difference <= GOLDEN_ATOL
    every = torch.stack(list(terms.values()))
    assert max_abs_difference(every, tensors[f"output.{mode}.terms"]) <= GOLDEN_ATOL


def test_calls() -> None:
    sizes: list[tuple[tuple[int, ...], ...]] = []
    model = tiny_upsampler("jafar")
    model.register_forward_pre_hook(
        lambda _, args: sizes.append((args[0].shape[2:], args[1].shape[2:], args[2]))
    )
    objective, backbone = RepeatedDoublingConfig(levels=2).build(), tiny_backbone()
    objective.prepare(model, backbone, (48, 48))
    objective.step(tiny_batch(), backbone, model, torch.Generator())
    assert sizes == [
        ((24, 24), (6, 6), (12, 12)),
        ((12, 12), (3, 3), (6, 6)),
        ((12, 12), (3, 3), (12, 12)),
    ]


def test_two_training_steps() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("uplift", feature_dim=DIM, **SMALL).train()
    two_steps_lower_the_loss(model, RepeatedDoublingConfig(levels=2).build())


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="levels"):
        RepeatedDoublingConfig(levels=0)
    with pytest.raises(ValueError, match="mse"):
        RepeatedDoublingConfig(distance="mes")  # type: ignore[arg-type]
