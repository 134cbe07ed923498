"""The losses against the stored values of the original code, and their plain properties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.objectives import losses
from upfeat.objectives.affinity import affinity_loss, affinity_loss_blockwise, affinity_matrix
from upfeat.objectives.masks import mask_similarity, refine_with_masks

GOLDENS: dict[str, Callable[..., Tensor]] = {
    "jafar_cosine_mse": losses.cosine_mse,
    "anyup_cosine_mse": losses.cosine_mse,
    "anyup_downsample_reg": lambda pred, target: 0.1 * losses.downsampling_loss(pred, target),
    "naf_mse": losses.mse,
    "loftup_affinity_l2": affinity_loss,
    "loftup_tv": losses.total_variation,
}


def golden(folder: Path, name: str) -> dict[str, Tensor]:
    return load_golden(folder / "losses" / f"{name}.safetensors")[0]


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_value_and_gradient(golden_dir: Path, name: str) -> None:
    tensors = golden(golden_dir, name)
    pred = tensors["input.pred"].requires_grad_()
    loss = GOLDENS[name](*(tensors[k] for k in ("input.pred", "input.target") if k in tensors))
    loss.backward()
    assert max_abs_difference(loss, tensors["output"]) < GOLDEN_ATOL
    assert pred.grad is not None
    expected = tensors["grad.pred"]
    assert max_abs_difference(pred.grad, expected) < GOLDEN_ATOL
    # The gradients are small numbers: hold them relatively, too.
    assert max_abs_difference(pred.grad, expected) < 1e-4 * float(expected.abs().max())


@pytest.mark.golden
def test_golden_terms_and_variants(golden_dir: Path) -> None:
    jafar = golden(golden_dir, "jafar_cosine_mse")
    cosine = losses.cosine_loss(jafar["input.pred"], jafar["input.target"])
    assert max_abs_difference(cosine, jafar["cosine_term"]) < GOLDEN_ATOL
    naf = golden(golden_dir, "naf_mse")
    scaled = losses.min_max_mse(naf["input.pred"], naf["input.target"])
    assert max_abs_difference(scaled, naf["output_normalized"]) < GOLDEN_ATOL
    affinity = golden(golden_dir, "loftup_affinity_l2")
    matrix = affinity_matrix(affinity["input.pred"])
    assert max_abs_difference(matrix, affinity["affinity_pred"]) < GOLDEN_ATOL
    blockwise = affinity_loss_blockwise(
        affinity["input.pred"], affinity["input.target"], max_bytes=2048
    )
    assert max_abs_difference(blockwise, affinity["output"]) < GOLDEN_ATOL


@pytest.mark.golden
def test_golden_mask_refinement(golden_dir: Path) -> None:
    tensors = golden(golden_dir, "loftup_mask_refine")
    features, masks = tensors["input.features"], tensors["input.masks"]
    for alpha, name in ((0.8, "output"), (0.5, "output_alpha05")):
        assert max_abs_difference(refine_with_masks(features, masks, alpha), tensors[name]) < (
            GOLDEN_ATOL
        )
    assert max_abs_difference(mask_similarity(features, masks), tensors["mask_similarity"]) < (
        GOLDEN_ATOL
    )


@pytest.mark.parametrize("name", ["cosine_mse", "cosine", "min_max_mse", "mse", "l1"])
def test_gradients(name: str) -> None:
    pred = torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: losses.get_distance(name)(x, target), pred)


@pytest.mark.parametrize("name", ["cosine_mse", "cosine", "min_max_mse"])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
def test_bands_give_the_loss_and_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, last: bool
) -> None:
    loss = losses.get_distance(name)
    pred, target = (torch.randn(2, 5, 7, 3, dtype=torch.float64) for _ in range(2))
    if last:
        pred = pred.contiguous(memory_format=torch.channels_last)
    pred.requires_grad_()
    whole = loss(pred, target)
    (expected,) = torch.autograd.grad(3 * whole, pred)
    monkeypatch.setattr(losses, "CACHE_BYTES", 4 * 5 * 3)  # two rows
    banded = loss(pred, target)
    torch.testing.assert_close(banded, whole)
    torch.testing.assert_close(torch.autograd.grad(3 * banded, pred)[0], expected)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), pred)
    assert torch.autograd.gradcheck(loss, (pred, target.requires_grad_()))


def test_large_maps_are_summed_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CACHE_BYTES", 4 * 5 * 3)  # two rows
    heights = []

    def plain(pred: Tensor, target: Tensor, products: bool, distance: bool) -> tuple[Tensor, ...]:
        heights.append(pred.shape[2])
        return original(pred, target, products, distance)

    original = losses._plain
    monkeypatch.setattr(losses, "_plain", plain)
    losses.cosine_mse(torch.randn(2, 5, 7, 3), torch.randn(2, 5, 7, 3))
    assert heights == [2, 2, 2, 1] * 2


def test_large_maps_within_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CACHE_BYTES", 32)
    pred, target = torch.randn(2, 1, 4, 6, 6)
    leaf = pred.clone().requires_grad_()
    (expected,) = torch.autograd.grad(losses.cosine_mse(leaf, target), leaf)
    torch.testing.assert_close(torch.func.grad(losses.cosine_mse)(pred, target), expected)


def test_bands_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    pred = torch.randn(1, 6, 8, 4).bfloat16().requires_grad_()
    target = torch.randn(1, 6, 8, 4).bfloat16()
    (expected,) = torch.autograd.grad(losses.cosine_mse(pred, target), pred)
    monkeypatch.setattr(losses, "CACHE_BYTES", 0)
    banded = losses.cosine_mse(pred, target)
    assert banded.dtype == torch.float32
    (actual,) = torch.autograd.grad(banded, pred)
    torch.testing.assert_close(actual, expected, **tolerance(torch.bfloat16))


def test_dtype_and_device(device: torch.device, dtype: torch.dtype) -> None:
    pred, target = (torch.randn(2, 6, 4, 4, device=device).to(dtype) for _ in range(2))
    wide = losses.cosine_mse(pred.double(), target.double())
    narrow = losses.cosine_mse(pred, target)
    assert narrow.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(narrow.double(), wide, **tolerance(narrow.dtype))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        losses.mse(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match="must not be smaller"):
        losses.downsampling_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match="did you mean 'cosine"):
        losses.get_distance("cosin")


def test_projection_has_unit_columns_and_follows_the_generator() -> None:
    like = torch.empty(2, 12, 3, 3)
    one, two = (losses.random_projection(like, 4, torch.Generator().manual_seed(3)) for _ in "12")
    assert one.equal(two)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2, 4))
    x = torch.randn(2, 12, 3, 3)
    expected = torch.stack([(p.T @ m.flatten(1)).view(4, 3, 3) for p, m in zip(one, x)])  # noqa: B905
    torch.testing.assert_close(losses.project(x, one), expected)


def test_depth_loss_leaves_invalid_pixels_out() -> None:
    target = torch.rand(2, 1, 4, 4) + 1
    pred = (2 * target - 5).requires_grad_()
    broken = target.clone()
    broken[0, 0, 0] = 0
    broken[0, 0, 1] = torch.nan
    assert losses.scale_shift_invariant_l1(pred, broken).item() < 1e-5
    nothing = losses.scale_shift_invariant_l1(pred, torch.zeros_like(target))
    nothing.backward()
    assert nothing.item() == 0
    assert losses.scale_shift_invariant_l1(torch.rand(2, 1, 4, 4), target).item() > 0.1


@hypothesis.given(st.integers(1, 7), st.integers(2, 9), st.integers(2, 9))
def test_total_variation_by_hand(channels: int, height: int, width: int) -> None:
    x = torch.randn(1, channels, height, width, dtype=torch.float64)
    expected = sum(
        float((x[0, :, i, j] - x[0, :, k, m]).square().sum())
        for i in range(height)
        for j in range(width)
        for k, m in ((i + 1, j), (i, j + 1))
        if k < height and m < width
    )
    assert float(losses.total_variation(x)) == pytest.approx(expected / x.numel())


@pytest.mark.golden
def test_golden_of_vit_up(golden_dir: Path) -> None:
    """Means over scales and levels of the three terms, and the gradients of their sum."""
    tensors, _ = load_golden(golden_dir / "vit_up" / "loss.safetensors")
    names = [key.removeprefix("input.pred.") for key in tensors if key.startswith("input.pred.")]
    terms, preds = [], {}
    for name in names:
        preds[name] = tensors[f"input.pred.{name}"].requires_grad_()
        pair = (preds[name], tensors[f"input.target.{name}"])
        maps = [tokens.mT[:, :, None] for tokens in pair]  # (B, C, 1, N)
        terms.append(torch.stack(losses.token_terms(*maps)))
        assert torch.allclose(losses.token_structure(*maps), terms[-1].sum())
    mean = torch.stack(terms).mean(0)
    for found, name in zip(mean, ("l2", "cos", "kl"), strict=True):
        assert max_abs_difference(found, tensors[name]) <= GOLDEN_ATOL, name
    assert max_abs_difference(mean.sum(), tensors["output"]) <= GOLDEN_ATOL
    mean.sum().backward()
    for name, pred in preds.items():
        assert pred.grad is not None
        assert max_abs_difference(pred.grad, tensors[f"grad.pred.{name}"]) <= GOLDEN_ATOL
