"""Pictures of features."""

from upfeat.viz.attention import (
    Attended,
    attended_regions,
    attention_panel,
    dot_picture,
    effective_cells,
    heat_picture,
    sample_dots,
)
from upfeat.viz.comparison import Comparison, compare_upsamplers, usable_upsamplers
from upfeat.viz.pca import PCABasis, PCAPicture, pca_panel, pca_picture, save_png
from upfeat.viz.pictures import (
    AnswerMap,
    overlay_picture,
    similarity_panel,
    similarity_picture,
    words_panel,
)
from upfeat.viz.videos import VIEWS, VideoFormat, VideoResult, draw_view, make_video

__all__ = [
    "VIEWS",
    "AnswerMap",
    "Attended",
    "Comparison",
    "PCABasis",
    "PCAPicture",
    "VideoFormat",
    "VideoResult",
    "attended_regions",
    "attention_panel",
    "compare_upsamplers",
    "dot_picture",
    "draw_view",
    "effective_cells",
    "heat_picture",
    "make_video",
    "overlay_picture",
    "pca_panel",
    "pca_picture",
    "sample_dots",
    "save_png",
    "similarity_panel",
    "similarity_picture",
    "usable_upsamplers",
    "words_panel",
]
