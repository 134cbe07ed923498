"""The report page: structure, marks, colours, and what a browser makes of it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.browser import Browser, missing_browser
from upfeat.evaluation.report import (
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
    report_page,
)
from upfeat.evaluation.tables.panels import RAMP, covered_part, png_bytes, ramp_colors
from upfeat.evaluation.tables.plots import cost_plot

ARROW_RIGHT, END, TAB = "\ue014", "\ue010", "\ue004"  # keys, as WebDriver numbers them
VOID = {"meta", "img", "input", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes; checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[tuple[str, str]]] = []  # rows of (kind, text)
        self.stack: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append((dict(attrs).get("class") or tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, tag
        assert self.stack.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.stack and ("td" in self.stack or "th" in self.stack):
            kind, text = self.cells[-1][-1]
            self.cells[-1][-1] = (kind, text + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(label: str, color: int, side: int = 32) -> Picture:
    values = torch.full((3, side, side), color, dtype=torch.uint8)
    png, size = png_bytes(values)
    return Picture(label, png, size, "1 ms", blocks=side < 16)


def report() -> Report:
    rows = (
        RowView("jafar.x_y", "", (Cell("80.0", "± 0.1", 80.0, 1), Cell("9", value=9.0)), {"a": 1}),
        RowView("<b>evil", "x", (Cell("70.0", "", 70.0), Cell("5", value=5.0)), {"s": {"b": [1]}}),
        RowView("nearest", "", (Cell("75.0", "", 75.0, 2), Cell("")), {}),
    )
    table = TableView(
        title="msrc",
        columns=(Column("mIoU", "%", "↑"), Column("time", "s")),
        rows=rows,
        subtitle="timm/vit",
        published=(
            Published(
                "JAFAR, table 1",
                "arXiv 2506",
                "What differs: x.",
                (RowView("J", "", (Cell("84.4"), Cell(""))),),
            ),
        ),
        settings={"steps": 3, "backbone": {"name": "vit"}},
        command="upfeat eval seg-probe",
        points=(Point("jafar.x_y", 9.0, 80.0, 0.1), Point("<b>evil", 5.0, 70.0)),
        cost="time, s",
        quality="mIoU, %",
    )
    group = PictureGroup(
        "features",
        (picture("low-res", 40, 4), picture("bilinear", 120), picture("kin", 220)),
        Legend(classes=(("sky", (1, 2, 3)),)),
    )
    depth = PictureGroup("depth", (picture("only", 3),), Legend(low="0 m", high="5 m"))
    scene = Scene("camvid · 1", (32, 32), (group, depth), "a remark")
    ranks = TableView("Mean rank", (Column("mean"),), (RowView("a", "", (Cell("1"),)),))
    return Report(
        "Title & more",
        ("9 results",),
        "How to read",
        ranks,
        (TableGroup("Probe", (table,)),),
        (scene,),
    )


def test_nothing_outside_the_file_is_named() -> None:
    text = report_page(report())
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None
    assert "default-src 'none'" in policy


def test_text_is_escaped() -> None:
    text = report_page(report())
    assert "<b>evil" not in text
    assert "&lt;b&gt;evil" in text
    assert "<title>Title &amp; more</title>" in text


def test_every_picture_has_a_text_and_every_control_a_label() -> None:
    page = Page(report_page(report()))
    assert len(page.all("img")) == 4
    assert all(attributes.get("alt") for attributes in page.all("img"))
    labelled = {attributes.get("for") for attributes in page.all("label")}
    controls = page.all("select") + page.all("input")
    assert len(controls) == 3  # one picture alone has no slider
    assert {attributes["id"] for attributes in controls} == labelled
    names = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    links = {attributes["href"] for attributes in page.all("a")}
    assert links == {"#ranks", "#s1", "#pictures"} <= {f"#{name}" for name in names}
    assert all(svg.get("aria-label") for svg in page.all("svg"))


def test_tables_are_complete_and_marked_in_words() -> None:
    page = Page(report_page(report()))
    rows = [row for row in page.cells if len(row) == 3]
    head, first, second, third, published = rows
    assert [text for _, text in head] == ["upsampler", "mIoU % ↑", "time s"]
    assert first == [("th", "jafar.x_y"), ("best", "80.0 ± 0.1best"), ("td", "9")]
    assert second == [("th", "<b>evil x"), ("td", "70.0"), ("td", "5")]
    assert third == [("th", "nearest"), ("second", "75.02nd"), ("none", "–")]
    assert published == [("th", "J"), ("td", "84.4"), ("none", "–")]
    assert all("scope" in attributes for attributes in page.all("th"))
    assert {a.get("aria-sort") for a in page.all("th") if a["scope"] == "col"} == {"none"}


def test_only_columns_with_marks_keep_room_for_them() -> None:
    text = report_page(report())
    assert text.count('<span class="mark">') == 4  # three of mIoU, and the published one
    assert '<td class="none" data-bare>' in text
    assert 'data-bare><button type="button">time' in text
    assert 'data-bare><button type="button">mIoU' not in text


def test_settings_of_every_result_are_there() -> None:
    text = report_page(report())
    for wanted in ("<dt>steps</dt><dd>3</dd>", "<dt>backbone.name</dt><dd>vit</dd>", "<dt>a</dt>"):
        assert wanted in text
    assert "<dt>s.b</dt><dd>[1]</dd>" in text
    assert "upfeat eval seg-probe" in text


def test_an_empty_report_is_a_page() -> None:
    page = Page(report_page(Report("Nothing")))
    assert page.all("table") == page.all("nav") == []


# -- plot ----------------------------------------------------------------------------------------


def test_the_plot_keeps_order_and_stays_inside() -> None:
    points = [Point(f"method.number_{i}", 10.0 ** (i / 3), 50.0 + i, 0.5) for i in range(12)]
    svg = cost_plot(points, "s", "mIoU")
    page = Page(svg)
    circles = [(float(a["cx"] or 0), float(a["cy"] or 0)) for a in page.all("circle")]
    assert [x for x, _ in circles] == sorted(x for x, _ in circles)
    assert [y for _, y in circles] == sorted((y for _, y in circles), reverse=True)
    width, height = map(float, (page.all("svg")[0]["viewbox"] or "").split()[2:])
    for text in page.all("text"):
        assert -1 <= float(text["x"] or 0) <= width, text
        assert 0 <= float(text["y"] or 0) <= height, text


@pytest.mark.parametrize(("higher", "expected"), [(True, {"a", "c"}), (False, {"a", "b"})])
def test_the_front_holds_what_none_beats(higher: bool, expected: set[str]) -> None:
    points = [Point("a", 1.0, 50.0), Point("b", 2.0, 40.0), Point("c", 3.0, 60.0)]
    svg = cost_plot(points, "s", "q", higher_is_better=higher)
    found = re.findall(r'class="dot on"[^>]*><title>(\w)', svg)
    assert set(found) == expected


@pytest.mark.parametrize("costs", [[1.0, 1.0], [0.001, 90000.0], [3.0]])
def test_the_plot_of_odd_ranges(costs: list[float]) -> None:
    svg = cost_plot([Point("a", cost, 0.5) for cost in costs], "s", "q")
    assert "nan" not in svg
    assert svg.count('class="grid"') >= 2
    assert 'text-anchor="middle">' in svg  # at least one tick of the cost


def test_the_plot_refuses_costs_of_zero() -> None:
    with pytest.raises(ValueError, match="above zero"):
        cost_plot([Point("a", 0.0, 1.0)], "s", "q")
    with pytest.raises(ValueError, match="needs points"):
        cost_plot([], "s", "q")


# -- colours -------------------------------------------------------------------------------------


def test_the_ramp_is_shared_rises_and_shows_unknown_in_grey() -> None:
    values = torch.linspace(-1, 6, 71)[None]
    colors = ramp_colors(values, 0.0, 5.0)
    light = colors.float().mean(0)[0]
    assert bool((light.diff() >= 0).all())
    assert tuple(colors[:, 0, 0].tolist()) == RAMP[0] == tuple(colors[:, 0, 10].tolist())
    assert tuple(colors[:, 0, -1].tolist()) == RAMP[-1]
    unknown = ramp_colors(torch.tensor([[float("nan"), 1.0]]), 0.0, 0.0)
    assert unknown[:, 0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("count", [2, 256, 4096])
def test_png_files_keep_every_pixel(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 256, (count, 3), generator=generator, dtype=torch.uint8)
    colors = table[torch.randint(0, count, (64, 48), generator=generator)].permute(2, 0, 1)
    content, size = png_bytes(colors)
    read = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert size == (64, 48)
    assert np.array_equal(read, colors.permute(1, 2, 0).numpy())


def test_coarse_maps_lose_what_lies_beyond_the_image() -> None:
    colors = torch.arange(3, dtype=torch.uint8).expand(3, 2, 3)
    cut = covered_part(colors, (1.0, 1.5), (4, 20))
    assert cut.shape == (3, 4, 20)
    assert cut[0].unique().tolist() == [0, 1]
    assert covered_part(colors, (1.0, 1.0), (4, 20)) is colors


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing_browser():
        pytest.skip(reason)
    with Browser.start() as running:
        yield running


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_and_the_keyboard_moves_the_slider(
    browser: Browser, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "index.html"
    path.write_text(report_page(report()), encoding="utf-8")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.cdp("Emulation.setEmulatedMedia", features=features)
    browser.open(path.as_uri())

    shot = np.array(Image.open(io.BytesIO(browser.screenshot())).convert("L"), dtype=float)
    assert shot.std() > 5, "the page is blank"
    assert (shot.mean() > 128) == (scheme == "light")

    slider = "document.querySelector('.compare input')"
    browser.script(f"{slider}.focus()")
    browser.press(ARROW_RIGHT * 3)
    assert browser.script(f"return {slider}.value") == "53"
    assert browser.script(
        f"return {slider}.ariaValueText ?? {slider}.getAttribute('aria-valuetext')"
    ) == ("53 % low-res, 47 % kin")
    at = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')"
    assert browser.script(f"return {at}") == "53%"
    browser.press(END)
    assert browser.script(f"return {at}") == "100%"

    browser.script("document.querySelector('.compare select').focus()")
    browser.press(ARROW_RIGHT)  # the next picture on the left
    alts = "return [...document.querySelectorAll('.stage img')].map((i) => i.alt)"
    assert browser.script(alts) == [
        "features of camvid · 1: kin",
        "features of camvid · 1: bilinear",
    ]
    assert [entry for entry in browser.log() if entry["level"] in ("SEVERE", "WARNING")] == []


@pytest.mark.browser
def test_a_click_sorts_and_missing_numbers_stay_last(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(report_page(report()), encoding="utf-8")
    browser.open(path.as_uri())
    heads = "document.querySelectorAll('#t2 > tbody:nth-of-type(1) th')"
    names = f"return [...{heads}].map((cell) => cell.textContent)"
    button = "#t2 thead th:nth-child(3) button"
    browser.click(button)
    assert browser.script(names) == ["jafar.x_y", "<b>evil x", "nearest"]
    browser.click(button)
    assert browser.script(names) == ["<b>evil x", "jafar.x_y", "nearest"]
    sorts = "return [...document.querySelectorAll('#t2 thead th')].map((c) => c.ariaSort)"
    assert browser.script(sorts) == ["none", "none", "ascending"]


@pytest.mark.browser
def test_the_page_fits_a_narrow_screen_and_paper(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(report_page(report()), encoding="utf-8")
    narrow = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.cdp("Emulation.setDeviceMetricsOverride", **narrow)
    browser.open(path.as_uri())
    assert browser.script("return document.documentElement.scrollWidth") <= 400
    browser.cdp("Emulation.clearDeviceMetricsOverride")
    pdf = browser.print()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 5000
    assert browser.script("return document.querySelectorAll('.behind > details[open]').length") == 0


def test_pictures_are_embedded_once() -> None:
    page = Page(report_page(report()))
    for image in page.all("img"):
        content = base64.b64decode((image["src"] or "").partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == (
            int(image["width"] or 0),
            int(image["height"] or 0),
        )
