"""Images and data sets: reading, listing, transforming. No networks, no downloads."""

from upfeat.data.boxes import BoxData, BoxFile, BoxImage, coco20k, mask_folder, voc_boxes
from upfeat.data.classified import ClassifiedFile, ClassifiedImage, ClassifiedImages
from upfeat.data.depth import DepthData, DepthFile, DepthImage, DepthMapFolder
from upfeat.data.driving import DrivingData, DrivingFile, DrivingFrame
from upfeat.data.feature_cache import FeatureCache
from upfeat.data.films import FILM_SUFFIXES, Film, open_film, write_frames
from upfeat.data.folders import IMAGE_SUFFIXES, image_files
from upfeat.data.images import ImageSource, image_size, read_image
from upfeat.data.keypoints import (
    KeypointData,
    KeypointFile,
    KeypointPair,
    keypoint_folder,
)
from upfeat.data.mask_cache import CachedMaskSource, fill_mask_cache
from upfeat.data.masks import (
    FirstOfMaskSource,
    LabelMaskSource,
    MaskSource,
    Sa1bMaskSource,
    SuperpixelMaskSource,
)
from upfeat.data.objects import ObjectData, ObjectFile, ObjectImage, load_objects, object_sets
from upfeat.data.own import folder, folder_depth, folder_video
from upfeat.data.own_surfaces import folder_surfaces
from upfeat.data.records import image_folder, image_list, imagenet_folder, sa1b_folder
from upfeat.data.segmentation import (
    LabelledFile,
    LabelledImage,
    SegmentationData,
    load_segmentation,
    segmentation_sets,
)
from upfeat.data.sets.ade20k import ade20k
from upfeat.data.sets.bsds500 import (
    RegionData,
    RegionFile,
    RegionImage,
    bsds500,
    bsds500_objects,
)
from upfeat.data.sets.camvid import camvid
from upfeat.data.sets.cityscapes import cityscapes
from upfeat.data.sets.coco_objects import coco_objects, coco_single_objects
from upfeat.data.sets.coco_stuff import coco_stuff
from upfeat.data.sets.davis import davis
from upfeat.data.sets.grabcut import berkeley, davis_interactive, grabcut
from upfeat.data.sets.imagenet import imagenet
from upfeat.data.sets.kitti360 import kitti360
from upfeat.data.sets.msrc import msrc
from upfeat.data.sets.navi import navi, shrink_navi
from upfeat.data.sets.nuscenes import nuscenes, nuscenes_sample
from upfeat.data.sets.nyuv2 import nyuv2, nyuv2_depth, unpack_nyuv2
from upfeat.data.sets.nyuv2_surfaces import nyuv2_surfaces, unpack_nyuv2_normals
from upfeat.data.sets.pascal_context import pascal_context
from upfeat.data.sets.pf import pf_pascal, pf_willow
from upfeat.data.sets.rgbd import rgbd
from upfeat.data.sets.sbd import sbd
from upfeat.data.sets.spair71k import spair71k
from upfeat.data.sets.voc import voc
from upfeat.data.surfaces import SurfaceData, SurfaceImage, normals_from_depth
from upfeat.data.tar_shards import TarRecords, find_images
from upfeat.data.training_images import TrainingImages, TrainingLoader
from upfeat.data.transforms import CropTransform, resize_and_crop
from upfeat.data.video import VideoData, VideoSequence

__all__ = [
    "FILM_SUFFIXES",
    "IMAGE_SUFFIXES",
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
    "Film",
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
    "open_film",
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
