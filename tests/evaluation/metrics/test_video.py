"""Label propagation and DAVIS scores: stored ones, plain counting, and two processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.evaluation.metrics import (
    VideoMetric,
    boundary_map,
    boundary_radius,
    boundary_similarity,
    frame_statistics,
    masks_to_labels,
    propagate_labels,
    region_similarity,
)
from upfeat.evaluation.metrics.video import _stretched

# -- propagation ---------------------------------------------------------------------------------


def dense(
    target: torch.Tensor,
    context: torch.Tensor,
    masks: torch.Tensor,
    radius: int,
    top_k: int,
    temperature: float,
) -> torch.Tensor:
    """The definition, position by position, with every affinity of the grid."""
    _, height, width = target.shape
    result = torch.zeros(masks.shape[1], height, width, dtype=masks.dtype)
    for y in range(height):
        for x in range(width):
            found: list[tuple[float, torch.Tensor]] = []
            query = target[:, y, x] / target[:, y, x].norm()
            for frame, mask in zip(context, masks, strict=True):
                for v in range(height):
                    for u in range(width):
                        if abs(v - y) <= radius and abs(u - x) <= radius:
                            key = frame[:, v, u] / frame[:, v, u].norm()
                            affinity = math.exp(float(query @ key) / temperature)
                            found.append((affinity, mask[:, v, u]))
            last = sorted((weight for weight, _ in found), reverse=True)[:top_k][-1]
            kept = [(weight, mask) for weight, mask in found if weight >= last]
            total = sum(weight for weight, _ in kept)
            result[:, y, x] = sum(weight / total * mask for weight, mask in kept)
    return result


@pytest.mark.golden
def test_golden_propagation(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "label_propagation.safetensors")
    target = golden["target_feats"].T.reshape(12, 10, 10)  # (h w, C) -> (C, h, w)
    context = golden["context_feats"].reshape(4, 12, 10, 10)
    masks = golden["context_segs"]
    cases = {"seg_default": (3, 5), "seg_whole_grid": (12, 5), "seg_top2_r1": (1, 2)}
    for name, (radius, top_k) in cases.items():
        for max_bytes in (1, 2**13, 2**24):
            ours = propagate_labels(
                target, context, masks, radius=radius, top_k=top_k, max_bytes=max_bytes
            )
            assert max_abs_difference(ours[None], golden[name]) <= GOLDEN_ATOL
    soft = golden["seg_default"][0]
    stretched = _stretched(soft, (20, 20))
    assert max_abs_difference(stretched, golden["upsampled_normalised"]) <= GOLDEN_ATOL
    assert torch.equal(masks_to_labels(soft, (20, 20)), golden["labels"])


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 12),
    st.sampled_from([1, 3000, 2**24]),
)
def test_windows_are_the_definition(
    height: int, width: int, frames: int, radius: int, top_k: int, max_bytes: int
) -> None:
    target = torch.randn(4, height, width, dtype=torch.float64)
    context = torch.randn(frames, 4, height, width, dtype=torch.float64)
    masks = torch.rand(frames, 2, height, width, dtype=torch.float64)
    ours = propagate_labels(
        target, context, masks, radius=radius, top_k=top_k, temperature=0.2, max_bytes=max_bytes
    )
    torch.testing.assert_close(ours, dense(target, context, masks, radius, top_k, 0.2))


def test_ties_are_kept() -> None:
    """Four positions that are equally similar share the weight, though top_k is 1."""
    target = torch.ones(2, 2, 2)
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    mixed = propagate_labels(target, torch.ones(1, 2, 2, 2), masks, top_k=1)
    assert torch.equal(mixed, torch.full((1, 2, 2), 0.5))


def test_a_sharp_temperature_does_not_overflow() -> None:
    features = torch.randn(8, 3, 3)
    masks = torch.rand(1, 2, 3, 3)
    mixed = propagate_labels(features, features[None], masks, temperature=1e-3)
    torch.testing.assert_close(mixed, masks[0])


def test_labels_of_empty_and_constant_masks() -> None:
    background_only = torch.zeros(3, 2, 2)
    background_only[0] = 1
    assert int(masks_to_labels(background_only, (4, 4)).max()) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"context": torch.ones(2, 3, 4, 5)}, "must be"),
        ({"masks": torch.ones(1, 2, 4, 4)}, "resize the masks"),
        ({"context": torch.ones(0, 3, 4, 4), "masks": torch.ones(0, 2, 4, 4)}, "at least 1"),
        ({"top_k": 0}, "top_k at least 1"),
        ({"temperature": 0.0}, "temperature positive"),
    ],
)
def test_propagation_errors(change: dict[str, object], problem: str) -> None:
    arguments: dict[str, object] = {
        "target": torch.ones(3, 4, 4),
        "context": torch.ones(2, 3, 4, 4),
        "masks": torch.ones(2, 2, 4, 4),
    }
    with pytest.raises(ValueError, match=problem):
        propagate_labels(**arguments | change)  # type: ignore[arg-type]


# -- scores --------------------------------------------------------------------------------------


@pytest.mark.golden
def test_golden_scores(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics" / "davis_jf.safetensors")
    truth, void = golden["gt"], golden["void"]
    # J, F and their means are of the prediction that lacks the third object
    said = torch.cat([golden["pred_two_ids"], torch.zeros_like(truth[:1])])
    j, f = region_similarity(said, truth), boundary_similarity(said, truth)
    big = (golden["big_pred"], golden["big_gt"])
    statistics = torch.tensor(
        [[frame_statistics(one) for one in pair] for pair in zip(j, f, strict=True)],
        dtype=torch.float64,
    )
    differences = {
        "J": max_abs_difference(j, golden["J"]),
        "F": max_abs_difference(f, golden["F"]),
        "stats": max_abs_difference(statistics, golden["stats"]),
        "J void": max_abs_difference(
            region_similarity(golden["pred"][0], truth[0], void), golden["J_void_obj0"]
        ),
        "F void": max_abs_difference(
            boundary_similarity(golden["pred"][0], truth[0], void), golden["F_void_obj0"]
        ),
        "big F": max_abs_difference(boundary_similarity(*big), golden["big_F"]),
        "big F, 2 px": max_abs_difference(
            boundary_similarity(*big, radius=2), golden["big_F_radius2"]
        ),
        "J mean": max_abs_difference(j.mean(), golden["J_mean"]),
        "F mean": max_abs_difference(f.mean(), golden["F_mean"]),
        "J&F": max_abs_difference((j.mean() + f.mean()) / 2, golden["JF_mean"]),
    }
    assert max(differences.values()) <= 1e-9, differences
    assert boundary_radius(big[0].shape) == int(golden["big_radius_px"])
    edges = torch.stack([boundary_map(truth[0, 0]), boundary_map(golden["pred"][0, 0])])
    assert torch.equal(edges, golden["boundary_maps_obj0_frame0"].bool())


def plain_f(said: torch.Tensor, true: torch.Tensor, radius: int) -> float:
    """F, pixel by pixel."""

    def edge(mask: torch.Tensor) -> set[tuple[int, int]]:
        height, width = mask.shape
        found = set()
        for y in range(height):
            for x in range(width):
                others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
                if any(v < height and u < width and mask[v, u] != mask[y, x] for v, u in others):
                    found.add((y, x))
        return found

    def hit(ones: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in ones]
        return sum(near) / len(near)

    a, b = edge(said), edge(true)
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    precision, recall = hit(a, b), hit(b, a)
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 9), st.sampled_from([0.1, 0.5]))
def test_boundaries_are_what_the_definition_says(
    height: int, width: int, radius: int, density: float
) -> None:
    said, true = (torch.rand(2, height, width) < density).long()
    ours = boundary_similarity(said, true, radius=radius)
    assert float(ours) == pytest.approx(plain_f(said, true, radius), abs=1e-12)


def test_empty_masks() -> None:
    empty, full = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    full[:, 1:3, 1:3] = 1
    assert float(region_similarity(empty, empty)) == 1
    assert float(region_similarity(empty, full)) == 0
    assert float(boundary_similarity(empty, empty)) == 1
    assert float(boundary_similarity(empty, full)) == float(boundary_similarity(full, empty)) == 0


def test_statistics_of_few_frames() -> None:
    assert frame_statistics(torch.tensor([0.75])) == (0.75, 1.0, 0.0)
    # ends of the quarters of 9 frames: 0, 2, 4, 6, 8
    scores = torch.arange(9).double() / 8
    assert frame_statistics(scores) == pytest.approx((0.5, 4 / 9, 1 / 8 - 7 / 8))
    with pytest.raises(ValueError, match="at least one frame"):
        frame_statistics(torch.empty(0))


def sequence(seed: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, objects + 1, (5, 6, 8), generator=generator, dtype=torch.uint8)
    truth[0, 0, 0] = objects
    said = truth.where(torch.rand(truth.shape, generator=generator) < 0.7, 0)
    return said, truth


def test_means_are_over_objects_without_the_end_frames() -> None:
    said, truth = sequence(0, 1)
    said[0], said[-1] = 0, 0  # not scored
    other_said, other_truth = sequence(1, 3)
    other_said[other_said == 2] = 0  # an object that is never predicted
    other_truth[1, 2, 2] = 255  # void is background
    metric = VideoMetric()
    metric.add("one", said, truth)
    metric.add("three", other_said, other_truth)
    expected = [region_similarity(said[1:-1] == 1, truth[1:-1] == 1).mean()]
    expected += [
        region_similarity(other_said[1:-1] == k, other_truth[1:-1] == k).mean() for k in (1, 2, 3)
    ]
    scores = metric.compute()
    assert scores["j"] == pytest.approx(float(torch.stack(expected).mean()))
    assert scores["jf"] == pytest.approx((scores["j"] + scores["f"]) / 2)
    assert metric.objects["three", 2][0].mean == 0
    assert list(scores) == ["jf", "j", "j_recall", "j_decay", "f", "f_recall", "f_decay"]


def test_numbers_without_an_object_count_nothing() -> None:
    """Objects 1, 2 and 3 called 4, 100 and 254: the same scores, of the same three objects."""
    said, truth = sequence(1, 3)
    names = torch.tensor([0, 4, 100, 254], dtype=said.dtype)
    plain, gaps = VideoMetric(), VideoMetric()
    plain.add("video", said, truth)
    gaps.add("video", names[said.long()], names[truth.long()])
    assert [number for _, number in gaps.objects] == [4, 100, 254]
    assert gaps.compute() == plain.compute()
    nothing = VideoMetric()
    nothing.add("video", torch.zeros_like(said), names[truth.long()])
    assert nothing.compute()["j"] < 0.05  # only frames in which an object is hidden are right
    with pytest.raises(ValueError, match="prediction holds 5"):
        VideoMetric().add("video", names[said.long()].where(said != 1, 5), names[truth.long()])


def test_meter_errors() -> None:
    metric = VideoMetric()
    assert math.isnan(metric.compute()["jf"])
    said, truth = sequence(0, 2)
    with pytest.raises(ValueError, match="at least 3 frames"):
        metric.add("short", said[:2], truth[:2])
    with pytest.raises(ValueError, match="prediction holds 7"):
        metric.add("more", said.where(said != 1, 7), truth)
    with pytest.raises(ValueError, match="at least one"):
        metric.add("none", torch.zeros_like(said), torch.zeros_like(truth))
    metric.add("a", said, truth)
    with pytest.raises(ValueError, match="added before"):
        metric.add("a", said, truth)
    with pytest.raises(ValueError, match="one shape"):
        region_similarity(said, truth[0])


def _score(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = VideoMetric()
    for seed in range(rank, 3, 2):
        metric.add(f"sequence {seed}", *sequence(seed, seed + 1))
    metric.sync()
    torch.save(metric.compute(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    mp.spawn(_score, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    alone = VideoMetric()
    for seed in range(3):
        alone.add(f"sequence {seed}", *sequence(seed, seed + 1))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == alone.compute()
