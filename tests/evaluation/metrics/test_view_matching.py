"""Correspondence of posed views against stored values of Probe3D and ViT-Up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import load_golden
from tests.tolerances import max_abs_difference
from upfeat.data.surfaces import grid_points
from upfeat.evaluation.metrics import (
    angle_bins,
    cell_features,
    match_errors,
    ratio_matches,
    recalls,
    rotation_angle,
    visible_cells,
)
from upfeat.evaluation.metrics.view_matching import projected_points
from upfeat.ops import unit_vectors

# What the stored cases allow: errors in pixels are divided by small depths.
NAVI_ATOL, SCANNET_ATOL = 1e-4, 1e-3


@pytest.mark.golden
def test_golden_of_navi(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "navi_correspondence.safetensors")
    found: dict[str, list[Tensor]] = {name: [] for name in ("weights", "error_3d", "error_2d")}
    for i, pose in enumerate(golden["Rt_01"]):
        maps = [cell_features(golden[f"features_{v}"][i], (24, 24)) for v in (0, 1)]
        points = [golden[f"xyz_{v}"][i].flatten(1).T for v in (0, 1)]
        kept = [p[:, 2] > 0 for p in points]
        matches = ratio_matches(maps[0][kept[0]], maps[1][kept[1]], 60)
        pair = points[0][kept[0]][matches.source], points[1][kept[1]][matches.target]
        errors = match_errors(*pair, pose, golden["intrinsics_1"][i])
        found["weights"].append(matches.weight)
        found["error_3d"].append(errors.metres)
        found["error_2d"].append(errors.pixels)
    metres, pixels = torch.stack(found["error_3d"]), torch.stack(found["error_2d"])
    angles = [rotation_angle(pose) for pose in golden["Rt_01"]]
    at_2cm = [recalls(one, (0.02,))[0] / 100 for one in metres]
    checked = {name: torch.stack(each) for name, each in found.items()} | {
        "recall_3d": torch.tensor(recalls(metres, (0.01, 0.02, 0.05))),
        "recall_2d": torch.tensor(recalls(pixels, (5, 25, 50))),
        "angles": torch.tensor(angles),
    }
    for name, value in checked.items():
        assert max_abs_difference(value, golden[name]) < NAVI_ATOL, name
    bins = torch.tensor(angle_bins(at_2cm, angles, (0, 30, 60, 90, 120)))
    torch.testing.assert_close(
        bins, golden["recall_2cm_bins"], atol=NAVI_ATOL, rtol=0, equal_nan=True
    )


@pytest.mark.golden
def test_golden_of_visible_points(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "navi_visible_points.safetensors")
    steps = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    for i, pose in enumerate(golden["Rt_01"]):
        xyz = golden["xyz_0"][i], golden["xyz_1"][i]
        mask = golden["mask_0"][i].bool()
        masks = mask, torch.ones_like(mask)
        camera = golden["intrinsics_1"][i]
        cells = visible_cells(xyz, masks, pose, camera, count=25, steps=steps)
        count = int(golden["count"][i])
        assert len(cells) == count
        places = torch.stack([cells % 24, cells // 24], 1) + 0.5
        assert torch.equal(places, golden["source_uv"][i, :count])
        if not count:
            continue
        maps = [unit_vectors(cell_features(golden[f"features_{v}"][i], (24, 24))) for v in (0, 1)]
        nearest = (maps[0][cells] @ maps[1].T).argmax(1)
        pair = xyz[0].flatten(1).T[cells], xyz[1].flatten(1).T[nearest]
        errors = match_errors(*pair, pose, camera)
        assert max_abs_difference(errors.metres, golden["error_3d"][i, :count]) < NAVI_ATOL
        wanted = golden["error_2d"][i, :count]
        torch.testing.assert_close(errors.pixels, wanted, atol=NAVI_ATOL, rtol=1e-5)
        assert bool(golden["error_3d"][i, count:].isinf().all())


@pytest.mark.golden
def test_golden_of_scannet(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2" / "scannet_correspondence.safetensors")
    errors = []
    for i, pose in enumerate(golden["Rt"]):
        camera, points, features = golden["K"][i], [], []
        for view in (0, 1):
            xyz = grid_points(golden["depth"][i, view, 0], camera).flatten(1).T
            points.append(xyz[xyz[:, 2] > 0])
            places = 2 * projected_points(points[-1], camera) / torch.tensor([16, 12]) - 1
            grid = places[None, None]  # (1, 1, N, 2)
            sampled = F.grid_sample(golden["features"][i, view][None], grid, align_corners=False)
            features.append(sampled[0, :, 0].T)
        matches = ratio_matches(*features, 40)
        pair = points[0][matches.source], points[1][matches.target]
        errors.append(match_errors(*pair, pose, camera).pixels)
    pixels = torch.stack(errors)
    angles = [rotation_angle(pose) for pose in golden["Rt"]]
    assert max_abs_difference(pixels, golden["error_2d"]) < SCANNET_ATOL
    found = torch.tensor(recalls(pixels, (5, 10, 20)))
    assert max_abs_difference(found, golden["recall"]) < SCANNET_ATOL
    bins = angle_bins(
        [recalls(one, (10,))[0] / 100 for one in pixels], angles, (0, 15, 30, 60, 180)
    )
    torch.testing.assert_close(
        torch.tensor(bins), golden["recall10_bins"], atol=SCANNET_ATOL, rtol=0, equal_nan=True
    )


def test_a_view_matches_itself() -> None:
    depth = torch.rand(6, 8) + 1
    camera = torch.tensor([[5.0, 0, 4], [0, 5, 3], [0, 0, 1]])
    points = grid_points(depth, camera)
    features = torch.randn(48, 16)
    matches = ratio_matches(features, features, 48)
    assert torch.equal(matches.source, matches.target)
    rows = points.flatten(1).T
    errors = match_errors(
        rows, rows[matches.target[matches.source.argsort()]], torch.eye(3, 4), camera
    )
    assert float(errors.metres.max()) == float(errors.pixels.max()) == 0
    assert math.isnan(angle_bins([1.0], [50.0], (0, 30, 60))[0])
    with pytest.raises(ValueError, match="two targets"):
        ratio_matches(features, features[:1])
