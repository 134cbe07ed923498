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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    Presets,
    Progress,
    Protocol,
    Request,
    higher,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
from upfeat.evaluation.tables.panels import shown_images
from upfeat.evaluation.tables.plots import curve_svg
from upfeat.pipeline import Pipeline

__all__ = ["PRESETS", "interactive_preset", "run_interactive"]

TASK = "interactive"
PRESETS: dict[str, dict[str, Any]] = {"loftup": {}}
CURVE = tuple(range(50, 100, 5))
"""IoUs in percent of the curve of clicks needed."""


interactive_preset = Presets(ClickTrainingConfig, PRESETS, object_sets())


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
    """Train and click with several upsamplers, one after the other, see :attr:`Protocol.run`.

    ``limit`` of the settings applies to the set that is clicked, ``train_limit`` to each of
    ``train``. The results' folder also gets pictures of three images for the report, and two
    figures with the curves of all methods; the cache keeps checkpoints, from which an interrupted
    run goes on.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
        UnsupportedError: a method gives no gradient of its features, or the backbone takes no
            clicks.
    """
    names = [file.name for file in data.files]
    train = [part.without(names).select(limit=config.train_limit) for part in train]
    data = data.select(limit=config.limit)
    folder, report = Path(cache) / TASK, on_progress or silent
    results = _Clicking(config, Path(out), report, data, train, backbone, folder).run(methods)
    _draw_curves(results, config.data, Path(out))
    return results


@dataclass(eq=False)
class _Clicking(ProtocolRun):
    """One backbone on one set."""

    task = TASK

    config: ClickTrainingConfig
    data: ObjectData
    train: Sequence[ObjectData]
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        self.facts = {
            "splits": described_splits(self.data, *self.train),
            "trained_on": [part.name for part in self.train],
            "backbone": Pipeline(self.backbone).identity,
            "click_encoder": "convolution of the patch size over last mask, positive, negative",
            "head": "3x3, 3x3, 1x1 convolutions with ReLU, normalised focal loss, Adam",
            "drawn": "training images with replacement, all equally likely; those of the evaluated "
            "set left out",
        }

    def measure(self, pending: Pending) -> Measured:
        """Train and click with the networks of all seeds."""
        config, method = self.config, pending.method
        if not method.upsampler.info.abilities.gradients:
            raise UnsupportedError(
                f"{method.label} gives no gradient of its features, which the click encoder needs "
                "to learn; leave it out"
            )
        pending.seconds["training"] = 0.0
        metrics, curves, first = [], [], {}
        for number, seed in enumerate(config.seeds):
            file = pending.temporary(self.cache / f"{pending.path.stem}--{seed}.pt")
            training = ClickTraining(config, list(self.train), self.backbone, method, seed, file)
            training.run(partial(self.on_progress, method.label, f"training, seed {seed}"))
            pending.seconds["training"] += training.seconds
            with pending.timed("clicking"):
                kept = pending.temporary(file.with_suffix(".json"))
                ious = self.click(training, kept, drawn=not number)
            metric = ClickMetric(config.clicks, config.thresholds)
            curve = ClickMetric(config.clicks, CURVE)
            for each in ious.values():
                metric.add(each)
                curve.add(each)
            metrics.append(metric)
            curves.append(curve)
            first[str(seed)] = {name: round(100 * each[0], 2) for name, each in ious.items()}
        return _scores(metrics), {
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
        }

    def click(self, training: ClickTraining, kept: Path, *, drawn: bool) -> dict[str, list[float]]:
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
                    self.draw_click(label, name, image, target, steps[0].probability)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, json.dumps(ious).encode())
        return ious

    def draw_click(
        self, label: str, name: str, image: Tensor, target: Tensor, probability: Tensor
    ) -> None:
        """Leave the image, its object and the mask after the first click as pictures."""
        height, width = (side // 2 for side in target.shape)
        small = resize(image[None], (height, width))[0].clamp(0, 1)
        mask = (probability > self.config.rules().threshold).long()
        self.draw(
            small,
            name.replace("/", "-"),
            self.backbone.name,
            [("target", "target", target), (label, "prediction", mask)],
            classes=("background", "object"),
            ignore_index=-1,
        )


def _one_object(objects: Tensor, which: int) -> Tensor:
    """Return labels of one object: other objects are background, uncertain pixels stay."""
    return (objects == which).long() - (objects < 0).long()


def _scores(metrics: Sequence[ClickMetric]) -> dict[str, Score]:
    """Return the scores of all seeds: IoU and shares in percent, clicks as they are."""
    each = [metric.compute() for metric in metrics]
    return seed_scores(each, percent=lambda name: not name.startswith("noc"))


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
    """Return the sets of ``--train``, ``NAME=FOLDER`` with commas between them.

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
