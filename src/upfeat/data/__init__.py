"""Images and data sets: reading, listing, transforming. No networks, no downloads."""

from upfeat.data.ade20k import ade20k
from upfeat.data.bsds500 import RegionData, RegionFile, RegionImage, bsds500
from upfeat.data.camvid import camvid
from upfeat.data.cityscapes import cityscapes
from upfeat.data.classified import ClassifiedFile, ClassifiedImage, ClassifiedImages
from upfeat.data.coco_objects import coco_objects
from upfeat.data.coco_stuff import coco_stuff
from upfeat.data.crops import resize_and_crop
from upfeat.data.davis import davis
from upfeat.data.depth import DepthData, DepthFile, DepthImage
from upfeat.data.depth_maps import DepthMapFolder
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.folders import IMAGE_SUFFIXES, image_files
from upfeat.data.imagenet import imagenet
from upfeat.data.images import ImageSource, image_size, read_image
from upfeat.data.kitti360 import kitti360
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
from upfeat.data.nyuv2_mat import unpack_nyuv2
from upfeat.data.records import image_folder, image_list, imagenet_folder, sa1b_folder
from upfeat.data.segmentation import LabelledFile, LabelledImage, SegmentationData
from upfeat.data.segmentation_sets import load_segmentation, segmentation_sets
from upfeat.data.tar_shards import TarRecords, find_images
from upfeat.data.training_images import TrainingImages, TrainingLoader
from upfeat.data.transforms import CropTransform
from upfeat.data.video import VideoData, VideoSequence
from upfeat.data.voc import voc

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
    "DepthMapFolder",
    "FeatureCache",
    "FirstOfMaskSource",
    "ImageSource",
    "LabelMaskSource",
    "LabelledFile",
    "LabelledImage",
    "MaskSource",
    "RegionData",
    "RegionFile",
    "RegionImage",
    "Sa1bMaskSource",
    "SegmentationData",
    "SuperpixelMaskSource",
    "TarRecords",
    "TrainingImages",
    "TrainingLoader",
    "VideoData",
    "VideoSequence",
    "ade20k",
    "bsds500",
    "camvid",
    "cityscapes",
    "coco_objects",
    "coco_stuff",
    "davis",
    "fill_mask_cache",
    "find_images",
    "image_files",
    "image_folder",
    "image_list",
    "image_size",
    "imagenet",
    "imagenet_folder",
    "kitti360",
    "load_segmentation",
    "msrc",
    "nyuv2",
    "nyuv2_depth",
    "read_image",
    "resize_and_crop",
    "sa1b_folder",
    "segmentation_sets",
    "unpack_nyuv2",
    "voc",
]
