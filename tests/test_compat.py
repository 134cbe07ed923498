"""The repair of torchvision beside a CPU build of PyTorch, each case in a fresh interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_torchvision_and_timm_import_after_compat():
    result = run_python("from upfeat import _compat; import torchvision, timm; print('fine')")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"


def test_declares_exactly_where_torchvision_cannot_be_imported():
    alone = run_python("import torchvision")
    declared = run_python(
        "from upfeat import _compat; print(_compat.ensure_torchvision_operators())"
    )
    assert declared.returncode == 0, declared.stderr
    if alone.returncode != 0:
        assert "torchvision::nms does not exist" in alone.stderr
    assert declared.stdout.strip() == str(alone.returncode != 0)


def test_repairs_after_a_failed_import():
    result = run_python(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from upfeat import _compat\nimport torchvision\nprint(torchvision.__name__)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "torchvision"


def test_repeated_calls_declare_once():
    result = run_python(
        "from upfeat import _compat as c\n"
        "answers = [c.ensure_torchvision_operators() for _ in range(3)]\n"
        "assert len(set(answers)) == 1, answers\nassert len(c._declared) == int(answers[0])"
    )
    assert result.returncode == 0, result.stderr


def test_a_loadable_library_is_left_alone():
    """With a compiled library that loads, nothing is declared that it would declare itself."""
    result = run_python(
        "import torch\n"
        "torch.ops.load_library = lambda path: None\n"
        "from upfeat import _compat\n"
        "assert not _compat.ensure_torchvision_operators()\n"
        "assert not _compat._declared"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("attribute", ["cuda", "hip"])
def test_a_gpu_build_of_torch_is_left_alone(attribute: str):
    result = run_python(
        f"import torch\ntorch.version.{attribute} = '13.0'\n"
        "from upfeat import _compat\n"
        "assert not _compat._declared and not _compat.ensure_torchvision_operators()"
    )
    assert result.returncode == 0, result.stderr


WITHOUT_IS_EXPORTING = """
import torch
if hasattr(torch.compiler, "is_exporting"):
    del torch.compiler.is_exporting
import upfeat
from upfeat import _compat
pipe = upfeat.Pipeline("upfeat/vit_compact_patch16", "kin.upfeat")
print(tuple(pipe(torch.rand(3, 32, 48)).high.shape), _compat.is_exporting())
torch.compiler.is_compiling = lambda: True  # as torch.export(strict=False) lets it say
print(_compat.is_exporting())
"""


def test_calls_need_no_function_that_pytorch_2_6_lacks():
    result = run_python(WITHOUT_IS_EXPORTING)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["(192, 32, 48) False", "True"]
