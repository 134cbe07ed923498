"""The shared checks: every message says what came, what was wanted and what to do."""

import ast
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from upfeat.errors import (
    MissingPackageError,
    UnknownNameError,
    check_bytes,
    check_call,
    check_coords,
    check_file,
    check_size,
    import_optional,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("size", [(3, 4), [3, 4], torch.Size([3, 4])])
def test_sizes(size: object) -> None:
    assert check_size(size) == (3, 4)  # type: ignore[arg-type]


BAD_SIZES = [
    5, None, (3,), (3, 4, 5), (0, 4), (-1, 4), (2.5, 4), "34", b"34", (True, 4), ("3", 4),
    float("inf"), float("nan"), (float("nan"), 4), (4, float("inf")), (None, 4), ((1, 2), 3),
    (2**40, 2), (10**400, 1),
]  # fmt: skip


@pytest.mark.parametrize("size", BAD_SIZES, ids=lambda size: str(size)[:20])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="output_size"):
        check_size(size)  # type: ignore[arg-type]


def test_default_output_is_the_images() -> None:
    assert check_call(torch.zeros(1, 3, 6, 8), torch.zeros(1, 5, 2, 2), None, None) == (6, 8)


def test_swapped_arguments_are_recognised() -> None:
    with pytest.raises(
        ValueError, match=r"look swapped: the order is upsampler\(image, features\)"
    ):
        check_call(torch.zeros(1, 5, 2, 2), torch.zeros(1, 3, 8, 8), None, None)


def test_unknown_name_without_close_match() -> None:
    assert "did you mean" not in str(UnknownNameError("upsampler", "zzz", ["a", "b"]))


def test_only_files_may_be_opened(tmp_path: Path) -> None:
    """Opening a named pipe waits until somebody writes to it, which may be never."""
    (tmp_path / "file").touch()
    check_file(tmp_path / "file", "label")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-pipe").symlink_to("pipe")
    for name, words in {"pipe": "named pipe", "to-pipe": "named pipe", ".": "is a folder"}.items():
        with pytest.raises(ValueError, match=f"{words}, wanted the label"):
            check_file(tmp_path / name, "label")
    for name in ("nowhere", "file/below", "loop", "x" * 300):
        with pytest.raises(FileNotFoundError, match=r"no label at .*check the path"):
            check_file(tmp_path / name, "label")


@pytest.mark.parametrize("number", [1, 2.0, 10**400, np.int64(7), np.float32(3)])
def test_bounds_on_memory(number: object) -> None:
    assert check_bytes(number) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [0, -1, 0.5, float("inf"), float("nan"), None, "5", b"5", True, 1j]
)
def test_bad_bounds_on_memory(number: object) -> None:
    with pytest.raises(ValueError, match=r"max_bytes must be a positive number of bytes, .*got"):
        check_bytes(number)  # type: ignore[arg-type]


def unusual(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A map in every kind of tensor that is no plain array of floats."""
    kinds = {
        "torch.sparse_coo": x.to_sparse(),
        "torch.sparse_csr": x[0, 0].to_sparse_csr(),
        "nested": torch.nested.nested_tensor([x[0], x[0]]),
        "float8_e4m3fn": x.to(torch.float8_e4m3fn),
        "quint8": torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        "complex64": x.to(torch.complex64),
        "bool": x > 0,
    }
    return kinds | ({"mkldnn": x.to_mkldnn()} if torch.backends.mkldnn.is_available() else {})


@pytest.mark.filterwarnings("ignore")
def test_unusual_tensors_are_refused_in_one_sentence() -> None:
    image, features = torch.zeros(1, 3, 6, 8), torch.zeros(1, 5, 2, 2)
    values = torch.zeros(1, 4, 2, 2)
    for kind, given in unusual(image).items():
        with pytest.raises(ValueError, match=f"image must.*{kind}|image .*must be f.*{kind}"):
            check_call(given, features, None, None)
    for kind, given in unusual(features).items():
        with pytest.raises(ValueError, match=f"features.*{kind}"):
            check_call(image, given, None, None)
    for kind, given in unusual(values).items():
        with pytest.raises(ValueError, match=f"values.*{kind}"):
            check_call(image, features, None, given)
    for given in (torch.zeros(1, 2, 2).to_sparse(), torch.zeros(1, 2, 2).to_mkldnn()):
        with pytest.raises(ValueError, match="coords must be a dense tensor"):
            check_coords(given, features)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "raise KeyError('author')",
            "is installed, but importing it fails with KeyError: 'author'",
        ),
        ("raise OSError('libGL.so.1')", "fails with OSError: libGL.so.1; install it anew"),
        ("import no_such_dependency", "fails with ModuleNotFoundError: No module named 'no_such"),
        ("from os import no_such_name", "fails with ImportError: cannot import name"),
    ],
)
def test_package_that_cannot_be_imported(
    content: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_here.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=re.escape(told)) as caught:
        import_optional("broken_here", "broken-here", "video", "video files")
    assert str(caught.value).startswith("video files: the package 'broken-here' is installed")
    assert str(caught.value).endswith("pip install 'upfeat[video]'")


def test_package_that_is_absent() -> None:
    for module in ("no_such_package", "no_such_package.part"):
        with pytest.raises(MissingPackageError, match="missing the package 'a-name'; install it"):
            import_optional(module, "a-name", "video", "video files")


def test_optional_packages_are_imported_in_one_way() -> None:
    """A broken package is told from an absent one everywhere."""
    own = []
    for path in (ROOT / "src" / "upfeat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and "MissingPackageError(" in ast.unparse(node):
                own.append(path.name)
    # A version that is read without an import, and the function itself.
    assert sorted(own) == ["errors.py", "space.py"]
