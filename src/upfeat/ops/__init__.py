"""Pure functions on tensors: they know no method and hold no weights.

An operator file holds a plain readable reference, a version in bounded memory and one dispatcher
that picks; Triton kernels live in ``upfeat.ops.triton`` and are loaded for CUDA tensors only.
"""

from upfeat.ops.adaptive_convolution import adaptive_convolution, window_similarity
from upfeat.ops.guided_filter import guided_filter
from upfeat.ops.head_averaged_attention import (
    head_averaged_attention,
    head_averaged_attention_weights,
)
from upfeat.ops.local_attender import local_attender
from upfeat.ops.neighborhood_attention import cross_scale_neighborhood_attention
from upfeat.ops.windowed_attention import window_bounds, windowed_attention

__all__ = [
    "adaptive_convolution",
    "cross_scale_neighborhood_attention",
    "guided_filter",
    "head_averaged_attention",
    "head_averaged_attention_weights",
    "local_attender",
    "window_bounds",
    "window_similarity",
    "windowed_attention",
]
