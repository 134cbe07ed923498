"""What is exported, in which formats: networks from tensors to tensors, and how files are written.

Every normalisation is inside a network, or named in the record. Legend: B batch (1), C feature
channels, K value channels, h w grid, H W image and output.
"""

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
from torch import Tensor, nn
from torch.export import ExportedProgram

from upfeat.backbones.base import Backbone
from upfeat.errors import UnsupportedError, import_optional
from upfeat.ops.images import normalize
from upfeat.upsamplers.base import Upsampler

__all__ = [
    "FORMATS",
    "OPSET",
    "BackboneGraph",
    "Format",
    "PipelineGraph",
    "UpsamplerGraph",
    "ValuesGraph",
    "quiet",
]

OPSET = 20  # what onnxruntime 1.17 and OpenVINO 2024 read
Runner = Callable[..., Tensor]


class UpsamplerGraph(nn.Module):
    """An upsampler alone: the normalised guidance and the features to the output."""

    def __init__(self, upsampler: Upsampler) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """(1, 3, H, W), normalised, and (1, C, h, w) to (1, C, H, W)."""
        output: Tensor = self.upsampler(image, features)
        return output


class ValuesGraph(UpsamplerGraph):
    """An upsampler with a third input: what it mixes, such as a head's logits or PCA colours."""

    def forward(self, image: Tensor, features: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        """Also (1, K, h, w), to (1, K, H, W)."""
        output: Tensor = self.upsampler(image, features, values=values)
        return output


class BackboneGraph(nn.Module):
    """A backbone with its normalisation: an image in [0, 1], or 8 bit, to its features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, C, h, w)."""
        return self._features(self._in_range(image))

    def _in_range(self, image: Tensor) -> Tensor:
        """The image in [0, 1] and in the type of the weights."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        return image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)

    def _features(self, image: Tensor) -> Tensor:
        backbone = self.backbone
        features: Tensor = backbone(normalize(image, backbone.image_mean, backbone.image_std))
        return features


class PipelineGraph(BackboneGraph):
    """Backbone, upsampler and both normalisations: an image to features of its own size.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.export import PipelineGraph
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> graph = PipelineGraph(backbone, upfeat.load_upsampler("kin.upfeat", backbone))
        >>> graph(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 192, 32, 48])
    """

    def __init__(self, backbone: Backbone, upsampler: Upsampler) -> None:
        super().__init__(backbone)
        self.upsampler = upsampler
        self.statistics = upsampler.guidance_statistics(backbone)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, C, H, W)."""
        image = self._in_range(image)
        guidance = normalize(image, *self.statistics)
        output: Tensor = self.upsampler(guidance, self._features(image))
        return output


# -- formats --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One format: how an exported program is written, and how its file is run again."""

    name: str
    suffix: str
    ability: str  # the field of ``info.abilities.export`` that declares whether it works
    write: Callable[
        [ExportedProgram, Path], list[Path]
    ]  # to a path without suffix; main file first
    load: Callable[[Path], Runner]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the log lines and warnings of torch and onnxscript, which users cannot act on."""
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


def _package(name: str, extra: str) -> Any:
    return import_optional(name, name, extra, "exported graphs")


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
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _package(name, "onnx")
    path = stem.with_name(f"{stem.name}.onnx")
    onnx: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, opset_version=OPSET, output_names=["output"]
    )
    onnx.save(path, external_data=False)
    return [path]


def _load_onnx(path: Path) -> Runner:
    onnxruntime = _package("onnxruntime", "onnx")
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
    openvino = _package("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx = _write_onnx(program, Path(folder, stem.name))[0]
        # Not `convert_model`: it computes what depends on no input, such as LIIF's first layer of
        # all positions, and stores that.
        model = openvino.Core().read_model(onnx)
        path = stem.with_name(f"{stem.name}.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _load_openvino(path: Path) -> Runner:
    openvino = _package("openvino", "openvino")
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
    """Return a format by its name, or raise ``UnsupportedError``."""
    if name not in FORMATS:
        raise UnsupportedError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
