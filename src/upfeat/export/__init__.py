"""Upsamplers as graphs that run without this package: ONNX, torch.export, OpenVINO, AOTInductor."""

from upfeat.export.formats import FORMATS, Format
from upfeat.export.graphs import BackboneGraph, PipelineGraph, UpsamplerGraph, ValuesGraph
from upfeat.export.models import Exported, export_model
from upfeat.export.page import RUNTIME_FILES, write_web_page
from upfeat.export.record import ExportRecord, Parity

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
