"""Mask refinement: the two rules, and what they make of overlaps, padding and other sizes."""

from __future__ import annotations

import pytest
import torch

from upfeat.objectives.masks import mask_similarity, refine_with_masks, resize_masks


def case() -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(2, 5, 6, 7)
    masks = torch.rand(2, 4, 6, 7) > 0.5
    masks[:, 2] = False
    return features, masks


def test_free_rule_does_not_depend_on_the_order_and_the_released_one_does() -> None:
    features, masks = case()
    turned = masks.flip(1)
    free = refine_with_masks(features, masks, 0.8, "free")
    torch.testing.assert_close(refine_with_masks(features, turned, 0.8, "free"), free)
    one, two = (refine_with_masks(features, m, 0.8) for m in (masks, turned))
    assert (one - two).abs().max() > 0.01


def test_rules_agree_on_disjoint_masks() -> None:
    features, _ = case()
    labels = torch.randint(0, 3, (2, 1, 6, 7))
    masks = labels == torch.arange(3).view(1, 3, 1, 1)
    one, two = (refine_with_masks(features, masks, 0.7, order) for order in ("sequential", "free"))
    torch.testing.assert_close(one, two)
    full = refine_with_masks(features, masks, 1.0, "free")
    for b in range(2):
        inside = masks[b, 0]
        mean = features[b][:, inside].mean(1, keepdim=True)
        torch.testing.assert_close(full[b][:, inside], mean.expand(-1, int(inside.sum())))
    assert mask_similarity(full, masks).item() < 1e-10


@pytest.mark.parametrize("order", ["sequential", "free"])
def test_leaves_what_no_mask_covers(order: str) -> None:
    features, masks = case()
    padded = torch.cat((masks.float(), torch.full((2, 3, 6, 7), -1.0)), 1)
    refined = refine_with_masks(features, masks, 0.8, order)  # type: ignore[arg-type]
    torch.testing.assert_close(refine_with_masks(features, padded, 0.8, order), refined)  # type: ignore[arg-type]
    outside = ~masks.any(1, keepdim=True).expand_as(features)
    assert refined[outside].equal(features[outside])
    none = refine_with_masks(features, masks[:, :0], 0.8, order)  # type: ignore[arg-type]
    assert none.equal(features)


@pytest.mark.parametrize("order", ["sequential", "free"])
def test_gradients_reach_the_features(order: str) -> None:
    features = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(1, 3, 3, 3) > 0.4
    assert torch.autograd.gradcheck(lambda x: refine_with_masks(x, masks, 0.6, order), features)  # type: ignore[arg-type]


def test_resizes_by_nearest() -> None:
    masks = torch.tensor([[1, -1], [0, 3]]).view(1, 1, 2, 2)
    enlarged = resize_masks(masks, (4, 4))[0, 0]
    assert enlarged[:2, :2].all()
    assert enlarged[2:, 2:].all()
    assert not enlarged[:2, 2:].any()
    features = torch.randn(1, 3, 4, 4)
    small = refine_with_masks(features, masks, 0.8)
    assert small.equal(refine_with_masks(features, enlarged[None, None], 0.8))


def test_refuses() -> None:
    features, masks = case()
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        refine_with_masks(features, masks, 1.5)
    with pytest.raises(ValueError, match="'sequential' or 'free'"):
        refine_with_masks(features, masks, 0.5, "any")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"masks must be \(B, M, H, W\)"):
        refine_with_masks(features, masks[:1], 0.5)
    assert mask_similarity(features, torch.zeros(2, 1, 6, 7)).item() == 0
