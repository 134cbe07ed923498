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
from upfeat.evaluation.metrics.correspondence import (
    KeypointMetric,
    SquareCanvas,
    match_cells,
    nearest_points,
    percent_name,
    similarities,
    soft_argmax,
)
from upfeat.evaluation.metrics.depth import DepthMetric, depth_scores, fit_scale_and_shift
from upfeat.evaluation.metrics.discovery import CorLocMetric, Cut, box_iou, normalized_cut
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
    "CorLocMetric",
    "Cut",
    "DepthMetric",
    "FrameStatistics",
    "KeypointMetric",
    "Metric",
    "NormalMetric",
    "SegmentationMetric",
    "SquareCanvas",
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
    "box_iou",
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
    "match_cells",
    "mean_iou",
    "nearest_points",
    "next_click",
    "normal_scores",
    "normalize_map",
    "normalized_cut",
    "object_numbers",
    "percent_name",
    "pixel_accuracy",
    "propagate_labels",
    "region_similarity",
    "similarities",
    "sobel_map",
    "soft_argmax",
    "squared_distance",
    "step_distance",
    "vehicle_counts",
]
