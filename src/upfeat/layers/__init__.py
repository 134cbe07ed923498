"""Modules that at least two upsamplers share."""

from upfeat.layers.attention_record import attention_modules, record_attention
from upfeat.layers.cross_attention import CrossAttentionQueriesAndKeys
from upfeat.layers.downsamplers import AttentionDownsampler, ScaleNet, SimpleDownsampler
from upfeat.layers.fourier import FourierFeatures
from upfeat.layers.guidance import GuidanceEncoder
from upfeat.layers.norm import RMSNorm
from upfeat.layers.position_code import LearnedPositionCode
from upfeat.layers.residual import PointwiseEncoder, PointwiseResidualBlock

__all__ = [
    "AttentionDownsampler",
    "CrossAttentionQueriesAndKeys",
    "FourierFeatures",
    "GuidanceEncoder",
    "LearnedPositionCode",
    "PointwiseEncoder",
    "PointwiseResidualBlock",
    "RMSNorm",
    "ScaleNet",
    "SimpleDownsampler",
    "attention_modules",
    "record_attention",
]
