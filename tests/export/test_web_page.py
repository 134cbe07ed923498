"""The page that upsamples in the browser, in headless Chromium with the real ONNX Runtime Web."""

import functools
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upfeat
from tests.browser import Browser, missing_browser
from upfeat.errors import UnsupportedError
from upfeat.export.page import RUNTIME_FILES, write_web_page

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.export, pytest.mark.browser, pytest.mark.slow]


def runtime() -> Path | None:
    """The folder of onnxruntime-web's files, where there is one."""
    modules = Path("node_modules", "onnxruntime-web", "dist")
    places = [Path(os.environ.get("UPFEAT_ORT_WEB", modules)), modules]
    return next((each for each in places if (each / RUNTIME_FILES[0]).is_file()), None)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    if reason := missing_browser():
        pytest.skip(reason)
    if (files := runtime()) is None:
        pytest.skip("needs onnxruntime-web: npm pack onnxruntime-web; UPFEAT_ORT_WEB=.../dist")
    folder = tmp_path_factory.mktemp("page")
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    write_web_page(folder, upfeat.create_upsampler("kin.upfeat"), backbone, runtime=files)
    photo = np.zeros((96, 128, 3), np.uint8)
    photo[24:72, 40:100] = (200, 80, 40)
    Image.fromarray(photo).save(folder / "photo.png")
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html", folder
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def wait_for(browser: Browser, text: str) -> None:
    status = ""
    for _ in range(240):
        status = browser.script("return document.getElementById('status').textContent")
        if text in status:
            return
        assert "failed" not in status, status
        assert "not be loaded" not in status, status
        time.sleep(0.5)
    raise AssertionError(f"the page still says {status!r}")


def test_photo_becomes_upsampled_features(address: tuple[str, Path]) -> None:
    page, folder = address
    with Browser.start() as browser:
        browser.open(page)
        wait_for(browser, "Ready")
        browser.script("document.getElementById('side').value = '224'")
        photo = browser.find("#photo")
        browser.post(f"/element/{photo}/value", text=str(folder / "photo.png"))
        wait_for(browser, "Done")
        sizes = browser.script(
            "return ['image', 'low', 'high'].map((id) => document.getElementById(id))"
            ".map((canvas) => [canvas.width, canvas.height])"
        )
        assert sizes == [[224, 176], [14, 11], [224, 176]]
        spread = browser.script(
            "const c = document.getElementById('high');"
            "const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
            "const red = data.filter((_, index) => index % 4 === 0);"
            "return Math.max(...red) - Math.min(...red)"
        )
        assert spread > 100
        assert "encoder" in browser.script("return document.getElementById('times').textContent")
        assert not [line for line in browser.log() if line["level"] == "SEVERE"]


def test_methods_that_do_not_commute_are_refused(tmp_path: Path) -> None:
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    with pytest.raises(UnsupportedError, match="which needs a method with"):
        write_web_page(tmp_path, upfeat.create_upsampler("naf", dim=32), backbone)
