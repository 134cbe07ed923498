"""Interactive segmentation on a frozen backbone and upsampler: the network and its training.

iSegProbe (commit 16815f3) as LoftUp uses it (arXiv 2504.14032, table 4). The network: a click
encoder, one convolution with the backbone's patch size over last mask, positive and negative click
map, whose output is added to the patch embedding (after SimpleClick, arXiv 2210.11006); the
upsampled features; a head of three convolutions. Its training: images drawn with replacement, a
crop and first clicks each, up to three corrective clicks in the errors of the network so far, then
a step of Adam on the normalised focal loss. Every step draws from a generator of its own, so that
an interrupted run goes on from its last checkpoint to the same bits.

Legend: ``B`` batch, ``C`` channels, ``S`` side of image and crop, ``n`` slots for clicks of one
kind, ``h w`` feature grid, ``h' w'`` upsampled map.
"""

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.backbones.timm_backbone import TimmBackbone
from upfeat.data.objects import ObjectData, ObjectImage
from upfeat.errors import UnsupportedError, shape_text
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import click_maps
from upfeat.evaluation.probes.click_loop import ClickRules
from upfeat.evaluation.probes.training_clicks import (
    corrective_candidates,
    draw_clicks,
    draw_crop,
    place_corrective,
)
from upfeat.evaluation.registry import ProtocolConfig
from upfeat.evaluation.running import load_state, save_state
from upfeat.ops.images import Size, normalize
from upfeat.ops.runtime.draws import DrawsFrom
from upfeat.upsamplers import Upsampler
from upfeat.upsamplers.fitted import with_views

__all__ = [
    "ClickProbe",
    "ClickTraining",
    "ClickTrainingConfig",
    "Injection",
    "normalized_focal_loss",
]

logger = logging.getLogger(__name__)

KEPT_EVERY = 50  # steps between checkpoints; it changes no number
Injection = Literal["early", "late"]
MAPS = 3  # last probabilities, positive clicks, negative clicks


# -- the network ---------------------------------------------------------------------------------


class ClickProbe(nn.Module):
    """Click encoder and head; backbone and upsampler are given at each call and stay frozen.

    Injection ``early`` adds the encoded clicks to the patch embedding, ``late`` to the features
    behind the backbone.
    """

    def __init__(self, channels: int, patch: int, injection: Injection = "early") -> None:
        super().__init__()
        self.injection = injection
        self.encoder = nn.Conv2d(MAPS, channels, patch, patch)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(
        self,
        backbone: Backbone,
        upsampler: Upsampler,
        image: Tensor,
        maps: Tensor,
        size: Size | None,
    ) -> Tensor:
        """Return logits (B, 1, S, S) of the object.

        Args:
            backbone: of C channels.
            upsampler: of its features.
            image: (B, 3, S, S) in [0, 1].
            maps: (B, 3, S, S): last probabilities, positive and negative click map.
            size: (h', w') of the upsampled features; None for the backbone's grid.
        """
        features = self.features(backbone, image, maps)
        guidance = upsampler.guidance_image(image, backbone)
        high = upsampler(guidance, features, size or (features.shape[2], features.shape[3]))
        return F.interpolate(self.head(high), image.shape[2:], mode="bilinear", align_corners=True)

    def features(self, backbone: Backbone, image: Tensor, maps: Tensor) -> Tensor:
        """Return the features (B, C, h, w) of an image with its clicks."""
        pixels = normalize(image, backbone.image_mean, backbone.image_std)
        clicks = self.encoder(maps)  # (B, C, h, w)
        if self.injection == "late":
            return backbone(pixels) + clicks
        if not isinstance(backbone, TimmBackbone):
            raise UnsupportedError(
                f"{backbone.name} has no patch embedding to add clicks to; choose a transformer of "
                "timm, or injection=late"
            )
        return backbone.forward_added(pixels, clicks)


def normalized_focal_loss(
    logits: Tensor, label: Tensor, alpha: float = 0.5, gamma: float = 2, ignored: int = -1
) -> Tensor:
    """Return the focal loss of each image, scaled so that its weights add up to the pixels.

    K. Sofiiuk et al., "AdaptIS: adaptive instance selection network", arXiv 1909.07829, equation
    5. With p the probability of the true label and m = pixels / sum((1 - p)^gamma), a constant
    for the gradient: the mean over pixels of ``-alpha m (1 - p)^gamma log p``.

    Logits and label are (B, 1, H, W); labels are 1 for the object, 0 for the background, whose
    weight is ``1 - alpha``, and ``ignored`` for pixels that do not count.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.click_training import normalized_focal_loss
        >>> loss = normalized_focal_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        >>> round(loss.item(), 4)
        0.3466
    """
    if logits.shape != label.shape or logits.dim() != 4:
        raise ValueError(
            f"logits and label must be (B, 1, H, W), got {shape_text(logits)} and "
            f"{shape_text(label)}"
        )
    counts = label != ignored
    tiny = 1e-12
    weight = torch.where(label > 0.5, alpha, 1 - alpha) * counts
    right = torch.where(counts, 1 - (label - logits.sigmoid()).abs(), 1.0)
    focus = (1 - right) ** gamma
    pixels = counts.sum((-2, -1), keepdim=True)
    scale = pixels / (focus.sum((-2, -1), keepdim=True) + tiny)
    loss = -weight * focus * scale.detach() * (right + tiny).clamp(max=1).log()
    return loss.sum((1, 2, 3)) / (pixels.sum((1, 2, 3)) + tiny)


# -- its training --------------------------------------------------------------------------------


class ClickTrainingConfig(ProtocolConfig):
    """Settings of training and clicks; all of them stand in the result.

    Attributes:
        crop_size: side of what the network sees, in training and evaluation.
        feature_size: side of the upsampled features; None for ``crop_size``.
        injection: where encoded clicks are added, see :class:`ClickProbe`.
        epochs, draws, batch: of the training; an epoch is so many images drawn with replacement,
            None for as many as there are; an incomplete last batch is dropped.
        learning_rate: of Adam (betas 0.9 and 0.999, eps 1e-8), a tenth after each epoch of
            ``drops``.
        drops: numbers of epochs.
        corrective: most corrective clicks in training; their number is drawn for each batch.
        encoding, radius: of the click maps.
        clicks: on each object in evaluation.
        flip: average with the mirrored image in evaluation.
        thresholds: IoUs in percent of the clicks needed.
        released_batchnorm: train with the upsampler in training mode, as the released code did,
            so that batch norms use the batch's statistics and drift; evaluation is without it.
        train_limit: at most so many training images of each set.
        seeds: each trains a network of its own.
    """

    crop_size: PositiveInt = 224
    feature_size: PositiveInt | None = None
    injection: Injection = "early"
    epochs: PositiveInt = 20
    draws: PositiveInt | None = None
    batch: PositiveInt = 8
    learning_rate: PositiveFloat = 5e-5
    drops: tuple[PositiveInt, ...] = (17, 20)
    corrective: NonNegativeInt = 3
    encoding: Literal["disk", "tanh"] = "disk"
    radius: PositiveFloat = 5
    clicks: PositiveInt = 20
    flip: bool = True
    thresholds: tuple[PositiveInt, ...] = (80, 85, 90)
    released_batchnorm: bool = False
    train_limit: PositiveInt | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)

    def rules(self) -> ClickRules:
        """Return how objects are clicked in evaluation."""
        return ClickRules(
            size=self.crop_size,
            clicks=self.clicks,
            flip=self.flip,
            radius=self.radius,
            encoding=self.encoding,
        )


class ClickBatch(NamedTuple):
    """Images (B, 3, S, S), objects (B, S, S) bool, clicks (B, 2n, 3), corrective clicks to come."""

    image: Tensor
    target: Tensor
    points: Tensor
    corrective: int


class ClickTraining:
    """One network in training, on one backbone and upsampler.

    An image of each of the sets is as likely as one of another; the seed is that of weights and
    draws, the checkpoint the file of the training's state.

    Attributes:
        probe: click encoder and head.
        step, steps: how many steps were taken, and how many there are in all.
        seconds: spent in training, over all runs.
    """

    def __init__(
        self,
        config: ClickTrainingConfig,
        sets: list[ObjectData],
        backbone: Backbone,
        method: Method,
        seed: int,
        checkpoint: Path,
    ) -> None:
        self.config, self.backbone, self.method, self.seed = config, backbone, method, seed
        self.files = [(part, file) for part in sets for file in part.files]
        self.checkpoint = checkpoint
        self.device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
        self.original = _frozen(method.upsampler, backbone)
        self.upsampler = self.original
        if config.released_batchnorm:
            self.upsampler = _frozen(method.upsampler, backbone)
        with DrawsFrom(torch.Generator().manual_seed(seed)):
            probe = ClickProbe(backbone.dim, int(backbone.patch_size), config.injection)
        self.probe = probe.to(self.device)
        self.optimizer = torch.optim.Adam(self.probe.parameters(), lr=config.learning_rate)
        self.per_epoch = (config.draws or len(self.files)) // config.batch
        self.steps = config.epochs * self.per_epoch
        self.step, self.seconds = 0, 0.0
        side = config.feature_size or config.crop_size
        self.size: Size | None = None if isinstance(method, LowRes) else (side, side)

    def run(self, on_step: Callable[[int, int], None]) -> None:
        """Take the steps that are missing; ``on_step`` gets the numbers of steps taken and of all.

        Raises:
            ValueError: no training image, fewer than a batch, or a loss that is not finite.
        """
        if not self.steps:
            raise ValueError(
                f"a batch of {self.config.batch} needs as many training images an epoch, got "
                f"{self.config.draws or len(self.files)}; set draws or batch"
            )
        self._load()
        started = time.perf_counter() - self.seconds
        while self.step < self.steps:
            on_step(self.step, self.steps)
            self._take_step()
            self.step += 1
            self.seconds = time.perf_counter() - started
            if self.step % KEPT_EVERY == 0 or self.step == self.steps:
                self._save()
        self.probe.eval().requires_grad_(False)

    def network(self, image: Tensor, maps: Tensor) -> Tensor:
        """Return logits as the evaluation wants them, of the method's own upsampler."""
        with torch.no_grad():
            return self.logits(self.original, image, maps)

    def logits(self, upsampler: Upsampler, image: Tensor, maps: Tensor) -> Tensor:
        """Return logits (B, 1, S, S) of images with the maps of their clicks."""
        logits: Tensor = self.probe(self.backbone, upsampler, image, maps, self.size)
        return logits

    # -- a step ----------------------------------------------------------------------------------

    def _take_step(self) -> None:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.step)
        batch = self._draw(generator)
        maps = self._correct(batch, generator)
        self.upsampler.train(self.config.released_batchnorm)
        if self.config.released_batchnorm:  # its dropout draws, too
            with DrawsFrom(generator):
                logits = self.logits(self.upsampler, batch.image, maps)
        else:
            logits = self.logits(self.upsampler, batch.image, maps)
        loss = normalized_focal_loss(logits, batch.target[:, None].to(logits)).mean()
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of {self.method.label} is {loss.item()} in step {self.step}; its "
                "features may not be finite, or the learning rate is too high"
            )
        self.optimizer.zero_grad()
        loss.backward()
        epoch = self.step // self.per_epoch
        dropped = sum(epoch >= drop for drop in self.config.drops)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.1**dropped
        self.optimizer.step()

    def _draw(self, generator: torch.Generator) -> ClickBatch:
        """Draw images, crops, objects and first clicks, and how many corrective clicks follow."""
        size, count = self.config.crop_size, self.config.batch
        crops, points = [], []
        for index in torch.randint(len(self.files), (count,), generator=generator).tolist():
            part, file = self.files[index]
            image, objects = part.read(file)
            # What does not count in an evaluation is background of a training.
            crop = draw_crop(ObjectImage(image, objects.clamp(min=0)), size, generator)
            points.append(draw_clicks(crop.target, crop.others, generator))
            crops.append(crop)
        corrective = int(torch.randint(self.config.corrective + 1, (), generator=generator))
        return ClickBatch(
            torch.stack([crop.image for crop in crops]).to(self.device),
            torch.stack([crop.target for crop in crops]).to(self.device),
            torch.stack(points),
            corrective,
        )

    @torch.no_grad()
    def _correct(self, batch: ClickBatch, generator: torch.Generator) -> Tensor:
        """Return the maps (B, 3, S, S) after the corrective clicks, with the last probabilities."""
        self.upsampler.eval()
        points = batch.points
        previous = torch.zeros_like(batch.image[:, :1])
        for number in range(1, batch.corrective + 1):
            maps = self._maps(previous, points)
            probability = self.logits(self.upsampler, batch.image, maps).sigmoid()
            places, positive = corrective_candidates(probability[:, 0], batch.target)
            points = place_corrective(points, places.cpu(), positive.cpu(), number, generator)
            previous = probability
        return self._maps(previous, points)

    def _maps(self, previous: Tensor, points: Tensor) -> Tensor:
        size = (self.config.crop_size, self.config.crop_size)
        drawn = click_maps(points.to(previous), size, self.config.radius, self.config.encoding)
        return torch.cat([previous, drawn], 1)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save(self) -> None:
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # Running statistics drift in training mode.
            "buffers": dict(self.upsampler.named_buffers()),
        }
        save_state(self.checkpoint, content)

    def _load(self) -> None:
        """Read what :meth:`_save` wrote, if it is there; an unreadable file counts as absent."""
        content = load_state(self.checkpoint, self.method.label)
        if content is None:
            return
        self.probe.load_state_dict(content["probe"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, buffer in self.upsampler.named_buffers():
            buffer.copy_(content["buffers"][name])
        self.step, self.seconds = content["step"], content["seconds"]
        logger.info("%s goes on after step %d", self.method.label, self.step)


def _frozen(upsampler: Upsampler, backbone: Backbone) -> Upsampler:
    """Return a copy that learns nothing, so that the caller's keeps its modes."""
    own = copy.deepcopy(upsampler).eval().requires_grad_(False)
    return with_views(own, backbone)
