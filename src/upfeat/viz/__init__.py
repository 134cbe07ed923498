"""Pictures of features."""

from upfeat.viz.comparison import Comparison, compare_upsamplers, usable_upsamplers
from upfeat.viz.pca import PCABasis, PCAPicture, pca_panel, pca_picture, save_png

__all__ = [
    "Comparison",
    "PCABasis",
    "PCAPicture",
    "compare_upsamplers",
    "pca_panel",
    "pca_picture",
    "save_png",
    "usable_upsamplers",
]
