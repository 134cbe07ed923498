"""What is stored beside an exported file."""

import importlib.metadata
from typing import Any

import pydantic

__all__ = ["ExportRecord", "Parity", "versions"]

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


class Parity(pydantic.BaseModel):
    """How far an exported graph is from PyTorch on one input.

    Attributes:
        image: (H, W).
        grid: (h, w) of the features.
        difference: largest absolute difference of the outputs.
        scale: largest absolute value of PyTorch's output.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    image: tuple[int, int]
    grid: tuple[int, int]
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference over the scale."""
        return self.difference / max(self.scale, 1e-12)


class ExportRecord(pydantic.BaseModel):
    """What an exported file holds, what made it, and how it compares with PyTorch.

    Attributes:
        file: name of the exported file.
        format: torch, onnx, openvino or aoti.
        bytes: of the file, and of what lies beside it (OpenVINO's weights).
        sha256: of the file.
        upsampler: as it was named.
        backbone: in the graph, or None.
        inputs: name, dtype and shape of each; names stand for sizes that are free.
        output: likewise.
        image_mean, image_std: how the caller normalises the image; None where the graph does.
        dtype: of the weights and of the arithmetic but for sums and softmax.
        opset: of ONNX.
        abilities: what the method declares it can be exported to.
        parity: against PyTorch in the same dtype, on random inputs.
        versions: of the packages that made it.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    file: str
    format: str
    bytes: int
    sha256: str
    upsampler: str
    backbone: str | None
    inputs: list[dict[str, Any]]
    output: dict[str, Any]
    image_mean: tuple[float, ...] | None
    image_std: tuple[float, ...] | None
    dtype: str
    opset: int | None
    abilities: dict[str, str]
    parity: list[Parity]
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions of upfeat and of what it exports with, as far as they are installed.

    Example:
        >>> sorted(versions())[-2:]
        ['torch', 'upfeat']
    """
    import upfeat

    found = {"upfeat": upfeat.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
