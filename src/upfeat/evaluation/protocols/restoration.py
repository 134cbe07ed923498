"""Restoration of noisy images: an upsampler at ratio 1, the image being guidance and values.

NAF (arXiv 2511.18452): an image of 448 gets noise and is given to the method twice, normalised as
guidance and in [0, 1] as values; the output of the same size is compared with the clean image.
Presets ``gaussian`` (deviation 0.1) and ``salt-pepper`` (0.05 of the values become 0 or 1). Methods
that learn are trained for it first, by the objective ``restoration``: ``upfeat train
naf_restoration_paper``, or with ``upsampler.name=...`` another method of three channels. Weights
for a backbone's features are of no use here.

Legend: ``B`` images, ``H W`` image.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
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
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, seed_scores
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


_PRESETS = Presets(ImageRestorationConfig, PRESETS, DATA_SETS)


def restoration_preset(preset: str, data: str = "images", **changes: Any) -> ImageRestorationConfig:
    """Return the settings of a preset for ``images``, a folder of them, or ``imagenet``."""
    return _PRESETS(preset, data, **changes)


def add_noise(image: Tensor, config: ImageRestorationConfig, name: str) -> Tensor:
    """Return an image (3, H, W) with the noise that the settings and its name decide."""
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
    """Restore images, files and names, with several upsamplers, see :attr:`Protocol.run`.

    The image is its own features: there is no backbone. Scores are ``psnr`` in dB and ``ssim``. The
    row ``low-res`` is the noisy image itself.

    Raises:
        ValueError: an image is broken, or a method does not fit three channels.
    """
    chosen = spread(tuple(images), 1, config.limit)
    restored = _Restoring(config, Path(out), on_progress or silent, chosen, torch.device(device))
    return restored.run(methods)


@dataclass(eq=False)
class _Restoring(ProtocolRun):
    """One set of images."""

    task = TASK
    unit = "dB; SSIM a fraction"

    config: ImageRestorationConfig
    images: Sequence[tuple[Path, str]]
    device: torch.device

    def __post_init__(self) -> None:
        fingerprint = hash_files(path for path, _ in self.images)
        self.facts = {
            "splits": {self.group: {"images": len(self.images), "fingerprint": fingerprint}},
            "guidance": "the noisy image with ImageNet's mean and deviation",
        }

    def measure(self, pending: Pending) -> Measured:
        """Restore all images and compare them with the clean ones."""
        method, config, metric = pending.method, self.config, RestorationMetric()
        size = (config.size, config.size)
        for first in range(0, len(self.images), config.batch):
            self.on_progress(method.label, "restoring", first, len(self.images))
            clean, noisy = [], []
            for path, name in self.images[first : first + config.batch]:
                image = F.interpolate(read_image(path)[None], size, mode="bilinear")[0]
                clean.append(image)
                noisy.append(add_noise(image, config, name))
            values = torch.stack(noisy).to(self.device)  # (B, 3, H, W)
            restored = values
            if not isinstance(method, LowRes):
                guidance = normalize(values, IMAGENET_MEAN, IMAGENET_STD)
                with torch.no_grad():
                    restored = method.upsampler(guidance, values, size)
            metric.add(restored.cpu(), torch.stack(clean))
        return seed_scores([metric.compute()], percent=lambda name: False), {}


def _inputs(request: Request) -> dict[str, Any]:
    found = [(path, name.as_posix()) for path, name in image_files(request.root)]
    return {"images": found, "device": request.device}


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
        width=lambda config: 3,
        items="images",
    )
)
