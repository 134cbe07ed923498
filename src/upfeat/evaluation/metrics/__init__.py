"""Scores of predictions: pure functions, and classes that gather them over a data set."""

from upfeat.evaluation.metrics.segmentation import (
    SegmentationMeter,
    boundary_band,
    confusion_matrix,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)

__all__ = [
    "SegmentationMeter",
    "boundary_band",
    "confusion_matrix",
    "iou_per_class",
    "mean_iou",
    "pixel_accuracy",
]
