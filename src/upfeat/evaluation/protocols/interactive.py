"""Interactive segmentation: an object from clicks, on upsampled features.

Preset ``loftup`` (arXiv 2504.14032, table 4; iSegProbe, commit 16815f3): a click encoder and a head
are trained on a frozen backbone and upsampler
(:mod:`upfeat.evaluation.probes.click_training`); then every object is clicked 20 times, each click
in the middle of the largest error (:mod:`upfeat.evaluation.probes.click_loop`). IoU@1 is the mean
IoU after the first click, NoC@t the mean number of clicks until the IoU is t percent.

The released code draws training images by a file of weights; here all are equally likely. Images
of a training set that the evaluated set has, too, are left out.

Legend: ``T`` clicks, ``H W`` image.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from upfeat._files import OwnFiles, write_bytes
from upfeat.backbones import Backbone
from upfeat.data.objects import ObjectData, load_objects, object_sets
from upfeat.data.sizes import resize
from upfeat.errors import UnsupportedError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import ClickMetric
from upfeat.evaluation.probes.click_loop import click_steps
from upfeat.evaluation.probes.click_training import ClickTraining, ClickTrainingConfig
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    Request,
    higher,
    known_entry,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.evaluation.tables.panels import Panel, image_panel, save_panel, shown_images
from upfeat.evaluation.tables.plots import curve_svg
from upfeat.pipeline import Pipeline

__all__ = ["PRESETS", "interactive_preset", "run_interactive"]

TASK = "interactive"
PRESETS: dict[str, dict[str, Any]] = {"loftup": {}}
CURVE = tuple(range(50, 100, 5))
"""IoUs in percent of the curve of clicks needed."""


def interactive_preset(preset: str, data: str, **changes: Any) -> ClickTrainingConfig:
    """Return the settings of a protocol for a data set.

    Args:
        preset: see ``PRESETS``.
        data: one of :func:`upfeat.data.object_sets`.
        **changes: fields of :class:`ClickTrainingConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.interactive import interactive_preset
        >>> interactive_preset("loftup", "grabcut", batch=4).learning_rate
        5e-05
    """
    settings = known_entry("preset", preset, PRESETS)
    known_entry("data set", data, dict.fromkeys(object_sets()))
    return ClickTrainingConfig(**{"preset": preset, "data": data} | settings | changes)


def run_interactive(
    config: ClickTrainingConfig,
    data: ObjectData,
    train: Sequence[ObjectData],
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Train and click with several upsamplers, one after the other; known results are read.

    Args:
        config: the protocol.
        data: what is clicked; ``limit`` of the settings applies.
        train: sets to train on; ``train_limit`` applies to each.
        backbone: on the device where everything runs.
        methods: upsamplers, on the same device.
        out: folder of the results, one JSON a method, of pictures of three images for the report,
            and of two figures with the curves of all methods.
        cache: folder of checkpoints, from which an interrupted run goes on.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
        UnsupportedError: a method gives no gradient of its features, or the backbone takes no
            clicks.
    """
    clicking = _Clicking(config, data, train, backbone, Path(cache), on_progress or silent)
    results = []
    for method in methods:
        settings = clicking.settings(method)
        path, known = stored_result(out, TASK, config.data, method.label, settings)
        if known is None:
            known = clicking.run(method, settings, path)
            known.save(path)
            clicking.forget(path.stem)
        results.append(known)
    _draw_curves(results, config.data, Path(out))
    return results


class _Clicking:
    """One backbone on one set; the methods come one after the other."""

    def __init__(
        self,
        config: ClickTrainingConfig,
        data: ObjectData,
        train: Sequence[ObjectData],
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
    ) -> None:
        self.config, self.backbone, self.on_progress = config, backbone, on_progress
        self.cache = cache / TASK
        self.data = data.select(limit=config.limit)
        names = [file.name for file in data.files]
        self.train = [part.without(names).select(limit=config.train_limit) for part in train]
        self.pipe = Pipeline(backbone)
        self.splits = {
            part.name: {"images": len(part), "fingerprint": part.fingerprint()}
            for part in (self.data, *self.train)
        }

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return self.config.model_dump(mode="json") | {
            "splits": self.splits,
            "trained_on": [part.name for part in self.train],
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "click_encoder": "convolution of the patch size over last mask, positive, negative",
            "head": "3x3, 3x3, 1x1 convolutions with ReLU, normalised focal loss, Adam",
            "drawn": "training images with replacement, all equally likely; those of the evaluated "
            "set left out",
        }

    def run(self, method: Method, settings: dict[str, Any], path: Path) -> Result:
        """Train and click with the networks of all seeds."""
        if not method.upsampler.info.abilities.gradients:
            raise UnsupportedError(
                f"{method.label} gives no gradient of its features, which the click encoder needs "
                "to learn; leave it out"
            )
        seconds = {"training": 0.0, "clicking": 0.0}
        metrics, curves, first = [], [], {}
        for number, seed in enumerate(self.config.seeds):
            file = self.cache / f"{path.stem}--{seed}.pt"
            training = ClickTraining(
                self.config, list(self.train), self.backbone, method, seed, file
            )
            training.run(partial(self.on_progress, method.label, f"training, seed {seed}"))
            seconds["training"] += training.seconds
            started = time.perf_counter()
            ious = self.click(training, file.with_suffix(".json"), path.parent, drawn=not number)
            seconds["clicking"] += time.perf_counter() - started
            metric = ClickMetric(self.config.clicks, self.config.thresholds)
            curve = ClickMetric(self.config.clicks, CURVE)
            for each in ious.values():
                metric.add(each)
                curve.add(each)
            metrics.append(metric)
            curves.append(curve)
            first[str(seed)] = {name: round(100 * each[0], 2) for name, each in ious.items()}
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores=_scores(metrics),
            details={
                "objects": int(metrics[0].objects),
                "mean_iou_by_click": [
                    round(100 * sum(values) / len(metrics), 3)
                    for values in zip(*(metric.curve() for metric in metrics), strict=True)
                ],
                "clicks_by_iou": {
                    name.removeprefix("noc_"): score.mean
                    for name, score in _scores(curves).items()
                    if name.startswith("noc_")
                },
                "iou_1_by_object": first,
            },
            seconds={name: round(value, 1) for name, value in seconds.items()},
            environment=describe_environment(),
        )

    def click(
        self, training: ClickTraining, kept: Path, out: Path, *, drawn: bool
    ) -> dict[str, list[float]]:
        """Return the IoUs (T,) of every object by name; those of an earlier run are read."""
        ious: dict[str, list[float]] = json.loads(kept.read_text()) if kept.is_file() else {}
        shown = shown_images(len(self.data)) if drawn else frozenset()
        label, rules = training.method.label, self.config.rules()
        for number, file in enumerate(self.data.files):
            self.on_progress(label, "clicking", number, len(self.data))
            image, objects = self.data.read(file)
            image, objects = image.to(training.device), objects.to(training.device)
            for which in objects[objects > 0].unique().tolist():
                name = f"{file.name}/{which}"
                if name in ious:
                    continue
                target = _one_object(objects, which)
                steps = list(click_steps(training.network, image, target, rules))
                found = [step.iou for step in steps]
                # A network that has nothing wrong is not clicked any more.
                ious[name] = found + found[-1:] * (rules.clicks - len(found))
                if number in shown:
                    self.draw(out, label, name, image, target, steps[0].probability)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, json.dumps(ious).encode())
        return ious

    def draw(
        self, out: Path, label: str, name: str, image: Tensor, target: Tensor, probability: Tensor
    ) -> None:
        """Leave the image, its object and the mask after the first click as pictures."""
        size = tuple(side // 2 for side in target.shape)
        common: dict[str, Any] = {
            "task": TASK,
            "data": self.config.data,
            "image": name.replace("/", "-"),
            "backbone": self.backbone.name,
        }
        classes: dict[str, Any] = {"classes": ("background", "object"), "ignore_index": -1}
        small = resize(image[None], (size[0], size[1]))[0].clamp(0, 1)
        mask = (probability > self.config.rules().threshold).long()
        for picture in (
            image_panel(small, **common),
            Panel(**common, **classes, label="target", kind="target", values=target.cpu()),
            Panel(**common, **classes, label=label, kind="prediction", values=mask.cpu()),
        ):
            save_panel(out, picture)

    def forget(self, stem: str) -> None:
        """Remove what an interrupted run of a method would have gone on from."""
        for seed in self.config.seeds:
            for suffix in (".pt", ".json"):
                (self.cache / f"{stem}--{seed}{suffix}").unlink(missing_ok=True)


def _one_object(objects: Tensor, which: int) -> Tensor:
    """Return labels of one object: other objects are background, uncertain pixels stay."""
    return (objects == which).long() - (objects < 0).long()


def _scores(metrics: Sequence[ClickMetric]) -> dict[str, Score]:
    """Return the scores of all seeds: IoU and shares in percent, clicks as they are."""
    each = [metric.compute() for metric in metrics]
    return {
        name: Score.of(
            [round(score[name] * (1 if name.startswith("noc") else 100), 4) for score in each]
        )
        for name in each[0]
    }


def _draw_curves(results: Sequence[Result], data: str, out: Path) -> None:
    """Write both curves of the methods of a run as figures."""
    files = OwnFiles(out)
    figures: dict[str, tuple[Mapping[str, list[tuple[float, float]]], str, str]] = {
        "iou-by-click": (
            {r.label: list(enumerate(r.details["mean_iou_by_click"], 1)) for r in results},
            "clicks",
            "mean IoU, %",
        ),
        "clicks-by-iou": (
            {
                r.label: [(float(t), noc) for t, noc in r.details["clicks_by_iou"].items()]
                for r in results
            },
            "IoU to be reached, %",
            "mean clicks needed",
        ),
    }
    for name, (curves, x_axis, y_axis) in figures.items():
        svg = curve_svg(curves, x_axis, y_axis)
        files.write(f"{TASK}--{data}--{name}.svg", svg.encode(), "upfeat eval interactive")


def _inputs(request: Request) -> dict[str, Any]:
    return {
        "data": load_objects(str(request.data), request.root, "val"),
        "train": training_sets(str(request.options["train"])),
        "cache": request.cache,
    }


def training_sets(text: str) -> list[ObjectData]:
    """Return the sets of ``--train``.

    Args:
        text: ``NAME=FOLDER`` with commas between them.

    Raises:
        ValueError: an entry is of another form, or its set is unknown.
        FileNotFoundError: a folder is not the set; shows the expected tree.

    Example:
        >>> from upfeat.evaluation.protocols.interactive import training_sets
        >>> try:
        ...     training_sets("data/sbd")
        ... except ValueError as error:
        ...     print(str(error).split(";")[0])
        --train takes NAME=FOLDER, with commas between several, got 'data/sbd'
    """
    sets = []
    for entry in text.split(","):
        name, equals, folder = (part.strip() for part in entry.partition("="))
        if not (name and equals and folder):
            raise ValueError(
                f"--train takes NAME=FOLDER, with commas between several, got {entry!r}; the names "
                f"are {', '.join(object_sets())}"
            )
        sets.append(load_objects(name, Path(folder), "train"))
    return sets


register_protocol(
    Protocol(
        name=TASK,
        title="Interactive segmentation",
        summary="Train a click encoder and a head on upsampled features, then click on objects.",
        scores={
            "iou_1": higher("IoU@1"),
            "noc": lower("NoC", "clicks"),
            "missed": lower("never reached", "percent"),
        },
        headline=("iou_1",),
        caption="mean over all objects",
        configure=interactive_preset,
        presets=tuple(PRESETS),
        data=tuple(object_sets()),
        inputs=_inputs,
        run=run_interactive,
        seeds=True,
        items="images",
        options=(
            Option(
                "train",
                "Training sets: sbd=FOLDER, or several with commas: bsds500=DIR,coco_objects=DIR.",
                default="",
            ),
        ),
    )
)
