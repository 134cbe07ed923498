"""Images and data sets: reading, listing, transforming. No networks, no downloads."""

from upfeat.data.camvid import camvid
from upfeat.data.classified import ClassifiedFile, ClassifiedImage, ClassifiedImages
from upfeat.data.davis import davis
from upfeat.data.depth import DepthData, DepthFile, DepthImage
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
from upfeat.data.nyuv2 import nyuv2, nyuv2_depth
from upfeat.data.records import image_folder, image_list, imagenet_folder, sa1b_folder
from upfeat.data.segmentation import LabelledFile, LabelledImage, SegmentationData
from upfeat.data.tar_shards import TarRecords, find_images
from upfeat.data.training_images import TrainingImages, TrainingLoader
from upfeat.data.transforms import CropTransform
from upfeat.data.video import VideoData, VideoSequence

__all__ = [
    "IMAGE_SUFFIXES",
    "CachedMaskSource",
    "ClassifiedFile",
    "ClassifiedImage",
    "ClassifiedImages",
    "CropTransform",
    "DepthData",
    "DepthFile",
    "DepthImage",
    "FeatureCache",
    "FirstOfMaskSource",
    "ImageSource",
    "LabelMaskSource",
    "LabelledFile",
    "LabelledImage",
    "MaskSource",
    "Sa1bMaskSource",
    "SegmentationData",
    "SuperpixelMaskSource",
    "TarRecords",
    "TrainingImages",
    "TrainingLoader",
    "VideoData",
    "VideoSequence",
    "camvid",
    "davis",
    "fill_mask_cache",
    "find_images",
    "image_files",
    "image_folder",
    "image_list",
    "image_size",
    "imagenet_folder",
    "msrc",
    "nyuv2",
    "nyuv2_depth",
    "read_image",
    "sa1b_folder",
]
