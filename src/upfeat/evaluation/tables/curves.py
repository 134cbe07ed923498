"""Curves as an SVG file that stands alone: one line a method."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["curve_svg"]

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 48, 150, 16, 40
TICKS = 5
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
    (left, right), (low, high) = (
        (min(values), max(values)) for values in zip(*points, strict=True)
    )

    def x(value: float) -> float:
        return LEFT + (value - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for i in range(TICKS):
        share = i / (TICKS - 1)
        across, up = left + share * (right - left), low + share * (high - low)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(up):.1f}" y2="{y(up):.1f}" '
            'stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(up) + 4:.1f}" text-anchor="end">{up:.3g}</text>'
            f'<text x="{x(across):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{across:.3g}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_axis)}</text>"
        f'<text x="{LEFT}" y="{TOP - 4}">{escape(y_axis)}</text>'
    )
    for i, (name, curve) in enumerate(curves.items()):
        colour, at = COLOURS[i % len(COLOURS)], TOP + 8 + 18 * i
        line = " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in curve)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<line x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 26}" y1="{at}" y2="{at}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - RIGHT + 32}" y="{at + 4}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])
