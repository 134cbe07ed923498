"""Plots as SVG: curves in a file of their own, and cost against quality for a page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

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

    Example:
        >>> from upfeat.evaluation.tables.plots import linear_ticks
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


# -- cost against quality --------------------------------------------------------------------------

COST_WIDTH, COST_HEIGHT = 560, 330
COST_LEFT, COST_RIGHT, COST_TOP, COST_BOTTOM = 40, 18, 34, 44  # room around the plot
_LETTER, _LINE = 6.7, 14  # mean width and height of a label's text


@dataclass(frozen=True)
class Point:
    """A method in a plot of cost against quality; ``spread`` is a deviation or None."""

    label: str
    cost: float
    quality: float
    spread: float | None = None


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "_Box") -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def cost_plot(
    points: Sequence[Point], cost: str, quality: str, *, higher_is_better: bool = True
) -> str:
    """Return an ``<svg>`` element: cost on a logarithmic axis, quality with its deviation.

    A thin line joins the methods that no other beats in both.

    Args:
        points: at least one, with costs above zero.
        cost: title of the horizontal axis.
        quality: title of the vertical axis.
        higher_is_better: of the quality.

    Raises:
        ValueError: no points, or a cost that is not above zero.
    """
    if not points or not all(point.cost > 0 for point in points):
        raise ValueError("the plot needs points with costs above zero")
    costs = [math.log10(point.cost) for point in points]
    spreads = [point.spread or 0.0 for point in points]
    lowest = min(p.quality - s for p, s in zip(points, spreads, strict=True))
    highest = max(p.quality + s for p, s in zip(points, spreads, strict=True))
    ticks = linear_ticks(lowest, highest)
    bottom, top = min(lowest, ticks[0]), max(highest, ticks[-1])
    pad = max(0.12, 0.08 * (max(costs) - min(costs)))
    first, last = min(costs) - pad, max(costs) + pad

    wide, high = COST_WIDTH - COST_LEFT - COST_RIGHT, COST_HEIGHT - COST_TOP - COST_BOTTOM

    def x(value: float) -> float:
        return COST_LEFT + (math.log10(value) - first) / (last - first) * wide

    def y(value: float) -> float:
        return COST_HEIGHT - COST_BOTTOM - (value - bottom) / (top - bottom) * high

    names = ", ".join(f"{p.label} {p.quality:.4g} at {p.cost:.3g}" for p in points)
    parts = [
        f'<svg class="plot" viewBox="0 0 {COST_WIDTH} {COST_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{quality} against {cost}: {names}")}">'
    ]
    parts += [_horizontal(y(tick), _tick_text(tick, ticks)) for tick in ticks]
    parts += [_vertical(x(tick), f"{tick:g}") for tick in _decade_ticks(10**first, 10**last)]
    parts.append(
        f'<text class="axis" x="{COST_WIDTH - COST_RIGHT}" y="{COST_HEIGHT - 6}" text-anchor="end">'
        f"{escape(cost)} (logarithmic)</text>"
        f'<text class="axis" x="0" y="12">{escape(quality)}</text>'
    )
    front = _front(points, higher_is_better)
    if len(front) > 1:
        line = " ".join(f"{x(p.cost):.1f},{y(p.quality):.1f}" for p in front)
        parts.append(f'<polyline class="front" points="{line}"/>')
    places = [(x(p.cost), y(p.quality)) for p in points]
    parts += [_whisker(x(p.cost), y, p) for p in points]
    for point, place, label in zip(points, places, _labels(points, places), strict=True):
        shape = "dot on" if point in front else "dot"
        spread = "" if point.spread is None else f" ± {point.spread:.2g}"
        parts.append(
            f'<circle class="{shape}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="4.5"><title>'
            f"{escape(f'{point.label}: {point.quality:.4g}{spread}, {point.cost:.3g}')}"
            f"</title></circle>{label}"
        )
    return "".join([*parts, "</svg>"])


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, digits) - step) > 1e-9 * step:
        digits += 1  # steps of 2.5
    return f"{tick:.{digits}f}"


def _decade_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten; the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]
    if len(ticks) > 8:
        ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    return ticks or [float(f"{math.sqrt(low * high):.2g}")]


def _horizontal(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{COST_LEFT}" x2="{COST_WIDTH - COST_RIGHT}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{COST_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _vertical(x: float, text: str) -> str:
    base = COST_HEIGHT - COST_BOTTOM
    return (
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
        f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{text}</text>'
    )


def _whisker(x: float, y: Callable[[float], float], point: Point) -> str:
    if not point.spread:
        return ""
    top, bottom = y(point.quality + point.spread), y(point.quality - point.spread)
    return f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _front(points: Sequence[Point], higher: bool) -> list[Point]:
    """Return the points that none beats in both, from cheap to dear."""
    sign = 1 if higher else -1
    best, front = -math.inf, []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.quality)):
        if sign * point.quality > best:
            best = sign * point.quality
            front.append(point)
    return front


def _labels(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[str]:
    """Place a label beside each point where it covers least."""
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    texts = [""] * len(points)
    for i in sorted(range(len(points)), key=lambda i: places[i][1]):
        x, y = places[i]
        width = _LETTER * len(points[i].label)
        choices = [
            (x + 10 if side > 0 else x - 10 - width, y + shift)
            for shift in (0, -13, 13, -26, 26, -39, 39)
            for side in (1, -1)
        ]
        choices += [(x - width / 2, y - 15), (x - width / 2, y + 15)]
        boxes = [_Box(a, b - _LINE / 2, a + width, b + _LINE / 2) for a, b in choices]
        costs = [
            sum(box.overlap(other) for other in taken)
            + 50 * (max(0, COST_LEFT - box.left) + max(0, box.right - COST_WIDTH))
            + 50 * (max(0, 2 - box.top) + max(0, box.bottom - COST_HEIGHT + COST_BOTTOM))
            + abs(b - y) * 0.5
            for box, (_, b) in zip(boxes, choices, strict=True)
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        a, b = choices[best]
        texts[i] = (
            f'<text class="name" x="{a:.1f}" y="{b + 4:.1f}">{escape(points[i].label)}</text>'
        )
        if abs(b - y) > 20:
            end = a if a > x else a + width
            line = f'x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{b:.1f}"'
            texts[i] = f'<line class="leader" {line}/>{texts[i]}'
    return texts
