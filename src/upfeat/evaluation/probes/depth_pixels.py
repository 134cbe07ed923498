"""The quick depth probe: heads trained on a fixed sample of pixels, scored on all of them.

See :mod:`upfeat.evaluation.probes.pixels`. Pixels have no neighbours here, so the loss is JAFAR's
``sig`` without the gradient term.

Legend: ``C`` feature channels, ``K`` bins, ``S`` seeds, ``M`` images, ``H W`` depth map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.data.sizes import Size
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import DepthMetric
from upfeat.evaluation.probes.losses import bin_depth, sig_loss, valid_depth
from upfeat.evaluation.probes.parts import ClassTokens, Heads, head_first_is_cheaper
from upfeat.evaluation.probes.pixels import (
    PixelSampleConfig,
    PixelSampleProbe,
    TrainingPixels,
    train_on_pixels,
)
from upfeat.evaluation.registry import known_entry
from upfeat.evaluation.running import Measured, Picture, seed_scores
from upfeat.ops.images import normalize
from upfeat.pipeline import Encoded


class DepthPixelConfig(PixelSampleConfig):
    """Settings of the quick probe.

    Attributes:
        warm_up_steps: in the first of them the loss is without its variance.
        bins, min_depth, max_depth: of the decoding; targets from 0 to ``max_depth`` count.
        class_token: give the head the class token, too.
        head_before_upsampling: ``auto`` where it gives the same numbers for less; ``never``.
    """

    steps: PositiveInt = 2000
    batch_pixels: PositiveInt = 2048
    warm_up_steps: NonNegativeInt = 100
    bins: int = Field(default=256, ge=2)
    min_depth: PositiveFloat = 1e-3
    max_depth: PositiveFloat = 10.0
    class_token: bool = True
    head_before_upsampling: Literal["auto", "never"] = "auto"


_SETS: dict[str, dict[str, Any]] = {"nyuv2": {"input_size": (432, 560)}}


def depth_pixel_preset(data: str, **changes: Any) -> DepthPixelConfig:
    """Return the settings for a data set.

    Raises:
        UnknownNameError: no such set.
        ValueError: an impossible value.
    """
    own = changes.get("reader") is not None
    settings = {} if own else known_entry("data set", data, _SETS)
    return DepthPixelConfig(**{"data": data} | settings | changes)


def train_depth_head(pool: TrainingPixels, config: DepthPixelConfig, seed: int) -> Heads:
    """Train one head on drawn pixels; the seed is that of initialisation and draws."""
    generator = torch.Generator().manual_seed(seed)
    token_channels = 0 if pool.tokens is None else pool.tokens.shape[1]
    head = Heads(pool.pixels.shape[1], config.bins, (seed,), token_channels)

    def loss(drawn: Tensor, step: int) -> Tensor:
        logits = F.linear(pool.pixels.index_select(0, drawn).float(), head.weight)  # (n, K)
        if pool.tokens is None or head.token_weight is None:
            logits = logits + head.bias
        else:
            shift = F.linear(pool.tokens, head.token_weight, head.bias)  # (M, K)
            # the gradient of embedding costs a fifth of that of shift[...]
            logits = logits + F.embedding(pool.images[drawn], shift)
        depth, target = bin_depth(logits, config.min_depth, config.max_depth), pool.targets[drawn]
        return sig_loss(depth, target, target > 0, warm=step < config.warm_up_steps)

    return train_on_pixels(head, len(pool.targets), config, generator, loss)


def summarise_depth(metrics: Sequence[DepthMetric]) -> Measured:
    """Return the scores of all seeds' metrics, shares of pixels in percent, and details."""
    shares = {f"{prefix}{name}" for prefix in ("", "si_") for name in ("d1", "d2", "d3")}
    scores = seed_scores([metric.compute() for metric in metrics], shares.__contains__)
    return scores, {"images": int(metrics[0].count)}


@dataclass(eq=False)
class DepthPixelProbe(PixelSampleProbe[Heads, DepthMetric]):
    """The quick probe of one backbone on one set."""

    task = "depth-probe"
    unit = "m"
    joint_presets = "nyu or jafar"
    pool_suffix = "-depth"

    config: DepthPixelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wanted = f"depth between 0 and {self.config.max_depth}"
        self.tokens = ClassTokens(self.pipe, self.cache / "features")
        self.facts |= {
            "teacher": None,
            "head": "1x1 convolution, ReLU, + 0.1, mean of uniform bins; AdamW, cosine to 0",
            "loss": "sig of drawn pixels, no gradient term",
            "alignment": "none; scores with si_: scale and shift of each image",
        }

    def known(self, target: Tensor) -> Tensor:
        """Return where a depth map counts."""
        return valid_depth(target, self.config.max_depth)

    def token(self, encoded: Encoded) -> Tensor | None:
        """Return the class token (1, C) of an image, or None."""
        if not self.config.class_token:
            return None
        backbone = self.pipe.backbone
        return self.tokens(normalize(encoded.prepared, backbone.image_mean, backbone.image_std))

    def train_head(self, pool: TrainingPixels, seed: int) -> Heads:
        """Return the head of a seed, trained."""
        return train_depth_head(pool, self.config, seed)

    def metric(self) -> DepthMetric:
        """Return an empty metric."""
        return DepthMetric(1e-3, self.config.max_depth, aligned=True)

    def score(self, metrics: Sequence[DepthMetric], predicted: Tensor, target: Tensor) -> None:
        """Add the depths of an image."""
        for metric, depth in zip(metrics, predicted, strict=True):
            metric.add(depth[None], target[None])

    def summarise(self, method: Method, metrics: Sequence[DepthMetric]) -> Measured:
        """Return the scores, and how many images they are the mean of."""
        return summarise_depth(metrics)

    def picture(self, name: str, image: Tensor, target: Tensor, label: str, found: Tensor) -> None:
        """Leave an image and both maps of depth as pictures."""
        depth = target.where(target > 0, torch.nan)
        both: list[Picture] = [("target", "depth", depth), (label, "depth", found)]
        self.draw(image, name, self.pipe.identity["name"], both, unit="m")

    def predict(
        self, method: Method, encoded: Encoded, size: Size, heads: Sequence[Heads]
    ) -> Tensor:
        """Return the predicted depths (S, H, W) of each head."""
        config, token, one = self.config, self.token(encoded), slice(0, 1)
        features, upsampler, pipe = encoded.features, method.upsampler, method.on(self.pipe)
        cells = features.shape[2] * features.shape[3]
        allowed = upsampler.info.abilities.linear and config.head_before_upsampling == "auto"
        predicted = torch.empty(len(heads), *size)

        def decode(number: int, rows: slice, logits: Tensor) -> None:
            depth = bin_depth(logits, config.min_depth, config.max_depth)
            predicted[number, rows] = depth[0].cpu()

        if allowed and head_first_is_cheaper(
            upsampler, features.shape[1], config.bins, len(heads), cells
        ):
            for number, head in enumerate(heads):
                first = partial(head, token=token, seeds=one)
                for rows, tile in pipe.pieces(encoded, size, first):
                    decode(number, rows, tile)
            return predicted
        for rows, tile in pipe.pieces(encoded, size):
            for number, head in enumerate(heads):
                decode(number, rows, head(tile, token, one))
        return predicted
