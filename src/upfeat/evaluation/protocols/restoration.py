"""Restoration of noisy images: an upsampler at ratio 1, the image being guidance and values.

NAF (arXiv 2511.18452): an image of 448 gets noise and is given to the method twice, normalised as
guidance and in [0, 1] as values; the output of the same size is compared with the clean image.
Presets ``gaussian`` (deviation 0.1) and ``salt-pepper`` (0.05 of the values become 0 or 1). Methods
that learn are trained for it first, by the objective ``restoration``: ``upfeat train
naf_restoration_paper``, or with ``upsampler.name=...`` another method of three channels. Weights
for a backbone's features are of no use here.

Legend: ``B`` images, ``H W`` image.
"""

import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import image_files, read_image
from upfeat.data.layouts import hash_files, spread
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import RestorationMetric
from upfeat.evaluation.registry import (
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    higher,
    known_entry,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result, Score, describe_environment, stored_result
from upfeat.objectives.restoration import Noise, noisy_image
from upfeat.ops.images import normalize
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "PRESETS",
    "ImageRestorationConfig",
    "add_noise",
    "restoration_preset",
    "run_restoration",
]

TASK = "restoration"


class ImageRestorationConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        noise: of normal distribution, added and not clipped; or values that become 0 or 1.
        deviation: of the normal distribution.
        probability: with which a channel's value is replaced.
        size: side of the square that images are resized to (bilinear).
        batch: images that are scored together.
        seed: of the noise; with an image's name it decides that image's.
    """

    preset: Literal["gaussian", "salt-pepper"] = "gaussian"
    noise: Noise = "gaussian"
    deviation: NonNegativeFloat = 0.1
    probability: float = Field(default=0.05, ge=0, le=1)
    size: PositiveInt = 448
    batch: PositiveInt = 2
    seed: int = 0


PRESETS: dict[str, dict[str, Any]] = {"gaussian": {}, "salt-pepper": {"noise": "salt-pepper"}}
DATA_SETS = ("images", "imagenet")


def restoration_preset(preset: str, data: str = "images", **changes: Any) -> ImageRestorationConfig:
    """Return the settings of a preset.

    Args:
        preset: see ``PRESETS``.
        data: ``images``, any folder of them; ``imagenet``, that of its validation images.
        **changes: fields of :class:`ImageRestorationConfig`.

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.restoration import restoration_preset
        >>> restoration_preset("salt-pepper").probability
        0.05
    """
    settings = known_entry("preset", preset, PRESETS)
    known_entry("data set", data, dict.fromkeys(DATA_SETS))
    return ImageRestorationConfig(**{"preset": preset, "data": data} | settings | changes)


def add_noise(image: Tensor, config: ImageRestorationConfig, name: str) -> Tensor:
    """Return an image (3, H, W) with the noise that the settings and its name decide.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.protocols.restoration import add_noise, restoration_preset
        >>> config = restoration_preset("salt-pepper", probability=1.0)
        >>> sorted(add_noise(torch.full((3, 8, 8), 0.5), config, "a").unique().tolist())
        [0.0, 1.0]
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed} {name}".encode()))
    amount = config.deviation if config.noise == "gaussian" else config.probability
    return noisy_image(image, config.noise, amount, generator)


def run_restoration(
    config: ImageRestorationConfig,
    images: Sequence[tuple[Path, str]],
    methods: Sequence[Method],
    *,
    out: str | Path,
    device: str = "cpu",
    backbone: Backbone | None = None,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Restore images with several upsamplers; results that exist already are read.

    Args:
        config: the protocol.
        images: files and names; ``limit`` of the settings applies.
        methods: upsamplers, on the device.
        out: folder of the results, one JSON a method.
        device: where everything runs.
        backbone: not used: the image is its own features.
        on_progress: called with label, stage, done and total.

    Returns:
        The results, in the order of the methods: ``psnr`` in dB, ``ssim``. The row ``low-res`` is
        the noisy image itself.

    Raises:
        ValueError: an image is broken, or a method does not fit three channels.
    """
    chosen, report = spread(tuple(images), 1, config.limit), on_progress or silent
    split = {"images": len(chosen), "fingerprint": hash_files(path for path, _ in chosen)}
    results = []
    for method in methods:
        settings = config.model_dump(mode="json") | {
            "splits": {config.data: split},
            "upsampler": method.identity,
            "guidance": "the noisy image with ImageNet's mean and deviation",
        }
        path, known = stored_result(out, TASK, config.data, method.label, settings)
        if known is None:
            known = _measure(config, chosen, method, settings, torch.device(device), report)
            known.save(path)
        results.append(known)
    return results


def _measure(
    config: ImageRestorationConfig,
    images: Sequence[tuple[Path, str]],
    method: Method,
    settings: dict[str, Any],
    device: torch.device,
    report: Progress,
) -> Result:
    start, metric = time.perf_counter(), RestorationMetric()
    size = (config.size, config.size)
    for first in range(0, len(images), config.batch):
        report(method.label, "restoring", first, len(images))
        clean, noisy = [], []
        for path, name in images[first : first + config.batch]:
            image = F.interpolate(read_image(path)[None], size, mode="bilinear")[0]
            clean.append(image)
            noisy.append(add_noise(image, config, name))
        values = torch.stack(noisy).to(device)  # (B, 3, H, W)
        restored = values
        if not isinstance(method, LowRes):
            guidance = normalize(values, IMAGENET_MEAN, IMAGENET_STD)
            with torch.no_grad():
                restored = method.upsampler(guidance, values, size)
        metric.add(restored.cpu(), torch.stack(clean))
    return Result(
        task=TASK,
        label=method.label,
        settings=settings,
        scores={name: Score.of([round(score, 4)]) for name, score in metric.compute().items()},
        unit="dB; SSIM a fraction",
        seconds={"all": round(time.perf_counter() - start, 1)},
        environment=describe_environment(),
    )


def _inputs(request: Request) -> dict[str, Any]:
    found = [(path, name.as_posix()) for path, name in image_files(request.root)]
    return {"images": found, "device": request.device}


def _width(config: ImageRestorationConfig) -> int:
    return 3


register_protocol(
    Protocol(
        name=TASK,
        title="Restoration",
        summary="Denoise images with upsamplers that keep the resolution (ratio 1).",
        scores={"psnr": higher("PSNR", "dB"), "ssim": higher("SSIM", "")},
        headline=("psnr",),
        configure=restoration_preset,
        presets=tuple(PRESETS),
        data=DATA_SETS,
        inputs=_inputs,
        run=run_restoration,
        width=_width,
        items="images",
    )
)
