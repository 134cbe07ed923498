"""The formats: how an exported program is written, and how the file is run again for the check."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from upfeat.errors import MissingPackageError, UnsupportedError

__all__ = ["FORMATS", "OPSET", "Format", "quiet"]

OPSET = 20  # what onnxruntime 1.17 and OpenVINO 2024 read
Runner = Callable[..., Tensor]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: torch, onnx, openvino or aoti.
        suffix: of its file.
        ability: the field of ``info.abilities.export`` that says whether it works.
        write: ``write(program, suffixless_path)`` returns the files it wrote, the main one first.
        load: ``load(path)`` returns a function of the graph's inputs.
    """

    name: str
    suffix: str
    ability: str
    write: Callable[[ExportedProgram, Path], list[Path]]
    load: Callable[[Path], Runner]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch and onnxscript say about their own inner life from the user."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx", "torch.utils")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _needs(extra: str, *modules: str) -> None:
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(missing[0], extra, "exported graphs")


# -- torch.export ----------------------------------------------------------------------------------


def _write_torch(program: ExportedProgram, stem: Path) -> list[Path]:
    path = stem.with_name(f"{stem.name}.pt2")
    torch.export.save(program, path)
    return [path]


def _load_torch(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(*inputs)
        return output

    return run


# -- ONNX ------------------------------------------------------------------------------------------


def _write_onnx(program: ExportedProgram, stem: Path) -> list[Path]:
    _needs("onnx", "onnx", "onnxscript", "onnxruntime")
    path = stem.with_name(f"{stem.name}.onnx")
    onnx: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, opset_version=OPSET, output_names=["output"]
    )
    onnx.save(path, external_data=False)
    return [path]


def _load_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


# -- OpenVINO --------------------------------------------------------------------------------------


def _write_openvino(program: ExportedProgram, stem: Path) -> list[Path]:
    _needs("openvino", "openvino")
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx = _write_onnx(program, Path(folder, stem.name))[0]
        model = openvino.convert_model(onnx)
        path = stem.with_name(f"{stem.name}.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _load_openvino(path: Path) -> Runner:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(compiled([one.numpy() for one in inputs])[0].copy())

    return run


# -- AOTInductor -----------------------------------------------------------------------------------


def _write_aoti(program: ExportedProgram, stem: Path) -> list[Path]:
    path = stem.with_name(f"{stem.name}.aoti.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return [path]


def _load_aoti(path: Path) -> Runner:
    loaded: Runner = torch._inductor.aoti_load_package(str(path))
    return loaded


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("torch", ".pt2", "torch", _write_torch, _load_torch),
        Format("onnx", ".onnx", "onnx", _write_onnx, _load_onnx),
        Format("openvino", ".xml", "openvino", _write_openvino, _load_openvino),
        Format("aoti", ".aoti.pt2", "torch", _write_aoti, _load_aoti),
    )
}


def format_of(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UnsupportedError: there is none of that name.
    """
    if name not in FORMATS:
        raise UnsupportedError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
