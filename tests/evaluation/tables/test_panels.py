"""Pictures beside results: format, checks, broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from upfeat.evaluation.tables.panels import Kind, Panel, load_panel, panel_files, save_panel


def panel(kind: Kind, values: torch.Tensor, **more: Any) -> Panel:
    return Panel("seg-probe", "camvid", "a/b c", "kin.upfeat", kind, values, **more)


@pytest.mark.parametrize(
    ("kind", "values", "more"),
    [
        ("image", torch.arange(24, dtype=torch.uint8).view(3, 2, 4), {}),
        ("features", torch.zeros(3, 1, 1, dtype=torch.uint8), {"backbone": "timm/vit"}),
        (
            "prediction",
            torch.tensor([[0, 1]]),
            {"classes": ("a", "b"), "palette": ((1, 2, 3),) * 2},
        ),
        ("target", torch.tensor([[1, 255]]), {"classes": ("a", "b"), "ignore_index": 255}),
        ("target", torch.tensor([[1, -1]]), {"classes": ("a", "b"), "ignore_index": -1}),
        ("target", torch.tensor([[1, 65535]]), {"classes": ("a", "b"), "ignore_index": 65535}),
        ("depth", torch.tensor([[0.25, float("nan")]]), {"unit": "m", "note": "RMSE 0.4"}),
        ("cam", torch.tensor([[0.25, 0.5]], dtype=torch.float64), {}),
    ],
)
def test_round_trip(tmp_path: Path, kind: Kind, values: torch.Tensor, more: dict[str, Any]) -> None:
    first = panel(kind, values, **more)
    path = save_panel(tmp_path, first)
    again = load_panel(path)
    assert torch.equal(again.values.double().nan_to_num(-9), values.double().nan_to_num(-9))
    for name in ("task", "data", "image", "label", "kind", *more):
        assert getattr(again, name) == getattr(first, name)
    assert panel_files(tmp_path) == [path] == panel_files(tmp_path / "panels")
    assert save_panel(tmp_path, first) == path  # the same name: replaced
    assert [file.name for file in (tmp_path / "panels").iterdir()] == [path.name]


def test_names_that_look_alike_are_different_files(tmp_path: Path) -> None:
    values = torch.zeros(2, 2)
    one = save_panel(tmp_path, Panel("cam", "d", "a b", "m", "cam", values))
    two = save_panel(tmp_path, Panel("cam", "d", "a/b", "m", "cam", values))
    assert one != two
    assert one.name.startswith("cam--d--a-b--m--cam--")


@pytest.mark.parametrize(
    ("kind", "values", "more", "message"),
    [
        ("image", torch.zeros(3, 2, 2), {}, "uint8"),
        ("features", torch.zeros(2, 2, dtype=torch.uint8), {}, r"\(3, H, W\)"),
        ("cam", torch.zeros(1, 2, 2), {}, r"\(H, W\)"),
        ("depth", torch.zeros(0, 2), {}, "needs pixels"),
        ("prediction", torch.zeros(2, 2), {"classes": ("a",)}, "whole numbers"),
        ("prediction", torch.tensor([[3]]), {"classes": ("a",)}, "class 3 to 3"),
        (
            "prediction",
            torch.tensor([[0]]),
            {"classes": ("a",), "palette": ((0, 0, 0),) * 2},
            "each of 1",
        ),
        ("colours", torch.zeros(2, 2), {}, "kind must be one of"),
    ],
)
def test_values_that_do_not_fit(
    kind: Any, values: torch.Tensor, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        panel(kind, values, **more)


def test_a_file_of_that_name_that_is_no_panel_stays(tmp_path: Path) -> None:
    path = save_panel(tmp_path, panel("cam", torch.rand(8, 8)))
    assert save_panel(tmp_path, panel("cam", torch.rand(8, 8))) == path
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not a panel"):
        save_panel(tmp_path, panel("cam", torch.rand(8, 8)))
    assert path.read_bytes() == b"mine"


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = save_panel(tmp_path, panel("cam", torch.rand(8, 8)))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            load_panel(path)
    np.savez(path, values=np.zeros((2, 2)), meta=np.array('{"format": "other"}'))
    with pytest.raises(ValueError, match="another format"):
        load_panel(path)
    np.savez(path, values=np.array([{"a": 1}], dtype=object), meta=np.array("{}"))
    with pytest.raises(ValueError, match=path.name):
        load_panel(path)  # pickled objects are not read
    with pytest.raises(FileNotFoundError):
        load_panel(tmp_path / "none.npz")
