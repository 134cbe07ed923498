"""What the quick probes share: training on a fixed sample of pixels, scores on all pixels.

The image is resized for the backbone only; the upsampler is guided by that resized image and gives
features at the target's own size. A method upsamples each training image once, and only the sampled
pixels are kept; in validation the heads of all seeds go in front of the upsampler where that gives
the same for less, else behind it.

Legend: ``C`` feature channels, ``S`` seeds, ``M`` images, ``P`` pixels of an image, ``N`` pixels of
the pool, ``H W`` target.
"""

import io
import logging
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat._files import OwnFiles, write_bytes
from upfeat.backbones import Backbone
from upfeat.data.sizes import Size
from upfeat.errors import UnsupportedError
from upfeat.evaluation.methods import JointMethod, Method
from upfeat.evaluation.registry import Option, ProtocolConfig, StoredFeatures
from upfeat.evaluation.results import Result, Score, result_file_name
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits
from upfeat.evaluation.tables.panels import shown_images
from upfeat.pipeline import Encoded, Pipeline

logger = logging.getLogger(__name__)

HeadT = TypeVar("HeadT", bound=nn.Module)
MetricT = TypeVar("MetricT")

KEEP_PIXELS = Option(
    "keep_pixels",
    "Keep the cached features of the sampled pixels after a method is finished.",
    "flag",
    False,
)
"""The command's option of all probes of sampled pixels."""


def sample_pixels(known: Tensor, count: int, name: str) -> Tensor:
    """Return at most ``count`` flat positions of known pixels (H, W), sorted; the name is seed."""
    positions = known.flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.randperm(len(positions), generator=generator)[:count]
    return positions[order].sort().values


class PixelSampleConfig(ProtocolConfig):
    """Settings of a probe that is trained on sampled pixels.

    Attributes:
        input_size: (H, W) of the image for backbone and guidance, for images that are wider than
            high; exchanged for the others.
        train_every: every n-th training image is used.
        pixels_per_image: size of the fixed sample of each training image.
        steps, batch_pixels: of the training; pixels are drawn with replacement.
        learning_rate, weight_decay: of AdamW; the rate follows a cosine to zero.
        stored_features: how features and sampled pixels are kept.
        seeds: each gives a head of its own (initialisation and draws).
    """

    preset: Literal["pixel-sample"] = "pixel-sample"
    input_size: tuple[PositiveInt, PositiveInt]
    train_every: PositiveInt = 1
    pixels_per_image: PositiveInt = 4096
    steps: PositiveInt = 3000
    batch_pixels: PositiveInt = 4096
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    stored_features: StoredFeatures = "float16"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


def encode_turned(pipe: Pipeline, image: Tensor) -> Encoded:
    """Encode an image (3, H, W) at the pipeline's input size, its sides exchanged for portraits."""
    height, width = cast("Size", pipe.input_size)
    if (image.shape[1] - image.shape[2]) * (height - width) < 0:
        height, width = width, height
    return pipe.encode(image, (height, width))


class PixelPool:
    """Samples of one set for one backbone, kept in a cache: a file an image and method."""

    def __init__(self, pipe: Pipeline, data: str, pixels_per_image: int, cache: str | Path) -> None:
        self.pipe, self.data, self.cache = pipe, data, Path(cache)
        self.pixels_per_image = pixels_per_image
        self.dtype = torch.float16 if pipe.cache is None else pipe.cache.dtype

    def folder(self, method: Method) -> Path:
        """Return where a method's pixels lie."""
        key = {
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "pixels": self.pixels_per_image,
            "input_size": self.pipe.input_size,
        }
        if self.dtype != torch.float16:
            key["stored"] = str(self.dtype)
        name = result_file_name("pixels", self.data, method.identity["name"], key)
        return self.cache / "pixels" / name.removesuffix(".json")

    def read(
        self, method: Method, encoded: Encoded, size: Size, positions: Tensor, key: str
    ) -> Tensor:
        """Return upsampled features (P, C) at flat positions (P,), from disk where they are there.

        On the CPU, in float16 or what the pipeline keeps; the key is the name of the file, another
        for every image, split and content.

        Raises:
            ValueError: a value is not finite or too large for what is kept.
        """
        path = self.folder(method) / f"{key.replace('/', '_')}.npy"
        found = _read(path)
        if found is None:
            found = method.on(self.pipe).at(encoded, size, positions).to("cpu", self.dtype)
            if not bool(found.isfinite().all()):
                raise ValueError(
                    f"{method.label} gives features that are NaN or beyond {self.dtype}"
                )
            OwnFiles(path.parent).claim_all("the cache of pixels")
            buffer = io.BytesIO()
            np.save(buffer, found.numpy(), allow_pickle=False)
            write_bytes(path, buffer.getvalue())
        return found

    def remove(self, method: Method) -> None:
        """Remove a method's pixels, if it was this class that made their folder."""
        if OwnFiles(self.folder(method)).all:
            shutil.rmtree(self.folder(method), ignore_errors=True)


def _read(path: Path) -> Tensor | None:
    """Return stored pixels (P, C), or None; an unreadable file counts as absent."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is not readable (%s); computing it again", path, error)
        return None


class TrainingPixels:
    """The training pixels of all images.

    Attributes:
        pixels: (N, C) upsampled features, as they are kept.
        targets: (N,).
        images: (N,) number of the image of each pixel.
        tokens: (M, C) class tokens, or None.
    """

    def __init__(
        self, pixels: Iterable[Tensor], targets: Sequence[Tensor], tokens: Sequence[Tensor] = ()
    ) -> None:
        self.pixels, self.targets = torch.cat(list(pixels)), torch.cat(list(targets))
        counts = torch.tensor([len(target) for target in targets])
        self.images = torch.arange(len(counts)).repeat_interleave(counts)
        self.tokens = torch.cat(list(tokens)).cpu() if tokens else None


def train_on_pixels(
    head: HeadT,
    count: int,
    config: PixelSampleConfig,
    generator: torch.Generator,
    loss: Callable[[Tensor, int], Tensor],
) -> HeadT:
    """Train a head on pixels that are drawn with replacement, and freeze it.

    ``count`` is that of the pixels, ``loss`` takes the numbers of those drawn and of the step.
    """
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        drawn = torch.randint(count, (config.batch_pixels,), generator=generator)
        optimizer.zero_grad()
        loss(drawn, step).backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


@dataclass(eq=False)
class PixelSampleProbe(ProtocolRun, ABC, Generic[HeadT, MetricT]):
    """A probe of one backbone on one set; a task defines targets, heads and scores.

    Attributes:
        joint_presets: what to use for a method that is trained with the heads.
        train, val: the splits.
        keep_pixels: keep a method's sampled pixels after its result is written.
    """

    joint_presets: ClassVar[str]
    pool_suffix: ClassVar[str] = ""  # tells the folders of one set's pools apart
    wanted = "a labelled pixel"  # what a training image must have

    config: PixelSampleConfig
    train: Any
    val: Any
    backbone: Backbone
    cache: Path
    keep_pixels: bool = False

    def __post_init__(self) -> None:
        config = self.config
        self.pipe = Pipeline(
            self.backbone,
            input_size=config.input_size,
            fit="exact",
            cache=self.cache / "features",
            cache_dtype=getattr(torch, config.stored_features),
        )
        name = f"{config.data}{self.pool_suffix}"
        self.pool = PixelPool(self.pipe, name, config.pixels_per_image, self.cache)
        self.facts = {
            "splits": described_splits(self.train, self.val),
            "backbone": self.pipe.identity,
            "image_resize": "bicubic, antialiased; height and width exchanged for portraits",
        }

    # -- what a task defines ---------------------------------------------------------------------

    @abstractmethod
    def known(self, target: Tensor) -> Tensor:
        """Return where a target (H, W) counts."""

    def token(self, encoded: Encoded) -> Tensor | None:
        """Return the class token (1, C) of an image, or None."""
        return None

    @abstractmethod
    def train_head(self, pool: TrainingPixels, seed: int) -> HeadT:
        """Return the head of a seed, trained."""

    @abstractmethod
    def predict(
        self, method: Method, encoded: Encoded, size: Size, heads: Sequence[HeadT]
    ) -> Tensor:
        """Return what each head predicts of an image, (S, H, W)."""

    @abstractmethod
    def metric(self) -> MetricT:
        """Return an empty metric."""

    @abstractmethod
    def score(self, metrics: Sequence[MetricT], predicted: Tensor, target: Tensor) -> None:
        """Add what is predicted of an image (S, H, W) to the metrics of the seeds."""

    @abstractmethod
    def summarise(self, method: Method, metrics: Sequence[MetricT]) -> Measured:
        """Return scores and details of all seeds' metrics."""

    @abstractmethod
    def picture(self, name: str, image: Tensor, target: Tensor, label: str, found: Tensor) -> None:
        """Leave an image (3, h, w), its target and a prediction (H, W) as pictures."""

    # -- running ---------------------------------------------------------------------------------

    def look_up(self, method: Method) -> Result | Pending:
        """Return a method's result if there is one.

        Raises:
            UnsupportedError: the method is trained with the heads.
        """
        if isinstance(method, JointMethod):
            raise UnsupportedError(
                f"{method.label} is trained with the heads, which pixel-sample cannot do; take "
                f"the preset {self.joint_presets}"
            )
        return super().look_up(method)

    def save(self, pending: Pending, scores: dict[str, Score], details: dict[str, Any]) -> Result:
        """Write a result, and remove the method's pixels."""
        result = super().save(pending, scores, details)
        if not self.keep_pixels:
            self.pool.remove(pending.method)
        return result

    def measure(self, pending: Pending) -> Measured:
        """Sample, train all heads, score."""
        method = pending.method
        with pending.timed("sampling"):
            pool = self.sample(method)
        with pending.timed("training"):
            heads = self.train_heads(method, pool)
        with pending.timed("validation"):
            metrics = self.validate(method, heads, pictures=True)
        scores, details = self.summarise(method, metrics)
        return scores, details | {"pool_pixels": len(pool.targets)}

    def sample(self, method: Method) -> TrainingPixels:
        """Return the sampled pixels of the training images."""
        pixels, targets, tokens = [], [], []
        for number, file in enumerate(self.train.files):
            self.on_progress(method.label, "sampling pixels", number, len(self.train))
            image, target = self.train.read(file)
            known = self.known(target)
            positions = sample_pixels(known, self.config.pixels_per_image, file.name)
            if not len(positions):
                continue
            encoded = encode_turned(self.pipe, image)
            key, size = f"{file.name}-{self.train.file_hash(file)}", tuple(target.shape)
            pixels.append(self.pool.read(method, encoded, size, positions, key))
            targets.append(target.flatten()[positions])
            token = self.token(encoded)
            tokens += [] if token is None else [token]
        if not pixels:
            raise ValueError(f"no image of {self.train.name} has {self.wanted}")
        return TrainingPixels(pixels, targets, tokens)

    def train_heads(self, method: Method, pool: TrainingPixels) -> list[HeadT]:
        """Train a head for each seed."""
        seeds, heads = self.config.seeds, []
        for number, seed in enumerate(seeds):
            self.on_progress(method.label, "training heads", number, len(seeds))
            heads.append(self.train_head(pool, seed).to(self.pipe.device))
        return heads

    @torch.no_grad()
    def validate(
        self, method: Method, heads: Sequence[HeadT], *, pictures: bool = False
    ) -> list[MetricT]:
        """Score the heads of all seeds in one pass over the validation split."""
        metrics = [self.metric() for _ in heads]
        shown = shown_images(len(self.val)) if pictures else frozenset()
        for number, file in enumerate(self.val.files):
            self.on_progress(method.label, "scoring", number, len(self.val))
            image, target = self.val.read(file)
            encoded = encode_turned(self.pipe, image)
            predicted = self.predict(method, encoded, tuple(target.shape), heads)
            self.score(metrics, predicted, target)
            if number in shown:
                prepared = encoded.prepared[0]
                self.picture(file.name, prepared, target, method.label, predicted[0])
        return metrics
