"""Pure functions on tensors: they know no method and hold no weights.

An operator file holds a plain readable reference, a version in bounded memory and one dispatcher
that picks; Triton kernels live in ``upfeat.ops.triton`` and are loaded for CUDA tensors only.
"""

from upfeat.ops.attention.head_averaged import (
    head_averaged_attention,
    head_averaged_attention_weights,
)
from upfeat.ops.attention.local import local_attender
from upfeat.ops.attention.neighborhood import cross_scale_neighborhood_attention
from upfeat.ops.attention.windowed import window_bounds, windowed_attention
from upfeat.ops.filters.adaptive import adaptive_convolution, window_similarity
from upfeat.ops.filters.guided import guided_filter

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
