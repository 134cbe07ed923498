"""Curves as an SVG file that stands alone: one line a method."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["curve_svg", "linear_ticks"]

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 48, 150, 16, 40
# Okabe and Ito's colours, told apart by colour-blind people, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def curve_svg(curves: Mapping[str, Sequence[tuple[float, float]]], x_axis: str, y_axis: str) -> str:
    """Return an SVG file with a line for each name.

    Args:
        curves: points (x, y) from left to right by name.
        x_axis: title of the horizontal axis.
        y_axis: title of the vertical axis.

    Raises:
        ValueError: there is no point.

    Example:
        >>> from upfeat.evaluation.tables.curves import curve_svg
        >>> svg = curve_svg({"bilinear": [(1, 50.0), (2, 60.0)]}, "clicks", "mean IoU, %")
        >>> svg.count("<polyline"), "bilinear" in svg
        (1, True)
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("a figure needs at least one point")
    across, up = (linear_ticks(min(values), max(values)) for values in zip(*points, strict=True))
    (left, right), (low, high) = ((ticks[0], ticks[-1]) for ticks in (across, up))

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
        f'stroke="#ddd"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
        f"{tick:g}</text>"
        for tick in up
    ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in across
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_axis)}</text>"
        f'<text x="{LEFT}" y="{TOP - 4}">{escape(y_axis)}</text>'
    )
    for i, (name, curve) in enumerate(curves.items()):
        colour, at = COLOURS[i % len(COLOURS)], TOP + 8 + 18 * i
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<line x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 26}" y1="{at}" y2="{at}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - RIGHT + 32}" y="{at + 4}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def linear_ticks(low: float, high: float) -> list[float]:
    """Return round numbers that enclose a range.

    Args:
        low: its lower end.
        high: its upper end.

    Example:
        >>> from upfeat.evaluation.tables.curves import linear_ticks
        >>> linear_ticks(1, 20)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    span = high - low or abs(high) or 1.0
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]
