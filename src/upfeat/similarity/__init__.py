"""Questions to features: where is what looks like this pixel, and where are these words?

Above the pipeline, below protocols, pictures and commands, which all ask them.
"""

from upfeat.similarity.maps import (
    cosine_maps,
    embed_words,
    pixel_similarity,
    segment_words,
    split_words,
    templates,
    text_encoder,
)

__all__ = [
    "cosine_maps",
    "embed_words",
    "pixel_similarity",
    "segment_words",
    "split_words",
    "templates",
    "text_encoder",
]
