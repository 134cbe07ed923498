"""The pages under docs: links lead somewhere, commands exist, code runs, the site builds."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import typer
from PIL import Image

from tests.tolerances import tolerance
from tools.export_table import WIDTH, small
from upfeat.cli.app import app
from upfeat.export import export_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "commands.md"} & {*path.parts}),
]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\((?!https?:|mailto:)([^)\s]+)\)")


def blocks(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind in kinds]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text()) if page.suffix == ".md" else page.read_text()
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{name(page)} links to {link}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{name(page)} links to {link}"


def commands(page: Path) -> list[list[str]]:
    """The words of each call of ``upfeat`` in a page's blocks; unfilled ones left out."""
    text = "\n".join(blocks(page, "bash", "sh", "console")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    lines = [line for line in lines if line.startswith("upfeat ") and "…" not in line]
    return [shlex.split(line.partition("  #")[0])[1:] for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        context = click.Context(command)
        rest = list(words)
        while isinstance(command, click.Group) or hasattr(command, "get_command"):
            found = command.get_command(context, rest[0]) if rest else None
            assert found is not None, f"{name(page)}: upfeat {' '.join(words)}"
            command, rest = found, rest[1:]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        known |= {"--help", "-h"}
        asked = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert asked <= known, f"{name(page)}: upfeat {' '.join(words)}: {asked - known}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder with a photo and a video."""
    rows, cols = np.mgrid[0:48, 0:64]
    photo = np.stack([4 * rows % 256, cols * 3 % 256, (rows * cols) % 256], 2).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    for variable, value in (("UPFEAT_OFFLINE", "1"), ("UPFEAT_CACHE", str(tmp_path / "cache"))):
        monkeypatch.setenv(variable, value)
    return tmp_path


def run_blocks(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace("448", "48"), name(page), "exec"), names)
    return names


def test_the_code_of_the_first_page_runs(folder: Path) -> None:
    assert run_blocks(DOCS / "index.md")["out"].high.shape == (192, 48, 64)


def test_the_code_of_the_page_on_video_runs(folder: Path) -> None:
    av = pytest.importorskip("av")
    with av.open("video.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_image(Image.open("photo.jpg"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    names = run_blocks(DOCS / "video.md")
    assert [file.name for file in names["result"].files] == ["video_pca.mp4"]
    assert names["features"].shape == (192, 48, 64)


@pytest.mark.export
@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="OpenVINO cannot read its KIN")
def test_the_code_of_the_page_on_export_runs(folder: Path) -> None:
    """On a small network at a small size; the compiled library is tested in tests/export."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    for form in ("onnx", "openvino", "torch"):
        sizes: dict[str, Any] = {"height": 48, "width": 64, "channels": WIDTH, "name": "kin"}
        export_model("exported", small("kin"), format=form, **sizes)
    names: dict[str, Any] = {}
    sharp = []
    for block in blocks(DOCS / "ship_it.md", "python"):
        if "aoti" in block:
            continue
        for size, less in (("448, 640", "48, 64"), ("28, 40", "3, 4"), ("384", str(WIDTH))):
            block = block.replace(size, less)
        exec(compile(block, "ship_it.md", "exec"), names)
        sharp.append(torch.as_tensor(names["sharp"]).detach())
    assert len(sharp) == 3
    for other in sharp[1:]:
        torch.testing.assert_close(sharp[0], other, **tolerance(torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=name)
def test_tutorials_run(
    tutorial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    runpy.run_path(str(tutorial), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    line = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*line, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        env={**os.environ, "UPFEAT_DOCS_EXECUTE": "off", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api" / "upsamplers.html").read_text()
    assert "upfeat.upsamplers.Upsampler" in page
    commands = re.sub(r"<[^>]+>", "", (tmp_path / "html" / "commands.html").read_text())
    assert "upfeat upsample" in commands
