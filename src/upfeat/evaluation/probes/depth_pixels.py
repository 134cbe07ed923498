"""The quick depth probe: heads trained on a fixed sample of pixels, scored on all of them.

The image is resized for the backbone only; the upsampler is guided by that resized image and gives
features at the depth map's own size. As in the segmentation probe
(:mod:`upfeat.evaluation.protocols.seg_probe`), each training image is upsampled once and only the
sampled pixels are kept. Pixels have no neighbours here, so the loss is JAFAR's ``sig`` without the
gradient term.

Legend: ``C`` feature channels, ``K`` bins, ``S`` seeds, ``M`` images, ``N`` pixels of the pool,
``H W`` depth map.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import DepthData
from upfeat.data.sizes import Size
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import DepthMetric
from upfeat.evaluation.probes.depth_losses import bin_depth, sig_loss, valid_depth
from upfeat.evaluation.probes.parts import (
    ClassTokens,
    Heads,
    head_first_is_cheaper,
)
from upfeat.evaluation.probes.pixels import (
    PixelPool,
    PixelSampleConfig,
    Stages,
    encode_turned,
    run_pixel_methods,
    sample_pixels,
)
from upfeat.evaluation.registry import Progress, known_entry
from upfeat.evaluation.results import Result, Score, describe_environment
from upfeat.evaluation.tables.panels import Panel, image_panel, save_panel, shown_images
from upfeat.ops.images import normalize
from upfeat.pipeline import Encoded, Pipeline

__all__ = [
    "DepthPixelConfig",
    "DepthPool",
    "depth_pixel_preset",
    "run_depth_pixels",
    "summarise_depth",
    "train_depth_head",
]

TASK = "depth-probe"


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

    Args:
        data: name of the set.
        **changes: fields of :class:`DepthPixelConfig`.

    Raises:
        UnknownNameError: no such set.
        ValueError: an impossible value.
    """
    own = changes.get("reader") is not None
    settings = {} if own else known_entry("data set", data, _SETS)
    return DepthPixelConfig(**{"data": data} | settings | changes)


class DepthPool:
    """The training pixels of all images.

    Attributes:
        pixels: (N, C) float16 upsampled features.
        depths: (N,).
        images: (N,) number of the image of each pixel.
        tokens: (M, C) class tokens, or None.
    """

    def __init__(
        self,
        pixels: Sequence[Tensor],
        depths: Sequence[Tensor],
        tokens: Sequence[Tensor],
    ) -> None:
        self.pixels, self.depths = torch.cat(list(pixels)), torch.cat(list(depths))
        counts = torch.tensor([len(depth) for depth in depths])
        self.images = torch.arange(len(counts)).repeat_interleave(counts)
        self.tokens = torch.cat(list(tokens)).cpu() if tokens else None


def train_depth_head(pool: DepthPool, config: DepthPixelConfig, seed: int) -> Heads:
    """Train one head on drawn pixels.

    Args:
        pool: what it is drawn from.
        config: steps, batch, learning rate, bins.
        seed: of initialisation and draws.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.depth_pixels import *
        >>> pool = DepthPool([torch.rand(9, 4).half()], [torch.rand(9) + 1], [])
        >>> config = depth_pixel_preset("nyuv2", steps=2, bins=8)
        >>> train_depth_head(pool, config, seed=0).weight.shape
        torch.Size([8, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    token_channels = 0 if pool.tokens is None else pool.tokens.shape[1]
    head = Heads(pool.pixels.shape[1], config.bins, (seed,), token_channels)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        drawn = torch.randint(len(pool.depths), (config.batch_pixels,), generator=generator)
        logits = F.linear(pool.pixels.index_select(0, drawn).float(), head.weight)  # (n, K)
        if pool.tokens is None or head.token_weight is None:
            logits = logits + head.bias
        else:
            shift = F.linear(pool.tokens, head.token_weight, head.bias)  # (M, K)
            # the gradient of embedding costs a fifth of that of shift[...]
            logits = logits + F.embedding(pool.images[drawn], shift)
        depth, target = bin_depth(logits, config.min_depth, config.max_depth), pool.depths[drawn]
        loss = sig_loss(depth, target, target > 0, warm=step < config.warm_up_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


def summarise_depth(
    metrics: Sequence[DepthMetric],
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Return the scores of all seeds' metrics, shares of pixels in percent, and details.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.depth_pixels import summarise_depth
        >>> from upfeat.evaluation.metrics import DepthMetric
        >>> metric = DepthMetric()
        >>> metric.add(torch.ones(1, 2, 2), torch.ones(1, 2, 2))
        >>> summarise_depth([metric])[0]["d1"].mean
        100.0
    """
    each = [metric.compute() for metric in metrics]
    factors = {
        name: 100 if name.removeprefix("si_") in ("d1", "d2", "d3") else 1 for name in each[0]
    }
    scores = {
        name: Score.of([round(factor * score[name], 4) for score in each])
        for name, factor in factors.items()
    }
    return scores, {"images": int(metrics[0].count)}


def run_depth_pixels(
    config: DepthPixelConfig,
    train: DepthData,
    val: DepthData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: Path,
    cache: Path,
    keep_pixels: bool,
    on_progress: Progress,
) -> list[Result]:
    """Run the quick probe; called through ``run_depth_probe``."""
    probe = _PixelProbe(config, train, val, backbone, cache, on_progress, panels=out)
    return run_pixel_methods(
        probe,
        methods,
        task=TASK,
        data=config.data,
        joint_presets="nyu or jafar",
        out=out,
        keep_pixels=keep_pixels,
    )


class _PixelProbe:
    """One backbone on one set; the methods come one after the other."""

    def __init__(
        self,
        config: DepthPixelConfig,
        train: DepthData,
        val: DepthData,
        backbone: Backbone,
        cache: Path,
        on_progress: Progress,
        panels: Path | None = None,
    ) -> None:
        self.config, self.train, self.val = config, train, val
        self.on_progress, self.panels = on_progress, panels
        features = cache / "features"
        self.pipe = Pipeline(
            backbone,
            input_size=config.input_size,
            fit="exact",
            cache=features,
            cache_dtype=getattr(torch, config.stored_features),
        )
        self.tokens = ClassTokens(self.pipe, features)
        name = f"{config.data}-depth"
        self.pool = PixelPool(self.pipe, name, config.pixels_per_image, cache)
        self.splits = {
            split.name: {"images": len(split), "fingerprint": split.fingerprint()}
            for split in (train, val)
        }

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return self.config.model_dump(mode="json") | {
            "splits": self.splits,
            "teacher": None,
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "image_resize": "bicubic, antialiased; height and width exchanged for portraits",
            "head": "1x1 convolution, ReLU, + 0.1, mean of uniform bins; AdamW, cosine to 0",
            "loss": "sig of drawn pixels, no gradient term",
            "alignment": "none; scores with si_: scale and shift of each image",
        }

    def run(self, method: Method, settings: dict[str, Any]) -> Result:
        """Sample, train all heads, score."""
        seeds = self.config.seeds
        stages = Stages()
        pool = self.sample(method)
        stages.end("sampling")
        heads = []
        for number, seed in enumerate(seeds):
            self.on_progress(method.label, "training heads", number, len(seeds))
            heads.append(train_depth_head(pool, self.config, seed).to(self.pipe.device))
        stages.end("training")
        metrics = self.validate(method, heads)
        stages.end("validation")
        scores, details = summarise_depth(metrics)
        details["pool_pixels"] = len(pool.depths)
        return Result(
            task=TASK,
            label=method.label,
            settings=settings,
            scores=scores,
            unit="m",
            details=details,
            seconds=stages.seconds,
            environment=describe_environment(),
        )

    def token(self, encoded: Encoded) -> Tensor | None:
        """Return the class token (1, C) of an image, or None."""
        if not self.config.class_token:
            return None
        backbone = self.pipe.backbone
        return self.tokens(normalize(encoded.prepared, backbone.image_mean, backbone.image_std))

    def sample(self, method: Method) -> DepthPool:
        """Return the sampled pixels of the training images."""
        pixels, depths, tokens = [], [], []
        for number, file in enumerate(self.train.files):
            self.on_progress(method.label, "sampling pixels", number, len(self.train))
            image, depth = self.train.read(file)
            known = valid_depth(depth, self.config.max_depth)
            positions = sample_pixels(known, self.config.pixels_per_image, file.name)
            if not len(positions):
                continue
            encoded, size = encode_turned(self.pipe, image), (depth.shape[0], depth.shape[1])
            key = f"{file.name}-{self.train.file_hash(file)}"
            pixels.append(self.pool.read(method, encoded, size, positions, key))
            depths.append(depth.flatten()[positions])
            token = self.token(encoded)
            tokens += [] if token is None else [token]
        if not pixels:
            raise ValueError(
                f"no image of {self.train.name} has depth between 0 and {self.config.max_depth}"
            )
        return DepthPool(pixels, depths, tokens)

    def validate(self, method: Method, heads: Sequence[Heads]) -> list[DepthMetric]:
        """Score the heads of all seeds in one pass over the validation split."""
        metrics = [DepthMetric(1e-3, self.config.max_depth, aligned=True) for _ in heads]
        shown = frozenset() if self.panels is None else shown_images(len(self.val))
        for number, file in enumerate(self.val.files):
            self.on_progress(method.label, "scoring", number, len(self.val))
            image, target = self.val.read(file)
            encoded = encode_turned(self.pipe, image)
            size = (target.shape[0], target.shape[1])
            depths = self.predict(method, encoded, size, heads)
            for metric, depth in zip(metrics, depths, strict=True):
                metric.add(depth[None], target[None])
            if number in shown:
                self.draw(method.label, file.name, encoded.prepared[0], target, depths[0])
        return metrics

    def draw(self, label: str, name: str, image: Tensor, target: Tensor, depth: Tensor) -> None:
        """Leave the image (3, h, w), its depth and the first seed's (H, W) as pictures."""
        if self.panels is None:
            return
        common: dict[str, Any] = {"task": TASK, "data": self.config.data, "image": name}
        common["backbone"] = self.pipe.identity["name"]
        known = target.where(target > 0, torch.nan)
        pictures = (
            image_panel(image, **common),
            Panel(**common, label="target", kind="depth", values=known, unit="m"),
            Panel(**common, label=label, kind="depth", values=depth, unit="m"),
        )
        for picture in pictures:
            save_panel(self.panels, picture)

    @torch.no_grad()
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
