"""Modules that at least two upsamplers share."""

from upfeat.layers.attention import attention_modules, record_attention
from upfeat.layers.downsamplers import AttentionDownsampler, ScaleNet, SimpleDownsampler
from upfeat.layers.fourier import FourierFeatures
from upfeat.layers.guidance import (
    CrossAttentionQueriesAndKeys,
    GuidanceEncoder,
    LearnedPositionCode,
    PointwiseEncoder,
    PointwiseResidualBlock,
)
from upfeat.layers.norm import RMSNorm

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
