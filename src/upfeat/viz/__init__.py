"""Pictures of features."""

from upfeat.viz.pca import PCABasis, PCAPicture, pca_panel, pca_picture, save_png

__all__ = ["PCABasis", "PCAPicture", "pca_panel", "pca_picture", "save_png"]
