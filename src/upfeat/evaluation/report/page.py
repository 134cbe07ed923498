"""The report as one HTML file that needs nothing else: no network, no folder beside it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
    Published,
    Report,
    RowView,
    Scene,
    TableGroup,
    TableView,
)
from upfeat.evaluation.tables.panels import RAMP, data_uri
from upfeat.evaluation.tables.plots import cost_plot

_PLACES = {1: ("b", "best", "best"), 2: ("u", "second", "2nd")}
# Nothing may be fetched, even if a label were to hold markup.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def report_page(report: Report) -> str:
    """Return the page.

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
    slider = _slider(group, name) if len(group.pictures) > 1 else ""
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
    text = ""
    if legend.low or legend.high:
        ramp = ",".join(f"rgb({r},{g},{b})" for r, g, b in RAMP)
        text = (
            f'<p class="scale"><span>{escape(legend.low)}</span><span class="ramp" '
            f'style="background:linear-gradient(90deg,{ramp})"></span>'
            f"<span>{escape(legend.high)}</span> one scale for all</p>"
        )
    if legend.classes:
        items = "".join(
            f'<li><span class="swatch" style="background:rgb({r},{g},{b})"></span>'
            f"{escape(label)}</li>"
            for label, (r, g, b) in legend.classes
        )
        text += f'<ul class="classes" aria-label="Classes">{items}</ul>'
    return text
