"""Linear probes for semantic segmentation that are trained on whole crops, as the papers do it.

* ``jafar`` (arXiv 2506.11136): crops of 448, AdamW at 5e-4, batches of 2, half of them flipped, 20
  epochs (5 for COCO-Stuff), a cosine that advances once an iteration though it was meant for
  epochs. The batch is that of the released code; the paper says 4.
* ``anyup`` (arXiv 2510.12764): the same with the cosine advanced after each epoch, batches of 4.
* ``naf`` (arXiv 2511.18452): the same with a cosine over all steps, batches of 2, and ImageNet's
  mean and deviation for every upsampler.
* ``loftup`` (arXiv 2504.14032): crops of 224, NAdam at 1e-4 (code; the paper says AdamW), batches
  of 8, 10 epochs, no flips, no schedule. Labels are shrunk to the features' size (nearest), and in
  validation the classes are enlarged to the label's size (nearest). The row ``low-res`` has labels
  and features at the size of the feature grid.

Cost, checkpoints, heads in front of upsamplers: see :mod:`upfeat.evaluation.probes.crops`. Scores
are those of the last epoch. Legend: ``B`` batch, ``K`` classes, ``s`` seeds, ``H W`` label,
``h' w'`` upsampled map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from upfeat.data.transforms import resize_and_crop
from upfeat.evaluation.metrics import SegmentationMetric
from upfeat.evaluation.probes.crops import CropProbe
from upfeat.evaluation.probes.parts import BoundaryOptions, CropProbeConfig, mean_class_ious
from upfeat.evaluation.registry import known_entry
from upfeat.evaluation.running import Measured, seed_scores
from upfeat.ops.images import Size

__all__ = ["IMAGE_PRESETS", "ImageProbe", "ImageProbeConfig", "image_probe_preset"]


class ImageProbeConfig(CropProbeConfig, BoundaryOptions):
    """Settings of the probe; all of them stand in the result.

    Attributes:
        fit: how predictions and labels meet where their sizes differ. ``logits_bilinear``: the
            logits are resized to the label, in training and validation. ``labels_nearest``: labels
            are shrunk in training; in validation the classes are enlarged. ``logits_nearest``: the
            logits are resized in training, the classes in validation.
        boundary_radius: also score the band along label boundaries, so many pixels wide.
    """

    fit: Literal["logits_bilinear", "labels_nearest", "logits_nearest"] = "logits_bilinear"
    boundary_radius: PositiveInt | None = None


IMAGE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "jafar": {"schedule": "per_iteration_bug"},
    "anyup": {"schedule": "per_epoch", "batch": 4},
    "naf": {"schedule": "per_step", "guidance": "imagenet"},
    "loftup": {
        "crop_size": 224,
        "optimizer": "nadam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "schedule": "constant",
        "epochs": 10,
        "batch": 8,
        "flip": 0.0,
        "resize_guidance": True,
        "fit": "labels_nearest",
    },
}
COCO_EPOCHS = 5


def image_probe_preset(preset: str, data: str, **changes: Any) -> ImageProbeConfig:
    """Return the settings of a paper's protocol for a data set; COCO-Stuff has fewer epochs.

    Raises:
        UnknownNameError: no such preset.
        ValueError: an impossible value.
    """
    settings = dict(known_entry("preset", preset, IMAGE_PRESETS))
    own = changes.get("reader") is not None
    if preset != "loftup" and data.startswith("coco") and not own:
        settings["epochs"] = COCO_EPOCHS
    return ImageProbeConfig(**{"preset": preset, "data": data} | settings | changes)


@dataclass(eq=False)
class ImageProbe(CropProbe[SegmentationMetric]):
    """Semantic segmentation on crops."""

    task = "seg-probe"

    config: ImageProbeConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outputs = len(self.train.classes)
        self.ignored = self.train.ignore_index
        self.facts |= {
            "classes": self.outputs,
            "crop": "short side resized (bilinear, antialiased; labels nearest), centre crop",
            "head": "1x1 convolution, mean cross-entropy of labelled pixels",
        }

    def read(self, split: str, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop with its label."""
        image, label = self.splits[split][index]
        return resize_and_crop(image, label, self.config.crop_size)

    def pixelwise(self, size: Size) -> bool:
        """Whether the loss is a sum over the output's pixels."""
        side = self.config.crop_size
        return self.config.fit == "labels_nearest" or size == (side, side)

    def loss(self, outputs: Tensor, target: Tensor, iteration: int) -> Tensor | None:
        """Return the seeds' mean cross-entropies, added up."""
        size = (outputs.shape[-2], outputs.shape[-1])
        if self.pixelwise(size):
            target, counted = self.pixel_target(target, size)
        else:
            mode = "bilinear" if self.config.fit == "logits_bilinear" else "nearest"
            resized = F.interpolate(outputs.flatten(0, 1), target.shape[1:], mode=mode)
            outputs = resized.unflatten(0, outputs.shape[:2])
            counted = int((target != self.ignored).sum())
        return self.pixel_loss(outputs, target, counted) if counted else None

    def pixel_target(self, target: Tensor, size: Size) -> tuple[Tensor, int]:
        """Return the labels at the output's size, and how many of them are known."""
        if self.config.fit == "labels_nearest":
            shrunk = F.interpolate(target[:, None].double(), size, mode="nearest")
            target = shrunk[:, 0].long()
        return target, int((target != self.ignored).sum())

    def pixel_loss(self, outputs: Tensor, target: Tensor, counted: int) -> Tensor:
        """Return the cross-entropies of all seeds, divided by the number of known labels."""
        logits = outputs.flatten(0, 1)  # (B, s, K, R, w') -> (B*s, K, R, w')
        repeated = target.repeat_interleave(outputs.shape[1], 0)  # (B, R, w') -> (B*s, R, w')
        loss = F.cross_entropy(logits, repeated, ignore_index=self.ignored, reduction="sum")
        return loss / counted

    def metric(self) -> SegmentationMetric:
        """Return an empty confusion matrix."""
        more = self.config.boundary_metric(self.outputs, self.ignored)
        return SegmentationMetric(self.outputs, self.ignored, self.config.boundary_radius, more)

    def score(self, metrics: Sequence[SegmentationMetric], outputs: Tensor, target: Tensor) -> None:
        """Add the predicted classes of an image."""
        logits, size = outputs[0], target.shape[1:]  # (s, K, h', w')
        if self.config.fit == "logits_bilinear":
            if logits.shape[2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear")
            predicted = logits.argmax(1)
        else:
            small = logits.argmax(1, keepdim=True).to(torch.float64)
            predicted = F.interpolate(small, size, mode="nearest")[:, 0].long()
        for metric, classes in zip(metrics, predicted, strict=True):
            metric.add(classes, target[0])

    def summarise(self, metrics: Sequence[SegmentationMetric]) -> Measured:
        """Return scores in percent, and the IoU of each class."""
        ious = mean_class_ious(self.val.classes, metrics)
        return seed_scores([metric.compute() for metric in metrics]), {"iou_per_class": ious}
