"""The Triton kernels: compared with the references in the interpreter, compiled for a Hopper GPU.

Neither needs a GPU. The interpreter must be chosen before Triton's first import, hence a fresh
process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from upfeat.errors import MissingPackageError, UnknownNameError
from upfeat.ops import window_bounds
from upfeat.ops.runtime import dispatch
from upfeat.ops.triton import OPERATORS, load


def has_triton() -> bool:
    """Whether the extra's Triton is there; PyTorch 2.6 brings 3.2, which needs a GPU to import."""
    try:
        return tuple(map(int, metadata.version("triton").split(".")[:2])) >= (3, 7)
    except metadata.PackageNotFoundError:
        return False


needs_triton = pytest.mark.skipif(not has_triton(), reason="needs the extra 'triton' (Linux)")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_equal_the_references(operator: str, repository: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "tests/ops/triton_interpreter.py", "-q"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-k", f"test_{operator}"],
        cwd=repository,
        env=environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


class CompiledOnly:
    """Stands where a kernel stands; a launch compiles it for compute capability 9.0."""

    def __init__(self, kernel, compiled: list[str]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kernel = self.kernel
        if hasattr(kernel, "configs"):
            options |= kernel.configs[0].all_kwargs()
            kernel = kernel.fn
        build = {name: options.pop(name, 4) for name in ("num_warps", "num_stages")}
        build["num_stages"] = min(build["num_stages"], 2)
        given = dict(zip(kernel.arg_names, args, strict=False)) | {
            name: option for name, option in options.items() if name in kernel.arg_names
        }
        signature, constants = {}, {}
        for name in kernel.arg_names:
            argument = given[name]
            if name.isupper() or (isinstance(argument, int) and argument == 1):
                signature[name], constants[name] = "constexpr", argument
            else:
                signature[name] = _type_name(argument)
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        program = triton_compile(source, GPUTarget("cuda", 90, 32), build)
        assert program.metadata.shared <= 227 * 1024  # what a block may have on this device
        self.compiled.append(kernel.__name__)


def triton_compile(source, target, options):
    import triton

    return triton.compile(source, target=target, options=options)


def _type_name(argument) -> str:
    if isinstance(argument, torch.Tensor):
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32"}
        return "*" + names[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operator", ["head_averaged_attention", "windowed_attention"])
def test_kernels_compile_for_a_gpu(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(operator)
    home = module if operator == "head_averaged_attention" else module._cells
    compiled: list[str] = []
    for name, kernel in vars(home).copy().items():
        if name in ("_LSE", "_AVERAGE") or name.endswith("_kernel"):
            monkeypatch.setattr(home, name, CompiledOnly(kernel, compiled))
    monkeypatch.setattr(module._common, "check_covered", lambda *arguments: None)
    options: dict[str, object] = {"num_heads": 4, "scale": 0.2}
    if operator == "windowed_attention":
        bounds = window_bounds((16, 16), (4, 4), 0.1)
        options |= {"grid_size": (4, 4), "row_bounds": bounds[0], "col_bounds": bounds[1]}
    query, key, value = (torch.zeros(1, n, 128, dtype=torch.bfloat16) for n in (256, 16, 16))
    output, residuals = module.forward(query, key, value, **options)
    module.backward(output, query, key, value, residuals, **options)
    expected = {
        "head_averaged_attention": {"_lse_kernel", "_average_kernel", "_mean_kernel",
                                    "_grad_query_kernel", "_grad_key_kernel"},
        "windowed_attention": {"_lse_kernel", "_apply_kernel", "_grad_value_kernel",
                               "_grad_score_kernel"},
    }  # fmt: skip
    assert set(compiled) == expected[operator]


@needs_triton
@pytest.mark.parametrize("operator", OPERATORS)
def test_dispatcher_finds_the_kernels(operator: str) -> None:
    module = dispatch.triton_kernel(operator)
    assert module is load(operator)
    assert callable(module.forward)
    assert callable(module.backward)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_not_covered_is_refused(dtype: torch.dtype) -> None:
    """float64 anywhere, and every CPU tensor outside the interpreter, go to the bounded version."""
    query, key, value = (torch.zeros(1, 4, 8, dtype=dtype) for _ in range(3))
    with pytest.raises(NotImplementedError, match="kernels"):
        load("head_averaged_attention").forward(query, key, value, num_heads=2, scale=1.0)


def test_without_triton_the_error_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'upfeat\[triton\]'"):
        load("windowed_attention")


def test_unknown_kernel_names_a_close_one() -> None:
    with pytest.raises(UnknownNameError, match="windowed_attention"):
        load("windowed_atention")


def test_operators_import_without_triton() -> None:
    """In a fresh process where Triton cannot be imported, the operators load and run."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, upfeat.ops as ops\n"
        "x = torch.zeros(1, 4, 8)\n"
        "assert ops.head_averaged_attention(x, x, x, 2).shape == x.shape\n"
        "assert not any(name.startswith('upfeat.ops.triton') for name in sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
