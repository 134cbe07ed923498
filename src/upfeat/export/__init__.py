"""Upsamplers as graphs that run without this package: ONNX, torch.export, OpenVINO, AOTInductor."""

from upfeat.export.graphs import (
    FORMATS,
    BackboneGraph,
    Format,
    PipelineGraph,
    UpsamplerGraph,
    ValuesGraph,
)
from upfeat.export.models import Exported, ExportRecord, Parity, export_model
from upfeat.export.page import RUNTIME_FILES, write_web_page

__all__ = [
    "FORMATS",
    "RUNTIME_FILES",
    "BackboneGraph",
    "ExportRecord",
    "Exported",
    "Format",
    "Parity",
    "PipelineGraph",
    "UpsamplerGraph",
    "ValuesGraph",
    "export_model",
    "write_web_page",
]
