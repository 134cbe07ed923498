"""Headless Chromium through chromedriver's HTTP interface; the standard library does the rest."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the WebDriver standard names
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,900",
)


def missing_browser() -> str:
    """Why no page can be opened here; empty if one can."""
    for names in (("chromium", "google-chrome"), ("chromedriver",)):
        if not any(map(shutil.which, names)):
            return f"needs {names[0]} (Debian: apt-get install chromium chromium-driver)"
    return ""


class Browser:
    """One session; a context manager that ends browser and driver."""

    def __init__(self, driver: subprocess.Popen[bytes], address: str, profile: str) -> None:
        self.driver, self.address, self.profile, self.session = driver, address, profile, ""

    @classmethod
    def start(cls) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        profile = tempfile.mkdtemp(prefix="upfeat-browser-")
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        browser = cls(driver, f"http://127.0.0.1:{port}", profile)
        try:
            browser._open_session()
        except BaseException:
            browser.close()
            raise
        return browser

    def _open_session(self) -> None:
        binary = shutil.which("chromium") or shutil.which("google-chrome")
        options = {"binary": binary, "args": [*ARGUMENTS, f"--user-data-dir={self.profile}/data"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except urllib.error.URLError as error:  # not listening yet
                if isinstance(error, urllib.error.HTTPError) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self.session = f"/session/{answer['sessionId']}"

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode(errors="replace")[:2000])
            raise

    def post(self, path: str, **body: Any) -> Any:
        return self._send("POST", self.session + path, body)

    def open(self, address: str) -> None:
        self.post("/url", url=address)

    def script(self, text: str) -> Any:
        return self.post("/execute/sync", script=text, args=[])

    def find(self, selector: str) -> str:
        return self.post("/element", using="css selector", value=selector)[ELEMENT]

    def press(self, keys: str) -> None:
        """Press keys one after the other wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def click(self, selector: str) -> None:
        self.post(f"/element/{self.find(selector)}/click")

    def cdp(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def screenshot(self) -> bytes:
        return base64.b64decode(self._send("GET", f"{self.session}/screenshot"))

    def print(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.post("/print", page={"width": 21.0, "height": 29.7}))

    def log(self) -> list[dict[str, Any]]:
        """What was written to the console since the last call."""
        return self.post("/se/log", type="browser")

    def close(self) -> None:
        try:
            if self.session:
                self._send("DELETE", self.session)
        except (OSError, ValueError):
            pass  # the driver is gone already
        self.driver.terminate()
        try:
            self.driver.wait(10)
        except subprocess.TimeoutExpired:
            self.driver.kill()
        shutil.rmtree(Path(self.profile), ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
