"""Functions on tensors: they know no method and hold no weights.

``reference`` holds the operators' definitions in plain torch. Their implementations in bounded
memory lie in ``attention``, ``filters`` and ``pointwise``, and are called from here; Triton kernels
lie in ``triton`` and are loaded for CUDA tensors only. ``stream`` runs networks over row strips,
``runtime`` is what all of them run on.
"""

from upfeat.ops.attention.head_averaged import (
    head_averaged_attention,
    head_averaged_attention_weights,
)
from upfeat.ops.attention.local import local_attender
from upfeat.ops.attention.neighborhood import cross_scale_neighborhood_attention
from upfeat.ops.attention.windowed import window_bounds, windowed_attention
from upfeat.ops.filters.adaptive import adaptive_convolution, window_similarity
from upfeat.ops.filters.guided import guided_filter, guided_model
from upfeat.ops.filters.reassembly import window_products, window_reassembly
from upfeat.ops.pointwise.norms import (
    channel_layer_norm,
    channel_norm,
    cosine,
    magnitude,
    unit_vectors,
)
from upfeat.ops.pointwise.pixel_linear import pixel_linear, pointwise_conv
from upfeat.ops.pointwise.positions import (
    describe,
    fourier_features,
    pixel_features,
    position_code,
    rotary_code,
)
from upfeat.ops.pointwise.residual import pointwise_residual
from upfeat.ops.pointwise.rms_norm import rms_norm
from upfeat.ops.reference import BlockWeights, group_norm
from upfeat.ops.runtime.linear import linear

__all__ = [
    "BlockWeights",
    "adaptive_convolution",
    "channel_layer_norm",
    "channel_norm",
    "cosine",
    "cross_scale_neighborhood_attention",
    "describe",
    "fourier_features",
    "group_norm",
    "guided_filter",
    "guided_model",
    "head_averaged_attention",
    "head_averaged_attention_weights",
    "linear",
    "local_attender",
    "magnitude",
    "pixel_features",
    "pixel_linear",
    "pointwise_conv",
    "pointwise_residual",
    "position_code",
    "rms_norm",
    "rotary_code",
    "unit_vectors",
    "window_bounds",
    "window_products",
    "window_reassembly",
    "window_similarity",
    "windowed_attention",
]
