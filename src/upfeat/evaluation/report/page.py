"""The report as one HTML file that needs nothing else: no network, no folder beside it."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from upfeat.evaluation.report.content import (
    Cell,
    Column,
    Legend,
    Picture,
    PictureGroup,
    Point,
    Published,
    Report,
    RowView,
    Scene,
    TableGroup,
    TableView,
)
from upfeat.evaluation.report.pictures import RAMP, data_uri
from upfeat.evaluation.tables.curves import linear_ticks

__all__ = ["cost_plot", "report_page"]

_PLACES = {1: ("b", "best", "best"), 2: ("u", "second", "2nd")}
# Nothing may be fetched, even if a label were to hold markup.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def report_page(report: Report) -> str:
    """Return the page.

    Args:
        report: what it shows.

    Example:
        >>> from upfeat.evaluation.report import Report, report_page
        >>> page = report_page(Report("Probes"))
        >>> "<title>Probes</title>" in page, "https:" in page
        (True, False)
    """
    numbers = iter(range(1, 1_000_000))
    body = [_header(report), _navigation(report)]
    if report.ranking is not None:
        body.append(
            f'<section id="ranks"><h2>{escape(report.ranking.title)}</h2>'
            f"{_table(report.ranking, f't{next(numbers)}')}</section>"
        )
    for i, section in enumerate(report.sections):
        body.append(_section(section, f"s{i + 1}", numbers))
    for i, scene in enumerate(report.scenes):
        body.append(_scene(scene, f"p{i + 1}", first=i == 0))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n"
        f"<style>\n{_asset('style.css')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>\n{_asset('script.js')}</script>\n</body>\n</html>\n"
    )


@cache
def _asset(name: str) -> str:
    return files("upfeat.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _header(report: Report) -> str:
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in report.facts)
    legend = f'<p class="legend">{escape(report.legend)}</p>' if report.legend else ""
    return f'<header><h1>{escape(report.title)}</h1><ul class="facts">{facts}</ul>{legend}</header>'


def _navigation(report: Report) -> str:
    links = [("ranks", report.ranking.title)] if report.ranking is not None else []
    links += [(f"s{i + 1}", section.title) for i, section in enumerate(report.sections)]
    if report.scenes:
        links.append(("pictures", "Pictures"))
    if len(links) < 2:
        return ""
    items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _section(section: TableGroup, name: str, numbers: Iterable[int]) -> str:
    parts = [f'<section id="{name}"><h2>{escape(section.title)}</h2>']
    if section.remark:
        parts.append(f"<p>{escape(section.remark)}</p>")
    for table, number in zip(section.tables, numbers, strict=False):
        parts.append(f"<article><h3>{escape(table.title)}</h3>")
        if table.subtitle:
            parts.append(f'<p class="subtitle">{escape(table.subtitle)}</p>')
        parts += [_table(table, f"t{number}"), _plot(table), _behind(table), "</article>"]
    return "".join([*parts, "</section>"])


def _table(table: TableView, name: str) -> str:
    """Return a sortable table in a box that scrolls sideways where it is too wide."""
    remark = f'<p class="remark">{escape(table.remark)}</p>' if table.remark else ""
    # A column whose cells bear no mark keeps no room for one.
    marked = [
        any(row.cells[i].place in _PLACES for row in table.rows) for i in range(len(table.columns))
    ]
    heads = "".join(
        f'<th scope="col" aria-sort="none"{"" if mark else " data-bare"}>'
        f'<button type="button">{_heading(column)}</button></th>'
        for column, mark in zip(table.columns, marked, strict=True)
    )
    rows = "".join(_row(row, marked) for row in table.rows)
    title, first = escape(table.title), escape(table.first)
    return (
        f'{remark}<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
        f'<table id="{name}"><caption>{title}</caption><thead><tr>'
        f'<th scope="col" aria-sort="none"><button type="button">{first}</button></th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody>"
        f"{''.join(_published(block, marked) for block in table.published)}</table></div>"
    )


def _heading(column: Column) -> str:
    unit = " ".join(filter(None, (column.unit, column.arrow)))
    # A point between two words stays with the second.
    return escape(column.heading.replace("· ", "·\N{NO-BREAK SPACE}")) + (
        f" <i>{escape(unit)}</i>" if unit else ""
    )


def _breakable(name: str) -> str:
    """Return a name that may be broken behind its points and lines."""
    return re.sub(r"([._/])(?=\w)", r"\1<wbr>", escape(name))


def _row(row: RowView, marked: Sequence[bool]) -> str:
    note = f" <small>{escape(row.note)}</small>" if row.note else ""
    cells = "".join(map(_cell, row.cells, marked))
    return f'<tr><th scope="row">{_breakable(row.label)}{note}</th>{cells}</tr>'


def _cell(cell: Cell, marked: bool) -> str:
    bare = "" if marked else " data-bare"
    if not cell.text:
        return f'<td class="none"{bare}>–</td>'
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    spread = f" <small>{escape(cell.spread)}</small>" if cell.spread else ""
    text = escape(cell.text)
    if cell.place not in _PLACES:
        room = '<span class="mark"></span>' if marked else ""
        return f"<td{value}{bare}>{text}{spread}{room}</td>"
    tag, kind, word = _PLACES[cell.place]
    return (
        f'<td class="{kind}"{value}><{tag}>{text}</{tag}>{spread}'
        f'<span class="mark">{word}</span></td>'
    )


def _published(block: Published, marked: Sequence[bool]) -> str:
    rows = "".join(_row(row, marked) for row in block.rows)
    return (
        f'<tbody class="published"><tr><th colspan="{len(marked) + 1}" scope="rowgroup"><div>'
        f"<strong>{escape(block.source)}</strong>, {escape(block.reference)}, not measured here. "
        f"{escape(block.remark)}</div></th></tr>{rows}</tbody>"
    )


def _plot(table: TableView) -> str:
    if len(table.points) < 2:
        return ""
    options = {"higher_is_better": table.higher_is_better}
    svg = cost_plot(table.points, table.cost, table.quality, **options)
    return (
        f'<figure class="chart"><div class="scroll" role="region" tabindex="0" '
        f'aria-label="Plot of {escape(table.title)}">{svg}</div><figcaption>'
        f"{escape(table.quality)} against {escape(table.cost)}. Filled and joined: no other method "
        "is both cheaper and better. Bars: deviation over the seeds.</figcaption></figure>"
    )


def _behind(table: TableView) -> str:
    """Return command and settings, folded."""
    parts = []
    if table.command:
        parts.append(
            "<details><summary>Command</summary>"
            f'<pre tabindex="0"><code>{escape(table.command)}</code></pre></details>'
        )
    own = "".join(
        f"<details><summary>{escape(row.label)}{f' ({escape(row.note)})' if row.note else ''}"
        f"</summary>{_settings(row.settings)}</details>"
        for row in table.rows
        if row.settings
    )
    if table.settings or own:
        parts.append(
            "<details><summary>Settings, seeds and versions</summary>"
            f'{_settings(table.settings)}<div class="rows">{own}</div></details>'
        )
    return f'<div class="behind">{"".join(parts)}</div>' if parts else ""


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in _flat(settings)
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield dotted names and values."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", text


def _scene(scene: Scene, name: str, *, first: bool) -> str:
    heading = '<h2 id="pictures">Pictures</h2>' if first else ""
    remark = f'<p class="remark">{escape(scene.remark)}</p>' if scene.remark else ""
    groups = "".join(_group(group, scene, f"{name}-{i}") for i, group in enumerate(scene.groups))
    return (
        f'<section class="scene" id="{name}">{heading}<h3>{escape(scene.title)}</h3>'
        f"{remark}{groups}</section>"
    )


def _group(group: PictureGroup, scene: Scene, name: str) -> str:
    height, width = scene.size
    figures = "".join(
        _figure(picture, scene, group, f"{name}-{i}") for i, picture in enumerate(group.pictures)
    )
    slider = ""
    if len(group.pictures) > 1:
        slider = _slider(group, name)
    return (
        f'<div class="group" style="--ratio:{width}/{height}"><h4>{escape(group.title)}</h4>'
        f'{slider}<div class="grid">{figures}</div>{_legend(group.legend)}</div>'
    )


def _figure(picture: Picture, scene: Scene, group: PictureGroup, name: str) -> str:
    text = f"{group.title} of {scene.title}: {picture.label}"
    style = ' class="blocks"' if picture.blocks else ""
    note = f" <small>{escape(picture.note)}</small>" if picture.note else ""
    height, width = picture.size
    return (
        f'<figure><img id="{name}"{style} width="{width}" height="{height}" '
        f'src="{data_uri(picture.png)}" alt="{escape(text)}">'
        f"<figcaption>{escape(picture.label)}{note}</figcaption></figure>"
    )


def _slider(group: PictureGroup, name: str) -> str:
    """Return the controls; the script shows them and takes the pictures from the figures."""
    count = len(group.pictures)

    def choice(side: str, chosen: int) -> str:
        options = "".join(
            f'<option value="{name}-{i}"{" selected" if i == chosen % count else ""}>'
            f"{escape(picture.label)}</option>"
            for i, picture in enumerate(group.pictures)
        )
        return (
            f'<label for="{name}-{side}">{side}<select id="{name}-{side}" data-side="{side}">'
            f"{options}</select></label>"
        )

    return (
        f'<div class="compare" role="group" aria-label="Compare {escape(group.title)}" hidden>'
        f'<div class="stage"></div><div class="controls">{choice("left", group.left)}'
        f'<label class="position" for="{name}-position">boundary'
        f'<input id="{name}-position" type="range" min="0" max="100" value="50"></label>'
        f"{choice('right', group.right)}</div></div>"
    )


def _legend(legend: Legend) -> str:
    if legend.classes:
        items = "".join(
            f'<li><span class="swatch" style="background:rgb({r},{g},{b})"></span>'
            f"{escape(label)}</li>"
            for label, (r, g, b) in legend.classes
        )
        return f'<ul class="classes" aria-label="Classes">{items}</ul>'
    if legend.low or legend.high:
        ramp = ",".join(f"rgb({r},{g},{b})" for r, g, b in RAMP)
        return (
            f'<p class="scale"><span>{escape(legend.low)}</span><span class="ramp" '
            f'style="background:linear-gradient(90deg,{ramp})"></span>'
            f"<span>{escape(legend.high)}</span> one scale for all</p>"
        )
    return ""


# -- plots of cost against quality ---------------------------------------------------------------

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 18, 34, 44  # room around the plot
_LETTER, _LINE = 6.7, 14  # mean width and height of a label's text


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

    Example:
        >>> from upfeat.evaluation.report.page import cost_plot
        >>> from upfeat.evaluation.report.content import Point
        >>> svg = cost_plot([Point("a", 1.0, 70.0), Point("b", 30.0, 80.0, 0.5)], "time, s", "mIoU")
        >>> svg.startswith("<svg"), svg.count("<circle")
        (True, 2)
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

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    names = ", ".join(f"{p.label} {p.quality:.4g} at {p.cost:.3g}" for p in points)
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{quality} against {cost}: {names}")}">'
    ]
    parts += [_horizontal(y(tick), _tick_text(tick, ticks)) for tick in ticks]
    parts += [_vertical(x(tick), f"{tick:g}") for tick in _decade_ticks(10**first, 10**last)]
    parts.append(
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">'
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
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _vertical(x: float, text: str) -> str:
    base = _HEIGHT - _BOTTOM
    return (
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
        f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{text}</text>'
    )


def _whisker(x: float, y: object, point: Point) -> str:
    if not point.spread or not callable(y):
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
            + 50 * (max(0, _LEFT - box.left) + max(0, box.right - _WIDTH))
            + 50 * (max(0, 2 - box.top) + max(0, box.bottom - _HEIGHT + _BOTTOM))
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
