"""The training loop: any objective, any upsampler, one process or many.

A step takes ``batch_size`` images from the sequence of the source and cuts them into
``processes * accumulate`` micro-batches. Micro-batch k is drawn, seeded and computed the same
wherever it runs, and gradients are averaged over all of them: two processes with ``accumulate=1``
walk the same path as one with ``accumulate=2``.

The state after a step is: weights, optimiser, average, objective, log means and the guard. What is
random is seeded from (seed, step, micro-batch) and the position in the data follows from the step,
so this state is all that a run needs to go on exactly.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upfeat.errors import CheckpointError
from upfeat.ops.runtime import recycled_memory
from upfeat.training.config import TrainConfig
from upfeat.training.logs import (
    CsvLog,
    LossGuard,
    Means,
    TensorBoardLog,
    TrainingFailedError,
    read_log,
)
from upfeat.training.measures import validation_loss
from upfeat.training.optimization import (
    RunningStatistics,
    WeightAverage,
    check_optimizer_state,
    learning_rate_factor,
    make_optimizer,
)
from upfeat.training.parts import Parts, build_parts
from upfeat.training.processes import (
    derive_seed,
    flush_denormals,
    gather,
    keep_global_draws,
    make_fabric,
    share_gradients,
    stop_signals,
)
from upfeat.training.run_folder import (
    CHECKPOINTS,
    LOG_FILE,
    MODEL,
    VALIDATION_FILE,
    SnapshotFolder,
    check_run_folder,
    model_card,
    write_config,
)
from upfeat.upsamplers import Upsampler

logger = logging.getLogger(__name__)

# Settings that a resumed run may change: they alter what is written, how long, or where it runs.
RESUMABLE = frozenset({"steps", "logging", "checkpoint", "stop", "device", "devices", "accumulate"})
FORMAT = 2
# What a checkpoint holds.
STATE = (
    *("format", "step", "config", "data", "upsampler", "objective", "optimizer", "precision"),
    *("average", "means", "interval", "guard", "best", "seconds"),
)


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        step: counted from 1.
        numbers: ``loss``, the other terms of the objective, ``lr`` and ``gradient_norm``.
        images_per_second: over the last steps.
        seconds_left: at that rate.
    """

    step: int
    numbers: dict[str, float]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind.

    Attributes:
        folder: of the run.
        model: folder of ``save_pretrained``.
        loss: mean of the last log interval.
        seconds: of training, summed over the first start and all resumptions.
        curve: rows of ``log.csv``.
    """

    folder: Path
    model: Path
    loss: float
    seconds: float
    curve: Sequence[dict[str, float]]


class Callback:
    """Watches a run on its first process; override what is needed.

    A callback must not change the modules it is shown; ``trainer.current_model()`` is a copy.

    Example:
        >>> from upfeat.training import Callback
        >>> class Losses(Callback):
        ...     def __init__(self):
        ...         self.values = []
        ...
        ...     def on_step(self, trainer, report):
        ...         self.values.append(report.numbers["loss"])
    """

    def on_start(self, trainer: "Trainer", step: int) -> None:
        """Called before the first step; ``step`` steps are done already."""

    def on_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Called after each step."""

    def on_validation(self, trainer: "Trainer", step: int, numbers: Mapping[str, float]) -> None:
        """Called with the loss, and its terms, on the images that are held out."""

    def on_checkpoint(self, trainer: "Trainer", step: int, path: Path) -> None:
        """Called after a checkpoint was written."""

    def on_end(self, trainer: "Trainer", result: TrainResult) -> None:
        """Called after the model was exported."""


class Trainer:
    """Trains an upsampler by a configuration, into a folder.

    The folder then holds ``config.json``, ``log.csv``, ``checkpoints/`` and ``model/``, the
    exported upsampler; and ``validation.csv`` where images are held out.

    Args:
        config: the settings.
        out: folder of the run.
        callbacks: called on the first process.
        parts: networks, objective and data; default: what ``config`` names. Parts of one's own
            are not in ``config.json``: resume with the same ones.

    Attributes:
        config, out: the arguments.
        parts: on the run's device once :meth:`fit` has begun.
        step: optimiser steps that are done.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: str | Path,
        *,
        callbacks: Sequence[Callback] = (),
        parts: Parts | None = None,
    ) -> None:
        self.config = config
        self.out = Path(out)
        self.callbacks = tuple(callbacks)
        self.parts = parts
        self.snapshots = SnapshotFolder(self.out / CHECKPOINTS, config.checkpoint.keep_last)
        self.step = 0
        self.seconds = 0.0
        self.best = float("inf")
        self.means, self.interval = Means(), Means()
        self.guard = LossGuard(config.stop)
        self.average: WeightAverage | None = None
        self.rate = 0.0
        self.ready = False

    # -- the run ---------------------------------------------------------------------------------

    @keep_global_draws()
    def fit(self, resume: bool = False) -> TrainResult:
        """Run until the last step and export the model.

        Ctrl-C and SIGTERM end the run after the present step with a checkpoint.

        Args:
            resume: continue from the newest good checkpoint in the folder, if there is one; the
                curve goes on exactly as if it had not stopped.

        Raises:
            ValueError: the folder holds a run and ``resume`` is off, or its settings differ; or
                the objective cannot train this upsampler with this backbone. The folder stays as
                it was.
            ForeignFileError: a file that no run wrote lies where one of the run's belongs.
            CheckpointError: none of the checkpoints in the folder is good.
            TrainingFailedError: the loss became NaN or infinite, or diverged.
            KeyboardInterrupt: after an interrupted run's checkpoint was written.
        """
        if not resume and self.snapshots.latest() is not None:
            raise ValueError(
                f"{self.out} holds a run already; continue it with --resume (resume=True), or name "
                "another folder"
            )
        check_run_folder(self.out)
        if not resume or self.snapshots.load(self._continue_from) is None:
            self._set_up()
        # Only now: whatever was refused leaves the folder as it was.
        if self.fabric.is_global_zero:
            write_config(self.out, self.config)
        with (
            self._open_logs(),
            stop_signals() as stopping,
            self._prefetch(),
            flush_denormals(),
            recycled_memory(),
        ):
            self._call("on_start", self.step)
            while self.step < self.config.steps:
                if self._run_step(stopping):
                    self._save(regular=False)
                    raise KeyboardInterrupt
            if self.step % self.config.checkpoint.every:
                self._save(regular=False)
        return self._finish()

    def current_model(self) -> Upsampler:
        """Return a copy of the upsampler in evaluation mode: the average where there is one."""
        parts = self.networks
        module = parts.upsampler if self.average is None else self.average.module
        return copy.deepcopy(module).eval()  # type: ignore[return-value]

    # -- setting up ------------------------------------------------------------------------------

    def _set_up(self) -> None:
        """Launch processes, build what is missing and move it to the device."""
        config = self.config
        self.fabric = make_fabric(config)
        self.micro = config.micro_batch(self.fabric.world_size)
        self.micros = config.batch_size // self.micro
        torch.manual_seed(derive_seed(config.seed))
        if self.parts is None:
            self.parts = build_parts(config)
        parts = self.parts
        self.trainable = parts.prepare(config.data.crop_size, self.fabric.device)
        # Fabric's wrapper around the optimiser; its type names a tuple too.
        self.optimizer: Any = self.fabric.setup_optimizers(
            make_optimizer(config.optimizer, self.trainable)
        )
        self.statistics = RunningStatistics(parts.upsampler, self.micros)
        if config.ema.decay is not None:
            self.average = WeightAverage(parts.upsampler, config.ema)
        self.ready = True

    @property
    def networks(self) -> Parts:
        """The parts, once the run has begun."""
        if self.parts is None:
            raise RuntimeError("the run has not begun; call fit() first")
        return self.parts

    # -- one step --------------------------------------------------------------------------------

    def _run_step(self, stopping: Sequence[int]) -> bool:
        """Do a step with all that follows it; return whether any process is to stop."""
        start = time.perf_counter()
        step, config, parts = self.step + 1, self.config, self.networks
        factor = learning_rate_factor(config.schedule, step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.optimizer.lr * factor
        terms, paths = self._gradients(step)
        share_gradients(self.fabric, self.trainable)
        self.statistics.finish(self.fabric)
        norm = self.fabric.clip_gradients(
            parts.upsampler,
            self.optimizer,
            max_norm=config.clip.limit(step),
            error_if_nonfinite=False,
        )
        numbers, stop = self._agree(terms, bool(stopping))
        gradient_norm = float("nan") if norm is None else float(norm)
        failure_reason = self.guard.failure_reason(numbers["loss"], gradient_norm)
        if failure_reason is not None:
            files = [path for part in gather(self.fabric, paths) for path in part]
            raise TrainingFailedError(failure_reason, step, files, self.snapshots.latest())
        # A gradient that is not finite is dropped (fp16: by the scaler).
        if math.isfinite(gradient_norm) or config.precision == "fp16":
            self.optimizer.step()
        parts.objective.after_step(step, parts.upsampler)
        if self.average is not None:
            self.average.update(step, parts.upsampler)
        self.step = step
        self._record(numbers | {"gradient_norm": gradient_norm}, time.perf_counter() - start)
        return stop

    def _gradients(self, step: int) -> tuple[list[dict[str, float]], list[str]]:
        """Run this process's micro-batches forward and backward."""
        parts = self.networks
        self.optimizer.zero_grad(set_to_none=True)
        terms, paths = [], []
        for micro in self._own_micros():
            batch = self.fabric.to_device(dict(self._fetch(step, micro)))
            paths += [str(path) for path in batch.get("paths", ())]
            seed = derive_seed(self.config.seed, step, micro)
            # Objectives draw from the generator; the global one is for dropout and the like.
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            self.statistics.begin()
            with self.fabric.autocast():
                losses = parts.objective.step(batch, parts.backbones, parts.upsampler, generator)
            terms.append({name: float(value.detach()) for name, value in losses.items()})
            self.fabric.backward(losses["loss"] / self.micros)
            self.statistics.end()
        return terms, paths

    def _own_micros(self) -> range:
        return range(self.fabric.global_rank, self.micros, self.fabric.world_size)

    def _agree(self, terms: list[dict[str, float]], stop: bool) -> tuple[dict[str, float], bool]:
        """Return the means over all micro-batches, and whether any process is to stop."""
        shared = gather(self.fabric, (terms, stop))
        means = Means()
        # In the order of the micro-batches, so that the sum is the same for any number of ranks.
        for row in zip(*(part for part, _ in shared), strict=True):
            for micro in row:
                means.add(micro)
        return means.take(), any(flag for _, flag in shared)

    def _record(self, numbers: dict[str, float], seconds: float) -> None:
        """Log a finished step, write checkpoints and call the callbacks."""
        config, step = self.config, self.step
        self.seconds += seconds
        numbers["lr"] = self.optimizer.param_groups[0]["lr"]
        self.means.add(numbers | {"seconds_per_step": seconds})
        self.interval.add({"loss": numbers["loss"]})
        if step % config.logging.every == 0 or step == config.steps:
            row = {"step": float(step)} | self.means.take()
            row["images_per_second"] = config.batch_size / row.pop("seconds_per_step")
            for log in self.logs:
                log.write(row)
        self._validate()
        if step % config.checkpoint.every == 0:
            self._save(regular=True)
        self.rate = 0.9 * self.rate + 0.1 * seconds if self.rate else seconds
        left = self.rate * (config.steps - step)
        self._call("on_step", StepReport(step, numbers, config.batch_size / self.rate, left))

    def _validate(self) -> None:
        """Measure the loss on the held-out images where it is due; the first process does it."""
        settings, parts = self.config.validation, self.networks
        if settings is None or parts.validation is None:
            return
        every = settings.every or self.config.checkpoint.every
        if self.step % every and self.step != self.config.steps:
            return
        if self.fabric.is_global_zero:
            numbers = validation_loss(
                parts,
                self.current_model(),
                batch_size=self.micro,
                device=self.fabric.device,
                autocast=self.fabric.autocast,
                seed=self.config.seed,
            )
            self.validation.write({"step": float(self.step)} | numbers)
            self._call("on_validation", self.step, numbers)
        self.fabric.barrier()

    # -- data ------------------------------------------------------------------------------------

    @contextmanager
    def _prefetch(self) -> Iterator[None]:
        """Read micro-batches ahead in threads while networks run."""
        ahead = self.config.data.prefetch
        self.reading: dict[tuple[int, int], Future[Mapping[str, Any]]] = {}
        with ThreadPoolExecutor(max(ahead, 1), thread_name_prefix="images") as pool:
            self.pool = pool
            try:
                yield
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, step: int, micro: int) -> Mapping[str, Any]:
        """Return a micro-batch and start reading those that this process needs next."""
        micros = list(self._own_micros())
        place = micros.index(micro)
        for offset in range(self.config.data.prefetch + 1):
            later, index = divmod(place + offset, len(micros))
            key = (step + later, micros[index])
            if key[0] <= self.config.steps and key not in self.reading:
                self.reading[key] = self.pool.submit(self._read, *key)
        return self.reading.pop((step, micro)).result()

    def _read(self, step: int, micro: int) -> Mapping[str, Any]:
        start = (step - 1) * self.config.batch_size + micro * self.micro
        return self.networks.source.batch(start, self.micro)

    # -- state -----------------------------------------------------------------------------------

    def _save(self, *, regular: bool) -> None:
        """Write a checkpoint on the first process; the others wait for it.

        Only regular ones end an interval and may be the best one: where a run was interrupted
        must not show in what it leaves behind.
        """
        best = False
        if regular:
            loss = self.interval.take()["loss"]
            best = self.config.checkpoint.keep_best and loss < self.best
            self.best = min(self.best, loss)
        if self.fabric.is_global_zero:
            path = self.snapshots.save(self.step, self._state(), best=best)
            self._call("on_checkpoint", self.step, path)
        self.fabric.barrier()

    def _stateful(self) -> dict[str, Any]:
        """Return the objects whose state a checkpoint holds, None for one that the run has not."""
        return {
            "upsampler": self.networks.upsampler,
            "objective": self.networks.objective,
            "optimizer": self.optimizer,
            "precision": self.fabric.strategy.precision,
            "average": self.average,
            "means": self.means,
            "interval": self.interval,
            "guard": self.guard,
        }

    def _state(self) -> dict[str, Any]:
        held = self._stateful().items()
        return {
            "format": FORMAT,
            "step": self.step,
            "config": self.config.to_json(),
            "data": self.networks.source.describe(),
            "best": self.best,
            "seconds": self.seconds,
            **{name: None if one is None else one.state_dict() for name, one in held},
        }

    def _continue_from(self, state: Mapping[str, Any]) -> None:
        """Compare a checkpoint with the run, then take its state over.

        A second call with another checkpoint replaces all that an earlier one left.
        """
        self._check_same(state)
        if not self.ready:
            self._set_up()
        source = self.networks.source.describe()
        if state["data"] != source:
            raise ValueError(
                f"the training images changed since the checkpoint: {state['data']} then, "
                f"{source} now; restore them, or start anew in another folder"
            )
        try:
            self._restore(state)
        except torch.OutOfMemoryError:
            raise  # not an error of the file
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"its content does not fit ({type(error).__name__}: {reason})"
            ) from error
        logger.info("continuing %s after step %d", self.out, self.step)

    def _restore(self, state: Mapping[str, Any]) -> None:
        check_optimizer_state(self.config.optimizer, self.trainable, state["optimizer"])
        for name, one in self._stateful().items():
            if one is not None:
                one.load_state_dict(state[name])
        self.step, self.best = int(state["step"]), float(state["best"])
        self.seconds = float(state["seconds"])

    def _check_same(self, state: Mapping[str, Any]) -> None:
        """Refuse to continue a run with settings that would have made it another one."""
        if state.get("format", FORMAT) != FORMAT:
            raise CheckpointError(
                f"the checkpoints in {self.snapshots.folder} have format {state.get('format')}, "
                f"this version reads {FORMAT}; finish the run with the version that began it"
            )
        if missing := [name for name in STATE if name not in state]:
            raise CheckpointError(f"it lacks {', '.join(missing)}")
        try:
            old = TrainConfig.from_json(state["config"]).model_dump()
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"its settings cannot be read ({error})") from error
        new = self.config.model_dump()
        for content in (old, new):
            # Whether the images are the same is decided by the source's description.
            for name in ("paths", "prefetch", "sides_file"):
                del content["data"][name]
        changed = [name for name in new if name not in RESUMABLE and old[name] != new[name]]
        if changed:
            raise ValueError(
                f"{self.out} was begun with other settings: "
                + "; ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in changed)
                + f". Only {', '.join(sorted(RESUMABLE))} may change when resuming"
            )

    # -- logs and callbacks ----------------------------------------------------------------------

    @contextmanager
    def _open_logs(self) -> Iterator[None]:
        self.logs: list[CsvLog | TensorBoardLog] = []
        if self.fabric.is_global_zero:
            self.logs.append(CsvLog(self.out / LOG_FILE, self.step))
            self.validation = CsvLog(self.out / VALIDATION_FILE, self.step)
            if self.config.logging.tensorboard:
                self.logs.append(TensorBoardLog(self.out / "tensorboard", self.step))
        try:
            yield
        finally:
            for log in self.logs:
                if isinstance(log, TensorBoardLog):
                    log.close()

    def _call(self, hook: str, *arguments: Any) -> None:
        if self.fabric.is_global_zero:
            for callback in self.callbacks:
                getattr(callback, hook)(self, *arguments)

    def _finish(self) -> TrainResult:
        """Export the model on the first process and return the result on all."""
        curve = read_log(self.out / LOG_FILE)
        model = self.out / MODEL
        if self.fabric.is_global_zero:
            trained, parts = self.current_model(), self.networks
            data = parts.source.describe()
            card = model_card(trained, self.config, data, curve, self.seconds)
            backbone = parts.backbones[0] if len(parts.backbones) == 1 else None
            trained.save_pretrained(model, card=card, backbone=backbone)
        self.fabric.barrier()
        result = TrainResult(self.out, model, curve[-1]["loss"], self.seconds, tuple(curve))
        self._call("on_end", result)
        return result
