"""Linear probe for semantic segmentation on upsampled features.

Preset ``pixel-sample``: a 1x1 convolution is trained on pixels drawn from a fixed sample of
labelled pixels of every training image (AdamW, cosine to zero, one step of the schedule a batch)
and scored on all pixels of the validation split, at the label's size, with and without a
restriction to the band along label boundaries; see :mod:`upfeat.evaluation.probes.pixels`. The
presets of the papers, trained on whole crops, are in
:mod:`upfeat.evaluation.probes.segmentation_crops`.

Legend: ``C`` feature channels, ``K`` classes, ``S`` seeds, ``N`` pixels, ``H W`` label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.data import SegmentationData, load_segmentation, segmentation_sets
from upfeat.data.own import own_input_size
from upfeat.data.sizes import Size
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import SegmentationMetric, boundary_band
from upfeat.evaluation.probes.crops import KEEP_WEIGHTS
from upfeat.evaluation.probes.parts import BoundaryOptions, mean_class_ious
from upfeat.evaluation.probes.pixels import (
    KEEP_PIXELS,
    PixelSampleConfig,
    PixelSampleProbe,
    TrainingPixels,
    train_on_pixels,
)
from upfeat.evaluation.probes.segmentation_crops import (
    IMAGE_PRESETS,
    ImageProbe,
    ImageProbeConfig,
    image_probe_preset,
)
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    prefixed,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Picture, seed_scores
from upfeat.pipeline import Encoded

__all__ = [
    "PRESETS",
    "SCORES",
    "PixelProbe",
    "SegProbeConfig",
    "labelled_splits",
    "own_settings",
    "run_seg_probe",
    "seg_probe_preset",
]

TASK = "seg-probe"


class SegProbeConfig(PixelSampleConfig, BoundaryOptions):
    """Settings of the preset ``pixel-sample``.

    Attributes:
        boundary_radius: of the band, in pixels of the label.
    """

    boundary_radius: PositiveInt = 5


# What the preset changes for each set it is meant for.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "pixel-sample": {
        "camvid": {"input_size": (352, 480), "train_every": 2},
        "msrc": {"input_size": (208, 320)},
        "nyuv2": {"input_size": (432, 560)},
        "nyuv2_13": {"input_size": (432, 560)},
    }
}


def seg_probe_preset(preset: str, data: str, **changes: Any) -> SegProbeConfig | ImageProbeConfig:
    """Return the settings of a protocol for a data set.

    ``pixel-sample`` knows the sets of ``PRESETS``, and with ``reader="folder"`` and an
    ``input_size`` any other; the papers' presets know all of :func:`upfeat.data.segmentation`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.
    """
    if preset in IMAGE_PRESETS:
        return image_probe_preset(preset, data, **changes)
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, [*PRESETS, *IMAGE_PRESETS])
    own = changes.get("reader") is not None
    settings = {} if own else known_entry("data set", data, PRESETS[preset])
    return SegProbeConfig(**{"preset": preset, "data": data} | settings | changes)


def run_seg_probe(
    config: SegProbeConfig | ImageProbeConfig,
    train: SegmentationData,
    val: SegmentationData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    keep_pixels: bool = False,
    keep_weights: bool = False,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Probe several upsamplers on the same features, see :attr:`Protocol.run`.

    Preset ``pixel-sample`` leaves pictures of three images in ``out/panels`` for the report. The
    cache also keeps sampled pixels and checkpoints, from which an interrupted run goes on. A
    ``JointMethod`` is trained with the heads by the papers' presets only.

    ``keep_pixels`` keeps a method's sampled pixels after its result is written (about
    ``2 * C * pixels_per_image`` bytes a training image); ``keep_weights`` saves methods that are
    trained with the heads, one folder a seed in ``out/weights``.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    train, val = train.select(config.train_every, config.limit), val.select(limit=config.limit)
    places = (Path(out), on_progress or silent, train, val, backbone, Path(cache))
    if isinstance(config, ImageProbeConfig):
        return ImageProbe(config, *places, keep_weights).run(methods)
    return PixelProbe(config, *places, keep_pixels).run(methods)


@dataclass(eq=False)
class PixelProbe(PixelSampleProbe[nn.Linear, SegmentationMetric]):
    """The preset ``pixel-sample`` for one backbone on one set."""

    task = TASK
    joint_presets = " or ".join(IMAGE_PRESETS)

    config: SegProbeConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.facts |= {
            "band": "Euclidean distance to a pixel with a 4-neighbour of another label",
            "head": "1x1 convolution, cross-entropy, AdamW, cosine to 0 per step",
        }

    def known(self, target: Tensor) -> Tensor:
        """Return where a label counts."""
        return target != self.train.ignore_index

    def train_head(self, pool: TrainingPixels, seed: int) -> nn.Linear:
        """Return the head of a seed, trained."""
        count = len(self.train.classes)
        return train_head(pool.pixels, pool.targets, count, self.config, seed)

    def metric(self) -> SegmentationMetric:
        """Return an empty metric."""
        count, ignored = len(self.val.classes), self.val.ignore_index
        more = self.config.boundary_metric(count, ignored)
        return SegmentationMetric(count, ignored, self.config.boundary_radius, more)

    def score(
        self, metrics: Sequence[SegmentationMetric], predicted: Tensor, target: Tensor
    ) -> None:
        """Add the classes of an image."""
        band = boundary_band(target, self.config.boundary_radius)
        for metric, classes in zip(metrics, predicted, strict=True):
            metric.add(classes, target, band)

    def summarise(self, method: Method, metrics: Sequence[SegmentationMetric]) -> Measured:
        """Return scores in percent, and the IoU of each class."""
        return seed_scores([metric.compute() for metric in metrics]), {
            "iou_per_class": mean_class_ious(self.val.classes, metrics),
            "head_before_upsampling": method.upsampler.info.abilities.linear,
        }

    def picture(self, name: str, image: Tensor, target: Tensor, label: str, found: Tensor) -> None:
        """Leave an image, its label and the predicted classes as pictures."""
        both: list[Picture] = [("target", "target", target), (label, "prediction", found)]
        classes, ignored = self.val.classes, self.val.ignore_index
        backbone = self.pipe.identity["name"]
        self.draw(image, name, backbone, both, classes=classes, ignore_index=ignored)

    def predict(
        self, method: Method, encoded: Encoded, size: Size, heads: Sequence[nn.Linear]
    ) -> Tensor:
        """Return the predicted classes (S, H, W) of each head."""
        # S x (K, C) -> (S*K, C, 1, 1)
        weight = torch.cat([head.weight for head in heads])[:, :, None, None]
        bias = torch.cat([head.bias for head in heads])
        together = partial(F.conv2d, weight=weight, bias=bias)
        predicted = torch.empty(len(heads), *size, dtype=torch.int64)
        for rows, logits in method.on(self.pipe).pieces(encoded, size, together):
            # (1, S*K, R, W') -> (S, K, R, W') -> (S, R, W')
            split = logits.reshape(len(heads), -1, *logits.shape[-2:])
            predicted[:, rows] = split.argmax(1).cpu()
        return predicted


def train_head(
    pixels: Tensor, labels: Tensor, num_classes: int, config: SegProbeConfig, seed: int
) -> nn.Linear:
    """Train a linear classifier of K classes on pixels (N, C) with labels (N,).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.protocols.seg_probe import seg_probe_preset, train_head
        >>> config = seg_probe_preset("pixel-sample", "msrc", steps=200, learning_rate=0.1)
        >>> head = train_head(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, config, 0)
        >>> head(torch.tensor([[-1.0], [1.0]])).argmax(1).tolist()
        [0, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(pixels.shape[1], num_classes)
    bound = pixels.shape[1] ** -0.5  # torch's default, from our own generator
    for parameter in head.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def loss(drawn: Tensor, step: int) -> Tensor:
        # index_select copies rows several times faster than pixels[drawn]
        batch = pixels.index_select(0, drawn).float()
        return F.cross_entropy(head(batch), labels[drawn])

    return train_on_pixels(head, len(labels), config, generator, loss)


def labelled_splits(request: Request) -> dict[str, Any]:
    """Return the training and the validation split of a request's data set, by name."""
    data, root = str(request.data), request.root
    return {split: load_segmentation(data, root, split) for split in ("train", "val")}


def _inputs(request: Request) -> dict[str, Any]:
    options = ("keep_pixels", "keep_weights")
    kept = {"cache": request.cache} | {name: request.options[name] for name in options}
    return labelled_splits(request) | kept


def own_settings(preset: str, root: Path) -> dict[str, Any]:
    """Return the settings for a folder of the user's own: the size follows its images."""
    return {} if preset in IMAGE_PRESETS else {"input_size": own_input_size(root)}


SCORES = {
    "miou": higher("mIoU"),
    "miou_labelled": higher("mIoU labelled"),
    "accuracy": higher("accuracy"),
}
SCORES |= prefixed(SCORES, "band_", "boundary ")
SCORES |= {
    "trimap_miou": higher("trimap mIoU", "percent"),
    "trimap_accuracy": higher("trimap accuracy", "percent"),
    "boundary_iou": higher("Boundary IoU"),
    "boundary_f": higher("boundary F"),
}

register_protocol(
    Protocol(
        name=TASK,
        title="Segmentation, linear probe",
        summary="Train linear segmentation heads on upsampled features.",
        scores=SCORES,
        headline=("miou_labelled", "miou"),
        configure=seg_probe_preset,
        presets=(*PRESETS, *IMAGE_PRESETS),
        data=tuple(segmentation_sets()),
        inputs=_inputs,
        own_settings=own_settings,
        run=run_seg_probe,
        weights="joint",
        seeds=True,
        items="images of each split",
        options=(KEEP_PIXELS, KEEP_WEIGHTS),
    )
)
