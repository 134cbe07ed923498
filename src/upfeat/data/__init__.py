"""Images and data sets: reading, listing, transforming. No networks, no downloads.

What lists a data set takes its folder and, where it has splits, one of them. It raises
``FileNotFoundError``, which shows the expected tree, where a folder, a list or a file is missing,
and ``ValueError`` for an unknown split and for a malformed file.
"""

from upfeat.data.boxes import BoxData, BoxFile, BoxImage, coco20k, mask_folder, voc_boxes
from upfeat.data.depth import DepthData, DepthFile, DepthImage, DepthMapFolder
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.folders import IMAGE_SUFFIXES, image_files
from upfeat.data.images import ImageSource, image_size, read_image
from upfeat.data.keypoints import KeypointData, KeypointFile, KeypointPair, keypoint_folder
from upfeat.data.mask_cache import CachedMaskSource, fill_mask_cache
from upfeat.data.masks import (
    FirstOfMaskSource,
    LabelMaskSource,
    MaskSource,
    Sa1bMaskSource,
    SuperpixelMaskSource,
)
from upfeat.data.objects import (
    ClassifiedFile,
    ClassifiedImage,
    ClassifiedImages,
    ObjectData,
    ObjectFile,
    ObjectImage,
    load_objects,
    object_sets,
)
from upfeat.data.own import folder, folder_depth, folder_video
from upfeat.data.records import image_folder, image_list, imagenet_folder, sa1b_folder
from upfeat.data.segmentation import (
    LabelledFile,
    LabelledImage,
    SegmentationData,
    load_segmentation,
    segmentation_sets,
)
from upfeat.data.sets.bsds500 import RegionData, RegionFile, RegionImage, bsds500, bsds500_objects
from upfeat.data.sets.coco_stuff import coco_stuff
from upfeat.data.sets.imagenet import imagenet
from upfeat.data.sets.keypoints import pf_pascal, pf_willow, spair71k
from upfeat.data.sets.labelled import (
    ade20k,
    camvid,
    cityscapes,
    kitti360,
    msrc,
    pascal_context,
    voc,
)
from upfeat.data.sets.navi import navi, shrink_navi
from upfeat.data.sets.nuscenes import (
    DrivingData,
    DrivingFile,
    DrivingFrame,
    nuscenes,
    nuscenes_sample,
)
from upfeat.data.sets.nyuv2 import nyuv2, nyuv2_depth, nyuv2_surfaces
from upfeat.data.sets.nyuv2_unpacking import unpack_nyuv2, unpack_nyuv2_normals
from upfeat.data.sets.objects import (
    berkeley,
    coco_objects,
    coco_single_objects,
    davis_interactive,
    grabcut,
    sbd,
)
from upfeat.data.sets.rgbd import rgbd
from upfeat.data.surfaces import SurfaceData, SurfaceImage, folder_surfaces, normals_from_depth
from upfeat.data.tar_shards import TarRecords, find_images
from upfeat.data.training_images import TrainingImages, TrainingLoader
from upfeat.data.transforms import CropTransform, resize_and_crop
from upfeat.data.video import VideoData, VideoSequence, davis
from upfeat.data.video_frames import VIDEO_SUFFIXES, Video, open_video, write_frames

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "BoxData",
    "BoxFile",
    "BoxImage",
    "CachedMaskSource",
    "ClassifiedFile",
    "ClassifiedImage",
    "ClassifiedImages",
    "CropTransform",
    "DepthData",
    "DepthFile",
    "DepthImage",
    "DepthMapFolder",
    "DrivingData",
    "DrivingFile",
    "DrivingFrame",
    "FeatureCache",
    "FirstOfMaskSource",
    "ImageSource",
    "KeypointData",
    "KeypointFile",
    "KeypointPair",
    "LabelMaskSource",
    "LabelledFile",
    "LabelledImage",
    "MaskSource",
    "ObjectData",
    "ObjectFile",
    "ObjectImage",
    "RegionData",
    "RegionFile",
    "RegionImage",
    "Sa1bMaskSource",
    "SegmentationData",
    "SuperpixelMaskSource",
    "SurfaceData",
    "SurfaceImage",
    "TarRecords",
    "TrainingImages",
    "TrainingLoader",
    "Video",
    "VideoData",
    "VideoSequence",
    "ade20k",
    "berkeley",
    "bsds500",
    "bsds500_objects",
    "camvid",
    "cityscapes",
    "coco20k",
    "coco_objects",
    "coco_single_objects",
    "coco_stuff",
    "davis",
    "davis_interactive",
    "fill_mask_cache",
    "find_images",
    "folder",
    "folder_depth",
    "folder_surfaces",
    "folder_video",
    "grabcut",
    "image_files",
    "image_folder",
    "image_list",
    "image_size",
    "imagenet",
    "imagenet_folder",
    "keypoint_folder",
    "kitti360",
    "load_objects",
    "load_segmentation",
    "mask_folder",
    "msrc",
    "navi",
    "normals_from_depth",
    "nuscenes",
    "nuscenes_sample",
    "nyuv2",
    "nyuv2_depth",
    "nyuv2_surfaces",
    "object_sets",
    "open_video",
    "pascal_context",
    "pf_pascal",
    "pf_willow",
    "read_image",
    "resize_and_crop",
    "rgbd",
    "sa1b_folder",
    "sbd",
    "segmentation_sets",
    "shrink_navi",
    "spair71k",
    "unpack_nyuv2",
    "unpack_nyuv2_normals",
    "voc",
    "voc_boxes",
    "write_frames",
]
