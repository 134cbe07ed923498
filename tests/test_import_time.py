"""``import upfeat`` stays light: absence of heavy modules is asserted, not seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("timm", "torchvision", "matplotlib", "skimage", "scipy", "PIL", "pydantic", "typer", "rich"),
    *("huggingface_hub", "triton", "onnx", "onnxruntime"),
)


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name.split(".")[0] for name in result.stdout.split()} | set(result.stdout.split())


def test_import_loads_nothing_heavy_and_none_of_our_own_rooms():
    modules = modules_after("import upfeat")
    assert modules & set(HEAVY) == set()
    assert {name for name in modules if name.startswith("upfeat.")} <= {"upfeat._compat"}


@pytest.mark.parametrize(
    "code",
    [
        "import upfeat; upfeat.list_upsamplers()",
        "import upfeat; upfeat.create_upsampler('bilinear')",
    ],
)
def test_upsamplers_load_nothing_heavy_beyond_torch(code: str):
    # Whatever torch itself imports is not ours to answer for.
    from_torch = modules_after("import torch, safetensors.torch")
    assert modules_after(code) & set(HEAVY) <= from_torch


TYPED = (
    *("--help", "--version", "upsampel", "eval seg-prob"),
    *("list", "list jaf*", "list --json", "list --pretrained", "list zzz"),
    *(
        "upsample --help",
        "extract --help",
        "train --help",
        "bench --help",
        "report --help",
        "list --help",
    ),
    *("eval", "eval vos --help", "eval efficiency --help"),
    *("app --help", "app --port x", "segment --help", "show similarity --help"),
    *("show", "show targets --help", "show compare --help", "show pca --help"),
    *("upsample", "upsample a.png --sise 3", "upsample a.png --out pyproject.toml"),
)


def test_help_and_typing_errors_do_not_load_torch():
    """All in one process: each of them leaves torch alone, so the next one is judged, too."""
    code = f"""
import contextlib, io, sys
from upfeat.cli.app import app
for arguments in {TYPED!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            app(arguments.split())
    assert not {{"torch", "numpy"}} & set(sys.modules), arguments
"""
    assert "upfeat.cli.app" in modules_after(code)
