"""Images and data sets: reading, listing, transforming. No networks, no downloads."""

from upfeat.data.folders import IMAGE_SUFFIXES, image_files
from upfeat.data.images import ImageSource, image_size, read_image

__all__ = ["IMAGE_SUFFIXES", "ImageSource", "image_files", "image_size", "read_image"]
