"""The files of a Space, and the command."""

from __future__ import annotations

import socket
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import upfeat
from upfeat.app import write_space
from upfeat.cli.app import app
from upfeat.errors import ForeignFileError


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.output


def test_a_space_has_front_matter_app_and_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    code, output = run(
        "app", "--space", tmp_path / "space", "--backbone", "upfeat/vit_compact_patch16"
    )
    assert code == 0, output
    folder = tmp_path / "space"
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == version("gradio")
    assert front["app_file"] == "app.py"
    assert (folder / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60  # the hub refuses longer ones
    assert (folder / "requirements.txt").read_text() == f"upfeat[app]=={upfeat.__version__}\n"
    called = []
    monkeypatch.setattr("upfeat.app.launch", lambda *given: called.append(given))
    exec(compile((folder / "app.py").read_text(), "app.py", "exec"), {})
    assert called == [(("upfeat/vit_compact_patch16",), ("bilinear", "kin.upfeat"))]


def test_a_clip_brings_its_package(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    write_space(tmp_path, ["clip/ViT-B-16.openai"])
    assert "upfeat[app,clip]" in (tmp_path / "requirements.txt").read_text()


def test_nobodys_file_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "requirements.txt").write_text("mine")
    with pytest.raises(ForeignFileError):
        write_space(tmp_path)
    assert not (tmp_path / "app.py").exists()


def test_without_gradio_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, output = run("app")
    assert code == 2
    assert "upfeat[app]" in output
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_said() -> None:
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, output = run("app", "--port", port)
    assert code == 2
    assert f"port {port} is in use" in output


def test_a_method_that_cannot_be_loaded_ends_the_command() -> None:
    pytest.importorskip("gradio")
    code, output = run("app", "--upsampler", "jafr")
    assert code == 2
    assert "did you mean 'jafar'" in output
