"""The page in a browser: upload, slider, click, words, files, keyboard, a narrow screen."""

from __future__ import annotations

import io
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.test_studio import CLIP, COMPACT
from tests.browser import Browser, missing_browser

pytest.importorskip("gradio")
pytest.importorskip("ftfy")  # comes with open_clip

pytestmark = pytest.mark.browser
TAB, ENTER, LEFT = "\ue004", "\ue007", "\ue012"  # keys, as WebDriver numbers them
WIDE, NARROW = 1280, 390


@pytest.fixture(scope="module")
def asked() -> Iterator[set[str]]:
    """The hosts that this process, which serves the page, connects to."""
    hosts: set[str] = set()
    connect = socket.socket.connect

    def record(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            hosts.add(address[0])
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", record)
        yield hosts


@pytest.fixture(scope="module")
def page(asked: set[str]) -> Iterator[Any]:
    if reason := missing_browser():
        pytest.skip(reason)
    from upfeat.app import launch

    running = launch([COMPACT, CLIP], ["bilinear", "kin.upfeat"], block=False)
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser(page: Any) -> Iterator[Browser]:
    with Browser.start() as running:
        yield running


def show(browser: Browser, page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.cdp("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page.local_url)
    until(browser, "document.querySelectorAll('#examples img').length == 3")


def until(browser: Browser, condition: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not browser.script(f"return Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)


def count(selector: str) -> str:
    return f"document.querySelectorAll('{selector}').length"


def open_tab(browser: Browser, name: str) -> None:
    tabs = "[...document.querySelectorAll('button[role=tab]')]"
    browser.script(f"{tabs}.filter((tab) => tab.innerText == '{name}').at(-1).click()")


def no_errors(browser: Browser) -> None:
    """Nothing was complained about; Gradio says itself that its stream has no close()."""
    seen = [entry for entry in browser.log() if entry["level"] in ("SEVERE", "WARNING")]
    assert [entry for entry in seen if "Method not implemented." not in entry["message"]] == []


def upload(browser: Browser, path: Path) -> None:
    element = browser.find("#photo input[type=file]")
    browser.post(f"/element/{element}/value", text=str(path))


def test_upload_slider_and_click(browser: Browser, page: Any, tmp_path: Path) -> None:
    pixels = np.zeros((224, 448, 3), dtype=np.uint8)
    pixels[:, 224:] = (220, 60, 20)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    show(browser, page, WIDE)
    upload(browser, tmp_path / "halves.png")
    until(browser, f"{count('#pictures img')} == 4 && {count('#times tr')} == 4")
    alts = "return [...document.querySelectorAll('#pictures img')].map((image) => image.alt)"
    assert browser.script(alts) == ["photo", "low-res", "bilinear", "kin.upfeat"]

    clip = "document.querySelectorAll('#slider img')[1].style.clipPath"
    until(browser, f"{clip}.includes('50')")
    browser.script("document.querySelector('#position input[type=range]').focus()")
    browser.press(LEFT * 10)
    until(browser, f"parseFloat({clip}.split(' ').at(-1)) < 45")

    left = "document.querySelector('#slider img').src"
    before = browser.script(f"return {left}")
    browser.click("#left input")
    browser.script(
        "[...document.querySelectorAll('[role=option]')]"
        ".find((option) => option.innerText.includes('photo'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    until(browser, f"{left} != '{before}'")

    open_tab(browser, "Similar")
    until(browser, "document.querySelector('#target img')?.complete")
    box = browser.script(
        "const image = document.querySelector('#target img');"
        "image.scrollIntoView({block: 'center'});"
        "const box = image.getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height, image.naturalWidth]"
    )
    assert box[4] == 448
    scale = min(box[2] / 448, box[3] / 224, 1)  # object-fit: scale-down
    x = box[0] + (box[2] - 448 * scale) / 2 + 400 * scale
    y = box[1] + (box[3] - 224 * scale) / 2 + 60 * scale
    browser.post("/actions", actions=[
        {"type": "pointer", "id": "mouse", "actions": [
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]}
    ])  # fmt: skip
    until(browser, f"{count('#similar img')} == 3")
    place = [
        int(browser.script(f"return document.querySelector('#{name} input').value"))
        for name in ("row", "col")
    ]
    assert place == pytest.approx([60, 400], abs=3)
    sources = browser.script(
        "return [...document.querySelectorAll('#similar img')].map((image) => image.src)"
    )
    with urllib.request.urlopen(sources[-1]) as answer:
        picture = np.array(Image.open(io.BytesIO(answer.read())), dtype=float)
    height, width = picture.shape[:2]
    shades = [picture[int(0.7 * height), int(share * width)].mean() for share in (0.1, 0.9)]
    assert shades[1] > shades[0] + 40  # the half that was clicked is alike
    no_errors(browser)


def test_everything_comes_from_the_page_itself(
    browser: Browser, page: Any, asked: set[str]
) -> None:
    show(browser, page, WIDE)
    hosts = browser.script(
        "return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)"
    )
    assert len(hosts) > 5
    assert set(hosts) == {page.local_url.rstrip("/")}
    assert asked == {"127.0.0.1"}
    no_errors(browser)


def test_words_files_and_messages_on_a_narrow_screen(
    browser: Browser, page: Any, tmp_path: Path
) -> None:
    show(browser, page, NARROW)
    (tmp_path / "broken.png").write_bytes(b"no image")
    upload(browser, tmp_path / "broken.png")
    until(browser, "document.body.innerText.includes('\\nbroken.png cannot be read')")
    width = "return document.documentElement.scrollWidth"
    browser.script("document.querySelector('#examples button').click()")
    until(browser, f"{count('#pictures img')} == 4")
    assert browser.script(width) <= NARROW

    open_tab(browser, "Words")
    until(browser, "document.querySelector('#no-words')?.innerText.includes('--backbone clip/')")
    browser.click("#backbone input")
    browser.script(
        "document.querySelectorAll('[role=option]')[1]"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    until(browser, "!document.querySelector('#no-words')?.innerText")
    browser.script("document.querySelector('#words').querySelector('input, textarea').focus()")
    browser.press(f"woman, flag{ENTER}")
    until(browser, f"{count('#segments img')} == 3 && {count('#legend li')} == 2")
    assert browser.script(width) <= NARROW

    open_tab(browser, "Files")
    until(browser, "document.querySelector('#file-run')")
    browser.click("#file-run")
    until(browser, "document.querySelector('#file a')?.href.endsWith('.png')")
    assert browser.script(width) <= NARROW

    browser.script("document.querySelectorAll('#methods input:checked').forEach((b) => b.click())")
    until(browser, f"{count('#methods input:checked')} == 0")
    browser.click("#run")
    until(browser, "document.body.innerText.includes('0 methods are chosen; choose one to 4')")
    no_errors(browser)


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Browser, page: Any) -> None:
    show(browser, page, WIDE)
    browser.script("document.querySelector('#examples button').focus()")
    seen = []
    for _ in range(30):
        outline, inside = browser.script(
            "const style = getComputedStyle(document.activeElement);"
            "return [style.outlineStyle + ' ' + style.outlineWidth,"
            "document.activeElement.closest('[id]')?.id]"
        )
        assert outline == "solid 3px", inside
        seen.append(inside)
        if inside == "right":
            break
        browser.press(TAB)
    parts = [name for name in dict.fromkeys(seen) if name and not name.startswith("component")]
    for name in ("examples", "backbone", "methods", "side", "run", "position", "left", "right"):
        assert name in parts, parts
    browser.script("document.querySelector('#examples button').focus()")
    browser.press(ENTER)
    until(browser, f"{count('#pictures img')} == 4")
    no_errors(browser)
