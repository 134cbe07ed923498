"""Upsamplers as graphs that run without this package: ONNX, torch.export, OpenVINO, AOTInductor."""

from upfeat.export.formats import FORMATS, Format
from upfeat.export.graphs import BackboneGraph, PipelineGraph, UpsamplerGraph, ValuesGraph
from upfeat.export.models import Exported, export_model
from upfeat.export.record import ExportRecord, Parity

__all__ = [
    "FORMATS",
    "BackboneGraph",
    "ExportRecord",
    "Exported",
    "Format",
    "Parity",
    "PipelineGraph",
    "UpsamplerGraph",
    "ValuesGraph",
    "export_model",
]
