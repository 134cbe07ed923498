"""Training and scoring of a network that sees from above, together with an upsampler.

The backbone is frozen; upsampler, neck, network, heads and the weights of the losses are trained
together. Every step draws from a seed of its own, so that a run that was stopped goes on to the
same numbers.
"""

import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.evaluation.methods import CallableUpsampler, JointMethod, LowRes, Method
from upfeat.evaluation.metrics import BevMetric
from upfeat.evaluation.probes.bev.frames import (
    BevBatch,
    BevFrames,
    feature_intrinsics,
    join_frames,
    view_settings,
)
from upfeat.evaluation.probes.bev.networks import BevConfig, BevOutput, build_network
from upfeat.evaluation.probes.bev.targets import BevLoss
from upfeat.evaluation.probes.bev.trunks import Neck
from upfeat.evaluation.probes.parts import epoch_batches
from upfeat.evaluation.registry import Progress
from upfeat.evaluation.running import load_state, save_state
from upfeat.ops.images import Size, normalize
from upfeat.ops.runtime.draws import DrawsFrom
from upfeat.pipeline import Pipeline
from upfeat.upsamplers import Upsampler
from upfeat.upsamplers.fitted import with_views

logger = logging.getLogger(__name__)

History = list[dict[str, float]]
"""Of each validation: the epoch, the mean loss since the one before, the scores as fractions."""

SAVE_SECONDS = 60.0  # between two snapshots


def one_cycle(step: int, steps: int, config: BevConfig) -> float:
    """Return the learning rate of a step, counted from 0: up in a line, then down in a line."""
    first = config.learning_rate / config.start_division
    top, last = config.warm_up * steps - 1, steps - 1
    if step <= top:
        return first + (config.learning_rate - first) * step / top
    share = (step - top) / (last - top) if last > top else 1.0
    end = first / config.end_division
    return config.learning_rate + (end - config.learning_rate) * share


class BevModel(nn.Module):
    """Everything that is trained: upsampler, neck, network, weights of the losses.

    Args:
        config: the protocol.
        method: whose upsampler is copied, or built anew.
        pipe: of the backbone.
        seed: of the random weights.
    """

    def __init__(self, config: BevConfig, method: Method, pipe: Pipeline, seed: int) -> None:
        super().__init__()
        self.config, self.low = config, isinstance(method, LowRes)
        abilities = method.upsampler.info.abilities
        learns = next(method.upsampler.parameters(), None) is not None
        self.trains_upsampler = learns and abilities.gradients and not abilities.per_image
        built = config.upsampler_init == "scratch" and self.trains_upsampler
        if built and not isinstance(method.upsampler, CallableUpsampler):
            upsampler = JointMethod(method.label, method.upsampler).copy(seed, pipe.device)
        else:
            upsampler = copy.deepcopy(method.upsampler).to(pipe.device)
        upsampler.requires_grad_(self.trains_upsampler)
        self.upsampler: Upsampler = with_views(upsampler, pipe.backbone)
        channels = pipe.backbone.dim
        with DrawsFrom(torch.Generator().manual_seed(seed)):
            self.neck: nn.Module = nn.Conv2d(channels, config.width, 1)
            if config.neck == "double_conv":
                self.neck = Neck(channels, config.width, config.neck_width)
            self.network = build_network(config)
            self.loss = BevLoss(self.network.names)
        self.neck_first = config.neck == "conv1" and abilities.linear
        self.to(pipe.device)

    def train(self, mode: bool = True) -> "BevModel":
        """Put everything that is trained in training or evaluation mode."""
        super().train(mode)
        if not self.trains_upsampler:
            self.upsampler.eval()
        return self

    def maps(self, guidance: Tensor, features: Tensor, size: Size) -> Tensor:
        """Return the cameras' maps behind the neck.

        Args:
            guidance: (B*N, 3, H, W), normalised as the upsampler wants it.
            features: (B*N, C, h, w).
            size: (h', w') of the maps; the row without an upsampler keeps (h, w).

        Returns:
            (B*N, width, h', w').
        """
        if self.low:
            found: Tensor = self.neck(features)
            return found
        if self.neck_first:
            return self.upsampler(guidance, features, size, values=self.neck(features))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_upsampler):
            high = self.upsampler(guidance, features, size)
        found = self.neck(high)
        return found


class BevTraining:
    """The training of one method after the other on the same frames.

    Args:
        config: the protocol.
        train: frames to learn.
        val: frames to score.
        pipe: of the backbone; its cache is used where views do not change.
        on_progress: called with label, stage, done and total.
    """

    def __init__(
        self,
        config: BevConfig,
        train: BevFrames,
        val: BevFrames,
        pipe: Pipeline,
        on_progress: Progress,
    ) -> None:
        self.config, self.frames, self.val = config, train, val
        self.pipe, self.on_progress = pipe, on_progress
        settings = view_settings(config.image_size)
        self.padding, self.image_size = settings.padding, settings.padded
        pipe.backbone.check_image_size(self.image_size)
        height, width = self.image_size
        self.size = (round(height / config.out_stride), round(width / config.out_stride))
        if len(train) < config.batch:
            raise ValueError(f"a batch of {config.batch} needs more than {len(train)} key frames")
        self.steps = config.epochs * (len(train) // config.batch)

    # -- one pass --------------------------------------------------------------------------------

    def forward(self, model: BevModel, batch: BevBatch) -> BevOutput:
        """Return a model's outputs for a batch."""
        backbone = self.pipe.backbone
        images = batch.images.flatten(0, 1)  # (B*N, 3, H, W)
        pixels = self.pad(normalize(images, backbone.image_mean, backbone.image_std))
        with torch.no_grad():
            features = self.pipe.features(pixels)
        views = model.upsampler.info.views
        guidance = pixels if views else self.pad(model.upsampler.guidance_image(images, backbone))
        maps = model.maps(guidance, features, self.size)
        size = (int(maps.shape[2]), int(maps.shape[3]))
        cameras = batch.cameras._replace(
            intrinsics=feature_intrinsics(
                batch.cameras.intrinsics, self.image_size, size, self.config.skew
            )
        )
        # (B*N, C, h, w) -> (B, N, C, h, w)
        maps = maps.unflatten(0, batch.images.shape[:2])
        found: BevOutput = model.network(maps, cameras, batch.motion)
        return found

    def pad(self, normalised: Tensor) -> Tensor:
        """Return images with columns of zeros at both sides, where the size has these."""
        return F.pad(normalised, (self.padding, self.padding)) if self.padding else normalised

    def step(
        self, model: BevModel, optimizer: torch.optim.Optimizer, number: int, seed: int
    ) -> float:
        """Take one step; return its loss.

        Raises:
            ValueError: the loss is not finite.
        """
        config, per_epoch = self.config, len(self.frames) // self.config.batch
        epoch, within = divmod(number, per_epoch)
        indices, _ = epoch_batches(len(self.frames), config.batch, 0.0, seed, epoch)[within]
        generator = torch.Generator().manual_seed((seed << 32) + number)
        draws = generator if config.augment else None
        batch = join_frames([self.frames.load(i, draws) for i in indices]).to(self.pipe.device)
        devices = [self.pipe.device] if self.pipe.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((seed << 32) + number)  # of dropout and of PointBeV's points
            found = self.forward(model, batch)
            loss, _ = model.loss(found.maps, batch.targets, found.sampled)
            if not bool(loss.isfinite()):
                raise ValueError(
                    f"the loss is {loss.item()} in step {number}; its features may not be finite, "
                    "or the learning rate is too high"
                )
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(number, self.steps, config)
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, model: BevModel, label: str) -> dict[str, float]:
        """Return the IoU of all vehicles that count, and of those that are visible by 40 %."""
        model.eval()
        metrics = {"iou": BevMetric(), "iou_visible": BevMetric()}
        for index in range(len(self.val)):
            self.on_progress(label, "scoring", index, len(self.val))
            batch = self.val.load(index).to(self.pipe.device)
            logits = self.forward(model, batch).maps["binimg"]
            for metric, valid in zip(
                metrics.values(), (batch.targets.valid, batch.visible), strict=True
            ):
                metric.add(logits, batch.targets.binimg, valid)
        model.train()
        return {name: metric.compute()["iou"] for name, metric in metrics.items()}

    # -- all steps -------------------------------------------------------------------------------

    def run(self, method: Method, seed: int, snapshot: Path) -> tuple[History, float]:
        """Train and score one method; an unfinished run goes on from its snapshot.

        Args:
            method: what upsamples.
            seed: of weights, order and draws.
            snapshot: file of the unfinished run.

        Returns:
            What each validation found, and the seconds it all took.
        """
        model = BevModel(self.config, method, self.pipe, seed).train()
        optimizer = torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        state = _Snapshot(snapshot, model, optimizer)
        state.load(method.label)
        per_epoch = self.steps // self.config.epochs
        state.start()
        while state.step < self.steps:
            self.on_progress(method.label, f"training, seed {seed}", state.step, self.steps)
            state.losses.append(self.step(model, optimizer, state.step, seed))
            state.step += 1
            epoch, within = divmod(state.step, per_epoch)
            due = within == 0 and epoch % self.config.validate_every == 0
            if due or state.step == self.steps:
                found = self.validate(model, method.label)
                loss = sum(state.losses) / len(state.losses)
                state.history.append({"epoch": float(epoch), "loss": loss} | found)
                state.losses.clear()
                text = "%s, epoch %d of %d: loss %.4f, IoU %.2f %%"
                values = (epoch, self.config.epochs, loss, 100 * found["iou"])
                logger.info(text, method.label, *values)
                state.save()
            elif state.is_due():
                state.save()
        return state.history, state.seconds


class _Snapshot:
    """Everything that the next step needs, on disk."""

    def __init__(self, path: Path, model: BevModel, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.model, self.optimizer = path, model, optimizer
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.history: History = []
        self.since = time.perf_counter()

    def start(self) -> None:
        """Begin to count seconds."""
        self.since = time.perf_counter()

    def is_due(self) -> bool:
        """Whether the last snapshot is a while ago."""
        return time.perf_counter() - self.since >= SAVE_SECONDS

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.seconds += time.perf_counter() - self.since
        self.start()
        content: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "history": self.history,
            "seconds": self.seconds,
        }
        save_state(self.path, content)

    def load(self, label: str) -> None:
        """Read the file, if it is there; an unreadable one counts as absent."""
        content = load_state(self.path, label)
        if content is None:
            return
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.losses, self.history = list(content["losses"]), list(content["history"])
        logger.info("%s goes on after step %d", label, self.step)
