"""Curves as SVG files."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from upfeat.evaluation.tables.plots import curve_svg


def test_points_lie_where_their_values_are() -> None:
    curves = {"low & high": [(1.0, 0.0), (3.0, 10.0)], "flat": [(1.0, 5.0), (2.0, 5.0)]}
    root = ElementTree.fromstring(curve_svg(curves, "clicks", "IoU < 1"))
    lines = [e.attrib["points"] for e in root if e.tag.endswith("polyline")]
    first, flat = ([tuple(map(float, p.split(","))) for p in line.split()] for line in lines)
    assert flat[0] == (first[0][0], (first[0][1] + first[1][1]) / 2)
    assert flat[1][0] == (first[0][0] + first[1][0]) / 2
    texts = [e.text for e in root if e.tag.endswith("text")]
    assert {"clicks", "IoU < 1", "low & high", "flat"} <= set(texts)


def test_one_point_has_a_place_and_none_is_refused() -> None:
    assert "<polyline" in curve_svg({"one": [(1.0, 2.0)]}, "x", "y")
    with pytest.raises(ValueError, match="at least one point"):
        curve_svg({"none": []}, "x", "y")
