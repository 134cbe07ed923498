"""Scores of predictions: pure functions, and classes that gather them over a data set."""

from upfeat.evaluation.metrics.bev import BevMetric, vehicle_counts
from upfeat.evaluation.metrics.boundaries import (
    boundary_band,
    boundary_iou,
    boundary_map,
    boundary_radius,
    boundary_region,
    boundary_similarity,
    sobel_map,
)
from upfeat.evaluation.metrics.cam import (
    CamMetric,
    adcc,
    average_drop,
    average_gain,
    average_increase,
    coherency,
    complexity_l0,
    complexity_l1,
    gradcam_map,
    gradcam_weights,
    normalize_map,
)
from upfeat.evaluation.metrics.clicks import (
    Click,
    ClickMetric,
    click_maps,
    clicks_needed,
    next_click,
)
from upfeat.evaluation.metrics.depth import DepthMetric, depth_scores, fit_scale_and_shift
from upfeat.evaluation.metrics.distances import squared_distance, step_distance
from upfeat.evaluation.metrics.normals import NormalMetric, angular_error, normal_scores
from upfeat.evaluation.metrics.propagation import masks_to_labels, propagate_labels
from upfeat.evaluation.metrics.segmentation import (
    BoundaryMetric,
    SegmentationMetric,
    confusion_matrix,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)
from upfeat.evaluation.metrics.video import (
    FrameStatistics,
    VideoMetric,
    frame_statistics,
    object_numbers,
    region_similarity,
)
from upfeat.evaluation.results import Metric

__all__ = [
    "BevMetric",
    "BoundaryMetric",
    "CamMetric",
    "Click",
    "ClickMetric",
    "DepthMetric",
    "FrameStatistics",
    "Metric",
    "NormalMetric",
    "SegmentationMetric",
    "VideoMetric",
    "adcc",
    "angular_error",
    "average_drop",
    "average_gain",
    "average_increase",
    "boundary_band",
    "boundary_iou",
    "boundary_map",
    "boundary_radius",
    "boundary_region",
    "boundary_similarity",
    "click_maps",
    "clicks_needed",
    "coherency",
    "complexity_l0",
    "complexity_l1",
    "confusion_matrix",
    "depth_scores",
    "fit_scale_and_shift",
    "frame_statistics",
    "gradcam_map",
    "gradcam_weights",
    "iou_per_class",
    "masks_to_labels",
    "mean_iou",
    "next_click",
    "normal_scores",
    "normalize_map",
    "object_numbers",
    "pixel_accuracy",
    "propagate_labels",
    "region_similarity",
    "sobel_map",
    "squared_distance",
    "step_distance",
    "vehicle_counts",
]
