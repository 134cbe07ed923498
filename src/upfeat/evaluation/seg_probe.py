"""Linear probe for semantic segmentation on upsampled features.

Preset ``pixel-sample``: the image is resized for the backbone only; the upsampler is guided by
that resized image and gives features at the label's own size. A 1x1 convolution is trained on
pixels drawn from a fixed sample of labelled pixels of every training image (AdamW, cosine to zero,
one step of the schedule a batch) and scored on all pixels of the validation split, at the label's
size, with and without a restriction to the band along label boundaries.

What makes it cheap: low-resolution features are computed once for all methods and kept on disk; a
method upsamples each training image once, and only the sampled pixels are kept; in validation the
heads of all seeds go in front of the upsampler where ``info.commutes_with_head`` allows
(:func:`upfeat.fold_head`), else behind it.

Legend: ``B`` batch, ``C`` feature channels, ``K`` classes, ``S`` seeds, ``P`` pixels of an image,
``N`` pixels of the pool, ``h w`` feature grid, ``H W`` label.
"""

import io
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.checkpoints import write_bytes
from upfeat.data import FeatureCache, SegmentationData, camvid, msrc
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.segmentation import LabelledFile, LabelledImage
from upfeat.data.sizes import Size, normalize, resize
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.metrics import SegmentationMeter, boundary_band, iou_per_class
from upfeat.evaluation.results import Result, Score, describe_environment, result_file_name
from upfeat.upsamplers import Upsampler

__all__ = ["DATA_SETS", "PRESETS", "Method", "SegProbeConfig", "run_seg_probe", "seg_probe_preset"]

logger = logging.getLogger(__name__)

TASK = "seg-probe"
WHOLE_BYTES = 512 * 2**20  # an output above this is computed in tiles where the method has them
Progress = Callable[[str, str, int, int], None]


class SegProbeConfig(BaseModel):
    """Settings of the probe; all of them stand in the result.

    Attributes:
        preset: the protocol that the settings come from.
        data: name of the set.
        input_size: (H, W) of the image for backbone and guidance, for images that are wider than
            high; exchanged for the others.
        train_every: every n-th training image is used.
        limit: at most so many training and validation images (a quick look, no result to quote).
        pixels_per_image: size of the fixed sample of each training image.
        steps, batch_pixels: of the training; pixels are drawn with replacement.
        learning_rate, weight_decay: of AdamW.
        boundary_radius: of the band, in pixels of the label.
        seeds: each gives a head of its own (initialisation and draws).

    Example:
        >>> from upfeat.evaluation.seg_probe import seg_probe_preset
        >>> seg_probe_preset("pixel-sample", "msrc").input_size
        (208, 320)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["pixel-sample"] = "pixel-sample"
    data: str
    input_size: tuple[PositiveInt, PositiveInt]
    train_every: PositiveInt = 1
    limit: PositiveInt | None = None
    pixels_per_image: PositiveInt = 4096
    steps: PositiveInt = 3000
    batch_pixels: PositiveInt = 4096
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    boundary_radius: PositiveInt = 5
    seeds: tuple[int, ...] = (0, 1, 2)


# How each set is read, and what a preset changes for it.
DATA_SETS: dict[str, Callable[..., SegmentationData]] = {"camvid": camvid, "msrc": msrc}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "pixel-sample": {
        "camvid": {"input_size": (352, 480), "train_every": 2},
        "msrc": {"input_size": (208, 320)},
    }
}


def seg_probe_preset(preset: str, data: str, **changes: Any) -> SegProbeConfig:
    """Return the settings of a protocol for a data set.

    Args:
        preset: see ``PRESETS``.
        data: see ``DATA_SETS``.
        **changes: fields of :class:`SegProbeConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.seg_probe import seg_probe_preset
        >>> seg_probe_preset("pixel-sample", "camvid", steps=100).steps
        100
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    if data not in PRESETS[preset]:
        raise UnknownNameError("data set", data, PRESETS[preset])
    return SegProbeConfig(**{"preset": preset, "data": data} | PRESETS[preset][data] | changes)


@dataclass(frozen=True)
class Method:
    """An upsampler under a label of the user's choice.

    Attributes:
        label: in tables and file names.
        upsampler: what is measured.

    Example:
        >>> import upfeat
        >>> from upfeat.evaluation.seg_probe import Method
        >>> Method("linear", upfeat.create_upsampler("bilinear")).identity["name"]
        'bilinear'
    """

    label: str
    upsampler: Upsampler
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        info = self.upsampler.info
        if info.requires:
            raise UnsupportedError(
                f"{info.name} needs {', '.join(info.requires)} besides image and features, which "
                "the probe does not have; leave it out"
            )
        identity = {
            "name": info.name,
            "config": json.loads(json.dumps(self.upsampler.config, default=str)),
            "weights": weights_fingerprint(self.upsampler.state_dict()),
        }
        object.__setattr__(self, "identity", identity)


def run_seg_probe(
    config: SegProbeConfig,
    train: SegmentationData,
    val: SegmentationData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    keep_pixels: bool = False,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Probe several upsamplers on the same features; results that exist already are read.

    Args:
        config: the protocol.
        train, val: whole splits; ``train_every`` and ``limit`` of the settings apply to them.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device.
        out: folder of the results, one JSON a method, written whole as soon as it is known.
        cache: folder of low-resolution features and sampled pixels; an interrupted run goes on
            from what is there.
        keep_pixels: keep a method's sampled pixels after its result is written (about
            ``2 * C * pixels_per_image`` bytes a training image).
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.

    Example:
        >>> from upfeat.evaluation.seg_probe import PRESETS
        >>> sorted(PRESETS["pixel-sample"])
        ['camvid', 'msrc']
    """
    train = train.select(config.train_every, config.limit)
    val = val.select(limit=config.limit)
    probe = _Probe(config, train, val, backbone, Path(cache), on_progress or _silent)
    results = []
    for method in methods:
        settings = probe.settings(method)
        path = Path(out) / result_file_name(TASK, config.data, method.label, settings)
        if path.is_file() and (known := Result.load(path)).settings == settings:
            logger.info("%s: %s is there already", method.label, path)
            results.append(known)
            continue
        result = probe.run(method, settings)
        result.save(path)
        if not keep_pixels:
            shutil.rmtree(probe.pixel_folder(method), ignore_errors=True)
        results.append(result)
    return results


class _Probe:
    """One backbone on one set; the methods come one after the other."""

    def __init__(
        self,
        config: SegProbeConfig,
        train: SegmentationData,
        val: SegmentationData,
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
    ) -> None:
        self.config, self.train, self.val = config, train, val
        self.backbone, self.cache, self.on_progress = backbone, cache, on_progress
        place = next(backbone.parameters(), torch.empty(0))
        self.device, self.dtype = place.device, torch.float32
        self.identity = {
            "name": backbone.name,
            "layer": backbone.layer,
            "weights": weights_fingerprint(backbone.state_dict()),
        }
        key = {"backbone" if k == "name" else k: v for k, v in self.identity.items()}
        self.features = FeatureCache(cache / "features", key)
        self._prints = {split.name: split.fingerprint() for split in (train, val)}

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        splits = {
            split.name: {"images": len(split), "fingerprint": self._prints[split.name]}
            for split in (self.train, self.val)
        }
        settings = self.config.model_dump(mode="json")
        return settings | {
            "splits": splits,
            "backbone": self.identity,
            "upsampler": method.identity,
            "image_resize": "bicubic, antialiased",
            "stored_features": "float16",
            "head": "1x1 convolution, cross-entropy, AdamW, cosine to 0 per step",
        }

    def run(self, method: Method, settings: dict[str, Any]) -> Result:
        """Sample, train all heads, score."""
        config = self.config
        method.upsampler.eval()
        started = time.perf_counter()
        pixels, labels = self.pool(method)
        sampled = time.perf_counter()
        heads = []
        for number, seed in enumerate(config.seeds):
            self.on_progress(method.label, "training heads", number, len(config.seeds))
            heads.append(train_head(pixels, labels, len(self.train.classes), config, seed))
        trained = time.perf_counter()
        meters = self.validate(method, heads)
        ended = time.perf_counter()
        scores = [meter.compute() for meter in meters]
        ious = torch.stack([iou_per_class(meter.matrix) for meter in meters]).nanmean(0)
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores={
                name: Score.of([round(100 * score[name], 4) for score in scores])
                for name in scores[0]
            },
            details={
                "iou_per_class": {
                    name: None if iou != iou else round(100 * iou, 2)
                    for name, iou in zip(self.val.classes, ious.tolist(), strict=True)
                },
                "pool_pixels": len(labels),
                "head_before_upsampling": method.upsampler.info.commutes_with_head,
            },
            seconds={
                "sampling": round(sampled - started, 1),
                "training": round(trained - sampled, 1),
                "validation": round(ended - trained, 1),
            },
            environment=describe_environment(),
        )

    # -- features --------------------------------------------------------------------------------

    def encode(self, sample: LabelledImage) -> tuple[Tensor, Tensor]:
        """Return the resized image (1, 3, H', W') in [0, 1] and its features (1, C, h, w)."""
        size: Size = self.config.input_size
        height, width = sample.image.shape[1:]
        if (height > width) != (size[0] > size[1]) and height != width:
            size = (size[1], size[0])
        image = resize(sample.image[None], size).to(self.device)
        pixels = normalize(image, self.backbone.image_mean, self.backbone.image_std)
        return image, self.features(pixels, self.backbone)

    def pieces(
        self, method: Method, image: Tensor, features: Tensor, size: Size, values: Tensor | None
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the upsampled map, whole or, where it is large, in tiles (1, C or K, rows, cols)."""
        upsampler, info = method.upsampler, method.upsampler.info
        guidance = normalize(
            image,
            self.backbone.image_mean if info.image_mean is None else info.image_mean,
            self.backbone.image_std if info.image_std is None else info.image_std,
        )
        channels = (features if values is None else values).shape[1]
        if upsampler.supports_tiles and 4 * channels * size[0] * size[1] > WHOLE_BYTES:
            yield from upsampler.tiles(guidance, features, size, values)
        else:
            whole = upsampler(guidance, features, size, values)
            yield slice(0, size[0]), slice(0, size[1]), whole

    # -- training pixels -------------------------------------------------------------------------

    def pixel_folder(self, method: Method) -> Path:
        """Return where a method's sampled pixels lie."""
        key = {
            "backbone": self.identity,
            "upsampler": method.identity,
            "pixels": self.config.pixels_per_image,
            "input_size": self.config.input_size,
        }
        return self.cache / "pixels" / result_file_name(
            "pixels", self.config.data, method.identity["name"], key
        ).removesuffix(".json")

    def pool(self, method: Method) -> tuple[Tensor, Tensor]:
        """Return sampled upsampled features (N, C), float16, and their classes (N,)."""
        folder = self.pixel_folder(method)
        folder.mkdir(parents=True, exist_ok=True)
        pixels, classes = [], []
        for number, file in enumerate(self.train.files):
            self.on_progress(method.label, "sampling pixels", number, len(self.train))
            sample = self.train.read(file)
            chosen = sample_pixels(
                sample.label, self.train.ignore_index, self.config.pixels_per_image, file.name
            )
            if len(chosen):
                pixels.append(self._sampled(method, folder, file, sample, chosen))
                classes.append(sample.label.flatten()[chosen])
        if not pixels:
            raise ValueError(f"no image of {self.train.name} has a labelled pixel")
        return torch.cat(pixels), torch.cat(classes)

    def _sampled(
        self,
        method: Method,
        folder: Path,
        file: LabelledFile,
        sample: LabelledImage,
        chosen: Tensor,
    ) -> Tensor:
        """Return the upsampled features of the chosen pixels (P, C), from disk if there."""
        path = folder / f"{file.name}-{self.train.file_hash(file)}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        size: Size = (sample.label.shape[0], sample.label.shape[1])
        image, features = self.encode(sample)
        found = torch.empty(len(chosen), features.shape[1], dtype=torch.float16)
        row, col = chosen // size[1], chosen % size[1]
        with torch.no_grad():
            for rows, cols, tile in self.pieces(method, image, features, size, None):
                inside = (row >= rows.start) & (row < rows.stop)
                inside &= (col >= cols.start) & (col < cols.stop)
                # (C, P) -> (P, C)
                here = tile[0, :, row[inside] - rows.start, col[inside] - cols.start].T
                found[inside] = here.to("cpu", torch.float16)
        if not bool(found.isfinite().all()):
            raise ValueError(f"{method.label} gives features of {file.name} beyond float16 or NaN")
        buffer = io.BytesIO()
        np.save(buffer, found.numpy(), allow_pickle=False)
        write_bytes(path, buffer.getvalue())
        return found

    # -- scores ----------------------------------------------------------------------------------

    def validate(self, method: Method, heads: Sequence[nn.Linear]) -> list[SegmentationMeter]:
        """Score the heads of all seeds in one pass over the validation split."""
        count, config = len(self.val.classes), self.config
        # S x (K, C) -> (S*K, C, 1, 1)
        weight = torch.cat([head.weight for head in heads])[:, :, None, None].to(self.device)
        bias = torch.cat([head.bias for head in heads]).to(self.device)
        meters = [
            SegmentationMeter(count, self.val.ignore_index, config.boundary_radius) for _ in heads
        ]
        for number, sample in enumerate(self.val):
            self.on_progress(method.label, "scoring", number, len(self.val))
            image, features = self.encode(sample)
            with torch.no_grad():
                predicted = self._predict(method, image, features, sample.label, weight, bias)
            band = boundary_band(sample.label, config.boundary_radius)
            for meter, classes in zip(meters, predicted, strict=True):
                meter.update(classes, sample.label, band)
        self.on_progress(method.label, "scoring", len(self.val), len(self.val))
        return meters

    def _predict(
        self,
        method: Method,
        image: Tensor,
        features: Tensor,
        label: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Return the classes (S, H, W) that each head says."""
        size: Size = (label.shape[0], label.shape[1])
        first = method.upsampler.info.commutes_with_head
        values = F.conv2d(features, weight, bias) if first else None
        seeds = len(bias) // len(self.val.classes)
        predicted = torch.empty(seeds, *size, dtype=torch.int64)
        for rows, cols, tile in self.pieces(method, image, features, size, values):
            logits = tile if first else F.conv2d(tile, weight, bias)
            # (1, S*K, rows, cols) -> (S, K, rows, cols) -> (S, rows, cols)
            split = logits.reshape(seeds, -1, *logits.shape[-2:])
            predicted[:, rows, cols] = split.argmax(1).cpu()
        return predicted


def sample_pixels(label: Tensor, ignore_index: int, count: int, name: str) -> Tensor:
    """Return at most ``count`` flat positions of labelled pixels, sorted; the name is the seed.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.seg_probe import sample_pixels
        >>> sample_pixels(torch.tensor([[0, 255], [1, 2]]), 255, 8, "image").tolist()
        [0, 2, 3]
    """
    known = (label.flatten() != ignore_index).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.randperm(len(known), generator=generator)[:count]
    return known[order].sort().values


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
        >>> from upfeat.evaluation.seg_probe import seg_probe_preset, train_head
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
        loss = F.cross_entropy(head(pixels[drawn].float()), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


def _silent(label: str, stage: str, done: int, total: int) -> None:
    """Show nothing."""
