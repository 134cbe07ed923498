"""Training of probes on whole crops, as JAFAR, LoftUp, AnyUp and NAF do it.

One pass over the training images serves all methods: a step reads and encodes its images once
(features of an image, flipped or not, are kept on disk), then each method upsamples them and takes
a step of its own heads, those of all seeds together; the order of the images is one for all. After
an epoch every method is written to a checkpoint, from which an interrupted run resumes bit by bit.

Where ``info.abilities.linear`` allows, the heads go in front of the upsampler:
``head(up(F)) == up(values=head(F))``, with gradients. Where the loss is a sum over the output's
pixels, training in front of learned weights goes by rows: forward, loss and backward of some rows,
then the next. A :class:`JointMethod` has a copy for each seed.

Legend: ``B`` batch, ``C`` feature channels, ``K`` outputs of a head, ``S`` seeds, ``h w`` feature
grid, ``H W`` crop, ``h' w'`` upsampled map.
"""

import copy
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.evaluation.methods import JointMethod, LowRes, Method
from upfeat.evaluation.probes.parts import (
    CropProbeConfig,
    DenseHeads,
    Heads,
    epoch_batches,
    learning_rate_factor,
)
from upfeat.evaluation.registry import Option
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import (
    Measured,
    Pending,
    ProtocolRun,
    described_splits,
    load_state,
    save_state,
)
from upfeat.ops.images import Size, normalize
from upfeat.ops.runtime import TILE_BYTES
from upfeat.pipeline import Pipeline
from upfeat.upsamplers import Upsampler
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD
from upfeat.upsamplers.fitted import with_views

__all__ = ["KEEP_WEIGHTS", "CropProbe", "ProbeBatch", "kept_weights"]

logger = logging.getLogger(__name__)

MetricT = TypeVar("MetricT")

KEEP_WEIGHTS = Option(
    "keep_weights",
    "Save upsamplers that are trained with the heads to OUT/weights, for other tasks.",
    "flag",
    False,
)


class ProbeBatch(NamedTuple):
    """Images (B, 3, H, W) in [0, 1], features (B, C, h, w), tokens (B, C') or None, targets."""

    image: Tensor
    features: Tensor
    token: Tensor | None
    target: Tensor


def kept_weights(result: Path, seeds: Sequence[int]) -> list[Path]:
    """Return the folders of an upsampler that was trained with the heads, one a seed.

    Each is a spec of ``--upsampler`` in every protocol.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.evaluation.probes.crops import kept_weights
        >>> [folder.name for folder in kept_weights(Path("seg-probe--voc--carafe.json"), [0])]
        ['seg-probe--voc--carafe--seed0']
    """
    return [result.parent / "weights" / f"{result.stem}--seed{seed}" for seed in seeds]


class _Trainee:
    """A method in training: its heads, its upsamplers, its optimiser, its checkpoint."""

    def __init__(
        self,
        method: Method,
        heads: Heads | DenseHeads,
        config: CropProbeConfig,
        device: torch.device,
        backbone: Backbone | None = None,
    ) -> None:
        self.method, self.heads = method, heads.to(device)
        self.joint = isinstance(method, JointMethod)
        if isinstance(method, JointMethod):
            self.upsamplers = [method.copy(seed, device) for seed in config.seeds]
        else:
            # A copy, so that the caller's weights go on asking for gradients if they did.
            own = copy.deepcopy(method.upsampler).eval().requires_grad_(False)
            self.upsamplers = [with_views(own, backbone)]
        trained = list(heads.parameters())
        if self.joint:
            trained += [p for upsampler in self.upsamplers for p in upsampler.parameters()]
        rate, decay = config.learning_rate, config.weight_decay
        kind: Any = torch.optim.AdamW
        if config.optimizer == "nadam":
            kind = partial(torch.optim.NAdam, decoupled_weight_decay=True)
        self.optimizer: torch.optim.Optimizer = kind(trained, lr=rate, weight_decay=decay)
        self.epoch, self.checkpoint = 0, Path()
        self.history: dict[str, dict[str, float]] = {}
        self.seconds = {"training": 0.0, "validation": 0.0}

    def train(self, mode: bool) -> None:
        """Put upsamplers that are trained in training or evaluation mode."""
        for upsampler in self.upsamplers if self.joint else ():
            upsampler.train(mode)

    def save(self) -> None:
        """Write everything that the next epoch needs, whole or not at all."""
        content = {
            "epoch": self.epoch,
            "heads": self.heads.state_dict(),
            "upsamplers": [up.state_dict() for up in self.upsamplers] if self.joint else [],
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
        }
        save_state(self.checkpoint, content)

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote, if it is there; an unreadable file counts as absent."""
        self.checkpoint = path
        content = load_state(path, self.method.label)
        if content is None:
            return
        self.heads.load_state_dict(content["heads"])
        for upsampler, state in zip(self.upsamplers, content["upsamplers"], strict=False):
            upsampler.load_state_dict(state)
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch = content["epoch"]
        self.history, self.seconds = content["history"], content["seconds"]
        logger.info("%s goes on after epoch %d", self.method.label, self.epoch)


@dataclass(eq=False)
class CropProbe(ProtocolRun, ABC, Generic[MetricT]):
    """The training and scoring of several methods; a task defines inputs, loss and scores.

    Attributes:
        train, val: the splits.
        backbone: on the device where everything runs.
        cache: folder of features and checkpoints.
        keep_weights: save what was trained with the heads, one folder a seed, see
            :func:`kept_weights`; a result without these folders is computed again.
        outputs: K, outputs of a head.
        token_channels: C' of the token beside the features.
        epoch: of the training, which decides what a task draws.
        seeds_together: heads of all seeds are computed at once, which takes their memory.
    """

    outputs = 0
    token_channels = 0
    epoch = 0
    seeds_together = True

    config: CropProbeConfig
    train: Any
    val: Any
    backbone: Backbone
    cache: Path
    keep_weights: bool = False

    def __post_init__(self) -> None:
        side, dtype = self.config.crop_size, getattr(torch, self.config.stored_features)
        cache = self.cache / "features"
        self.pipe = Pipeline(self.backbone, input_size=(side, side), cache=cache, cache_dtype=dtype)
        target = self.config.target_size or side
        self.size = (target, target)
        self.splits = {"train": self.train, "val": self.val}
        self.facts = {
            "splits": described_splits(self.train, self.val),
            "backbone": self.pipe.identity,
        }

    # -- what a task defines ---------------------------------------------------------------------

    @abstractmethod
    def read(self, split: str, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop (3, H, W) in [0, 1] and its target (H, W)."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor, iteration: int) -> Tensor | None:
        """Return the sum of the seeds' losses, or None if no pixel counts.

        ``outputs`` are (B, s, K, h', w') of s seeds, ``target`` is (B, H, W).
        """

    @abstractmethod
    def metric(self) -> MetricT:
        """Return an empty metric."""

    def pixelwise(self, size: Size) -> bool:
        """Whether the loss at this output size is a sum over the output's pixels.

        It is then :meth:`pixel_target` and :meth:`pixel_loss`.
        """
        return False

    def pixel_target(self, target: Tensor, size: Size) -> tuple[Tensor, int]:
        """Return the targets of the output's pixels (B, h', w'), and how many of them count."""
        raise NotImplementedError

    def pixel_loss(self, outputs: Tensor, target: Tensor, counted: int) -> Tensor:
        """Return what some rows, (B, s, K, R, w') and (B, R, w'), add to :meth:`loss`."""
        raise NotImplementedError

    @abstractmethod
    def score(self, metrics: Sequence[MetricT], outputs: Tensor, target: Tensor) -> None:
        """Add an image, outputs (1, s, K, h', w'), to the metrics of s seeds."""

    @abstractmethod
    def summarise(self, metrics: Sequence[MetricT]) -> Measured:
        """Return scores and details of all seeds' metrics."""

    def head_first(self, upsampler: Upsampler, training: bool) -> bool:
        """Say whether the heads go in front of this upsampler."""
        choice = self.config.head_before_upsampling
        if choice == "never" or not upsampler.info.abilities.linear:
            return False
        if choice == "always" or not training or next(upsampler.parameters(), None) is None:
            return True
        # The whole backward pass of learned weights computes them again, which costs more than a
        # map of all channels; by rows it was measured to pay while the outputs are few.
        few = 4 * len(self.config.seeds) * self.outputs <= self.backbone.dim
        return few and self.in_rows(upsampler)

    def in_rows(self, upsampler: Upsampler) -> bool:
        """Say whether heads in front of this upsampler can be trained a few rows at a time."""
        asking = [weight.requires_grad for weight in upsampler.parameters()]
        return (
            self.pixelwise(self.size)
            and upsampler.info.abilities.tiles
            and bool(asking)
            and not any(asking)
        )

    def seed_groups(self, together: bool = True) -> list[slice]:
        """Return which seeds' heads are computed together; all, unless memory forbids it."""
        count = len(self.config.seeds)
        step = count if together and self.seeds_together else 1
        return [slice(start, start + step) for start in range(0, count, step)]

    def pixels(self, image: Tensor) -> Tensor:
        """Return the image (1, 3, H, W) as the backbone sees it."""
        return normalize(image, self.backbone.image_mean, self.backbone.image_std)

    def guidance(self, upsampler: Upsampler, image: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) as the upsampler sees it.

        A method that looks at views of it through the backbone gets the backbone's own input.
        """
        if upsampler.info.views:
            return self.pixels(image)
        if self.config.resize_guidance:
            image = F.interpolate(image, self.size, mode="bilinear")
        if self.config.guidance == "imagenet":
            return normalize(image, IMAGENET_MEAN, IMAGENET_STD)
        return upsampler.guidance_image(image, self.backbone)

    def token(self, pixels: Tensor) -> Tensor | None:
        """Return the token (1, C') beside the features of an image, or None."""
        return None

    def heads(self) -> Heads | DenseHeads:
        """Return the heads of all seeds, untrained."""
        return Heads(self.backbone.dim, self.outputs, self.config.seeds, self.token_channels)

    def features(self, split: str, pixels: Tensor) -> Tensor:
        """Return the features (1, C, h, w) of an image of a split, cached or not."""
        return self.pipe.features(pixels)

    # -- running ---------------------------------------------------------------------------------

    def look_up(self, method: Method) -> Result | Pending:
        """Return a method's result if it is there, with the weights that are to be kept."""
        found = super().look_up(method)
        if isinstance(found, Result) and self.keep_weights and isinstance(method, JointMethod):
            path = self.out / found.file_name(self.group)
            if not all(folder.is_dir() for folder in kept_weights(path, self.config.seeds)):
                return Pending(method, found.settings, path)
        return found

    def measure_all(self, pending: Sequence[Pending]) -> Iterator[Measured]:
        """Train and score all methods in one pass over the data."""
        trainees = []
        for each in pending:
            heads, device = self.heads(), self.pipe.device
            trainee = _Trainee(each.method, heads, self.config, device, self.backbone)
            trainee.load(each.temporary(self.cache / "probes" / f"{each.path.stem}.pt"))
            trainees.append(trainee)
        self._train(trainees)
        for each, trainee, metrics in zip(pending, trainees, self.validate(trainees), strict=True):
            each.seconds = trainee.seconds
            scores, details = self.summarise(metrics)
            details["head_before_upsampling"] = {
                stage: self.head_first(trainee.upsamplers[0], stage == "training")
                for stage in ("training", "validation")
            }
            if trainee.history:
                details["mean_by_epoch"] = trainee.history
            if self.keep_weights and trainee.joint:
                folders = kept_weights(each.path, self.config.seeds)
                for upsampler, folder in zip(trainee.upsamplers, folders, strict=True):
                    upsampler.save_pretrained(folder, backbone=self.backbone)
            yield scores, details

    def _train(self, trainees: Sequence[_Trainee]) -> None:
        """Train until every method has had all epochs; those that are ahead wait."""
        config, every = self.config, self.config.validate_every
        for epoch in range(config.epochs):
            active = [trainee for trainee in trainees if trainee.epoch == epoch]
            if not active:
                continue
            self._train_epoch(active, epoch)
            for trainee in active:
                trainee.epoch += 1
            if every and (epoch + 1) % every == 0 and epoch + 1 < config.epochs:
                for trainee, metrics in zip(active, self.validate(active), strict=True):
                    scores, _ = self.summarise(metrics)
                    trainee.history[str(epoch + 1)] = {n: s.mean for n, s in scores.items()}
            for trainee in active:
                trainee.save()

    def _train_epoch(self, active: Sequence[_Trainee], epoch: int) -> None:
        config, self.epoch = self.config, epoch
        count = len(self.train)
        batches = epoch_batches(count, config.batch, config.flip, config.order_seed, epoch)
        for trainee in active:
            trainee.train(True)
        stage = f"epoch {epoch + 1} of {config.epochs}"
        for number, (indices, flipped) in enumerate(batches):
            self.on_progress(f"{len(active)} methods", stage, number, len(batches))
            batch = self.load("train", indices, flipped)
            iteration = epoch * len(batches) + number
            factor = learning_rate_factor(config.schedule, iteration, config.epochs, len(batches))
            for trainee in active:
                start = time.perf_counter()
                self.step(trainee, batch, factor * config.learning_rate, iteration)
                trainee.seconds["training"] += time.perf_counter() - start
        for trainee in active:
            trainee.train(False)

    def load(self, split: str, indices: Sequence[int], flipped: bool = False) -> ProbeBatch:
        """Return images with features and targets, all flipped left-right if asked for."""
        images, features, tokens, targets = [], [], [], []
        for index in indices:
            image, target = self.read(split, index)
            image, target = image[None].to(self.pipe.device), target[None].to(self.pipe.device)
            if flipped:
                image, target = image.flip(-1), target.flip(-1)
            pixels = self.pixels(image).contiguous()
            token = self.token(pixels)
            if token is not None:
                tokens.append(token)
            features.append(self.features(split, pixels))
            images.append(image)
            targets.append(target)
        token = torch.cat(tokens) if tokens else None
        return ProbeBatch(torch.cat(images), torch.cat(features), token, torch.cat(targets))

    def step(
        self, trainee: _Trainee, batch: ProbeBatch, learning_rate: float, iteration: int
    ) -> None:
        """Take one step of the heads of all seeds."""
        trainee.optimizer.zero_grad()
        upsampler = trainee.upsamplers[0]
        if self.head_first(upsampler, training=True) and self.in_rows(upsampler):
            losses = self._gradients_by_rows(trainee, batch)
        else:
            losses = self._gradients(trainee, batch, iteration)
        for loss in losses:
            if not bool(loss.isfinite()):
                raise ValueError(
                    f"the loss of {trainee.method.label} is {loss.item()} in iteration "
                    f"{iteration}; its features may not be finite, or the learning rate is too high"
                )
        if not losses:
            return
        for group in trainee.optimizer.param_groups:
            group["lr"] = learning_rate
        trainee.optimizer.step()

    def _gradients(self, trainee: _Trainee, batch: ProbeBatch, iteration: int) -> list[Tensor]:
        """Add up the gradients of whole outputs; return the losses, none where no pixel counts."""
        losses = []
        for _, outputs in self.forward(trainee, batch):
            loss = self.loss(outputs, batch.target, iteration)
            if loss is not None:
                loss.backward()
                losses.append(loss.detach())
        return losses

    def _gradients_by_rows(self, trainee: _Trainee, batch: ProbeBatch) -> list[Tensor]:
        """The same for heads in front of a frozen upsampler, with a few output rows at a time.

        A row's loss is known as soon as its outputs are, so that its gradient goes back before the
        next rows are computed: an upsampler's weights are there once, not twice, and never all.
        """
        target, counted = self.pixel_target(batch.target, self.size)
        upsampler = trainee.upsamplers[0]
        guidance = self.guidance(upsampler, batch.image)
        losses = []
        for seeds in self.seed_groups() if counted else ():
            ahead = trainee.heads(batch.features, batch.token, seeds)  # (B, s*K, h, w)
            values = ahead.detach().requires_grad_()
            total = values.new_zeros(())
            tiles = upsampler.tiles(
                guidance, batch.features, self.size, values, piece_bytes=TILE_BYTES // 2
            )
            for rows, tile in tiles:
                outputs = tile.unflatten(1, (-1, self.outputs))  # (B, s, K, R, w')
                loss = self.pixel_loss(outputs, target[:, rows], counted)
                loss.backward()
                total += loss.detach()
            ahead.backward(values.grad)
            losses.append(total)
        return losses

    def forward(self, trainee: _Trainee, batch: ProbeBatch) -> Iterator[tuple[slice, Tensor]]:
        """Yield which seeds, and the outputs of their heads: (B, s, K, h', w')."""
        guidance = self.guidance(trainee.upsamplers[0], batch.image)
        first = self.head_first(trainee.upsamplers[0], torch.is_grad_enabled())
        size = self.size
        if isinstance(trainee.method, LowRes):
            size = (batch.features.shape[2], batch.features.shape[3])
        high: Tensor | None = None
        for seeds in self.seed_groups(together=not trainee.joint):
            upsampler = trainee.upsamplers[seeds.start if trainee.joint else 0]
            if first:
                values = trainee.heads(batch.features, batch.token, seeds)
                found = upsampler(guidance, batch.features, size, values)
            else:
                if trainee.joint:
                    high = upsampler(guidance, batch.features, size)
                elif high is None:
                    with torch.no_grad():
                        high = upsampler(guidance, batch.features, size)
                found = trainee.heads(high, batch.token, seeds)
            # (B, s*K, h', w') -> (B, s, K, h', w')
            yield seeds, found.unflatten(1, (seeds.stop - seeds.start, self.outputs))

    @torch.no_grad()
    def validate(self, trainees: Sequence[_Trainee]) -> list[list[MetricT]]:
        """Score all methods in one pass over the validation images: a metric a seed."""
        metrics = [[self.metric() for _ in self.config.seeds] for _ in trainees]
        count = len(self.val) if trainees else 0
        for index in range(count):
            self.on_progress(f"{len(trainees)} methods", "scoring", index, count)
            batch = self.load("val", [index])
            for trainee, own in zip(trainees, metrics, strict=True):
                start = time.perf_counter()
                for seeds, outputs in self.forward(trainee, batch):
                    self.score(own[seeds], outputs, batch.target)
                trainee.seconds["validation"] += time.perf_counter() - start
        return metrics
