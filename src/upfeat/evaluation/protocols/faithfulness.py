"""Whether upsampled features stay in the space of the backbone's own.

AnyUp (arXiv 2510.12764) claims that its output can stand where the low-resolution features stood;
the protocol is not published. Three measures, two of them the obvious reading of that claim:

* pooled back: the upsampled map, averaged over each cell, against the features it came from, by
  cosine and mean squared error. Nearest enlargement is perfect in this, so it is no ranking by
  quality; it says how far a method leaves the features.
* probe transfer: a linear segmentation probe trained on low-resolution features, applied unchanged
  to upsampled ones, beside the probe trained on the upsampled features themselves.
* agreement with a larger input (ours): features upsampled to twice the grid, against the backbone's
  features of the image at twice the size, by cosine.

Legend: ``C`` feature channels, ``h w`` feature grid, ``H W`` image as the networks see it.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from upfeat.backbones import Backbone
from upfeat.data import SegmentationData
from upfeat.data.own import FOLDER_SET
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes.pixels import encode_turned
from upfeat.evaluation.protocols.seg_probe import (
    PRESETS,
    SCORES,
    PixelProbe,
    SegProbeConfig,
    labelled_splits,
    own_settings,
    run_seg_probe,
    seg_probe_preset,
)
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    higher,
    lower,
    prefixed,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, seed_scores
from upfeat.ops import cosine
from upfeat.pipeline import Pipeline

TASK = "faithfulness"


class FaithfulnessConfig(BaseModel):
    """Settings of the comparison; all of them stand in the result.

    Attributes:
        probe: the segmentation probe of the transfer; its data, sizes and limit serve the other
            measures, too.
        factor: how much larger the input is that upsampled features are held against.
        transfer: train and move the probes; without it no labels are needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    probe: SegProbeConfig
    factor: PositiveInt = 2
    transfer: bool = True


def faithfulness_preset(data: str, **changes: Any) -> FaithfulnessConfig:
    """Return the settings for a data set.

    ``data`` is a set of the segmentation probe's preset ``pixel-sample``; the changes are
    ``factor``, ``transfer``, and fields of the probe's settings.

    Raises:
        UnknownNameError: no such set.
        ValueError: an impossible value.
    """
    own = {name: changes.pop(name) for name in ("factor", "transfer") if name in changes}
    probe = seg_probe_preset("pixel-sample", data, **changes)
    return FaithfulnessConfig.model_validate({"probe": probe} | own)


def run_faithfulness(
    config: FaithfulnessConfig,
    train: SegmentationData,
    val: SegmentationData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Measure how faithful upsamplers are, see :attr:`Protocol.run`.

    The segmentation probes' results, which the transfer is compared with, go to ``out``, too.
    Scores: ``pooled_cosine`` and ``agreement_cosine`` (times 100), ``pooled_mse`` (in the features'
    own unit), their deviation being that over images; ``transfer_miou_labelled`` and so on: the
    probe of low-resolution features; ``own_miou_labelled``: the probe of the method's own features.
    """
    probe, report = config.probe, on_progress or silent
    own: Sequence[Result] = ()
    if config.transfer:
        own = run_seg_probe(
            probe, train, val, backbone, methods, out=out, cache=cache, on_progress=on_progress
        )
    train = train.select(probe.train_every, probe.limit)
    val = val.select(limit=probe.limit)
    direct = {result.label: result for result in own}
    run = _Measure(config, Path(out), report, train, val, backbone, Path(cache), direct)
    return run.run(methods)


@dataclass(eq=False)
class _Measure(ProtocolRun):
    """One backbone on one set.

    Attributes:
        own: results of the probes of each method's own features, by label.
    """

    task = TASK
    unit = "percent; mean squared error in the features' unit; deviation over the images"

    config: FaithfulnessConfig
    train: SegmentationData
    val: SegmentationData
    backbone: Backbone
    cache: Path
    own: Mapping[str, Result]

    def __post_init__(self) -> None:
        config, probe = self.config, self.config.probe
        self.probe = PixelProbe(
            probe, self.out, self.on_progress, self.train, self.val, self.backbone, self.cache
        )
        self.pipe = self.probe.pipe
        height, width = probe.input_size
        self.larger = Pipeline(
            self.backbone,
            input_size=(config.factor * height, config.factor * width),
            fit="exact",
            cache=self.cache / "features",
            cache_dtype=getattr(torch, probe.stored_features),
        )
        self.heads: list[nn.Linear] | None = None

    @property
    def group(self) -> str:
        return self.config.probe.data

    def settings(self, method: Method) -> dict[str, Any]:
        return self.probe.settings(method) | {
            "factor": self.config.factor,
            "transfer": self.config.transfer,
            "pooling": "mean over each cell of the map at the size of the backbone's input",
        }

    def measure(self, pending: Pending) -> Measured:
        """Measure one method."""
        method = pending.method
        measured: dict[str, list[float]] = {}
        for number, file in enumerate(self.val.files):
            self.on_progress(method.label, "comparing features", number, len(self.val))
            image, _ = self.val.read(file)
            for name, value in self.compare(method, image).items():
                measured.setdefault(name, []).append(value)
        # Images are no seeds: one value, its spread over the images beside it.
        scores = {
            name: Score(
                per_seed=(mean := statistics.fmean(values),),
                mean=mean,
                deviation=Score.of(values).deviation,
            )
            for name, values in measured.items()
        }
        if self.config.transfer:
            direct = self.own[method.label].scores
            scores |= self.transfer(method)
            scores |= {f"own_{name}": direct[name] for name in ("miou_labelled", "accuracy")}
        return scores, {}

    def compare(self, method: Method, image: Tensor) -> dict[str, float]:
        """Return the measures of one image (3, H, W) that need no labels."""
        encoded = encode_turned(self.pipe, image)
        pipe = method.on(self.pipe)
        upsampled = pipe.upsample(encoded, encoded.frame.input)[None]  # (1, C, H, W)
        grid = (encoded.features.shape[2], encoded.features.shape[3])
        pooled = F.adaptive_avg_pool2d(upsampled, grid)
        reference = encode_turned(self.larger, image).features  # (1, C, factor * h, factor * w)
        finer = pipe.upsample(encoded, (reference.shape[2], reference.shape[3]))[None]
        return {
            "pooled_cosine": 100 * float(cosine(pooled, encoded.features).mean()),
            "pooled_mse": float((pooled - encoded.features).square().mean()),
            "agreement_cosine": 100 * float(cosine(finer, reference).mean()),
        }

    def transfer(self, method: Method) -> dict[str, Score]:
        """Return the scores of heads that were trained on low-resolution features."""
        if self.heads is None:
            low = LowRes()
            self.heads = self.probe.train_heads(low, self.probe.sample(low))
        metrics = self.probe.validate(method, self.heads)
        scores = seed_scores([metric.compute() for metric in metrics])
        return {f"transfer_{name}": score for name, score in scores.items()}


register_protocol(
    Protocol(
        name=TASK,
        title="Faithfulness to the features",
        summary="Compare upsampled features with the backbone's own (--set transfer=false: no "
        "training).",
        scores={
            "pooled_cosine": higher("pooled-back cosine", "percent"),
            "pooled_mse": lower("pooled-back MSE", ""),
            "agreement_cosine": higher("larger-input cosine", "percent"),
            **prefixed(SCORES, "transfer_", "low-res probe "),
            **prefixed(SCORES, "own_", "own probe "),
        },
        headline=("agreement_cosine",),
        columns=(
            *("pooled_cosine", "pooled_mse", "agreement_cosine"),
            *("transfer_miou_labelled", "own_miou_labelled"),
        ),
        caption="deviation over images, of mIoU over seeds",
        configure=faithfulness_preset,
        data=(*PRESETS["pixel-sample"], FOLDER_SET),
        inputs=lambda request: labelled_splits(request) | {"cache": request.cache},
        own_settings=own_settings,
        run=run_faithfulness,
        seeds=True,
        items="images of each split",
    )
)
