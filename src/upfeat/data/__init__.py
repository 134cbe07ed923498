"""Images and data sets: reading, listing, transforming. No networks, no downloads."""

from upfeat.data.camvid import camvid
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.folders import IMAGE_SUFFIXES, image_files
from upfeat.data.images import ImageSource, image_size, read_image
from upfeat.data.mask_cache import CachedMaskSource, fill_mask_cache
from upfeat.data.masks import (
    FirstOfMaskSource,
    LabelMaskSource,
    MaskSource,
    Sa1bMaskSource,
    SuperpixelMaskSource,
)
from upfeat.data.msrc import msrc
from upfeat.data.records import image_folder, image_list, imagenet, sa1b_folder
from upfeat.data.segmentation import SegmentationData
from upfeat.data.tar_shards import TarRecords, find_images
from upfeat.data.training_images import TrainingImages, TrainingLoader
from upfeat.data.transforms import CropTransform

__all__ = [
    "IMAGE_SUFFIXES",
    "CachedMaskSource",
    "CropTransform",
    "FeatureCache",
    "FirstOfMaskSource",
    "ImageSource",
    "LabelMaskSource",
    "MaskSource",
    "Sa1bMaskSource",
    "SegmentationData",
    "SuperpixelMaskSource",
    "TarRecords",
    "TrainingImages",
    "TrainingLoader",
    "camvid",
    "fill_mask_cache",
    "find_images",
    "image_files",
    "image_folder",
    "image_list",
    "image_size",
    "imagenet",
    "msrc",
    "read_image",
    "sa1b_folder",
]
