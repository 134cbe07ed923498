from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.backbones.positions import resize_positions


@pytest.mark.golden
@pytest.mark.parametrize(
    ("key", "rule", "grid", "prefix"),
    [
        ("dino_9x6", "offset", (9, 6), 1),
        ("timm_9x6", "resize", (9, 6), 1),
        ("radio_9x6", "cpe", (9, 6), 0),
        ("radio_5x12", "cpe", (5, 12), 0),
        ("radio_old_9x6", "cpe-corners", (9, 6), 0),
        ("radio_old_5x12", "cpe-corners", (5, 12), 0),
    ],
)
def test_rules_equal_the_original_codes(
    golden_dir: Path, key: str, rule: str, grid: tuple[int, int], prefix: int
) -> None:
    golden, _ = load_golden(golden_dir / "metrics2/position_resize.safetensors")
    table = golden["table"][:, 1 - prefix :]
    resized = resize_positions(table, grid, rule, prefix=prefix)  # type: ignore[arg-type]
    assert max_abs_difference(resized, golden[key]) <= GOLDEN_ATOL


def test_own_grid_and_prefix_stay() -> None:
    table = torch.randn(1, 3 + 16, 5)
    assert resize_positions(table, (4, 4), "offset", prefix=3) is table
    assert torch.equal(resize_positions(table, (2, 7), "cpe", prefix=3)[:, :3], table[:, :3])


def test_what_is_no_square_or_no_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"square grid expected, got \(1, 7, 5\)"):
        resize_positions(torch.randn(1, 7, 5), (2, 2), "resize")
    with pytest.raises(ValueError, match="rule"):
        resize_positions(torch.randn(1, 5, 5), (2, 3), "nearest")  # type: ignore[arg-type]
