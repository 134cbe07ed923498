"""Click encoder, head and loss of interactive segmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import upfeat
from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.errors import UnsupportedError
from upfeat.evaluation.probes.click_training import ClickProbe, normalized_focal_loss


@pytest.mark.golden
def test_loss_is_the_originals(golden_dir: Path) -> None:
    case, _ = load_golden(golden_dir / "metrics" / "normalized_focal_loss.safetensors")
    logits = case["logits"].requires_grad_()
    loss = normalized_focal_loss(logits, case["label"])
    scale = case["loss_per_image"].abs().max()
    assert max_abs_difference(loss / scale, case["loss_per_image"] / scale) <= GOLDEN_ATOL
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    assert max_abs_difference(gradient, case["grad_of_mean"]) <= GOLDEN_ATOL
    other = normalized_focal_loss(logits, case["label"], alpha=0.25) / scale
    assert max_abs_difference(other, case["loss_per_image_alpha025"] / scale) <= GOLDEN_ATOL
    with pytest.raises(ValueError, match="must be"):
        normalized_focal_loss(logits[:, 0], case["label"])


@pytest.fixture
def backbone() -> upfeat.Backbone:
    name = "timm/vit_tiny_patch16_224"
    return upfeat.create_backbone(name, weights="random", depth=1)


@pytest.mark.parametrize("injection", ["early", "late"])
def test_only_encoder_and_head_learn(backbone: upfeat.Backbone, injection: str) -> None:
    probe = ClickProbe(192, 16, injection)  # type: ignore[arg-type]
    up = upfeat.create_upsampler("jafar", feature_dim=192).eval().requires_grad_(False)
    image, maps = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    logits = probe(backbone, up, image, maps, (8, 8))
    assert logits.shape == (2, 1, 32, 32)
    logits.square().sum().backward()
    assert all((p.grad != 0).any() for p in probe.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in probe.parameters())
    assert all(p.grad is None for p in (*backbone.parameters(), *up.parameters()))


def test_clicks_that_encode_to_nothing_change_nothing(backbone: upfeat.Backbone) -> None:
    image, maps = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48)
    plain = backbone((image - 0.5) / 0.5)
    for injection in ("early", "late"):
        probe = ClickProbe(192, 16, injection)
        changed = probe.features(backbone, image, maps)
        assert not torch.allclose(changed, plain, atol=1e-3)
        torch.nn.init.zeros_(probe.encoder.weight)
        torch.nn.init.zeros_(probe.encoder.bias)
        same = probe.features(backbone, image, maps)
        torch.testing.assert_close(same, plain, **tolerance(torch.float32))


def test_a_network_without_patch_embedding_is_refused() -> None:
    backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
    image, up = torch.rand(1, 3, 16, 16), upfeat.create_upsampler("bilinear")
    with pytest.raises(UnsupportedError, match="injection=late"):
        ClickProbe(3, 8)(backbone, up, image, image, None)
    assert ClickProbe(3, 8, "late")(backbone, up, image, image, None).shape == (1, 1, 16, 16)
