"""Linear probe for semantic segmentation on upsampled features.

Preset ``pixel-sample``: the image is resized for the backbone only; the upsampler is guided by
that resized image and gives features at the label's own size. A 1x1 convolution is trained on
pixels drawn from a fixed sample of labelled pixels of every training image (AdamW, cosine to zero,
one step of the schedule a batch) and scored on all pixels of the validation split, at the label's
size, with and without a restriction to the band along label boundaries. The presets of the papers,
trained on whole crops, are in :mod:`upfeat.evaluation.probes.segmentation_crops`; they go by the
same functions.

What makes it cheap: low-resolution features are computed once for all methods and kept on disk; a
method upsamples each training image once, and only the sampled pixels are kept; in validation the
heads of all seeds go in front of the upsampler where ``info.abilities.linear`` allows
(:func:`upfeat.fold_head`), else behind it.

Legend: ``B`` batch, ``C`` feature channels, ``K`` classes, ``S`` seeds, ``P`` pixels of an image,
``N`` pixels of the pool, ``h w`` feature grid, ``H W`` label.
"""

from collections.abc import Sequence
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
    PixelPool,
    PixelSampleConfig,
    Stages,
    encode_turned,
    run_pixel_methods,
    sample_pixels,
)
from upfeat.evaluation.probes.segmentation_crops import (
    IMAGE_PRESETS,
    ImageProbeConfig,
    image_probe_preset,
    run_image_probe,
)
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    prefixed,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment
from upfeat.evaluation.tables.panels import Panel, image_panel, save_panel, shown_images
from upfeat.pipeline import Encoded, Pipeline

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

    Args:
        preset: ``pixel-sample``, ``jafar``, ``anyup``, ``naf`` or ``loftup``.
        data: a name of :func:`upfeat.data.segmentation`; for ``pixel-sample`` one of
            ``PRESETS``, or any with ``reader="folder"`` and an ``input_size``.
        **changes: fields of :class:`SegProbeConfig`, or of
            :class:`upfeat.evaluation.probes.segmentation_crops.ImageProbeConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.seg_probe import seg_probe_preset
        >>> seg_probe_preset("pixel-sample", "camvid", steps=100).steps
        100
        >>> seg_probe_preset("naf", "voc").schedule
        'per_step'
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
    """Probe several upsamplers on the same features; results that exist already are read.

    Args:
        config: the protocol.
        train: whole training split; ``train_every`` and ``limit`` of the settings apply.
        val: whole validation split; ``limit`` applies.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device; a ``JointMethod`` with the papers' presets only.
        out: folder of the results, one JSON a method, written whole as soon as it is known; preset
            ``pixel-sample`` leaves pictures of three images in ``out/panels`` for the report.
        cache: folder of low-resolution features, sampled pixels and checkpoints; an interrupted
            run goes on from what is there.
        keep_pixels: keep a method's sampled pixels after its result is written (about
            ``2 * C * pixels_per_image`` bytes a training image).
        keep_weights: save methods that are trained with the heads (papers' presets), one folder a
            seed in ``out/weights``.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    if isinstance(config, ImageProbeConfig):
        return run_image_probe(
            config,
            train,
            val,
            backbone,
            methods,
            out=out,
            cache=cache,
            keep_weights=keep_weights,
            on_progress=on_progress,
        )
    train = train.select(config.train_every, config.limit)
    val = val.select(limit=config.limit)
    probe = PixelProbe(config, train, val, backbone, Path(cache), on_progress or silent, Path(out))
    return run_pixel_methods(
        probe,
        methods,
        task=TASK,
        data=config.data,
        joint_presets=" or ".join(IMAGE_PRESETS),
        out=out,
        keep_pixels=keep_pixels,
    )


class PixelProbe:
    """The preset ``pixel-sample``: one backbone on one set, the methods one after the other."""

    def __init__(
        self,
        config: SegProbeConfig,
        train: SegmentationData,
        val: SegmentationData,
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
        panels: Path | None = None,
    ) -> None:
        self.config, self.train, self.val = config, train, val
        self.on_progress, self.panels = on_progress, panels
        self.pipe = Pipeline(
            backbone,
            input_size=config.input_size,
            fit="exact",
            cache=cache / "features",
            cache_dtype=getattr(torch, config.stored_features),
        )
        self.pool = PixelPool(self.pipe, config.data, config.pixels_per_image, cache)
        self.splits = {
            split.name: {"images": len(split), "fingerprint": split.fingerprint()}
            for split in (train, val)
        }

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return self.config.model_dump(mode="json") | {
            "splits": self.splits,
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "image_resize": "bicubic, antialiased; height and width exchanged for portraits",
            "band": "Euclidean distance to a pixel with a 4-neighbour of another label",
            "head": "1x1 convolution, cross-entropy, AdamW, cosine to 0 per step",
        }

    def run(self, method: Method, settings: dict[str, Any]) -> Result:
        """Sample, train all heads, score."""
        stages = Stages()
        pixels, labels = self.sample(method)
        stages.end("sampling")
        heads = self.train_heads(method, pixels, labels)
        stages.end("training")
        metrics = self.validate(method, heads)
        stages.end("validation")
        scores = [metric.compute() for metric in metrics]
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores={
                name: Score.of([round(100 * score[name], 4) for score in scores])
                for name in scores[0]
            },
            details={
                "iou_per_class": mean_class_ious(self.val.classes, metrics),
                "pool_pixels": len(labels),
                "head_before_upsampling": method.upsampler.info.abilities.linear,
            },
            seconds=stages.seconds,
            environment=describe_environment(),
        )

    def train_heads(self, method: Method, pixels: Tensor, labels: Tensor) -> list[nn.Linear]:
        """Train a head for each seed on the pixels of :meth:`sample`."""
        seeds = self.config.seeds
        heads = []
        for number, seed in enumerate(seeds):
            self.on_progress(method.label, "training heads", number, len(seeds))
            heads.append(train_head(pixels, labels, len(self.train.classes), self.config, seed))
        return heads

    # -- training pixels -------------------------------------------------------------------------

    def sample(self, method: Method) -> tuple[Tensor, Tensor]:
        """Return sampled upsampled features (N, C), float16, and their classes (N,)."""
        pixels, classes = [], []
        for number, file in enumerate(self.train.files):
            self.on_progress(method.label, "sampling pixels", number, len(self.train))
            image, label = self.train.read(file)
            known = label != self.train.ignore_index
            positions = sample_pixels(known, self.config.pixels_per_image, file.name)
            if not len(positions):
                continue
            size: Size = (label.shape[0], label.shape[1])
            key = f"{file.name}-{self.train.file_hash(file)}"
            encoded = encode_turned(self.pipe, image)
            pixels.append(self.pool.read(method, encoded, size, positions, key))
            classes.append(label.flatten()[positions])
        if not pixels:
            raise ValueError(f"no image of {self.train.name} has a labelled pixel")
        return torch.cat(pixels), torch.cat(classes)

    # -- scores ----------------------------------------------------------------------------------

    def validate(self, method: Method, heads: Sequence[nn.Linear]) -> list[SegmentationMetric]:
        """Score the heads of all seeds in one pass over the validation split."""
        device, radius = self.pipe.device, self.config.boundary_radius
        # S x (K, C) -> (S*K, C, 1, 1)
        weight = torch.cat([head.weight for head in heads])[:, :, None, None].to(device)
        bias = torch.cat([head.bias for head in heads]).to(device)
        count, ignored = len(self.val.classes), self.val.ignore_index
        metrics = [
            SegmentationMetric(count, ignored, radius, self.config.boundary_metric(count, ignored))
            for _ in heads
        ]
        shown = frozenset() if self.panels is None else shown_images(len(self.val))
        for number, file in enumerate(self.val.files):
            self.on_progress(method.label, "scoring", number, len(self.val))
            image, label = self.val.read(file)
            encoded = encode_turned(self.pipe, image)
            predicted = self.predict(
                method, encoded, (label.shape[0], label.shape[1]), weight, bias
            )
            band = boundary_band(label, radius)
            for metric, classes in zip(metrics, predicted, strict=True):
                metric.add(classes, label, band)
            if number in shown:
                self.draw(method, file.name, encoded.prepared[0], label, predicted[0])
        return metrics

    def draw(
        self, method: Method, name: str, image: Tensor, label: Tensor, predicted: Tensor
    ) -> None:
        """Leave the image (3, h, w), its label and the first seed's classes (H, W) as pictures."""
        if self.panels is None:
            return
        common: dict[str, Any] = {"task": TASK, "data": self.config.data, "image": name}
        common["backbone"] = self.pipe.identity["name"]
        classes: dict[str, Any] = {
            "classes": self.val.classes,
            "ignore_index": self.val.ignore_index,
        }
        pictures = (
            image_panel(image, **common),
            Panel(**common, **classes, label="target", kind="target", values=label),
            Panel(**common, **classes, label=method.label, kind="prediction", values=predicted),
        )
        for picture in pictures:
            save_panel(self.panels, picture)

    @torch.no_grad()
    def predict(
        self, method: Method, encoded: Encoded, size: Size, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Return the predicted classes (S, H, W) of each head."""
        seeds = len(bias) // len(self.val.classes)
        predicted = torch.empty(seeds, *size, dtype=torch.int64)
        heads = partial(F.conv2d, weight=weight, bias=bias)
        for rows, logits in method.on(self.pipe).pieces(encoded, size, heads):
            # (1, S*K, R, W') -> (S, K, R, W') -> (S, R, W')
            split = logits.reshape(seeds, -1, *logits.shape[-2:])
            predicted[:, rows] = split.argmax(1).cpu()
        return predicted


def train_head(
    pixels: Tensor, labels: Tensor, num_classes: int, config: SegProbeConfig, seed: int
) -> nn.Linear:
    """Train a linear classifier of pixels.

    Args:
        pixels: (N, C), any floating point type.
        labels: (N,).
        num_classes: K.
        config: steps, batch, learning rate.
        seed: of initialisation and draws.

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
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        drawn = torch.randint(len(labels), (config.batch_pixels,), generator=generator)
        # index_select copies rows several times faster than pixels[drawn]
        batch = pixels.index_select(0, drawn).float()
        loss = F.cross_entropy(head(batch), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


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
        options=(
            Option(
                "keep_pixels",
                "Keep the cached features of the sampled pixels after a method is finished.",
                "flag",
                False,
            ),
            KEEP_WEIGHTS,
        ),
    )
)
